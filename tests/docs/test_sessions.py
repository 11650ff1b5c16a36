"""The sessions of the documentation, run against a real service on the real data."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from label_service.data.dataset import FILES, find_file
from label_service.data.sources import DEBIAN_FOLDER, DEBIAN_PACKAGE
from tests.docs import ROOT, commands, console_blocks, read, section
from tests.support import service_process
from trainer.records.run_records import read_result

MISSING = [tool for tool in ("bash", "curl", "jq") if shutil.which(tool) is None]
HAS_DATA = all(find_file(DEBIAN_FOLDER, name) for name in FILES)
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"SESSION NOT RUN: install {', '.join(MISSING)}")
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not HAS_DATA, reason=f"NO REAL DATA: install the Debian package {DEBIAN_PACKAGE}"),
]
# What no two services share: a run's name in the log, and the time.
MASKS = {r"run-[0-9a-f]{12}": "RUN", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z": "TIME"}
SESSION = "".join(block for block in console_blocks(read("docs/reading-the-log.md")) if "localhost:8000" in block)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The real data, prepared in a folder of its own."""
    folder = tmp_path_factory.mktemp("docs") / "data"
    prepare = [sys.executable, "-m", "label_service", "prepare", "--data", folder, "--from", DEBIAN_FOLDER]
    subprocess.run(prepare, cwd=ROOT, check=True, timeout=120)
    return folder


@pytest.fixture
def service(data, tmp_path):
    """A client of a service process on the real labels and a fresh database."""
    with service_process.service(data, tmp_path) as client:
        yield client


def masked(text):
    for pattern, name in MASKS.items():
        text = re.sub(pattern, name, text)
    return text.strip()


def play(session, service, folder):
    """Run a session's commands in one shell; return it with what they really print, run ids and times masked."""
    address = f"{service.base_url.host}:{service.base_url.port}"
    lines = [
        line
        for command in re.findall(r"^\$ (.+)$", session, re.MULTILINE)
        for line in (f"printf '%s\\n' {shlex.quote('$ ' + command)}", command.replace("localhost:8000", address))
    ]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    shell = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return masked(done.stdout)


@needs_tools
def test_session_prints_what_the_page_shows(service, tmp_path):
    """Every command of the session, in order, and each line of its output."""
    assert SESSION.count("$ ") >= 10
    assert play(SESSION, service, tmp_path) == masked(SESSION)


@needs_tools
def test_changed_output_would_be_noticed(service, tmp_path):
    """The twin: a session that begins on a log with one more query prints other counts."""
    service.get("/label/41").raise_for_status()
    assert play(SESSION, service, tmp_path) != masked(SESSION)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stages_one_by_one_lead_to_a_report(data, service, tmp_path):
    """The four commands, with the smoke profile, end with a report; the guide names each file that they leave."""
    lines = commands(section("docs/running.md", "Stages one by one"))
    stages = [shlex.split(line)[1:] for line in lines if line.startswith("python -m trainer")]
    assert [stage[2] for stage in stages] == ["pretrain", "finetune", "evaluate", "report"]
    for stage in stages:
        # The page relies on defaults and on runs/ in the checkout; the test names its own.
        words = [str(tmp_path / word) if word.startswith("runs/") else word for word in stage]
        words += [] if "--out" in words else ["--out", str(tmp_path / "runs" / stage[2])]
        words += ["--data", str(data / "images")]
        words += ["--service", str(service.base_url)] if stage[2] in ("finetune", "evaluate") else []
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "runs/finetune"
    asked = len((out / "queries.jsonl").read_text().splitlines())
    assert read_result(out).queries_in_log == asked > 0
    guide = section("docs/trainer.md", "Files in OUT")
    for path in [*(tmp_path / "runs/pretrain").iterdir(), *out.iterdir()]:
        assert f"`{path.name}{'/' * path.is_dir()}`" in guide

"""The README's commands, run: the curl and jq session word for word, the stages by hand on the real images.

`make run` itself is tested in `test_make_run.py` and compose in `test_compose.py`; here their commands only have to
parse and to name what exists.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from typer.main import get_command

from label_service.cli import app as service_app
from label_service.data.dataset import FILES, find_file
from label_service.data.sources import DEBIAN_FOLDER, DEBIAN_PACKAGE
from scripts import counts
from scripts.options import MAKEFILE_VARIABLES, MakeRunOptions, StudyOptions
from trainer.cli import app as trainer_app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TRAINER_GUIDE = (ROOT / "docs/trainer.md").read_text()
HAS_DATA = all(find_file(DEBIAN_FOLDER, name) for name in FILES)
MISSING = [tool for tool in ("bash", "curl", "jq") if shutil.which(tool) is None]
needs_data = pytest.mark.skipif(not HAS_DATA, reason=f"NO REAL DATA: install the Debian package {DEBIAN_PACKAGE}")
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"README'S SESSION NOT RUN: install {', '.join(MISSING)}")
READY_TIMEOUT_S = 60.0
# What no two services share: a run's name in the log, and the time.
RUN_ID = re.compile(r"run-[0-9a-f]{12}")
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
PROGRAMS = {"label_service": service_app, "trainer": trainer_app}


def blocks(kind, marker=None):
    """Return the README's fenced blocks of a kind, those under a `<!-- checked: MARKER -->` alone if one is named."""
    pattern = rf"^( *)```{kind}\n(.*?)^ *```$"
    if marker is not None:
        pattern = rf"^()<!-- checked: {marker} -->\n```{kind}\n(.*?)^```$"
    found = re.findall(pattern, README, flags=re.MULTILINE | re.DOTALL)
    return ["".join(line.removeprefix(indent) for line in text.splitlines(True)) for indent, text in found]


def section(title):
    """Return the text of one section."""
    found = README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert found, f"the README has no section {title}"
    return found


def commands(text=None):
    """Return the commands of console blocks, without their prompts."""
    lines = "\n".join(blocks("console")) if text is None else text
    return [line.strip().removeprefix("$ ") for line in lines.splitlines() if line.strip().startswith("$ ")]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(command, port, log):
    """Run a service until the block ends; yield once it is ready."""
    with log.open("wb") as output:
        service = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            while True:
                assert service.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                try:
                    if client.get("/readyz").is_success:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
        yield
    finally:
        service.terminate()
        service.wait(30)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The real data, prepared as the README's `prepare` does, but in a folder of its own."""
    folder = tmp_path_factory.mktemp("readme") / "data"
    prepare = shlex.split("python -m label_service prepare")
    assert " ".join(prepare) in commands(section("Read the query log"))
    subprocess.run(
        [sys.executable, *prepare[1:], "--data", folder, "--from", DEBIAN_FOLDER], cwd=ROOT, check=True, timeout=120
    )
    return folder


@pytest.fixture
def service(data, tmp_path):
    """The README's `serve` on the real labels, a fresh database and a free port; the port."""
    serve = shlex.split("python -m label_service serve")
    assert " ".join(serve) in commands(section("Read the query log"))
    port = free_port()
    options = ["--data", data, "--database-url", f"sqlite:///{tmp_path / 'labels.sqlite3'}", "--port", str(port)]
    with serving([sys.executable, *serve[1:], *options], port, tmp_path / "service.log"):
        yield port


def play(text, port, folder):
    """Run a session's commands in one shell; return it with what they really print, run ids and times masked."""
    script = []
    for command in commands(text):
        script += [
            f"printf '%s\\n' {shlex.quote('$ ' + command)}",
            command.replace("localhost:8000", f"127.0.0.1:{port}"),
        ]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(script)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return masked(result.stdout)


def masked(text):
    return TIMESTAMP.sub("TIME", RUN_ID.sub("RUN", text)).strip()


@pytest.mark.realdata
@needs_data
@needs_tools
def test_query_log_session_prints_what_the_readme_shows(service, tmp_path):
    """Every command of the worked example, in order, against a real service; each line of output as printed here."""
    shown = "".join(blocks("console", "session"))
    assert len(commands(shown)) >= 10
    assert play(shown, service, tmp_path) == masked(shown)


@pytest.mark.realdata
@needs_data
@needs_tools
def test_changed_output_would_be_noticed(service, tmp_path):
    """The twin: a session that begins on a log with one more query prints other counts than the README."""
    httpx.get(f"http://127.0.0.1:{service}/label/41", trust_env=False).raise_for_status()
    shown = "".join(blocks("console", "session"))
    assert play(shown, service, tmp_path) != masked(shown)


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.timeout(900)
@needs_data
def test_stages_by_hand_lead_to_a_report(data, service, tmp_path):
    """The four commands, with the smoke profile, end with a report; each file they leave is in docs/trainer.md."""
    stages = [shlex.split(line) for line in commands(section("Stages by hand")) if line.startswith("python")]
    assert [stage[3] for stage in stages] == ["pretrain", "finetune", "evaluate", "report"]
    for stage in stages:
        # Where the README relies on defaults (data, the port) or on runs/ in the checkout, the test names its own.
        words = [str(tmp_path / word) if word.startswith("runs/") else word for word in stage[1:]]
        words = ["smoke" if word == "paper" else word for word in words]
        if "--out" not in words:
            words += ["--out", str(tmp_path / "runs" / stage[3])]
        words += ["--data", str(data / "images")]
        words += ["--service", f"http://127.0.0.1:{service}"] if stage[3] in ("finetune", "evaluate") else []
        result = subprocess.run(
            [sys.executable, *words], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
        )
        assert result.returncode == 0, result.stdout + result.stderr
    out = tmp_path / "runs/finetune"
    assert (out / "report.html").is_file()
    asked = len((out / "queries.jsonl").read_text().splitlines())
    assert counts.read_result(out / "result.json")["queries_in_log"] == asked > 0
    for path in [*(tmp_path / "runs/pretrain").iterdir(), *out.iterdir()]:
        assert f"`{path.name}{'/' * path.is_dir()}`" in TRAINER_GUIDE, f"docs/trainer.md does not name {path.name}"


def test_every_command_is_good_shell():
    """Bash can parse each command; a stray quote would be found."""
    assert len(commands()) > 20
    for command in commands():
        parsed = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert parsed.returncode == 0, command + parsed.stderr


def test_every_python_command_has_only_options_that_exist():
    """The command lines of both programs are parsed by the programs themselves, and values of options checked."""
    seen = Counter()
    for command in commands():
        words = shlex.split(command)
        if words[:2] != ["python", "-m"]:
            continue
        program = get_command(PROGRAMS[words[2]])
        with program.make_context(words[2], [words[3]]) as context:
            _, stage, rest = program.resolve_command(context, [*words[3:]])
            stage.make_context(words[3], list(rest), parent=context).close()
        seen[words[2]] += 1
    assert seen["label_service"] >= 3
    assert seen["trainer"] >= 4


def test_every_make_command_names_a_target_and_its_variables():
    """`make --dry-run` accepts each, and the variables are declared."""
    kinds = {"run": MakeRunOptions, "study": StudyOptions}
    quoted = re.findall(r"`(make [^`]+)`", README)
    found = [*(command for command in commands() if command.startswith("make ")), *quoted]
    assert {"make run", "make test"} <= set(found)
    for command in found:
        words = shlex.split(command)[1:]
        targets = [word for word in words if "=" not in word]
        known = {name.upper() for target in targets if target in kinds for name in kinds[target].model_fields}
        given = {word.partition("=")[0] for word in words if "=" in word}
        assert given <= known | MAKEFILE_VARIABLES, command
        bare = {"PATH": os.environ["PATH"]}
        made = subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, env=bare, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr


def test_table_of_variables_is_what_make_run_takes():
    """The README's variables and the declared ones are the same."""
    described = re.findall(r"^\| `(\w+)=` \|", section("What `make run` does"), flags=re.MULTILINE)
    assert sorted(described) == sorted(name.upper() for name in MakeRunOptions.model_fields)


def test_compose_commands_name_profiles_and_variables_that_exist():
    """Every `docker compose` command parses, its profile is in the file, and so is each variable set or named."""
    text = (ROOT / "docker-compose.yml").read_text()
    profiles = {name for each in yaml.safe_load(text)["services"].values() for name in each.get("profiles", [])}
    quoted = re.findall(r"`([A-Z_=0-9a-z ]*docker compose [^`]+)`", README)
    found = [*(command for command in commands() if "docker compose" in command), *quoted]
    assert len(found) >= 6
    for command in found:
        words = shlex.split(command)
        settings = [word for word in words if re.match(r"[A-Z_]+=", word)]
        assert all(setting.partition("=")[0] in text for setting in settings), command
        start = words.index("docker")
        assert words[start + 1] == "compose"
        rest = words[start + 2 :]
        if rest[0] == "--profile":
            assert rest[1] in profiles, command
            rest = rest[2:]
        assert rest[0] in ("up", "down", "build"), command
    for name in re.findall(r"`((?:TRAINER|LABELMETER|LABEL_SERVICE)_[A-Z_]+)`", section("Containers")):
        assert name in text, f"{name} is not in docker-compose.yml"


def test_closing_table_has_the_rows_that_make_run_prints(tmp_path):
    """The shown table has the names of the real one, in order."""
    result = {
        "profile": "smoke", "seed": 3, "budget": 60, "queries_counted_by_trainer": 60, "evaluation": None,
        "stage_seconds": dict.fromkeys(("pretrain", "features", "graph", "query", "fine-tune", "evaluate"), 1.0),
    }  # fmt: skip
    log = counts.LogCounts(60, frozenset(), frozenset())
    printed = [name for name, _ in counts.table_rows(result, log, "Fashion-MNIST", "verified", tmp_path)]
    (shown,) = blocks("text", "closing table")
    width = max(len(name) for name in printed)
    assert [line[2 : 2 + width].rstrip() for line in shown.splitlines() if line.startswith("  ")] == printed


def record_tables():
    """Return the record's folder and the text of each table that the README has from a record."""
    return re.findall(r"^<!-- checked: (records/\S+) -->\n((?:\|.*\n)+)", README, flags=re.MULTILINE)


@pytest.mark.parametrize(("record", "table"), record_tables())
def test_published_tables_are_those_of_their_records(record, table):
    """Not a digit differs from what `make verify-records` makes out of the evidence."""
    assert table in (ROOT / record / "table.md").read_text()


def test_our_rows_of_the_first_table_are_those_of_their_record():
    """Mean, deviation, each seed's accuracy and the minutes of the record's first arm, the default's."""
    (record, rows), *more = re.findall(r"^<!-- checked: headline of (\S+) -->\n((?:\|.*\n)+)", README, flags=re.M)
    ours = re.findall(r"^\| \*\*(\d+) active\*\* \| (.*?) \| (\d+) to (\d+) min, .* \|$", rows, flags=re.M)
    assert not more
    assert [labels for labels, *_ in ours] == ["400", "100"]
    table = (ROOT / record / "table.md").read_text()
    header, _, default = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")][:3]
    for labels, shown, shortest, longest in ours:
        mean, sd = re.fullmatch(r"([\d.]+) ± ([\d.]+) \(5\)", default[header.index(labels) + 1]).groups()
        runs = re.findall(rf"^- {default[0]}, seed .*[ ,]{labels}: ([\d.]+)% \((\d+) min\)", table, flags=re.M)
        each = ", ".join(accuracy for accuracy, _ in runs)
        minutes = [int(minute) for _, minute in runs]
        assert shown in {f"**{mean}** (sd {sd}; {each})", f"**{mean}** (sd {sd})"}
        assert (int(shortest), int(longest)) == (min(minutes), max(minutes))


def test_the_default_run_predicts_what_the_curve_has_at_its_budget():
    """By the hash of the predictions, in two signed logs: one charged 400 labels and no more, the other went on."""
    run = "runs/uncertain-clusters-seed41/evidence.json"
    hashes = []
    for record, charged in (("2026-11-25_default-run", 400), ("2026-11-25_learning-curve", 1000)):
        entries = [json.loads(entry) for entry in json.loads((ROOT / "records" / record / run).read_text())["entries"]]
        assert sum(entry["charged"] for entry in entries) == charged
        told = {
            entry["detail"]["evaluated_budget"]: entry["detail"] for entry in entries if entry["op"] == "evaluation"
        }
        hashes.append(told[400 if 400 in told else None]["predictions_sha256"])
    assert len(hashes[0]) == 64 and hashes[0] == hashes[1]


def test_every_record_is_published():
    """What the README leaves out could be a result that was thrown away."""
    folders = [path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "records").glob("*/record.json")]
    assert sorted(folders) == sorted({record for record, _ in record_tables()})


def tree():
    """Return the paths that the README's file tree names; two spaces a level, a folder ends with a slash."""
    (text,) = blocks("text", "tree")
    folders, paths = [], []
    for line in text.splitlines():
        level = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        assert len(line.split()) > 1 or name == "versions/", f"the tree says nothing about {name}"
        del folders[level:]
        paths.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def test_file_tree_names_what_exists_and_nothing_twice():
    """Each path of the tree is there, of the kind it says."""
    for path in tree():
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path
    assert len(tree()) == len(set(tree()))


@pytest.mark.parametrize("folder", ["label_service", "trainer", "scripts"])
def test_file_tree_names_every_module(folder):
    """A new module without its line in the README fails here."""
    files = [path for kind in ("*.py", "*.sh") for path in (ROOT / folder).rglob(kind)]
    modules = {path.relative_to(ROOT).as_posix() for path in files if not path.name.startswith("__")}
    assert len(modules) > 5
    assert modules <= set(tree()), f"not in the README's tree: {sorted(modules - set(tree()))}"


def test_every_link_leads_to_a_file_and_heading():
    """No link of the README into the repository or into the README itself is dead."""
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 5
    for link in links:
        name, _, heading = link.partition("#")
        target = ROOT / name if name else ROOT / "README.md"
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in headings]
            assert heading in anchors, link

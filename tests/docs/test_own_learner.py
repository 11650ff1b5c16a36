"""The page of the client and the notebook, run against a real service."""

import json
import os
import re
import subprocess
import sys

import pytest

from label_service.settings import Settings
from tests.docs import ROOT, read, section
from tests.support.datasets import make_idx_dataset
from tests.support.services import run_service

NOTEBOOK = "examples/own_learner.ipynb"
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
outputs = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
print("".join(outputs))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set of few classes."""
    return make_idx_dataset(tmp_path_factory.mktemp("learner") / "data")


@pytest.fixture
def service(data, tmp_path):
    """A service that has its labels."""
    settings = Settings(data=data, other_data=True, database_url=f"sqlite:///{tmp_path / 'l.sqlite3'}", port=0)
    with run_service(settings) as running:
        yield running


def test_ten_lines_ask_prove_and_count(service, tmp_path):
    """The page's own text, in a process without PyTorch; the log has what it says, and the receipts are kept."""
    (source,) = re.findall(r"```python\n(.*?)```", section("docs/client.md", "Ten lines"), re.DOTALL)
    assert len([line for line in source.splitlines() if line and not line.startswith(("from", "import"))]) <= 10
    script = source.replace("http://127.0.0.1:8000", service.base_url).replace("runs/mine", str(tmp_path / "mine"))
    script += "import sys\nassert 'torch' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20 labels by the log, accuracy ")
    receipts = (tmp_path / "mine" / "receipts.jsonl").read_text().splitlines()
    assert len(receipts) == 4
    entries = service.entries()
    assert sum(entry["charged"] for entry in entries) == 20
    assert [entry["op"] for entry in entries][-1].startswith("run-sealed")


@pytest.mark.slow
def test_the_notebook_learns_and_its_count_is_the_logs(service, data, tmp_path):
    """All of its cells, in order, against a real service."""
    pytest.importorskip("nbclient", reason="NOTEBOOK NOT RUN: install the extra `dev`")
    environment = os.environ | {
        "LABELMETER_SERVICE": service.base_url,
        "LABELMETER_IMAGES": str(data / "images"),
        "LABELMETER_OUT": str(tmp_path / "out"),
        "LABELMETER_ROUNDS": "10,20,30",
        "PYTHONPATH": str(ROOT),
    }
    words = [sys.executable, "-c", EXECUTE, str(ROOT / NOTEBOOK), str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "the log charged 30 labels to this run, and this notebook learned from 30: they agree" in done.stdout
    accuracy = float(re.search(r"([\d.]+)% of", done.stdout)[1])
    assert accuracy > 60
    assert sum(entry["charged"] for entry in service.entries()) == 30


def test_the_notebook_shows_what_it_printed():
    """It is kept with the outputs of a whole run, which name no machine."""
    cells = json.loads(read(NOTEBOOK))["cells"]
    printed = "".join("".join(output.get("text", [])) for cell in cells for output in cell.get("outputs", []))
    assert "they agree" in printed
    assert not re.search(r"/(home|root|work|tmp)/|127\.0\.0\.1", printed)

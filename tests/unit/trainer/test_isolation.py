"""The trainer holds no labels: it imports nothing of the service and opens no label file.

Each check has a twin that shows that it can fail. The walls inside the trainer are in `tests/unit/test_walls.py`.

Python's audit events show the files that a process opens: every `open` of Python code raises one, in any library. C++
code that opens a path itself (`torch.load`) raises none, and reads no IDX.
"""

from __future__ import annotations

import ast
import gzip
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import trainer
from label_service.settings import Settings
from tests.support.datasets import make_idx_dataset
from tests.support.services import run_service

PACKAGE = Path(trainer.__file__).parent
REPOSITORY = PACKAGE.parent
SERVICE = "label_service"
# IDX: two zero bytes, type 8 (unsigned byte), one dimension.
LABELS_MAGIC = b"\x00\x00\x08\x01"

IMPORT_ALL = """
import importlib, pkgutil, sys, trainer
for module in pkgutil.walk_packages(trainer.__path__, "trainer."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
{more}
print([name for name in sys.modules if name.split(".")[0] == "label_service"], len(sys.modules))
"""

WATCHED_RUN = """
import atexit, json, os, sys
opened = set()
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        opened.add(os.fsdecode(arguments[0]))
sys.addaudithook(hook)
atexit.register(lambda: os.write(os.open(os.environ["OPENED"], os.O_WRONLY | os.O_CREAT), json.dumps(
    sorted(opened)).encode()))
{more}
from tests.support.tiny_trainer import main
main()
"""


def imports_of_the_service(source: str) -> list[int]:
    """Return the lines of a module that import the service, statically or by a literal name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__", "find_spec", "run_module"):
                names = [str(value.value) for value in node.args if isinstance(value, ast.Constant)]
        if any(f"{name}.".startswith(f"{SERVICE}.") for name in names):
            found.append(node.lineno)
    return found


def holds_labels(path: Path) -> bool:
    """Tell by its content whether a file is an IDX label file, gzipped or not."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
        if head[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                head = file.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return head == LABELS_MAGIC


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, in the repository."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_no_module_of_the_trainer_imports_the_service() -> None:
    """Every file of the package, read as source."""
    modules = sorted(PACKAGE.rglob("*.py"))
    assert len(modules) > 30
    assert {str(path): lines for path in modules if (lines := imports_of_the_service(path.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import label_service",
        "import os, label_service.idx as idx",
        "from label_service.data.seed import read_label_files",
        "def late():\n    from label_service import idx",
        "import importlib\nimportlib.import_module('label_service.data.idx')",
        "__import__('label_service')",
    ],
)
def test_every_form_of_import_is_seen(source: str) -> None:
    """The twin: the forms of import that the test above must find."""
    assert imports_of_the_service(source)


def test_names_that_only_look_alike_are_no_import() -> None:
    """A name that begins alike, and a sentence about `python -m label_service`, are allowed."""
    assert not imports_of_the_service("from label_services import x\nprint('python -m label_service')")


@pytest.mark.slow
@pytest.mark.parametrize(("more", "expected"), [("", "[]"), ("import label_service", "['label_service']")])
def test_importing_the_whole_trainer_loads_nothing_of_the_service(more: str, expected: str) -> None:
    """All modules are imported in a fresh process; the twin imports the service too, and is found."""
    done = run_python(IMPORT_ALL.format(more=more))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(expected + " ")


@pytest.mark.parametrize("packed", [True, False])
def test_label_files_are_known_by_content(packed: bool, tmp_path: Path) -> None:
    """A label file is found under any name, gzipped or not; an image file is none."""
    folder = make_idx_dataset(tmp_path / "data", pool=20, test=10)
    (labels, *_), (images, *_) = sorted((folder / "labels").glob("*.gz")), sorted((folder / "images").glob("*.gz"))
    for source, expected in ((labels, True), (images, False)):
        content = source.read_bytes()
        (tmp_path / "innocent.txt").write_bytes(content if packed else gzip.decompress(content))
        assert holds_labels(tmp_path / "innocent.txt") is expected


@pytest.mark.slow
@pytest.mark.parametrize("peeks", [False, True])
def test_whole_run_opens_no_label_file(peeks: bool, tmp_path: Path) -> None:
    """A real run with the labels beside its images, every `open` watched; the twin opens one, and is seen."""
    data = make_idx_dataset(tmp_path / "data")
    labels = next((data / "labels").glob("*.gz"))
    more = f"open({str(labels)!r}, 'rb').close()" if peeks else ""
    service = Settings(data=data, other_data=True, database_url=f"sqlite:///{tmp_path / 'l.sqlite3'}", port=0)
    with run_service(service) as running:
        done = run_python(
            WATCHED_RUN.format(more=more),
            *("run", "--profile", "tiny", "--device", "cpu", "--out", str(tmp_path / "out")),
            *("--data", str(data / "images"), "--service", running.base_url),
            OPENED=str(tmp_path / "opened.json"),
        )
    assert done.returncode == 0, done.stderr
    opened = [Path(path) for path in json.loads((tmp_path / "opened.json").read_text())]
    assert {path.name for path in opened} >= {path.name for path in (data / "images").glob("*.gz")}, "hook saw nothing"
    assert [path for path in opened if path.is_file() and holds_labels(path)] == ([labels] if peeks else [])

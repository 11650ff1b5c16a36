"""The walls between rooms: what the docstring of each package allows is all that its modules import.

Every package of the two programs names in its docstring the rooms of its program that it `May import`; a room is a
package or a module at the top of the program. Each check has a twin that shows that it can fail.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("label_service", "trainer")
ROOMS = sorted(
    str(path.parent.relative_to(ROOT)) for program in PROGRAMS for path in (ROOT / program).glob("*/__init__.py")
)
HTTP = ("fastapi", "starlette", "uvicorn", "httpx", "label_service.web")
SERVICE = ("httpx", "trainer.oracle", "trainer.run")
# What must not be loaded, not even by way of another room, when all modules of a room are imported.
UNKNOWN_TO = [
    ("label_service.ledger", HTTP),
    ("label_service.log", HTTP),
    ("label_service.store", HTTP),
    ("label_service.data", HTTP),
    # The offline verifier, and the command line that starts it.
    ("label_service.log.verify", (*HTTP, "sqlalchemy")),
    ("label_service.cli", (*HTTP, "sqlalchemy")),
    ("trainer.images", SERVICE),
    ("trainer.learning", SERVICE),
    ("trainer.acquisition", SERVICE),
    ("trainer.oracle", ("torch",)),
    ("trainer.records", ("torch", "httpx")),
    # `--help` waits for no import of PyTorch.
    ("trainer.cli", ("torch",)),
]
LOAD = """
import importlib, pkgutil, sys
room = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(getattr(room, "__path__", []), room.__name__ + "."):
    # Alembic alone can load its own scripts.
    if ".migrations." not in module.name:
        importlib.import_module(module.name)
print([name for name in sys.argv[2:] if name in sys.modules])
"""


def imported_rooms(source: str, module: str) -> set[str]:
    """Return the rooms of its own program that a module imports, anywhere in its source."""
    program = module.split(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = (
                resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
                if node.level
                else node.module or ""
            )
            # `from trainer import session` names a room, `from trainer.run import session` has named it already.
            names |= {f"{package}.{alias.name}" if package == program else package for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith(f"{program}.")}


def arrows_from(room: str) -> dict[str, set[str]]:
    """Return what each module of a room imports of other rooms, by file."""
    own = Path(room).name
    found = {}
    for path in sorted((ROOT / room).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[str(path.relative_to(ROOT))] = imported_rooms(path.read_text(), module) - {own, "__version__"}
    return found


def allowed_rooms(room: str) -> set[str]:
    """Return the rooms that a package's docstring allows."""
    docstring = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or ""
    line = re.search(r"^May import: (.+?)\.$", docstring, re.MULTILINE)
    assert line, f"{room}/__init__.py does not say what it may import"
    return set() if line[1] == "nothing of the program" else set(line[1].split(", "))


def loaded(module: str, names: tuple[str, ...]) -> str:
    """Import a module, and all below it, in a fresh process; return the list of those names that were loaded."""
    command = [sys.executable, "-c", LOAD, module, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_other_rooms_than_its_docstring_allows(room: str) -> None:
    """What is allowed and not used is as wrong as what is used and not allowed."""
    used = arrows_from(room)
    allowed = allowed_rooms(room)
    assert {path: more for path, rooms in used.items() if (more := rooms - allowed)} == {}
    assert set().union(*used.values()) == allowed


@pytest.mark.parametrize(
    ("source", "room"),
    [
        ("from trainer.oracle.client import LabelClient", "oracle"),
        ("import trainer.oracle.client", "oracle"),
        ("from trainer import oracle", "oracle"),
        ("from ..run import session", "run"),
        ("def late():\n    from trainer.run.session import RunTicket", "run"),
    ],
)
def test_every_form_of_import_is_seen(source: str, room: str) -> None:
    """The twin: what the walk above must find."""
    assert imported_rooms(source, "trainer.learning.losses") == {room}


@pytest.mark.parametrize("program", PROGRAMS)
def test_rooms_import_one_another_in_no_circle(program: str) -> None:
    """There is an order in which each room needs only those before it."""
    graph = {Path(room).name: allowed_rooms(room) for room in ROOMS if room.startswith(f"{program}/")}
    assert len(tuple(graphlib.TopologicalSorter(graph).static_order())) >= len(graph) > 4


def test_a_circle_is_found() -> None:
    """The twin."""
    with pytest.raises(graphlib.CycleError):
        tuple(graphlib.TopologicalSorter({"log": {"ledger"}, "ledger": {"log"}}).static_order())


@pytest.mark.parametrize(("module", "names"), UNKNOWN_TO, ids=[module for module, _ in UNKNOWN_TO])
def test_what_a_room_must_not_know_is_not_loaded_with_it(module: str, names: tuple[str, ...]) -> None:
    """Neither by itself nor by way of what it imports."""
    assert loaded(module, names) == "[]"


def test_what_is_loaded_is_found() -> None:
    """The twin: the web knows HTTP."""
    assert loaded("label_service.web.app", ("fastapi", "torch")) == "['fastapi']"

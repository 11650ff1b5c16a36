"""Each program imports only what its own extra installs: a developer's environment has more than a container."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
PROGRAMS = {"label_service": "service", "trainer": "trainer"}
# Imported by what an extra names, and part of it for good: uvicorn's and FastAPI's own foundation.
FOUNDATIONS = {"service": {"starlette"}, "trainer": set()}


def canonical(name):
    """Return a distribution's name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_packages(source, package):
    """Return the top-level names that a module imports from outside its package and the standard library."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {package}


def missing_from_extra(names, extra):
    """Return those of the imported names that no requirement of the extra provides."""
    required = {canonical(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in EXTRAS[extra]}
    provided_by = packages_distributions()
    return {
        name
        for name in names - FOUNDATIONS[extra]
        if not required & {canonical(distribution) for distribution in provided_by.get(name, [name])}
    }


@pytest.mark.parametrize("package", PROGRAMS)
def test_program_imports_only_what_its_extra_installs(package):
    """What the container installs is enough for every module of the program."""
    lacking = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        missing = missing_from_extra(imported_packages(path.read_text(), package), PROGRAMS[package])
        if missing:
            lacking[str(path.relative_to(ROOT))] = missing
    assert lacking == {}


def test_import_of_another_extra_is_found():
    """The twin: a module that imports a tool of developers, or the other program, is reported."""
    names = imported_packages("import pytest\nfrom label_service import idx\nimport torch.nn, json", "trainer")
    assert missing_from_extra(names, "trainer") == {"pytest", "label_service"}

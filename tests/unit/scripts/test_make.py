"""The Makefile and its setting up of the virtual environment: options passed on, and clear words where it cannot."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def make(*arguments):
    """Return what make would run, without running it."""
    # A bare environment: neither the variables of a make that runs these tests nor the caller's own come in.
    bare = {"PATH": os.environ["PATH"]}
    command = ["make", "--dry-run", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True, check=True)
    return result.stdout.replace("\\\n", " ")


def make_venv(folder, path, **environment):
    """Run the setting up with only `path` and the system's own folders in PATH."""
    return subprocess.run(
        [ROOT / "scripts/make_venv.sh", folder],
        cwd=ROOT,
        env={"PATH": f"{path}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
    )


def write_program(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_make_run_passes_its_options_on():
    """Each variable becomes the option of the same name."""
    given = {"SEED": "3", "BUDGET": "40", "DATA": "d", "OUT": "o", "PROFILE": "smoke", "PORT": "8123", "DEVICE": "cpu"}
    given |= {"STRATEGY": "random", "TARGET": "0.9", "PRETRAINED": "w/encoder.pt"}
    command = make("run", *(f"{name}={value}" for name, value in given.items()))
    for name, value in given.items():
        assert f"--{name.lower()} '{value}'" in command


def test_make_study_passes_its_options_on():
    """The study's name is its argument, the learning curve where none is given; seeds are a list."""
    command = make("study", "STUDY=ablations", "SEEDS=4 5", "DATA=d", "RECORD=r", "RUNS=w", "TAKE_FROM=t", "JOBS=2")
    assert "scripts.study 'ablations' --seeds 4 5" in command
    for option in ("data 'd'", "record 'r'", "runs 'w'", "take-from 't'", "jobs '2'"):
        assert f"--{option}" in command
    assert "scripts.study 'learning-curve'" in make("study")


def test_make_run_without_options_passes_none():
    """The defaults live in one place, the command itself."""
    (line,) = [line for line in make("run").splitlines() if "scripts.run" in line]
    assert "--" not in line


def test_make_check_is_lint_types_and_tests():
    """What CI runs is what a person runs."""
    commands = make("check")
    for tool in ("ruff check", "ruff format --check", "hadolint", "check-jsonschema", "shellcheck", "mypy", "pytest"):
        assert tool in commands


def test_no_python_is_one_sentence(tmp_path):
    """Where no Python is new enough, the user reads which was looked for and what to do."""
    write_program(tmp_path / "oldpython", "exit 1")
    result = make_venv(tmp_path / "venv", tmp_path, PYTHON="oldpython")
    assert result.returncode == 1
    assert result.stderr.startswith("No Python 3.11 or newer was found (looked for: oldpython)")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("what", ["a folder", "a file"])
def test_something_else_in_the_place_is_not_removed(tmp_path, what):
    """Only a virtual environment is ever made anew; anything else that has its name stays."""
    venv = tmp_path / "venv"
    if what == "a folder":
        venv.mkdir()
        (venv / "thesis.txt").write_text("my only copy")
    else:
        venv.write_text("my only copy")
    result = make_venv(venv, tmp_path)
    assert result.returncode == 1
    assert "is there but is no virtual environment" in result.stderr
    assert venv.is_file() or (venv / "thesis.txt").exists()


def test_missing_venv_module_names_the_package_to_install(tmp_path):
    """Debian's split Python: who may not install packages reads which one is missing."""
    write_program(
        tmp_path / "splitpython",
        # What the script asks: the version check passes, ensurepip is missing, the package's name is printed.
        'case "$2" in *ensurepip*) exit 1 ;; *-venv*) echo python3.11-venv ;; esac',
    )
    write_program(tmp_path / "id", "echo 1000")
    result = make_venv(tmp_path / "venv", tmp_path, PYTHON="splitpython")
    assert result.returncode == 1
    assert "sudo apt-get install python3.11-venv" in result.stderr
    assert result.stderr.count("\n") == 1


def test_unusable_environment_is_made_anew(tmp_path):
    """An environment whose Python is gone is replaced, and the packages are asked for with the pins and PIP_ARGS."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text("home = /nowhere\n")
    asked = tmp_path / "asked"
    # A Python that is new enough, makes an "environment" with itself inside, and notes what pip is asked for.
    made = 'mkdir -p "$3/bin"; cp "$0" "$3/bin/python"'
    body = f'case "$*" in *"-m venv"*) {made} ;; *"-m pip"*) echo "$*" > {asked} ;; esac'
    write_program(tmp_path / "newpython", body)
    result = make_venv(venv, tmp_path, PYTHON="newpython", PIP_ARGS="--no-index --quiet")
    assert result.returncode == 0, result.stderr
    assert "making it anew" in result.stderr
    assert not (venv / "pyvenv.cfg").exists()
    assert "--no-index --quiet -c constraints.txt -e .[service,trainer,dev]" in asked.read_text()


def test_nothing_in_the_front_door_needs_a_terminal():
    """make works where there is no standard input and a bare environment, as in CI."""
    result = subprocess.run(
        ["make", "help"], cwd=ROOT, stdin=subprocess.DEVNULL, env={"PATH": os.environ["PATH"]}, capture_output=True
    )
    assert result.returncode == 0
    assert b"make run" in result.stdout

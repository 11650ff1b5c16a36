"""The Makefile and its setting up of the virtual environment: options passed on, and clear words where it cannot."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.options import FROM_MAKE, MAKEFILE_VARIABLES, split_overrides

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


@pytest.mark.parametrize("target", ["run", "study"])
def test_make_hands_the_command_line_s_variables_over_unchanged(tmp_path, target):
    """Blanks, quotes and whatever else a shell or make would take apart arrive as typed; the environment's do not."""
    given = {"OUT": "my runs/a  b", "DATA": """it's "mine";|`x` *$$HOME\\""", "SEED": "3", "BUDGET": ""}
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    write_program(python, f'printf "%s\\n" "$@" > {tmp_path}/arguments')
    words = [f"{name}={value}" for name, value in given.items()]
    command = ["make", f"VENV={tmp_path}", f"--old-file={tmp_path}/.installed", target]
    (tmp_path / ".installed").touch()
    environment = {"PATH": os.environ["PATH"], "PORT": "1", "PROFILE": "paper"}
    subprocess.run([*command, *words], cwd=ROOT, env=environment, check=True)
    module, flag, text = (tmp_path / "arguments").read_text().splitlines()[1:]
    assert (module, flag) == ({"run": "scripts.run", "study": "scripts.study"}[target], FROM_MAKE)
    assert sorted(split_overrides(text)) == sorted([f"VENV={tmp_path}", *words])


def test_make_without_variables_hands_none_over():
    """The defaults stand in one place, the declaration."""
    assert f"-m scripts.run {FROM_MAKE} ''" in make("run")


def test_the_makefile_s_own_variables_are_known():
    """They may stand beside a target's; every other name is refused (test_options.py)."""
    declared = re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(declared) == MAKEFILE_VARIABLES


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
    assert "--no-index --quiet -c constraints.txt -e .[service,sources,trainer,activeml,dev]" in asked.read_text()


def test_make_help_needs_no_terminal_and_lists_targets_and_variables():
    """make works where there is no standard input and a bare environment, as in CI."""
    shown = subprocess.run(
        ["make", "help", f"VENV={sys.prefix}"],
        cwd=ROOT, stdin=subprocess.DEVNULL, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.returncode == 0
    assert "make run" in shown.stdout
    assert "    BUDGET=  " in shown.stdout
    assert "    TAKE_FROM=  " in shown.stdout


def test_make_help_makes_no_environment(tmp_path):
    """Help is there at once on a fresh clone, and says where the rest is."""
    shown = subprocess.run(
        ["make", "help", f"VENV={tmp_path}/none"],
        cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "is listed here once" in shown
    assert not (tmp_path / "none").exists()

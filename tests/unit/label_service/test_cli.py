"""The command line: what it writes, and that every expected failure is one sentence and exit code 1."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from label_service.cli import app
from tests.support.datasets import make_idx_dataset


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


def test_prepare_seed_and_export_work_together(tmp_path: Path) -> None:
    """From IDX files to a log, offline: the export of a fresh database is the opening of the guest run."""
    source = make_idx_dataset(tmp_path / "source", pool=30, test=10)
    data, url = tmp_path / "data", f"sqlite:///{tmp_path / 'db' / 'labels.sqlite3'}"
    prepared = run("prepare", "--data", data, "--from", source, "--other-data", "--class-names", "a, b,c")
    assert prepared.exit_code == 0 and "30 pool and 10 test images, 3 classes" in prepared.stderr
    for _ in range(2):
        seeded = run("seed", "--data", data, "--other-data", "--database-url", url)
        assert seeded.exit_code == 0 and "30 labels to ask for" in seeded.stderr
    exported = run("export", env={"LABEL_SERVICE_DATABASE_URL": url})
    entries = [json.loads(line) for line in exported.stdout.splitlines()]
    assert [(entry["seq"], entry["op"], entry["run"]) for entry in entries] == [(0, "run-opened", "guest")]
    out = tmp_path / "log.ndjson"
    assert run("export", "--database-url", url, "--out", out).exit_code == 0
    assert out.read_text() == exported.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("prepare", "--data", "{tmp}/d", "--from", "{tmp}/missing"), "is not a folder"),
        (("prepare", "--data", "{tmp}/d", "--redraw-from", "all"), "add --redraw SEED"),
        (("seed", "--data", "{tmp}/missing"), "has no label files"),
        (("serve", "--data", "{tmp}/missing", "--port", "0"), "has no label files"),
        (("serve", "--port", "70000"), "The setting port (LABEL_SERVICE_PORT) is not usable"),
        (("serve", "--database-url", "mysql://x/y", "--port", "0"), "is not an SQLite file"),
        (("export",), "does not exist"),
        (("backup", "--to", "{tmp}/b"), "does not exist"),
        (("backup", "--to", "{tmp}"), "exists already"),
        (("backup", "--to", "{tmp}/b", "--database-url", "postgresql://x/y"), "back it up with pg_dump"),
        (("restore", "{tmp}/b"), "is not a whole backup"),
        (("restore", "{tmp}/b", "--database-url", "postgresql://x/y"), "back it up with pg_dump"),
    ],
)
def test_expected_failures_are_one_sentence_and_exit_code_1(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    """No trace, no second line: what happened and what to do."""
    env = {"LABEL_SERVICE_DATABASE_URL": f"sqlite:///{tmp_path / 'labels.sqlite3'}"}
    failed = run(*(argument.format(tmp=tmp_path) for argument in arguments), env=env)
    assert failed.exit_code == 1
    assert sentence in failed.stderr and failed.stderr.startswith("Error: ")
    assert len(failed.stderr.strip().splitlines()) == 1


def test_version_is_the_packages() -> None:
    """It stands in one place, the package's metadata."""
    shown = run("--version")
    assert (shown.exit_code, shown.stdout) == (0, f"label-service {metadata.version('labelmeter')}\n")


def test_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """A file where the folder should be."""
    source = make_idx_dataset(tmp_path / "source", pool=30, test=10)
    (tmp_path / "data").write_text("a file")
    failed = run("prepare", "--data", tmp_path / "data", "--from", source, "--other-data")
    assert failed.exit_code == 1 and len(failed.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["prepare", "seed", "serve", "export", "backup", "restore"])
def test_every_command_explains_itself(command: str) -> None:
    """`--help` works for each command."""
    assert run(command, "--help").exit_code == 0

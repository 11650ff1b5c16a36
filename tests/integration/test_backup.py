"""Backups: taken while the service writes, checked before anything is put in place, and never a way to fork a log."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from label_service.cli import PROOF_FAILED, app
from label_service.log.evidence import Evidence
from label_service.log.kept_answers import KeptAnswer
from label_service.log.signed_note import Verifier
from label_service.log.verify import Verdict, verify
from label_service.settings import Settings
from tests.support.services import RunningService, run_service
from tests.support.tamper import tamper

Make = Callable[..., Settings]


def command(name: str, settings: Settings, *arguments: object) -> list[str]:
    """Return the arguments of a command that finds the places of some settings."""
    options = {place: getattr(settings, place) for place in ("database_url", "key_folder", "heads_folder", "data")}
    given = [f"--{place.replace('_', '-')}={value}" for place, value in options.items() if value is not None]
    return [name, *given, *(["--other-data"] if name == "restore" else []), *map(str, arguments)]


def run(name: str, settings: Settings, *arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, command(name, settings, *arguments))


def require_refusal(result: Result, sentence: str) -> None:
    """Expect one sentence and exit code 1."""
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ") and sentence in result.stderr and result.stderr.count("\n") == 1


def ask(running: RunningService, *ids: int) -> list[dict[str, Any]]:
    """Ask as the guest; return the answers."""
    return [running.client.get(f"/label/{label_id}").json() for label_id in ids]


def check(running: RunningService, answers: list[dict[str, Any]], key: str | None = None) -> Verdict:
    """Verify the log of a service offline with answers that a client kept."""
    evidence = Evidence.model_validate(running.client.get("/v1/log/evidence").json())
    kept = [KeptAnswer.model_validate(answer) for answer in answers]
    return verify(evidence, Verifier.from_vkey(key or evidence.key), kept)


@pytest.fixture
def places(service_settings: Make, tmp_path: Path) -> Callable[[str], Settings]:
    """Make settings whose database, key and heads lie in three folders of a named place."""

    def make(name: str) -> Settings:
        folder = tmp_path / name
        return service_settings(
            database_url=f"sqlite:///{folder / 'db' / 'labels.sqlite3'}",
            key_folder=folder / "key",
            heads_folder=folder / "heads",
        )

    return make


def files(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, but no lock."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def lose_database(settings: Settings) -> None:
    """Remove the database's folder."""
    shutil.rmtree(Path(settings.database_url.removeprefix("sqlite:///")).parent)


def test_a_backup_under_load_is_restored_and_verifies_with_the_receipts_before_it(
    places: Callable[[str], Settings], tmp_path: Path
) -> None:
    """Clients ask all the time; a copy elsewhere goes on, and the receipts given before it hold."""
    here, there, to = places("here"), places("there"), tmp_path / "backup"
    answers: list[dict[str, Any]] = []
    with run_service(here) as running:
        answers += ask(running, *range(5))
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                ask(running, 7)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            made = run("backup", here, "--to", to, "--with-key")
        finally:
            stop.set()
            thread.join()
        assert made.exit_code == 0, made.output
        key = running.client.get("/v1/log/key").json()["key"]
    assert {path.name: path.stat().st_mode & 0o777 for path in to.iterdir() if path.suffix in (".key", ".sqlite3")} == {
        "log.key": 0o600,
        "labels.sqlite3": 0o600,
    }
    assert json.loads((to / "manifest.json").read_text())["entries"] > 6
    require_refusal(run("restore", there, to), "Nothing here remembers the newest head")
    restored = run("restore", there, to, "--nothing-followed")
    assert restored.exit_code == 0, restored.output
    with run_service(there) as running:
        answers += ask(running, 8)
        assert check(running, answers, key).openings == 6


def test_a_backup_without_the_key_has_no_secret_of_the_log(places: Callable[[str], Settings], tmp_path: Path) -> None:
    """Neither the key nor what is made from it; the key in its place and the heads let the log go on."""
    here, to = places("here"), tmp_path / "backup"
    with run_service(here) as running:
        answers = ask(running, 1)
        assert run("backup", here, "--to", to).exit_code == 0
    require_refusal(run("backup", here, "--to", to), "exists already")
    (file,) = (tmp_path / "here" / "key").glob("*.key")
    secret = file.read_text().strip().rpartition("+")[2]
    assert all(secret.encode() not in content for content in files(to).values())
    require_refusal(run("restore", here, to), "is restored into an empty place")
    lose_database(here)
    assert run("restore", here, to).exit_code == 0
    with run_service(here) as running:
        assert check(running, answers + ask(running, 2)).receipts == 2


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda to: (to / "labels.sqlite3").write_bytes(b"x"), "is not as it was when the backup was made"),
        (lambda to: (to / "log.heads").unlink(), "is not a whole backup"),
        (lambda to: (to / "manifest.json").write_text("{}"), "is not the manifest of a backup"),
        (lambda to: (to / "manifest.json").unlink(), "is not a whole backup"),
        (lambda to: forge(to, "DELETE FROM entries WHERE seq = 2"), "are not those that were signed"),
        (lambda to: forge(to, "UPDATE pool_labels SET label = 1 - label WHERE label < 2"), "committed to"),
        (lambda to: forge(to, "UPDATE runs SET spent = 0"), "does not say what the log says"),
    ],
)
def test_a_damaged_or_changed_backup_is_refused_and_nothing_is_put_in_place(
    places: Callable[[str], Settings], tmp_path: Path, damage: Callable[[Path], Any], sentence: str
) -> None:
    """Also where the manifest was made to fit: the entries are signed, and everything else follows from them."""
    here, there, to = places("here"), places("there"), tmp_path / "backup"
    with run_service(here) as running:
        ask(running, 1, 2)
        assert run("backup", here, "--to", to, "--with-key").exit_code == 0
    damage(to)
    require_refusal(run("restore", there, to, "--nothing-followed"), sentence)
    assert not any(content for name, content in files(tmp_path / "there").items() if not name.startswith("heads"))


def forge(to: Path, statement: str) -> None:
    """Change the database of a backup, and its manifest with it."""
    tamper(f"sqlite:///{to / 'labels.sqlite3'}", statement)
    manifest = json.loads((to / "manifest.json").read_text())
    manifest["files"]["labels.sqlite3"] = hashlib.sha256((to / "labels.sqlite3").read_bytes()).hexdigest()
    (to / "manifest.json").write_text(json.dumps(manifest))


def test_an_older_backup_begins_a_new_log_that_names_the_old_one(
    places: Callable[[str], Settings], tmp_path: Path
) -> None:
    """Refused by itself, in a sentence that says what is lost; accepted, old receipts and evidence stay evidence."""
    here, to, heads = places("here"), tmp_path / "backup", tmp_path / "witnessed.jsonl"
    with run_service(here) as running:
        answers = ask(running, 1, 2)
        assert run("backup", here, "--to", to).exit_code == 0
        ask(running, 3, 4, 5)
        old_key = running.client.get("/v1/log/key").json()["key"]
        assert look(running, heads).exit_code == 0
    lose_database(here)
    for option in ((), ("--nothing-followed",)):
        require_refusal(run("restore", here, to, *option), "it lacks 3 entries, and clients hold receipts for them")
    assert not any(files(tmp_path / "here" / "db").values())
    restored = run("restore", here, to, "--accept-lost-entries")
    assert restored.exit_code == 0, restored.output
    assert "3 later entries were lost (the old key has signed that)" in " ".join(restored.stderr.split())
    (evidence,) = (tmp_path / "here" / "db").glob("*.evidence.json")
    kept = [KeptAnswer.model_validate(answer) for answer in answers]
    old = Evidence.model_validate_json(evidence.read_text())
    assert verify(old, Verifier.from_vkey(old_key), kept).receipts == 2
    with run_service(here) as running:
        verdict = check(running, ask(running, 1))
        assert verdict.forerunner is not None and verdict.forerunner.key == old_key
        assert (verdict.forerunner.kept.size, verdict.forerunner.newest.size) == (3, 6)
        looked = look(running, heads)
        assert looked.exit_code == 1 and "not a fork" in looked.stderr and "3 later entries" in looked.stderr
    # A second backup of the new log is like any other, and the old key is kept beside it.
    assert len(list((tmp_path / "here" / "key").glob("*.key"))) == 2


def test_a_lost_key_begins_a_new_log_whose_claim_nobody_has_signed(
    places: Callable[[str], Settings], tmp_path: Path
) -> None:
    """The old log still verifies with its public key; the witness says that nothing proves the claim."""
    here, to, heads = places("here"), tmp_path / "backup", tmp_path / "witnessed.jsonl"
    with run_service(here) as running:
        answers = ask(running, 1)
        assert look(running, heads).exit_code == 0
        assert run("backup", here, "--to", to).exit_code == 0
        old_key = running.client.get("/v1/log/key").json()["key"]
    lose_database(here)
    shutil.rmtree(tmp_path / "here" / "key")
    require_refusal(run("restore", here, to), "holds no signing key")
    restored = run("restore", here, to, "--accept-lost-entries")
    assert restored.exit_code == 0 and "the old key was lost" in " ".join(restored.stderr.split())
    (evidence,) = (tmp_path / "here" / "db").glob("*.evidence.json")
    old = Evidence.model_validate_json(evidence.read_text())
    assert verify(old, Verifier.from_vkey(old_key), [KeptAnswer.model_validate(answer) for answer in answers])
    with run_service(here) as running:
        assert check(running, ask(running, 1)).forerunner is not None
        looked = look(running, heads)
        assert looked.exit_code == PROOF_FAILED and "nothing proves that" in looked.stderr


def test_a_new_log_is_not_begun_without_need(places: Callable[[str], Settings], tmp_path: Path) -> None:
    """Nothing is lost: the option is refused, and so are two that contradict each other."""
    here, to = places("here"), tmp_path / "backup"
    with run_service(here) as running:
        ask(running, 1)
    assert run("backup", here, "--to", to).exit_code == 0
    lose_database(here)
    require_refusal(run("restore", here, to, "--accept-lost-entries"), "lacks no entry")
    require_refusal(run("restore", here, to, "--accept-lost-entries", "--nothing-followed"), "one of the two")


def test_a_backup_carries_what_is_left_of_replaced_keys(places: Callable[[str], Settings], tmp_path: Path) -> None:
    """A restored log goes on with the newest key, authenticates the entries of the old one, and verifies with it."""
    here, there, to = places("here"), places("there"), tmp_path / "backup"
    with run_service(here) as running:
        answers = ask(running, 1)
        key = running.client.get("/v1/log/key").json()["key"]
    assert run("rotate-key", here).exit_code == 0
    assert run("backup", here, "--to", to, "--with-key").exit_code == 0
    restored = run("restore", there, to, "--nothing-followed")
    assert restored.exit_code == 0, restored.output
    with run_service(there) as running:
        answers += ask(running, 2)
        assert len(running.entries()) == 4
        assert check(running, answers, key).receipts == 2


def test_a_backup_older_than_the_key_begins_a_new_log(places: Callable[[str], Settings], tmp_path: Path) -> None:
    """The entry that replaced the key is among the lost; the new key signs that the new log follows."""
    here, to, heads = places("here"), tmp_path / "backup", tmp_path / "witnessed.jsonl"
    with run_service(here) as running:
        answers = ask(running, 1)
        old_key = running.client.get("/v1/log/key").json()["key"]
        assert look(running, heads).exit_code == 0
        assert run("backup", here, "--to", to).exit_code == 0
    assert run("rotate-key", here).exit_code == 0
    with run_service(here) as running:
        ask(running, 2)
        new_key = running.client.get("/v1/log/key").json()["key"]
        assert look(running, heads).exit_code == 0
    lose_database(here)
    require_refusal(run("restore", here, to), "it lacks 2 entries")
    restored = run("restore", here, to, "--accept-lost-entries")
    assert restored.exit_code == 0, restored.output
    (evidence,) = (tmp_path / "here" / "db").glob("*.evidence.json")
    kept = [KeptAnswer.model_validate(answer) for answer in answers]
    assert verify(Evidence.model_validate_json(evidence.read_text()), Verifier.from_vkey(old_key), kept).receipts == 1
    with run_service(here) as running:
        forerunner = check(running, ask(running, 1)).forerunner
        assert forerunner is not None and forerunner.key == new_key and forerunner.statement is not None
        looked = look(running, heads)
        assert looked.exit_code == 1 and "not a fork" in looked.stderr
    # The new log's key can be replaced too.
    assert run("rotate-key", here).exit_code == 0
    with run_service(here) as running:
        assert check(running, ask(running, 3)).forerunner == forerunner


KILL = """
import os, signal, sys
from label_service import backup
from label_service.cli import app
name, when, *arguments = sys.argv[1:]
former = getattr(backup, name)
def killed(*given, **named):
    if when == "after":
        former(*given, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(backup, name, killed)
app(arguments)
"""


def kill(name: str, when: str, arguments: list[str]) -> None:
    """Run a command in a process that kills itself before or after its first call of a function."""
    done = subprocess.run([sys.executable, "-c", KILL, name, when, *arguments], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.parametrize("name", ["_copy_database", "write_atomically", "sync_folder"])
def test_a_backup_that_is_killed_leaves_no_folder_of_that_name(
    places: Callable[[str], Settings], tmp_path: Path, name: str
) -> None:
    """A folder is there when it is whole; the next backup can have its name."""
    here, to = places("here"), tmp_path / "backup"
    with run_service(here) as running:
        ask(running, 1)
        kill(name, "after", command("backup", here, "--to", to))
        assert not to.exists()
        assert run("backup", here, "--to", to).exit_code == 0
    lose_database(here)
    assert run("restore", here, to).exit_code == 0


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("_require_empty", "after"),
        ("_require_head", "after"),
        ("_continue_log", "after"),
        ("_place_key", "before"),
        ("_place_key", "after"),
    ],
)
@pytest.mark.parametrize("loses", [False, True], ids=["same log", "new log"])
def test_a_restore_that_is_killed_puts_no_database_in_place_and_can_be_repeated(
    places: Callable[[str], Settings], tmp_path: Path, name: str, when: str, loses: bool
) -> None:
    """Until the database is there nothing is restored; the old key is never lost."""
    if loses and name == "_continue_log":
        name = "begin_log"
    here, to = places("here"), tmp_path / "backup"
    with run_service(here) as running:
        answers = ask(running, 1)
        assert run("backup", here, "--to", to).exit_code == 0
        old_key = running.client.get("/v1/log/key").json()["key"]
        if loses:
            ask(running, 2)
    lose_database(here)
    arguments = command("restore", here, to, *(["--accept-lost-entries"] if loses else []))
    kill(name, when, arguments)
    database = Path(here.database_url.removeprefix("sqlite:///"))
    assert not database.exists() or database.stat().st_size == 0
    assert CliRunner().invoke(app, arguments).exit_code == 0
    with run_service(here) as running:
        if loses:
            forerunner = check(running, ask(running, 1)).forerunner
            assert forerunner is not None and forerunner.key == old_key and forerunner.statement is not None
        else:
            assert check(running, answers + ask(running, 2), old_key).receipts == 2


def look(running: RunningService, heads: Path) -> Result:
    """Let a witness look once."""
    return CliRunner().invoke(app, ["witness", running.base_url, "--heads", str(heads), "--once"])

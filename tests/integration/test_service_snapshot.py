"""A snapshot makes a start faster and changes nothing else: what a whole replay refuses, a start from one refuses."""

from __future__ import annotations

import random
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import SQLAlchemyError

from label_service.errors import DatabaseRefused, LogNotWritable
from label_service.ledger import ledger, runs, teams
from label_service.ledger.append import Rules
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log import signed_log
from label_service.log import snapshot as snapshot_module
from label_service.log.account import Account, EntryError
from label_service.log.entries import GUEST
from label_service.log.remembered_heads import RememberedHeads
from label_service.log.signed_log import SignedLog
from label_service.log.signed_note import SigningKey
from label_service.log.snapshot import SnapshotFile
from label_service.rotation import rotate_key
from label_service.service import LabelService, open_service
from label_service.settings import Settings
from label_service.store.sqlite import open_writing_engine
from tests.support.service_process import start

PREDICTIONS = [0] * 50
# So many of the changes below, drawn at random.
CHANGES = 100
# All tables of which an entry says something, and the table that says what the data set is.
CHANGED_TABLES = ("entries", "runs", "reveals", "entry_ids", "evaluations", "idempotency_keys", "dataset")


@dataclass(frozen=True)
class StoppedLog:
    """A log of every kind of entry, its service stopped, with snapshots of its beginning and of all of it."""

    folder: Path
    settings: Settings
    older: bytes
    newest: bytes

    @property
    def database(self) -> Path:
        """The file."""
        return self.folder / "service" / "labels.sqlite3"

    @property
    def file(self) -> Path:
        """The snapshot's place."""
        (heads,) = (self.folder / "service-heads").glob("*.heads")
        return heads.with_suffix(".snapshot")

    @property
    def key(self) -> SigningKey:
        """The signing key."""
        return SigningKey.load(self.database.with_suffix(".key"))

    def replay(self, database: Path, written: bytes | None) -> tuple[str, Account | None]:
        """Open the log of a copy from a snapshot, or without one; return the refusal and the account."""
        heads = self.folder / "copied.heads"
        shutil.copy(self.file.with_suffix(".heads"), heads)
        copied = self.folder / "copied.snapshot"
        copied.unlink(missing_ok=True)
        if written is not None:
            copied.write_bytes(written)
        engine = open_writing_engine(database, 0.0)
        try:
            with engine.begin() as connection:
                log = SignedLog(connection, self.key, RememberedHeads(heads), snapshots=SnapshotFile(copied, self.key))
            return "", log.account
        except (DatabaseRefused, SQLAlchemyError) as error:
            return str(error), None
        finally:
            engine.dispose()


def fill(settings: Settings) -> None:
    """Open runs, ask with keys and without, be refused, evaluate, seal, and make and revoke a token."""
    with open_service(settings) as service:

        def do(work: Callable[..., Any]) -> Any:
            return service.writer.submit(lambda unit: work(unit, service.rules)).result()

        def ask(run_id: str, ids: list[int], key: str | None = None) -> None:
            do(lambda unit, rules: ledger.reveal(unit, rules, ledger.Request(run_id, "r", key), ids))

        def open_run(unit: UnitOfWork, rules: Rules) -> Any:
            return runs.open_run(
                unit, rules, "r", name="é\u2028", budget=6, evaluation_budgets=[2, 4], opened_with=token, key="k" * 16
            )

        token = f"team-{service.log.head.size}"
        do(lambda unit, rules: teams.create(unit, rules, "r", token, 9, None, None))
        opened = do(open_run)
        ask(opened.run_id, [3, 1, 2], "k1")
        ask(GUEST, [7])
        ask(opened.run_id, [2, 9, 4])
        ask(opened.run_id, [1, 2], "k2")
        ask(GUEST, [10**6])
        request = ledger.Request(opened.run_id, "r", "e1")
        do(lambda unit, rules: ledger.evaluate(unit, rules, request, PREDICTIONS, 4))
        do(lambda unit, rules: ledger.seal(unit, rules, ledger.Request(opened.run_id, "r")))
        do(lambda unit, rules: teams.revoke(unit, rules, "r", token))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> StoppedLog:
    """Make the log in two parts, each with a clean stop."""
    folder = tmp_path_factory.mktemp("stopped")
    place = f"sqlite:///{folder}/service/labels.sqlite3"
    settings = Settings(data=tiny_data, other_data=True, database_url=place)
    written = []
    for _ in range(2):
        fill(settings)
        (file,) = (folder / "service-heads").glob("*.snapshot")
        written.append(file.read_bytes())
    return StoppedLog(folder, settings, *written)


def others(value: object) -> list[Any]:
    """Return what may be written in place of a value, values of another type among them."""
    if isinstance(value, str):
        return [None, f"{value}1", value[1:], value.encode()]
    if isinstance(value, int):
        return [None, value + 1, -1 - value, value + 0.5, str(value)]
    if isinstance(value, bytes):
        return [None, value + b" ", value[:-1], value[::-1], value.decode("latin-1")]
    return [7, "x", b"x"]


def changes(database: Path) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield statements that change one value to another, of another type too, delete a row, or add one like it."""
    with closing(sqlite3.connect(database)) as connection:
        for table in CHANGED_TABLES:
            cursor = connection.execute(f"SELECT rowid, * FROM {table} ORDER BY rowid")
            columns = [column[0] for column in cursor.description[1:]]
            for rowid, *row in cursor:
                yield f"DELETE FROM {table} WHERE rowid = {rowid}", ()
                for place, (column, value) in enumerate(zip(columns, row, strict=True)):
                    for other in others(value):
                        yield f"UPDATE {table} SET {column} = ? WHERE rowid = {rowid}", (other,)
                        added = [*row[:place], other, *row[place + 1 :]]
                        yield f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", tuple(added)


def change(database: Path, statement: str, values: tuple[Any, ...]) -> bool:
    """Change a database without its triggers; return whether it lets itself be changed."""
    with closing(sqlite3.connect(database)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        try:
            connection.execute(statement, values)
        except sqlite3.IntegrityError:
            return False
        connection.commit()
    return True


def test_every_change_of_a_row_is_answered_as_without_a_snapshot(stopped: StoppedLog, tmp_path: Path) -> None:
    """A start from the newest or an older snapshot refuses in the same words, or accepts with the same account."""
    clean = tmp_path / "clean.sqlite3"
    shutil.copy(stopped.database, clean)
    accounts = [stopped.replay(clean, written) for written in (None, stopped.older, stopped.newest)]
    assert accounts[0][1] is not None and accounts[0] == accounts[1] == accounts[2]
    all_changes = list(changes(stopped.database))
    chosen = random.Random(0).sample(all_changes, CHANGES)
    database, refused, accepted = tmp_path / "changed.sqlite3", 0, 0
    for statement, values in chosen:
        shutil.copy(clean, database)
        if not change(database, statement, values):
            continue
        expected = stopped.replay(database, None)
        for written in (stopped.older, stopped.newest):
            assert stopped.replay(database, written) == expected, (statement, values)
        refused += expected[1] is None
        accepted += expected[1] is not None
    print(f"{refused} refused, {accepted} accepted, of {len(all_changes)} changes")
    assert refused > accepted > 0


def test_what_is_no_snapshot_of_this_log_is_passed_over(
    stopped: StoppedLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged file, one of another key, one over entries that are not there: the whole log is replayed."""
    caplog.set_level("INFO")
    expected = stopped.replay(stopped.database, None)
    mac, _, said = stopped.newest.partition(b"\n")
    forged = said.replace(b'"queries":', b'"queries":1')
    other = SigningKey.generate(stopped.key.name)
    own, foreign = (SnapshotFile(tmp_path / name, key) for name, key in (("own", stopped.key), ("foreign", other)))
    (tmp_path / "own").write_bytes(stopped.newest)
    opened = own.read()
    assert opened is not None
    foreign.write(opened)
    own.write(replace(opened, root="0" * 64))
    for written in (
        b"", b"\n", b"x", said, mac, stopped.newest[:-1], stopped.newest + b" ", mac + b"\n" + forged, b"\n" + forged,
        b"0" * 64 + b"\n" + forged, (tmp_path / "foreign").read_bytes(), (tmp_path / "own").read_bytes(),
    ):  # fmt: skip
        assert stopped.replay(stopped.database, written) == expected, written[:99]
    assert "compared" not in caplog.text
    assert stopped.replay(stopped.database, stopped.newest) == expected
    assert f"compared {opened.size} entries with the snapshot" in caplog.text


def test_another_version_replays_the_whole_log(
    stopped: StoppedLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its rules may be stricter."""
    caplog.set_level("INFO")
    expected = stopped.replay(stopped.database, None)
    monkeypatch.setattr(snapshot_module, "_FORMAT", "labelmeter snapshot 1 of 99.0")
    assert stopped.replay(stopped.database, stopped.newest) == expected
    assert "compared" not in caplog.text


def test_a_shorter_database_is_answered_as_without_the_snapshot(stopped: StoppedLog, tmp_path: Path) -> None:
    """A snapshot is no word that a log was longer: the remembered heads are."""
    shorter = tmp_path / "shorter.sqlite3"
    shutil.copy(stopped.database, shorter)
    assert change(shorter, "DELETE FROM entries WHERE seq > 5", ())
    expected = stopped.replay(shorter, None)
    assert "older than the log it continues" in expected[0]
    for written in (stopped.older, stopped.newest):
        assert stopped.replay(shorter, written) == expected


def make_settings(tmp_path: Path, data: Path) -> Settings:
    """Name a fresh database."""
    return Settings(data=data, other_data=True, database_url=f"sqlite:///{tmp_path}/service/labels.sqlite3")


def ask(service: LabelService, label_id: int) -> None:
    """Let the guest ask for a label."""
    request = ledger.Request(GUEST, "r")
    service.writer.submit(lambda unit: ledger.reveal(unit, service.rules, request, [label_id])).result()


def test_a_replaced_key_replays_the_whole_log_once(
    tmp_path: Path, tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The new key has another secret; the stop after it leaves a snapshot that the start after that uses."""
    caplog.set_level("INFO")
    settings = make_settings(tmp_path, tiny_data)
    with open_service(settings) as service:
        ask(service, 1)
    rotate_key(settings)
    for used in (False, True):
        caplog.clear()
        with open_service(settings) as service:
            assert service.log.head.size == 3
        assert ("compared 3 entries with the snapshot" in caplog.text) == used


def test_a_snapshot_is_kept_now_and_then_and_never_of_what_failed(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the service runs; not over an account that an entry has left half added up."""
    monkeypatch.setattr(signed_log, "SNAPSHOT_EVERY", 3)
    with open_service(make_settings(tmp_path, tiny_data)) as service:
        (heads,) = (tmp_path / "service-heads").glob("*.heads")
        file = heads.with_suffix(".snapshot")
        for label_id in range(4):
            # A snapshot is written before the next transaction begins.
            service.writer.beat().result()
            assert file.exists() == (service.log.head.size >= 3)
            ask(service, label_id)
        service.writer.beat().result()
        kept = file.read_bytes()
        assert b'"size":3,' in kept and service.log.head.size == 5

        def fail(_entry: object) -> None:
            service.log.account.queries = 0
            raise EntryError(4, "it breaks a rule")

        monkeypatch.setattr(service.log.account, "add", fail)
        with pytest.raises(LogNotWritable):
            ask(service, 5)
    assert file.read_bytes() == kept


def test_a_snapshot_that_cannot_be_written_stops_nothing(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The service answers and stops as ever, says so once, and starts again."""
    settings = make_settings(tmp_path, tiny_data)
    with open_service(settings) as service:
        (heads,) = (tmp_path / "service-heads").glob("*.heads")
        heads.with_suffix(".snapshot").mkdir()
        monkeypatch.setattr(signed_log, "SNAPSHOT_EVERY", 1)
        ask(service, 1)
        ask(service, 2)
    assert "cannot be written" in caplog.text
    with open_service(settings) as service:
        assert service.log.head.size == 3
    assert "cannot be read" in caplog.text


# A service that is killed at its second snapshot: while it writes, before the file has its name, or after.
KILLED = """
import os, runpy, signal
from pathlib import Path
from label_service.log import authenticated_file, signed_log
signed_log.SNAPSHOT_EVERY = 2
moment, write, rename, written = {moment!r}, authenticated_file.write_atomically, Path.replace, []

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def write_and_die(path, content):
    if path.suffix == ".snapshot":
        written.append(path)
    if len(written) == 2 and moment == "half":
        path.with_name(".half.part").write_bytes(content[: len(content) // 2])
        kill()
    write(path, content)
    if len(written) == 2:
        kill()

def rename_or_die(path, target):
    if len(written) == 2 and target == written[-1] and moment == "unnamed":
        kill()
    return rename(path, target)

authenticated_file.write_atomically, Path.replace = write_and_die, rename_or_die
runpy.run_module("label_service", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("moment", ["half", "unnamed", "named"])
def test_a_kill_while_a_snapshot_is_written_leaves_an_old_one_or_the_new_one(
    tmp_path: Path, tiny_data: Path, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The process is killed with SIGKILL; all that it answered is there, and the next start uses what is left."""
    caplog.set_level("INFO")
    process, url = start(tiny_data, tmp_path, program=("-c", KILLED.format(moment=moment)))
    answered = 0
    with httpx.Client(base_url=url, timeout=30.0) as client, pytest.raises(httpx.TransportError):
        while True:
            assert client.get(f"/label/{answered}").status_code == 200
            answered += 1
    assert process.wait(30) == -signal.SIGKILL
    with open_service(make_settings(tmp_path, tiny_data)) as service:
        size = service.log.head.size
        assert 1 + answered <= size <= 2 + answered and service.log.account.queries == size - 1
    assert re.findall("compared ([0-9]+) entries", caplog.text) == ["4" if moment == "named" else "2"]

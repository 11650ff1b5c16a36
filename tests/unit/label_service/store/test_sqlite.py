"""The schema: what the migrations make is what the code expects, and the database itself refuses to forget."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from label_service.data.seed import read_label_files, seed
from label_service.errors import DatabaseRefused
from label_service.ledger import ledger, runs
from label_service.ledger.append import Rules
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log.answer_key import open_answer_key
from label_service.store import tables
from label_service.store.sqlite import database_path, lock_database, migrate, open_reading_engine, open_writing_engine
from tests.support.datasets import make_idx_dataset


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path]:
    """A seeded database with a run that has been revealed, evaluated and logged."""
    path = tmp_path / "labels.sqlite3"
    engine = open_writing_engine(path, 0.1)
    migrate(engine)
    with UnitOfWork.begin(engine) as unit:
        info = seed(unit.connection, read_label_files(make_idx_dataset(tmp_path / "data", pool=20, test=5), True))
        rules = Rules(info.log_id, open_answer_key(unit.connection), info.pool_size)
        runs.set_guest_budget(unit, rules, 5)
        opened = runs.open_run(unit, rules, "r", name="x", budget=5)
        request = ledger.Request(opened.run_id, "r", key="k")
        ledger.reveal(unit, rules, request, [1, 2])
        ledger.evaluate(unit, rules, ledger.Request(opened.run_id, "r"), [0] * 5, None)
    engine.dispose()
    yield path


def test_migrations_make_exactly_the_tables_of_the_code(tmp_path: Path) -> None:
    """No difference between `tables.py` and the migrated database, and migrating twice changes nothing."""
    engine = open_writing_engine(tmp_path / "a b%.sqlite3", 0.1)
    migrate(engine)
    migrate(engine)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    engine.dispose()


def test_writer_connection_is_durable_and_checks_keys(tmp_path: Path) -> None:
    """WAL, synchronous=FULL and foreign keys are on for every connection that writes."""
    engine = open_writing_engine(tmp_path / "x.sqlite3", 0.1)
    with engine.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    engine.dispose()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


WRITE_ONCE = (
    "dataset", "pool_labels", "test_labels", "entries", "entry_ids", "reveals", "evaluations", "idempotency_keys",
)  # fmt: skip


@pytest.mark.parametrize("table", WRITE_ONCE)
def test_rows_cannot_be_updated_deleted_or_replaced(database: Path, table: str) -> None:
    """Raw SQL against the file: every way to change a row is refused and every row stays."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        before = connection.execute(f"SELECT * FROM {table}").fetchall()
        assert before, "the test needs rows to attack"
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        attacks = [f"UPDATE {table} SET {column} = {column}" for column in columns]
        attacks += [f"DELETE FROM {table}"]
        attacks += [f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"]
        attacks += [f"REPLACE INTO {table} SELECT * FROM {table} LIMIT 1"]
        for attack in attacks:
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(attack)
        assert connection.execute(f"SELECT * FROM {table}").fetchall() == before


@pytest.mark.parametrize(
    "attack",
    [
        "DELETE FROM runs",
        "UPDATE runs SET spent = spent - 1 WHERE run_id <> 'guest'",
        "UPDATE runs SET budget = budget + 1 WHERE run_id <> 'guest'",
        "UPDATE runs SET spent = budget + 1",
        "UPDATE runs SET token_sha256 = 'x'",
        "UPDATE runs SET evaluations_allowed = 9",
        "UPDATE runs SET name = 'y'",
        "REPLACE INTO runs SELECT * FROM runs",
        "INSERT INTO pool_labels VALUES (9999, 0)",
        "INSERT INTO test_labels VALUES (9999, 0)",
        "INSERT INTO entries SELECT seq + 5, entry, run_id, op, outcome, charged FROM entries WHERE seq = 1",
    ],
)
def test_counts_terms_and_sequence_cannot_be_bent(database: Path, attack: str) -> None:
    """A run's count only grows, its terms are fixed, labels are complete, and the log has no gap."""
    with (
        closing(sqlite3.connect(database, isolation_level=None)) as connection,
        pytest.raises(sqlite3.IntegrityError),
    ):
        connection.execute(attack)


def test_seal_cannot_be_broken(database: Path) -> None:
    """A run that was sealed stays sealed."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("UPDATE runs SET sealed_at = 'now' WHERE run_id <> 'guest'")
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute("UPDATE runs SET sealed_at = NULL")


def test_reading_engine_cannot_write(database: Path) -> None:
    """The readers' connections are read-only by the file mode, not by good will."""
    engine = open_reading_engine(database)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM entries").scalar_one() == 4
        with pytest.raises(Exception, match="readonly database"):
            connection.exec_driver_sql("UPDATE heartbeat SET beat_at = 'x'")
    engine.dispose()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "postgresql://user:secret@host/db", "nonsense", ""])
def test_urls_that_are_no_sqlite_file_are_refused(url: str) -> None:
    """One sentence, and no password in it."""
    with pytest.raises(DatabaseRefused) as refused:
        database_path(url)
    assert "sqlite:///data/labels.sqlite3" in str(refused.value) and "secret" not in str(refused.value)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """A file of another kind is left alone and named."""
    path = tmp_path / "labels.sqlite3"
    path.write_bytes(b"this is a text file, not a database" * 100)
    engine = open_writing_engine(path, 0.1)
    with pytest.raises(DatabaseRefused, match=r"labels\.sqlite3 cannot be opened"):
        migrate(engine)
    engine.dispose()
    assert path.read_bytes().startswith(b"this is a text file")


def test_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """A schema this version does not know is not guessed at."""
    path = tmp_path / "labels.sqlite3"
    engine = open_writing_engine(path, 0.1)
    migrate(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseRefused, match="9999"):
        migrate(engine)
    engine.dispose()


def test_the_database_is_its_owner_s_alone(tmp_path: Path) -> None:
    """Labels lie in it: the file and its journal are made with mode 0600, whatever the umask."""
    path = tmp_path / "labels.sqlite3"
    with lock_database(path):
        engine = open_writing_engine(path, 0.1)
        migrate(engine)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("labels.sqlite3*")}
        engine.dispose()
    assert {modes["labels.sqlite3"], modes["labels.sqlite3-wal"]} == {0o600}

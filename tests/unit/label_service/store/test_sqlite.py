"""The SQLite file: durable writes, read-only readers, and files that are refused."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from label_service.errors import DatabaseRefused
from label_service.store.migrations import migrate
from label_service.store.sqlite import lock_database, open_reading_engine, open_writing_engine


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    """Not even in a folder whose name Alembic's configuration could misread."""
    engine = open_writing_engine(tmp_path / "a b%.sqlite3", 0.1)
    schemas = []
    for _ in range(2):
        migrate(engine)
        with engine.connect() as connection:
            schemas.append(connection.exec_driver_sql("SELECT sql FROM sqlite_schema ORDER BY name").scalars().all())
    engine.dispose()
    assert len(schemas[0]) > 40 and schemas[0] == schemas[1]


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


def test_reading_engine_cannot_write(tmp_path: Path) -> None:
    """SQLite opens the readers' connections read-only, whatever a statement says."""
    writing = open_writing_engine(tmp_path / "labels.sqlite3", 0.1)
    migrate(writing)
    writing.dispose()
    engine = open_reading_engine(tmp_path / "labels.sqlite3")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM heartbeat").scalar_one() == 1
        with pytest.raises(Exception, match="readonly database"):
            connection.exec_driver_sql("UPDATE heartbeat SET beat_at = 'x'")
    engine.dispose()


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
    """A schema that this version does not know is refused, whether newer or from an earlier development version."""
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

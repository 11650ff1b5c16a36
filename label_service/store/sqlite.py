"""The SQLite file: engines, PRAGMAs and the lock that keeps a second service away. And the migrations of any database.

Two engines on one file. The writing one has exactly one connection, used by the writer's thread only: the WAL-reset
bug of SQLite before 3.51.3 needs two connections that write or checkpoint. The reading one opens the file with
`mode=ro`, so it can neither write nor checkpoint.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from label_service.errors import DatabaseRefused

MIGRATIONS = Path(__file__).parent / "migrations"


def database_path(url: str) -> Path:
    """Return the file a database URL names.

    Raises:
        DatabaseRefused: the URL is not that of an SQLite file.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise DatabaseRefused("The database URL is not one; write it like sqlite:///data/labels.sqlite3.") from error
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise DatabaseRefused(
            f"The database {parsed.render_as_string()} is not an SQLite file, and the log needs one; "
            "write it like sqlite:///data/labels.sqlite3."
        )
    return Path(parsed.database).resolve()


@contextmanager
def lock_database(path: Path) -> Iterator[None]:
    """Hold the database for this process; the lock file lies beside it and goes free when the process ends.

    Raises:
        DatabaseRefused: another process holds it, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The labels are in it: nobody else on the machine is to read it. SQLite gives its journal the same mode.
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o600))
        # thread_local=False: a test's server thread may release what the main thread took.
        lock = FileLock(f"{path}.lock", timeout=0, thread_local=False)
        lock.acquire()
    except Timeout as error:
        raise DatabaseRefused(
            f"{path} is in use by another label service; stop that one or choose another database."
        ) from error
    except OSError as error:
        raise DatabaseRefused(
            f"The folder of {path} cannot be written ({error.strerror}); choose another database."
        ) from error
    try:
        yield
    finally:
        lock.release()


def open_writing_engine(path: Path, busy_timeout_s: float) -> Engine:
    """Return the engine of the one writing connection.

    Args:
        path: the database file; made if missing.
        busy_timeout_s: how long a write waits for a lock that somebody else holds.
    """
    engine = create_engine(f"sqlite:///{path}", pool_size=1, max_overflow=0, connect_args={"timeout": busy_timeout_s})

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's own record
        # SQLAlchemy's documented recipe for pysqlite: the driver opens no transaction by itself …
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL syncs the WAL at each commit: a committed entry survives a power cut.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # … and takes the write lock at once, so that nothing read inside can change before the commit.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def open_reading_engine(path: Path) -> Engine:
    """Return the engine of the read-only connections; the file must exist."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5.0, check_same_thread=False)

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=4, max_overflow=4)

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's own record
        connection.isolation_level = None
        connection.execute("PRAGMA query_only = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # One transaction sees one state of the log, however many statements it takes.
        connection.exec_driver_sql("BEGIN")

    return engine


def reason_of(error: Exception) -> str:
    """Return the driver's own words on one line: PostgreSQL's have several, and SQLAlchemy adds the statement."""
    return " ".join(str(getattr(error, "orig", None) or error.__cause__ or error).split())


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the schema up to a revision, the newest if none is named, in one transaction.

    Raises:
        DatabaseRefused: the file is no database, cannot be written, or is of a newer version.
    """
    # No .ini file and no logging set-up: where the migrations lie is all that Alembic needs. A % would be read as
    # the start of an interpolation.
    config = Config(stdout=sys.stderr)
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except (SQLAlchemyError, CommandError) as error:
        raise DatabaseRefused(
            f"{engine.url.database} cannot be opened as a label database ({reason_of(error)}); check the path."
        ) from error

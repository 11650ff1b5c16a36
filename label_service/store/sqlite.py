"""The SQLite file: engines, PRAGMAs and the lock that keeps a second service away.

One file has two engines. The writing engine has exactly one connection, which only the writer's thread uses: the
WAL-reset bug of SQLite before 3.51.3 needs two connections that write or checkpoint. The reading engine opens the file
with `mode=ro`, so it can neither write nor checkpoint.

SQLite goes on writing to a file that was deleted or replaced, and all of it is lost at the next start. So each
transaction of the writing engine compares the path with the file that was opened, and its write-ahead log likewise.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from label_service.errors import DatabaseRefused, FileReplaced
from label_service.files import identify_file

logger = logging.getLogger(__name__)


@contextmanager
def lock_database(path: Path) -> Iterator[None]:
    """Hold the database for this process. The lock file lies beside it; the lock ends with the process at the latest.

    Raises:
        DatabaseRefused: another process holds it, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_file(path)
        # thread_local=False: the lock may be released by another thread than the one that took it.
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
        busy_timeout_s: how long a write waits for a lock that another process holds.

    Its transactions raise `FileReplaced` once the file, or its write-ahead log, is not the one that was opened.
    """
    _make_file(path)
    opened, journal = identify_file(path), path.with_name(f"{path.name}-wal")

    def connect() -> sqlite3.Connection:
        # mode=rw: a connection that is opened again never makes a new file.
        uri = f"file:{quote(str(path))}?mode=rw"
        return sqlite3.connect(uri, uri=True, timeout=busy_timeout_s, check_same_thread=False)

    # hide_parameters: an error's text would quote them, labels among them, and reach the messages.
    engine = create_engine(f"sqlite:///{path}", creator=connect, pool_size=1, max_overflow=0, hide_parameters=True)

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
        require_same_files(connection)
        # … and IMMEDIATE takes the write lock, so that nothing read inside can change before the commit.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.info.setdefault("journal", identify_file(journal))

    @event.listens_for(engine, "commit")
    def require_same_files(connection: Connection) -> None:
        same_journal = connection.info.get("journal") in (None, identify_file(journal))
        if not same_journal or identify_file(path) != opened:
            raise FileReplaced(
                f"{path} is not the file that was opened: it, or its write-ahead log, was deleted or replaced."
            )

    return engine


def _make_file(path: Path) -> None:
    # The file holds labels, so no other account may read it. SQLite gives its journal the same mode.
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o600))


def checkpoint(engine: Engine) -> None:
    """Move all that the write-ahead log holds into the database file, and empty the log.

    Args:
        engine: the writing one; nothing else of this process may be reading.
    """
    try:
        # Outside a transaction, in which SQLite refuses a checkpoint.
        connection = engine.raw_connection()
        try:
            busy, *_ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.close()
    except (sqlite3.Error, SQLAlchemyError) as error:
        logger.error("%s keeps a write-ahead log beside it: %s", engine.url.database, error)
    else:
        if busy:
            logger.warning("%s keeps a write-ahead log beside it: another program reads it", engine.url.database)


def open_reading_engine(path: Path) -> Engine:
    """Return the engine of the read-only connections; the file must exist."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5.0, check_same_thread=False)

    engine = create_engine(
        "sqlite://", creator=connect, poolclass=QueuePool, pool_size=4, max_overflow=4, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's own record
        connection.isolation_level = None
        connection.execute("PRAGMA query_only = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # One transaction sees one state of the log, however many statements it takes.
        connection.exec_driver_sql("BEGIN")

    return engine

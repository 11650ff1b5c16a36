"""Where labels, runs and the log are kept: one SQLite file, or a PostgreSQL database that several workers share.

On PostgreSQL every write transaction first takes one advisory lock, as `BEGIN IMMEDIATE` takes the file's on SQLite.
Writers of all processes follow one another, so sequence numbers have no gap and nothing read inside can change before
the commit. READ COMMITTED is enough, and it is needed: each statement sees all that earlier holders of the lock have
committed. A REPEATABLE READ transaction would see the state from before it waited for the lock.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from label_service.errors import DatabaseRefused
from label_service.settings import Settings
from label_service.store.sqlite import checkpoint, lock_database, open_reading_engine, open_writing_engine

logger = logging.getLogger(__name__)

# Advisory locks belong to one database, so a constant is enough: "labelmtr" as an 8-byte integer.
WRITER_LOCK = int.from_bytes(b"labelmtr", "big")
# A writer that hangs inside a transaction holds up all others until the server ends its session.
HUNG_WRITER_TIMEOUT_MS = 30_000
CONNECT_TIMEOUT_S = 5


@dataclass(frozen=True)
class SqliteDatabase:
    """One file, held by one process. `PostgresDatabase` has the same members.

    Attributes:
        shared: other processes may write to it at the same time.
    """

    path: Path
    busy_timeout_s: float
    shared: bool = False

    @property
    def name(self) -> str:
        """The name in messages, without a password."""
        return str(self.path)

    @property
    def folder(self) -> Path:
        """The folder of the service's own files, unless a setting names another."""
        return self.path.parent

    def hold(self) -> AbstractContextManager[None]:
        """Keep other services away by a lock file while the block runs."""
        return lock_database(self.path)

    def open_writing_engine(self) -> Engine:
        """Return the engine of the one writing connection of this process."""
        return open_writing_engine(self.path, self.busy_timeout_s)

    def finish(self, engine: Engine) -> None:
        """Bring everything that was committed into the one file, so that a copy of it is complete."""
        checkpoint(engine)

    def open_reading_engine(self) -> Engine:
        """Return the engine of the read-only connections.

        Raises:
            DatabaseRefused: the file does not exist.
        """
        if not self.path.is_file():
            raise DatabaseRefused(f"{self.path} does not exist; seed or serve makes it.")
        return open_reading_engine(self.path)

    def key_name(self, log_id: str) -> str:
        """Return the name of the signing key's file: the database file's own name."""
        return self.path.with_suffix(".key").name

    def version(self) -> str:
        """Return the product and its version, for messages."""
        return f"SQLite {sqlite3.sqlite_version}"


@dataclass(frozen=True)
class PostgresDatabase:
    """A database on a server, shared by the workers of one or more services. Its members are `SqliteDatabase`'s."""

    url: URL
    busy_timeout_s: float
    folder: Path
    shared: bool = True

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep nobody away: each write transaction takes the lock."""
        yield

    def open_writing_engine(self) -> Engine:
        """Return the engine of the one writing connection of this process."""
        engine = self._engine(
            # A committed entry is on disk, whatever the server's own default is.
            "synchronous_commit = on",
            "default_transaction_isolation = 'read committed'",
            # 0 would mean no limit.
            f"lock_timeout = {max(1, round(self.busy_timeout_s * 1000))}",
            f"idle_in_transaction_session_timeout = {HUNG_WRITER_TIMEOUT_MS}",
            pool_size=1,
            max_overflow=0,
        )

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")

        return engine

    def finish(self, engine: Engine) -> None:
        """Do nothing: the server keeps its own files."""

    def open_reading_engine(self) -> Engine:
        """Return the engine of the read-only connections."""
        # One transaction sees one state of the log, however many statements it takes.
        return self._engine(
            "default_transaction_read_only = on",
            "default_transaction_isolation = 'repeatable read'",
            pool_size=4,
            max_overflow=4,
        )

    def key_name(self, log_id: str) -> str:
        """Return the log's name, because one folder may hold the keys of several databases."""
        return f"{log_id}.key"

    def version(self) -> str:
        """Return the product and its version; warn of a server whose commits do not survive a power cut."""
        engine = self._engine(pool_size=1)
        try:
            with engine.connect() as connection:
                if connection.exec_driver_sql("SHOW fsync").scalar_one() != "on":
                    logger.warning("the server of %s runs with fsync off: a power cut may lose entries", self.name)
                return f"PostgreSQL {connection.exec_driver_sql('SHOW server_version').scalar_one()}"
        except SQLAlchemyError as error:
            raise DatabaseRefused(
                f"{self.name} cannot be reached ({reason_of(error)}); check the URL and the server."
            ) from error
        finally:
            engine.dispose()

    def _engine(self, *session: str, **pool: int) -> Engine:
        """Return an engine whose connections have these settings for their whole session."""
        try:
            # pre_ping finds a connection that the server has cut before it is used, and opens another.
            engine = create_engine(
                self.url,
                connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
                pool_pre_ping=True,
                # An error's text would quote them, labels among them, and reach the messages.
                hide_parameters=True,
                **pool,
            )
        except ImportError as error:
            raise DatabaseRefused(
                "PostgreSQL needs the driver psycopg; install labelmeter with its extra: labelmeter[service,postgres]."
            ) from error

        @event.listens_for(engine, "connect")
        def configure(connection: Any, _record: Any) -> None:  # noqa: ANN401 - psycopg's connection, SQLAlchemy's record
            # Outside a transaction, whose rollback would undo the settings.
            connection.autocommit = True
            for setting in session:
                connection.execute(f"SET {setting}")
            connection.autocommit = False

        return engine


Database = SqliteDatabase | PostgresDatabase


def find_database(settings: Settings) -> Database:
    """Return the database that the settings name.

    Raises:
        DatabaseRefused: the URL names neither an SQLite file nor a PostgreSQL database, or several workers are to
            share an SQLite file.
    """
    try:
        url = make_url(settings.database_url)
    except ArgumentError as error:
        raise DatabaseRefused(
            "The database URL is not one; write it like sqlite:///data/labels.sqlite3 or "
            "postgresql+psycopg://user@host/database."
        ) from error
    if url.get_backend_name() == "postgresql":
        # psycopg 3 is the one driver that is tested; a URL need not name it.
        return PostgresDatabase(
            url.set(drivername="postgresql+psycopg"), settings.busy_timeout_s, settings.data / "service"
        )
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise DatabaseRefused(
            f"The database {url.render_as_string()} is not an SQLite file and not a PostgreSQL database; "
            "write it like sqlite:///data/labels.sqlite3 or postgresql+psycopg://user@host/database."
        )
    if settings.workers > 1:
        raise DatabaseRefused(
            f"An SQLite file takes one worker and {settings.workers} were asked for; "
            "choose --workers 1, or a PostgreSQL database."
        )
    return SqliteDatabase(Path(url.database).resolve(), settings.busy_timeout_s)


def key_path(settings: Settings, database: Database, log_id: str) -> Path:
    """Return where the log's signing key lies."""
    return (settings.key_folder or database.folder) / database.key_name(log_id)


def heads_path(settings: Settings, database: Database, log_id: str) -> Path:
    """Return the file that remembers signed heads."""
    folder = (settings.key_folder or database.folder).resolve()
    return (settings.heads_folder or folder.with_name(folder.name + "-heads")) / f"{log_id}.heads"


def reason_of(error: Exception) -> str:
    """Return the driver's own message on one line, without the statement that SQLAlchemy adds."""
    return " ".join(str(getattr(error, "orig", None) or error.__cause__ or error).split())

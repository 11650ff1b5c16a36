"""A real PostgreSQL server for tests: Debian's programs, a folder of its own, a Unix socket, gone at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

START_TIMEOUT_S = 30.0
USER = "labelmeter"
# Debian's package makes it; the server refuses to run as root.
SERVER_ACCOUNT = "postgres"


def find_programs() -> Path | None:
    """Return the folder with `initdb` and `postgres`, the newest if there are several; None if there is none."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
    found = shutil.which("initdb")
    for folder in [*debian, *([Path(found).parent] if found else [])]:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    return None


@cache
def why_not() -> str | None:
    """Return one line that says why no PostgreSQL server can run here, or None if one can."""
    if find_programs() is None:
        return "no PostgreSQL here: initdb and postgres are not installed (Debian: apt-get install postgresql)"
    if os.geteuid() == 0 and not any(entry.pw_name == SERVER_ACCOUNT for entry in pwd.getpwall()):
        return f"no PostgreSQL here: it does not run as root, and there is no account {SERVER_ACCOUNT}"
    return None


@dataclass
class PostgresServer:
    """A running server, in which tests make and drop databases."""

    socket_folder: Path
    process: subprocess.Popen[bytes]
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def url(self, database: str) -> str:
        """Return what the service is given to open a database."""
        return f"postgresql+psycopg://{USER}@/{database}?host={self.socket_folder}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """Connect as the superuser, each statement its own transaction."""
        return psycopg.connect(f"host={self.socket_folder} user={USER} dbname={database}", autocommit=True)

    def execute(self, statement: str) -> None:
        """Run a statement in the server's own database."""
        with self.connect() as connection:
            connection.execute(statement)

    def create_database(self, template: str = "template0") -> str:
        """Make a database and return its name."""
        name = f"labels_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} ENCODING 'UTF8'")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, even if it is in use."""
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@contextmanager
def run_postgres(under: Path | None = None, *, fsync: bool = False) -> Iterator[PostgresServer]:
    """Run a server until the block ends.

    Args:
        under: the folder to make its own in, which the server's account must be able to enter; None: the system's.
        fsync: let it sync what it commits.
    """
    programs = find_programs()
    assert programs is not None, "ask why_not first"
    # The server starts in it, so a path that is relative to where the caller stands would be another one there.
    folder = Path(tempfile.mkdtemp(prefix="labelmeter-postgres-", dir=under)).resolve()
    account: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(folder, SERVER_ACCOUNT, SERVER_ACCOUNT)
        account = {"user": SERVER_ACCOUNT, "group": SERVER_ACCOUNT, "extra_groups": []}
    account |= {"cwd": folder, "stdin": subprocess.DEVNULL}
    data = folder / "data"
    try:
        made = subprocess.run(
            [programs / "initdb", "-D", data, "-U", USER, "--auth=trust", "--no-sync", "--locale=C", "-E", "UTF8"],
            capture_output=True,
            **account,
        )
        assert made.returncode == 0, made.stderr.decode()
        # What tests write need not survive a power cut. Durable settings of a session are tested by asking for them.
        durable = f"fsync={'on' if fsync else 'off'}"
        options = [f"unix_socket_directories={folder}", "listen_addresses=", durable, "max_connections=200"]
        command = [programs / "postgres", "-D", data, *(part for option in options for part in ("-c", option))]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, **account)
        try:
            server = PostgresServer(folder, process)
            _wait_until_up(server, folder / "log")
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown: open sessions are ended
            process.wait(START_TIMEOUT_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(server: PostgresServer, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            server.connect().close()
            return
        except psycopg.OperationalError:
            assert server.process.poll() is None and time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.05)

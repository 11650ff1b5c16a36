"""Real label services for tests: a real uvicorn in a thread, a real SQLite file or PostgreSQL server, real HTTP.

A module marked `every_database` runs on SQLite and, where a server can be had, on PostgreSQL with three workers: three
services as three processes would have them, each with its own tree, writer and connections, behind one socket. A client
without kept connections meets whichever of them takes the next connection. Real processes are in
`test_service_workers.py`.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from label_service.server import listen, make_server
from label_service.service import LabelService, open_service
from label_service.settings import Settings
from tests.datasets import make_idx_dataset
from tests.postgres import PostgresServer, run_postgres, why_not

START_TIMEOUT_S = 20.0
SQLITE, POSTGRESQL = "sqlite", "postgresql"
WORKERS_ON_POSTGRESQL = 3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests of modules marked `every_database` on both, or on SQLite alone where no server can be had.

    That is told once, by `test_service_workers.py`, and not a hundred times.
    """
    if "database_kind" in metafunc.fixturenames and metafunc.definition.get_closest_marker("every_database"):
        kinds = [SQLITE] if why_not() else [SQLITE, POSTGRESQL]
        metafunc.parametrize("database_kind", kinds, scope="session")


@pytest.fixture(scope="session")
def database_kind() -> str:
    """SQLite, unless the test is run on every database."""
    return SQLITE


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the session."""
    with run_postgres() as server:
        yield server


@contextmanager
def fresh_database(kind: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Yield the settings that name a fresh database whose files lie in a folder."""
    if kind == SQLITE:
        yield {"database_url": f"sqlite:///{folder / 'labels.sqlite3'}"}
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create_database()
    try:
        yield {"database_url": server.url(name), "key_folder": folder, "workers": WORKERS_ON_POSTGRESQL}
    finally:
        server.drop_database(name)


@dataclass(frozen=True)
class RunningService:
    """A service that answers: where, the service itself (the first worker's), and a client without a token."""

    base_url: str
    service: LabelService
    client: httpx.Client

    def open_run(self, budget: int = 10, **more: Any) -> tuple[str, dict[str, str]]:
        """Open a run; return its id and the headers that speak for it."""
        answer = self.client.post("/v1/runs", json={"name": "test", "budget": budget, **more})
        assert answer.status_code == 201, answer.text
        opened = answer.json()
        return opened["run_id"], {"Authorization": f"Bearer {opened['token']}"}

    def entries(self, **query: Any) -> list[dict[str, Any]]:
        """Return the log's entries (the first thousand)."""
        return self.client.get("/v1/log/entries", params={"limit": 1000, **query}).json()["entries"]


@contextmanager
def run_service(settings: Settings) -> Iterator[RunningService]:
    """Run a service until the block ends; several workers are services behind one socket."""
    listener = listen(settings.host, settings.port)
    with ExitStack() as stack:
        stack.callback(listener.close)
        services = [stack.enter_context(open_service(settings)) for _ in range(settings.workers)]
        stack.enter_context(run_servers(services, listener))
        base_url = "http://{}:{}".format(*listener.getsockname()[:2])
        limits = httpx.Limits() if settings.workers == 1 else httpx.Limits(max_keepalive_connections=0)
        client = stack.enter_context(httpx.Client(base_url=base_url, timeout=30.0, limits=limits))
        yield RunningService(base_url, services[0], client)


@contextmanager
def run_servers(services: list[LabelService], listener: socket.socket) -> Iterator[None]:
    """Let services answer on one socket until the block ends."""
    servers = [make_server(service) for service in services]
    # Each has a socket of its own, because a server closes what it was given.
    threads = [
        threading.Thread(target=server.run, kwargs={"sockets": [listener.dup()]}, daemon=True) for server in servers
    ]
    for thread in threads:
        thread.start()
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not all(server.started for server in servers):
            assert all(thread.is_alive() for thread in threads), "the service did not start"
            assert time.monotonic() < deadline_s, "the service did not start"
            time.sleep(0.01)
        yield
    finally:
        for server in servers:
            server.should_exit = True
        for thread in threads:
            thread.join(START_TIMEOUT_S)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 200 pool and 50 test images in 3 classes."""
    return make_idx_dataset(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture
def service_settings(
    tmp_path: Path, tiny_data: Path, database_kind: str, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Settings]]:
    """Make settings for a fresh database on the tiny data set; keyword arguments override."""
    with fresh_database(database_kind, tmp_path, request) as place:

        def make(**override: Any) -> Settings:
            # Workers wait for one another on PostgreSQL; on SQLite only a stranger can hold the file.
            wait_s = 0.2 if database_kind == SQLITE else 5.0
            given = {"data": tiny_data, "other_data": True, "port": 0, "busy_timeout_s": wait_s, **place}
            return Settings(**{**given, **override})

        yield make


@pytest.fixture
def start_service(service_settings: Callable[..., Settings]) -> Iterator[Callable[..., RunningService]]:
    """Start services with some settings; all are stopped at the end of the test."""
    with ExitStack() as stack:
        yield lambda **override: stack.enter_context(run_service(service_settings(**override)))


@pytest.fixture
def running_service() -> Iterator[Callable[[Settings], str]]:
    """Start a service with the settings given and return its base URL; it is stopped at the end of the test."""
    with ExitStack() as stack:
        yield lambda settings: stack.enter_context(run_service(settings)).base_url


@pytest.fixture
def running(start_service: Callable[..., RunningService]) -> RunningService:
    """A service with default limits on the tiny data set."""
    return start_service()


@pytest.fixture(scope="module")
def shared_service(
    tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, database_kind: str, request: pytest.FixtureRequest
) -> Iterator[RunningService]:
    """One service for the tests of a module that change nothing they depend on."""
    with (
        fresh_database(database_kind, tmp_path_factory.mktemp("shared"), request) as place,
        run_service(Settings(data=tiny_data, other_data=True, port=0, **place)) as running,
    ):
        yield running

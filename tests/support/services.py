"""Real label services in threads: a real uvicorn, a real SQLite file or PostgreSQL server, real HTTP."""

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

from label_service.service import LabelService, open_service
from label_service.settings import Settings
from label_service.web.server import listen, make_server
from tests.support.postgres import PostgresServer

START_TIMEOUT_S = 20.0
SQLITE, POSTGRESQL = "sqlite", "postgresql"
WORKERS_ON_POSTGRESQL = 3


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


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait until a condition holds; fail if it never does."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {timeout_s} s in vain"
        time.sleep(0.01)


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
        wait_until(lambda: all(server.started for server in servers), START_TIMEOUT_S)
        yield
    finally:
        for server in servers:
            server.should_exit = True
        for thread in threads:
            thread.join(START_TIMEOUT_S)

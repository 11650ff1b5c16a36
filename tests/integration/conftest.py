"""Real label services for tests: a real uvicorn in a thread, a real SQLite file, real HTTP."""

from __future__ import annotations

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

START_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class RunningService:
    """A service that answers: where, the service itself, and a client without a token."""

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
    """Run a service until the block ends."""
    listener = listen(settings.host, settings.port)
    with ExitStack() as stack:
        stack.callback(listener.close)
        service = stack.enter_context(open_service(settings))
        server = make_server(service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()

        def stop() -> None:
            server.should_exit = True
            thread.join(START_TIMEOUT_S)

        stack.callback(stop)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline_s, "the service did not start"
            time.sleep(0.01)
        base_url = "http://{}:{}".format(*listener.getsockname()[:2])
        client = stack.enter_context(httpx.Client(base_url=base_url, timeout=30.0))
        yield RunningService(base_url, service, client)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 200 pool and 50 test images in 3 classes."""
    return make_idx_dataset(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture
def service_settings(tmp_path: Path, tiny_data: Path) -> Callable[..., Settings]:
    """Make settings for a fresh database on the tiny data set; keyword arguments override."""

    def make(**override: Any) -> Settings:
        given = {
            "data": tiny_data,
            "other_data": True,
            "database_url": f"sqlite:///{tmp_path / 'labels.sqlite3'}",
            "port": 0,
            "busy_timeout_s": 0.2,
        }
        return Settings(**{**given, **override})

    return make


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
def shared_service(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Iterator[RunningService]:
    """One service for the tests of a module that change nothing they depend on."""
    database = tmp_path_factory.mktemp("shared") / "labels.sqlite3"
    settings = Settings(data=tiny_data, other_data=True, database_url=f"sqlite:///{database}", port=0)
    with run_service(settings) as running:
        yield running

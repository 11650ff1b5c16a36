"""Real label services for tests: a real uvicorn in a thread, a real SQLite file or PostgreSQL server, real HTTP.

A module marked `every_database` runs on SQLite and, where a server can be had, on PostgreSQL with three workers: three
services as three processes would have them, each with its own tree, writer and connections, behind one socket. A client
without kept connections gets an answer from whichever service takes the next connection. Real processes are in
`test_service_workers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from label_service.log import signed_log
from label_service.log.snapshot import Snapshot, SnapshotFile
from label_service.settings import Settings
from tests.support.datasets import make_idx_dataset
from tests.support.postgres import PostgresServer, run_postgres, why_not
from tests.support.services import POSTGRESQL, SQLITE, RunningService, fresh_database, run_service


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests of modules marked `every_database` on both databases, or on SQLite alone where no server can run.

    Only the skip of `test_service_workers.py` reports a missing server, so that it is reported once.
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


@pytest.fixture(scope="module")
def tiny_profiles() -> Iterator[None]:
    """Make the trainer's tiny profiles known, on one thread."""
    # Imported late: the tests of the service alone need no PyTorch.
    from tests.support.tiny_trainer import TINY, TINY_CURVE, use_one_thread
    from trainer.profiles import PROFILES
    from trainer.run import pipeline

    with pytest.MonkeyPatch.context() as patch:
        for profile in (TINY, TINY_CURVE):
            patch.setitem(PROFILES, profile.name, profile)
        patch.setattr(pipeline, "use_all_cores", use_one_thread)
        yield


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
            # On PostgreSQL workers wait for one another; on SQLite only another program can hold the file.
            wait_s = 0.2 if database_kind == SQLITE else 5.0
            given = {"data": tiny_data, "other_data": True, "port": 0, "busy_timeout_s": wait_s, **place}
            return Settings(**{**given, **override})

        yield make


@pytest.fixture(params=["no snapshot", "an older snapshot", "the newest snapshot"])
def snapshot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let services leave no snapshot of their log, one of its first entries, or the one of a clean stop."""
    write = SnapshotFile.write

    def write_some(file: SnapshotFile, written: Snapshot) -> None:
        if request.param != "an older snapshot" or written.size <= 3:
            write(file, written)

    if request.param == "no snapshot":
        monkeypatch.setattr(SnapshotFile, "write", lambda *_: None)
    elif request.param == "an older snapshot":
        monkeypatch.setattr(signed_log, "SNAPSHOT_EVERY", 1)
        monkeypatch.setattr(SnapshotFile, "write", write_some)
    kind: str = request.param
    return kind


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


# A module's tests together may do more in an hour than one client.
FAST = {"tokenless_evaluations": 250, "uncharged_entries_per_hour": 10**6, "openings_per_hour": 10**6}


@pytest.fixture(scope="module")
def shared_service(
    tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, database_kind: str, request: pytest.FixtureRequest
) -> Iterator[RunningService]:
    """One service for the tests of a module that change nothing they depend on."""
    with (
        fresh_database(database_kind, tmp_path_factory.mktemp("shared"), request) as place,
        run_service(Settings(data=tiny_data, other_data=True, port=0, **FAST, **place)) as running,
    ):
        yield running

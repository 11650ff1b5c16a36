"""When writing fails, no label leaves; when the service ends, nothing is lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import event
from typer.testing import CliRunner

from label_service.cli import app
from label_service.errors import DatabaseRefused, LogNotWritable, PortTaken
from label_service.ledger.writer import Writer
from label_service.service import open_service
from label_service.settings import Settings
from label_service.web.server import listen
from tests.support.service_process import run_process
from tests.support.services import RunningService, run_service


@contextmanager
def every_new_connection_runs(running: RunningService, *statements: str) -> Iterator[None]:
    """Make the writer's connections run statements when they open: real SQLite errors, without a real disk."""
    engine = running.service.writer._engine

    def sabotage(connection: sqlite3.Connection, _record: object) -> None:
        for statement in statements:
            connection.execute(statement)

    event.listen(engine, "connect", sabotage)
    engine.dispose()
    try:
        yield
    finally:
        event.remove(engine, "connect", sabotage)
        engine.dispose()


def assert_nothing_leaves_and_then_recovers(running: RunningService, broken: Callable[[], object]) -> None:
    """While `broken` holds, no label and no count; afterwards the same request works."""
    _, token = running.open_run()
    running.client.get("/label/1", headers=token)
    before = running.client.get("/v1/log/export.ndjson").content
    with broken():
        for answer in (
            running.client.get("/label/2", headers=token),
            running.client.get("/label/1", headers=token),  # a replay is logged too, so it fails too
            running.client.post("/v1/labels:query", json={"ids": [3, 4]}, headers=token),
            running.client.post("/v1/runs", json={"name": "x"}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (503, "log-not-writable")
            assert not {"label", "labels", "token"} & set(answer.json())
        assert running.client.get("/readyz").status_code == 503
        assert running.client.get("/healthz").status_code == 200
        assert running.client.get("/v1/log/export.ndjson").content == before
    assert running.client.get("/readyz").status_code == 200
    assert running.client.get("/label/2", headers=token).json()["queries"] == 2


def test_read_only_database_answers_503_and_recovers(running: RunningService) -> None:
    """A database that takes no writes reveals nothing; when it takes them again, the service goes on by itself."""
    assert_nothing_leaves_and_then_recovers(
        running, lambda: every_new_connection_runs(running, "PRAGMA query_only = ON")
    )


def test_locked_database_answers_503_and_recovers(running: RunningService) -> None:
    """A database locked by somebody else for longer than the busy time-out reveals nothing until it is free."""

    @contextmanager
    def locked() -> Iterator[None]:
        database = running.service.writer._engine.url.database
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")

    assert_nothing_leaves_and_then_recovers(running, locked)


def test_full_queue_answers_503_at_once(start_service: Callable[..., RunningService]) -> None:
    """When more requests wait than the queue holds, the rest are refused instead of piling up."""
    running = start_service(queue_size=1)
    hold, holding = threading.Event(), threading.Event()

    def block(_connection: object) -> None:
        holding.set()
        hold.wait(10)

    blocked = running.service.writer.submit(block)
    assert holding.wait(5)
    waiting = running.service.writer.beat()
    answer = running.client.get("/label/1")
    hold.set()
    blocked.result(5)
    waiting.result(5)
    assert (answer.status_code, answer.json()["code"]) == (503, "log-not-writable")
    assert answer.headers["retry-after"] == "1"
    assert running.client.get("/label/1").status_code == 200


def test_fault_in_one_request_undoes_only_that_request(running: RunningService) -> None:
    """A bug in one piece of work does not take its neighbours in the same commit with it."""
    writer: Writer = running.service.writer

    def fault(_connection: object) -> None:
        raise ZeroDivisionError

    failing, fine = writer.submit(fault), writer.beat()
    with pytest.raises(ZeroDivisionError):
        failing.result(5)
    fine.result(5)


def test_closed_writer_takes_nothing_more(service_settings: Callable[..., Settings]) -> None:
    """After the service stopped, work is refused instead of waiting for ever."""
    with open_service(service_settings()) as service:
        writer = service.writer
        assert asyncio.run(service.ready())
    with pytest.raises(LogNotWritable):
        writer.beat()


def test_unexpected_fault_is_a_500_without_details(running: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug answers a problem document with the request id, and nothing about the inside."""

    def fail() -> None:
        raise RuntimeError("inner secret")

    monkeypatch.setattr(running.service, "summary", fail)
    answer = running.client.get("/v1/log/summary")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal-error")
    assert "secret" not in answer.text and answer.json()["request_id"].startswith("req-")


def test_unreadable_database_is_a_503(running: RunningService) -> None:
    """Reads that fail say so; they never look like an empty log."""
    engine = running.service.reader._engine

    def sabotage(connection: sqlite3.Connection, _record: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    event.listen(engine, "connect", sabotage)
    engine.dispose()
    answer = running.client.get("/v1/log/entries")
    event.remove(engine, "connect", sabotage)
    assert (answer.status_code, answer.json()["code"]) == (503, "log-not-readable")
    assert running.client.get("/v1/log/entries").status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_body_of_ten_megabytes_is_413(shared_service: RunningService, chunked: bool) -> None:
    """A body above the limit is refused without being kept, whether or not its length is declared."""
    content = (b"1," * 25_000 for _ in range(200)) if chunked else b"1," * 5_000_000
    answer = shared_service.client.post(
        "/v1/labels:query", content=content, headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "body-too-large")
    assert shared_service.client.get("/healthz").status_code == 200


def test_largest_legal_bodies_are_accepted(shared_service: RunningService) -> None:
    """A thousand ids pass the size limit with room to spare (they are refused for being unknown, not for size)."""
    answer = shared_service.client.post("/v1/labels:query", json={"ids": list(range(10**29, 10**29 + 1000))})
    assert answer.status_code == 404


def test_restart_keeps_counts_tokens_and_log(service_settings: Callable[..., Settings]) -> None:
    """A service that restarts mid-way goes on with the same run, the same counts and the same log."""
    settings = service_settings()
    with run_service(settings) as running:
        run_id, token = running.open_run(budget=3)
        keyed = {**token, "Idempotency-Key": "k"}
        first = running.client.post("/v1/labels:query", json={"ids": [1, 2]}, headers=keyed).json()
        before = running.client.get("/v1/log/export.ndjson").content
    with run_service(settings) as running:
        assert running.client.get("/v1/log/export.ndjson").content == before
        again = running.client.post("/v1/labels:query", json={"ids": [1, 2]}, headers=keyed).json()
        assert again["labels"] == first["labels"] and again["replayed"]
        assert running.client.get("/label/3", headers=token).json()["remaining"] == 0
        assert running.client.get("/label/4", headers=token).status_code == 403
        assert running.client.get(f"/v1/runs/{run_id}").json()["queries"] == 3


def test_second_service_on_one_database_is_refused(service_settings: Callable[..., Settings]) -> None:
    """Two services cannot share a database file; the second says so in one sentence."""
    settings = service_settings()
    with (
        open_service(settings),
        pytest.raises(DatabaseRefused, match="in use by another label service"),
        open_service(settings),
    ):
        pass
    with open_service(settings):
        pass


def test_a_taken_port_is_one_sentence_before_anything_is_opened(shared_service: RunningService, tmp_path: Path) -> None:
    """Exit code 1 and no database; an address that the machine does not have is refused too."""
    port = int(shared_service.base_url.rpartition(":")[2])
    url = f"sqlite:///{tmp_path / 'db' / 'labels.sqlite3'}"
    failed = CliRunner().invoke(app, ["serve", "--port", str(port), "--database-url", url])
    assert (failed.exit_code, failed.output) == (
        1, f"Error: Port {port} on 127.0.0.1 is in use; stop what listens there or choose another --port.\n"
    )  # fmt: skip
    assert not (tmp_path / "db").exists()
    with pytest.raises(PortTaken, match="cannot listen"):
        listen("192.0.2.1", 0)


def test_sigterm_closes_the_service_and_its_file_is_complete(tmp_path: Path, tiny_data: Path) -> None:
    """Exit code 0, no trace, and nothing beside the database file: a copy of it has the whole log."""
    with run_process(tiny_data, tmp_path) as (process, base_url), httpx.Client(base_url=base_url) as client:
        assert client.get("/label/1").status_code == 200
    assert process.returncode == 0
    said = (tmp_path / "service.log").read_text()
    assert f"SQLite {sqlite3.sqlite_version}" in said and "Traceback" not in said
    database = tmp_path / "service" / "labels.sqlite3"
    assert not database.with_name(f"{database.name}-wal").exists()
    copy = shutil.copy(database, tmp_path / "copy.sqlite3")
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT count(*) FROM entries").fetchone() == (2,)


def test_sigterm_while_a_log_opens_ends_without_a_trace(tmp_path: Path, tiny_data: Path) -> None:
    """A signal before the first request is handled like any other."""
    environment = {"LABEL_SERVICE_OTHER_DATA": "true", "LABEL_SERVICE_DATA": str(tiny_data), "LABEL_SERVICE_PORT": "0"}
    environment["LABEL_SERVICE_DATABASE_URL"] = f"sqlite:///{tmp_path / 'labels.sqlite3'}"
    command = [sys.executable, "-m", "label_service", "serve"]
    with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.terminate()
        assert (process.wait(30), "Traceback" in process.stderr.read()) == (0, False)


@pytest.mark.parametrize("lost", ["labels.sqlite3", "labels.sqlite3-wal"])
@pytest.mark.parametrize("replace", [False, True])
def test_a_file_deleted_or_replaced_while_the_service_runs_takes_no_charge(
    running: RunningService, tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: str, replace: bool
) -> None:
    """SQLite would go on writing to the old file; the service refuses until the old file is back."""
    assert running.client.get("/label/1").status_code == 200
    path, aside = tmp_path / lost, tmp_path / "aside"
    path.rename(aside)
    if replace:
        shutil.copy(aside, path)
    for _ in range(2):
        answer = running.client.get("/label/2")
        assert (answer.status_code, answer.json()["code"]) == (503, "log-not-writable")
    assert running.client.get("/readyz").status_code == 503
    assert "is not the file that was opened" in caplog.text
    aside.rename(path)
    answer = running.client.get("/label/2")
    assert (answer.status_code, answer.json()["queries"]) == (200, 2)

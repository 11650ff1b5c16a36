"""Several workers on one PostgreSQL database: one log, one history of heads, no label beyond a budget."""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection
from typer.testing import CliRunner

from label_service.cli import app
from label_service.errors import DatabaseRefused
from label_service.ledger import ledger
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log import answer_key
from label_service.log.evidence import Evidence
from label_service.log.kept_answers import KeptAnswer
from label_service.log.merkle import verify_consistency
from label_service.log.signed_log import SignedLog
from label_service.log.signed_note import Verifier
from label_service.log.snapshot import Snapshot
from label_service.log.tree_head import TreeHead
from label_service.log.verify import verify
from label_service.service import open_service
from label_service.settings import Settings
from label_service.store.backends import WRITER_LOCK, find_database
from label_service.web.server import WORKER_TIMEOUT_S
from tests.integration.test_service_failures import assert_nothing_leaves_and_then_recovers
from tests.support.postgres import PostgresServer, why_not
from tests.support.service_process import run_process
from tests.support.services import POSTGRESQL, RunningService, fresh_database, run_service, wait_until

if reason := why_not():
    pytest.skip(f"{reason}; tests of every database ran on SQLite alone", allow_module_level=True)

WORKERS = 3


@pytest.fixture
def shared_settings(tmp_path: Path, tiny_data: Path, request: pytest.FixtureRequest) -> Iterator[Settings]:
    """Settings of one worker on a fresh PostgreSQL database; services opened with them share it."""
    with fresh_database(POSTGRESQL, tmp_path, request) as place:
        yield Settings(data=tiny_data, other_data=True, port=0, **{**place, "workers": 1})


@pytest.fixture
def workers(shared_settings: Settings) -> Iterator[list[RunningService]]:
    """Three services on one database, each with an address of its own, so that a test chooses whom it asks."""
    with ExitStack() as stack:
        yield [stack.enter_context(run_service(shared_settings)) for _ in range(WORKERS)]


def head_of(answer: httpx.Response, verifier: Verifier) -> TreeHead:
    """Read the head that an answer carries: a checkpoint's own, or its receipt's."""
    is_note = answer.headers["content-type"].startswith("text/plain")
    return TreeHead.open(answer.text if is_note else answer.json()["receipt"]["checkpoint"], verifier)


def test_a_client_switched_between_workers_sees_one_growing_history(workers: list[RunningService]) -> None:
    """Each worker answers a head at least as large as any before, and proves that it grew from the one before."""
    _, token = workers[0].open_run(budget=30)
    verifier = Verifier.from_vkey(workers[1].client.get("/v1/log/key").json()["key"])
    heads = []
    turns = cycle(workers)
    for label_id in range(12):
        heads.append(head_of(next(turns).client.get(f"/label/{label_id}", headers=token), verifier))
        # Two workers that have not written since: neither may answer its own older head.
        heads += [head_of(next(turns).client.get("/v1/log/checkpoint"), verifier) for _ in range(2)]
        next(turns)
    assert heads[-1].size == 14
    for older, newer in pairwise(heads):
        assert older.size <= newer.size
        query = {"first": older.size, "second": newer.size}
        proof = next(turns).client.get("/v1/log/proof/consistency", params=query).json()["proof"]
        verify_consistency(older.size, newer.size, older.root, newer.root, [base64.b64decode(node) for node in proof])


def test_a_worker_proves_and_exports_what_another_one_signed(workers: list[RunningService]) -> None:
    """A worker that has never written proves the receipt of another, and its evidence holds that receipt."""
    first, second, third = workers
    receipt = first.client.get("/label/1").json()["receipt"]
    size = head_of(first.client.get("/v1/log/checkpoint"), first.service.log.verifier).size
    query = {"index": receipt["index"], "size": size}
    assert second.client.get("/v1/log/proof/inclusion", params=query).json()["proof"] == receipt["inclusion_proof"]
    assert third.client.get("/v1/log/evidence").json()["checkpoint"] == receipt["checkpoint"]
    assert third.client.get("/v1/log/proof/inclusion", params={**query, "size": size + 1}).status_code == 404


def test_an_entry_of_a_worker_that_died_before_signing_is_signed_by_the_next(workers: list[RunningService]) -> None:
    """A committed entry stays in the log, under the next head of any worker, and is charged once."""
    dying, other, third = workers
    run_id, token = other.open_run()
    request = ledger.Request(run_id, "lost")
    # The writer's transaction, without the signature that follows it.
    with dying.service.writer._engine.begin() as connection:
        dying.service.log.catch_up(connection)
        unit = UnitOfWork(connection, dying.service.log)
        ledger.reveal(unit, dying.service.rules, request, [5])
        unit.flush()
        dying.service.log.store_head(connection)
    head = head_of(third.client.get("/v1/log/checkpoint"), third.service.log.verifier)
    assert head.size == 3
    again = other.client.get("/label/5", headers=token).json()
    assert (again["charged"], again["queries"]) == (False, 1)
    evidence = Evidence.model_validate(dying.client.get("/v1/log/evidence").json())
    assert verify(evidence, third.service.log.verifier).runs[run_id].queries == 1
    assert [head.size for head in evidence.heads] == [1, 2, 3]
    assert evidence.checkpoint == other.client.get("/v1/log/checkpoint").text


def test_a_worker_that_reads_a_long_log_keeps_no_other_from_writing(
    workers: list[RunningService], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a worker reads log and labels at its start, another one answers; the new one goes on from there."""
    running, other, _ = workers
    _, token = running.open_run()
    read_log, read_labels, answered = SignedLog._replay, answer_key.read_labels, []

    def ask() -> None:
        answered.append(running.client.get(f"/label/{len(answered)}", headers=token).status_code)

    def read_log_slowly(self: SignedLog, connection: Connection, snapshot: Snapshot | None = None) -> object:
        changed = read_log(self, connection, snapshot)
        ask()
        return changed

    def read_labels_slowly(*arguments: Any) -> Any:
        ask()
        return read_labels(*arguments)

    monkeypatch.setattr(SignedLog, "_replay", read_log_slowly)
    monkeypatch.setattr(answer_key, "read_labels", read_labels_slowly)
    with run_service(other.service.settings) as started:
        assert answered and set(answered) == {200}
        head = head_of(started.client.get("/v1/log/checkpoint"), started.service.log.verifier)
        assert head.size == 2 + len(answered)
        assert verify(
            Evidence.model_validate(started.client.get("/v1/log/evidence").json()), other.service.log.verifier
        )


def test_a_lock_held_for_too_long_answers_503_and_recovers(
    shared_settings: Settings, postgres_server: PostgresServer
) -> None:
    """While another writer hangs, no label leaves and nothing is charged; when it ends, the service goes on."""
    settings = shared_settings.model_copy(update={"busy_timeout_s": 0.2})
    database = settings.database_url.partition("@/")[2].partition("?")[0]

    @contextmanager
    def hold_lock() -> Iterator[None]:
        with closing(postgres_server.connect(database)) as other:
            other.execute(f"SELECT pg_advisory_lock({WRITER_LOCK})")
            yield

    with run_service(settings) as running:
        assert_nothing_leaves_and_then_recovers(running, hold_lock)


def test_connections_that_are_cut_are_opened_anew(
    workers: list[RunningService], postgres_server: PostgresServer
) -> None:
    """As after a restart of the server: a few refusals, then every worker goes on, and nothing is lost or doubled."""
    _, token = workers[0].open_run()
    for label_id, running in enumerate(workers):
        assert running.client.get(f"/label/{label_id}", headers=token).status_code == 200
    database = workers[0].service.settings.database_url.partition("@/")[2].partition("?")[0]
    postgres_server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
    for label_id, running in enumerate(workers, 3):
        refused = [running.client.get(f"/label/{label_id}", headers=token).status_code for _ in range(3)]
        assert refused[-1] == 200 and set(refused) <= {200, 503}
    summaries = [workers[0].client.get("/v1/log/summary") for _ in range(3)]
    assert summaries[-1].status_code == 200 and {answer.status_code for answer in summaries} <= {200, 503}
    counted = summaries[-1].json()
    assert counted["queries"] == counted["distinct_labels_revealed_to_anybody"] == 6


def test_sessions_are_durable_and_read_what_was_committed(shared_settings: Settings) -> None:
    """The writer waits for the disk and sees each commit; readers cannot write and see one state."""
    database = find_database(shared_settings)
    wanted = {
        database.open_writing_engine(): {"synchronous_commit": "on", "transaction_isolation": "read committed"},
        database.open_reading_engine(): {"transaction_read_only": "on", "transaction_isolation": "repeatable read"},
    }
    for engine, settings in wanted.items():
        with engine.begin() as connection:
            found = {name: connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in settings}
        engine.dispose()
        assert found == settings


def test_first_starts_at_once_make_one_log_with_one_key(shared_settings: Settings, tmp_path: Path) -> None:
    """Four services open an empty database together: it gets one schema, one key, one entry and one head."""
    barrier = threading.Barrier(4)

    def start(_: int) -> tuple[str, str]:
        barrier.wait()
        with open_service(shared_settings) as service:
            return service.log.verifier.vkey, service.log.head.note

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(start, range(4)))) == 1
    assert len(list(tmp_path.glob("*.key"))) == 1
    with run_service(shared_settings) as running:
        assert [entry["op"] for entry in running.entries()] == ["run-opened"]


def test_seed_and_export_open_the_database_too(shared_settings: Settings, tmp_path: Path) -> None:
    """`seed` fills a PostgreSQL database before a service runs; `export` writes the log that the service answers."""
    url = shared_settings.database_url
    command = ["seed", "--database-url", url, "--data", str(shared_settings.data), "--other-data"]
    key_folder = {"LABEL_SERVICE_KEY_FOLDER": str(tmp_path)}
    seeded = CliRunner().invoke(app, command, env=key_folder)
    assert seeded.exit_code == 0 and "200 labels to ask for" in seeded.output
    with run_service(shared_settings) as running:
        running.client.get("/label/3")
        answered = running.client.get("/v1/log/export.ndjson").content
    exported = CliRunner().invoke(app, ["export", "--database-url", url, "--out", str(tmp_path / "log")])
    assert exported.exit_code == 0 and (tmp_path / "log").read_bytes() == answered
    assert answered.count(b"\n") == 2


def test_a_log_whose_key_is_missing_gets_no_other(shared_settings: Settings, tmp_path: Path) -> None:
    """A service that cannot find the log's key is refused, and makes no other key."""
    with run_service(shared_settings) as running:
        running.client.get("/label/1")
    elsewhere = shared_settings.model_copy(update={"key_folder": tmp_path / "elsewhere"})
    with pytest.raises(DatabaseRefused, match="put the key there"), open_service(elsewhere):
        pass
    assert not (tmp_path / "elsewhere").exists()
    with open_service(shared_settings):
        pass


def worker_processes(parent: int) -> list[int]:
    """Return the ids of the worker processes, without the parent's resource tracker."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_processes_race_for_the_last_labels_and_the_evidence_holds(shared_settings: Settings, tmp_path: Path) -> None:
    """32 clients ask three processes and one process is killed: exactly the budget is charged, every receipt holds."""
    budget = 60
    place = shared_settings.model_dump(include={"database_url", "key_folder"})
    kept: list[KeptAnswer] = []
    with run_process(shared_settings.data, tmp_path, workers=WORKERS, **place) as (process, base_url):
        opened = httpx.post(f"{base_url}/v1/runs", json={"name": "race", "budget": budget}).json()
        kept.append(KeptAnswer.model_validate(opened))
        token = {"Authorization": f"Bearer {opened['token']}"}
        wait_until(lambda: len(worker_processes(process.pid)) == WORKERS, 3 * WORKER_TIMEOUT_S)
        victim = worker_processes(process.pid)[0]

        def ask(client: int) -> list[tuple[int, dict[str, Any]]]:
            answers = []
            for number in range(4):
                label_id = client * 4 + number
                if label_id == 62:
                    os.kill(victim, signal.SIGKILL)
                try:
                    answer = httpx.get(f"{base_url}/label/{label_id}", headers=token, timeout=30)
                    answers.append((answer.status_code, answer.json()))
                except httpx.TransportError:
                    pass  # the killed worker may have charged the label, and did not answer it
            return answers

        with ThreadPoolExecutor(32) as pool:
            answers = [answer for some in pool.map(ask, range(32)) for answer in some]
        answered = [body for status, body in answers if status == 200]
        assert {status for status, _ in answers} == {200, 403} and len(answers) >= 96
        kept += [KeptAnswer.model_validate(body) for body in answered]
        wait_until(lambda: len({*worker_processes(process.pid)} - {victim}) == WORKERS, 3 * WORKER_TIMEOUT_S)
        httpx.post(f"{base_url}/v1/runs/{opened['run_id']}:seal", headers=token, timeout=30).raise_for_status()
        evidence = Evidence.model_validate_json(httpx.get(f"{base_url}/v1/log/evidence").content)
        key = httpx.get(f"{base_url}/v1/log/key").json()["key"]
    assert process.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    said = (tmp_path / "service.log").read_text()
    assert "Traceback" not in said and f"{WORKERS} workers" in said
    # Verification checks numbers, counts, the head and every receipt.
    verdict = verify(evidence, Verifier.from_vkey(key), kept)
    run = verdict.runs[opened["run_id"]]
    assert run.queries == len(run.labels) == budget
    assert {body["id"] for body in answered} <= run.labels and len(answered) >= budget - 32
    assert [json.loads(entry)["op"] for entry in evidence.entries].count("run-opened") == 2
    assert len(list(tmp_path.glob("*.key"))) == 1

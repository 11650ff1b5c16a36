"""Labels over HTTP: charged once, all or nothing, logged before answered."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from label_service.log.entries import canonical_json
from label_service.settings import Settings
from tests.support.datasets import read_pool_labels
from tests.support.services import RunningService, run_service

pytestmark = pytest.mark.every_database


def test_bare_get_reveals_the_right_label_as_guest_and_logs_it(running: RunningService, tiny_data: Path) -> None:
    """`curl /label/42` without anything answers the label of row 42, charged to the guest and on the record."""
    answer = running.client.get("/label/42")
    body = answer.json()
    assert answer.status_code == 200
    assert body["label"] == read_pool_labels(tiny_data)[42]
    assert body["label_name"] == f"bar {body['label']}"
    assert (body["charged"], body["queries"], body["remaining"]) == (True, 1, 99)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["ratelimit-policy"] == '"labels";q=100'
    assert answer.headers["ratelimit"] == '"labels";r=99'
    entry = running.entries()[-1]
    assert (entry["run"], entry["op"], entry["ids"], entry["outcome"]) == ("guest", "query", [42], "revealed")
    assert entry["request_id"] == answer.headers["x-request-id"]


def test_repeated_query_is_charged_once_and_logged_as_replayed(running: RunningService) -> None:
    """Asking again is free, answered the same under both paths, and on the record."""
    _, token = running.open_run()
    paths = ("/label/3", "/label/3", "/v1/labels/3")
    answers = [running.client.get(path, headers=token).json() for path in paths]
    assert [answer["charged"] for answer in answers] == [True, False, False]
    assert len({(answer["label"], answer["queries"]) for answer in answers}) == 1
    assert [entry["outcome"] for entry in running.entries(op="query")] == ["revealed", "replayed", "replayed"]


def test_batch_answers_in_order_and_charges_repeats_once(running: RunningService, tiny_data: Path) -> None:
    """A batch with repeats answers each id once, in the order asked, and charges only what is new."""
    _, token = running.open_run()
    running.client.get("/label/5", headers=token)
    answer = running.client.post("/v1/labels:query", json={"ids": [9, 5, 9, 1, 5]}, headers=token).json()
    labels = read_pool_labels(tiny_data)
    assert [(item["id"], item["label"]) for item in answer["labels"]] == [(i, labels[i]) for i in (9, 5, 1)]
    assert [item["charged"] for item in answer["labels"]] == [True, False, True]
    assert (answer["charged"], answer["queries"], answer["remaining"]) == (2, 3, 7)
    assert running.entries()[-1]["ids"] == [9, 5, 1]


def test_batch_above_the_budget_reveals_nothing(running: RunningService) -> None:
    """All or nothing: a batch of three with two left is refused whole, and two can be asked afterwards."""
    _, token = running.open_run(budget=2)
    refused = running.client.post("/v1/labels:query", json={"ids": [1, 2, 3]}, headers=token)
    assert (refused.status_code, refused.json()["code"]) == (403, "label-budget-exhausted")
    assert refused.json()["remaining"] == 2
    assert refused.headers["ratelimit"] == '"labels";r=2'
    assert "labels" not in refused.json()
    assert running.client.post("/v1/labels:query", json={"ids": [1, 2]}, headers=token).json()["charged"] == 2
    outcomes = [(entry["outcome"], entry["charged"], entry["spent"]) for entry in running.entries(op="query")]
    assert outcomes == [("label-budget-exhausted", 0, 0), ("revealed", 2, 2)]


def test_batch_with_an_unknown_id_is_refused_whole(running: RunningService) -> None:
    """One unknown id refuses the batch, names the id, charges nothing, and is logged."""
    _, token = running.open_run()
    answer = running.client.post("/v1/labels:query", json={"ids": [1, 200, 2]}, headers=token)
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown-id")
    assert answer.json()["unknown_ids"] == [200]
    assert running.entries()[-1]["outcome"] == "unknown-id"
    assert running.client.get("/label/1", headers=token).json()["queries"] == 1


def test_many_threads_are_charged_for_exactly_what_they_got(running: RunningService) -> None:
    """Group commit loses nothing: eight threads on one run are charged for exactly the distinct labels."""
    run_id, token = running.open_run(budget=60)

    def ask(start: int) -> None:
        with httpx.Client(base_url=running.base_url) as client:
            for offset in range(20):
                client.get(f"/label/{(start * 7 + offset) % 100}", headers=token)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    summary = {run["run_id"]: run for run in running.client.get("/v1/log/summary").json()["runs"]}[run_id]
    assert summary["queries"] == summary["distinct_labels"] == 60
    assert summary["entries"] == 161
    spent = [entry["spent"] for entry in running.entries(run=run_id)]
    assert spent == sorted(spent)


def test_guest_budget_holds_and_a_change_of_it_is_logged(service_settings: Callable[..., Settings]) -> None:
    """The guest run stops at its budget; the operator's change of it is an entry of the log."""
    with run_service(service_settings(guest_budget=2)) as running:
        assert [running.client.get(f"/label/{i}").status_code for i in range(3)] == [200, 200, 403]
    with run_service(service_settings(guest_budget=3)) as running:
        entry = running.entries()[-1]
        assert (entry["op"], entry["budget"], entry["detail"]) == ("budget-changed", 3, {"previous_budget": 2})
        assert running.client.get("/label/2").json()["queries"] == 3


def test_rate_limit_answers_429_with_retry_after_and_leaves_no_entry(
    start_service: Callable[..., RunningService],
) -> None:
    """The operator's rate limit says when to come back; it is not in the log, so it cannot fill the disk."""
    running = start_service(rate_limit_labels_per_minute=2, workers=1)
    _, token = running.open_run()
    assert [running.client.get(f"/label/{i}", headers=token).status_code for i in range(2)] == [200, 200]
    before = len(running.entries())
    answer = running.client.get("/label/2", headers=token)
    assert (answer.status_code, answer.json()["code"]) == (429, "too-many-requests")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert len(running.entries()) == before


@pytest.mark.parametrize(
    ("label_id", "status", "code"),
    [
        ("abc", 422, "invalid-request"),
        ("1.5", 422, "invalid-request"),
        ("1.0", 422, "invalid-request"),
        ("+1", 422, "invalid-request"),
        ("1_0", 422, "invalid-request"),
        ("%20", 422, "invalid-request"),
        ("9" * 31, 422, "invalid-request"),
        ("9" * 5000, 422, "invalid-request"),
        ("-1", 404, "unknown-id"),
        ("200", 404, "unknown-id"),
        ("1000000000", 404, "unknown-id"),
        ("9223372036854775808", 404, "unknown-id"),
        ("9" * 30, 404, "unknown-id"),
    ],
)
def test_bad_ids_are_refused_and_never_charged(
    shared_service: RunningService, label_id: str, status: int, code: str
) -> None:
    """Text that is no integer gets 422 and no entry; an id without an image gets a logged 404; neither is charged."""
    before = len(shared_service.entries())
    answer = shared_service.client.get(f"/label/{label_id}")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(shared_service.entries()) == before + (status == 404)
    assert shared_service.client.get("/v1/runs/guest").json()["queries"] == 0


@pytest.mark.parametrize(
    "body",
    [
        {"ids": []},
        {"ids": list(range(1001))},
        {"ids": ["5"]},
        {"ids": [1.0]},
        {"ids": [True]},
        {"ids": [None]},
        {"ids": 5},
        {"ids": [10**31]},
        {"ids": [1], "more": 1},
        {},
        [1],
    ],
)
def test_bad_batches_are_422_and_leave_no_entry(shared_service: RunningService, body: object) -> None:
    """A batch that does not fit the contract is refused before it reaches the ledger."""
    before = len(shared_service.entries())
    answer = shared_service.client.post("/v1/labels:query", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
    assert len(shared_service.entries()) == before


def test_batch_of_huge_ids_is_a_logged_404(shared_service: RunningService) -> None:
    """Ids that are too large for a database integer are unknown ids, not a fault."""
    answer = shared_service.client.post("/v1/labels:query", json={"ids": [10**18, 2**63, -(2**63) - 1]})
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown-id")
    entry = shared_service.entries()[-1]
    asked = canonical_json([10**18, 2**63, -(2**63) - 1])
    assert (entry["ids"], entry["detail"]) == ([], {"asked": 3, "asked_sha256": sha256(asked).hexdigest()})

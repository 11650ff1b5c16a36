"""Runs over HTTP: tokens, evaluations, idempotency keys, seals."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
import pytest

from label_service.ledger.unit_of_work import UnitOfWork
from label_service.settings import Settings
from tests.support.datasets import read_test_labels
from tests.support.services import RunningService, run_service

pytestmark = pytest.mark.every_database


def test_opening_a_run_answers_a_token_once_and_the_data_set(running: RunningService) -> None:
    """A run's token is in the answer that opens it and nowhere else; the answer describes the data set."""
    answer = running.client.post("/v1/runs", json={"name": "mine", "budget": 7})
    opened = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/runs/{opened['run_id']}"
    assert opened["dataset"] == running.client.get("/v1/dataset").json()
    assert (opened["dataset"]["pool_size"], opened["dataset"]["test_size"]) == (200, 50)
    secret = opened["token"].partition(".")[2]
    for path in ("/v1/runs", f"/v1/runs/{opened['run_id']}", "/v1/log/export.ndjson", "/", "/metrics"):
        assert secret not in running.client.get(path).text
    detail = running.entries()[-1]["detail"]
    assert len(detail.pop("test_commitment")) == 44
    assert detail == {"name": "mine", "evaluation_budgets": [], "evaluations_allowed": 1, "pool_size": 200}


def test_run_without_a_budget_gets_the_operators_default(start_service: Callable[..., RunningService]) -> None:
    """A run that names no budget gets the operator's default."""
    running = start_service(default_run_budget=5)
    assert running.client.post("/v1/runs", json={"name": "x"}).json()["budget"] == 5


@pytest.mark.parametrize(
    "header",
    ["Bearer wrong", "Bearer run-000000000000.abc", "Bearer", "Basic dXNlcjpwYXNz", "", "Bearer a b", "Bearer guest."],
)
def test_wrong_token_is_401_and_never_the_guest(shared_service: RunningService, header: str) -> None:
    """A token that no run has, and a header that is no token, are refused; nothing falls back to the guest."""
    before = len(shared_service.entries())
    answer = shared_service.client.get("/label/1", headers={"Authorization": header})
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid-token")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert len(shared_service.entries()) == before


def test_two_tokens_and_a_changed_secret_are_refused(shared_service: RunningService) -> None:
    """A request that names two runs belongs to neither, and knowing a run's public id is not enough."""
    _, token = shared_service.open_run()
    sent = token["Authorization"]
    changed = sent[:-1] + ("A" if sent[-1] != "A" else "B")
    for headers in ([("Authorization", sent)] * 2, [("Authorization", changed)]):
        assert shared_service.client.get("/label/1", headers=headers).status_code == 401


def test_calls_of_a_run_need_that_runs_token(shared_service: RunningService) -> None:
    """Without a token 401, with another run's 403, for a run that does not exist 404; the guest has no evaluations."""
    run_id, _ = shared_service.open_run()
    _, other = shared_service.open_run()
    body = {"predictions": [0] * 50}
    for call in (f"/v1/runs/{run_id}/evaluations", f"/v1/runs/{run_id}:seal"):
        assert shared_service.client.post(call, json=body).json()["code"] == "token-required"
        assert shared_service.client.post(call, json=body, headers=other).json()["code"] == "not-your-run"
        missing = call.replace(run_id, "run-nowhere")
        assert shared_service.client.post(missing, json=body, headers=other).json()["code"] == "unknown-run"
    guest = shared_service.client.post("/v1/runs/guest/evaluations", json=body)
    assert (guest.status_code, guest.json()["code"]) == (403, "guest-has-no-evaluations")
    assert shared_service.client.post("/v1/runs/guest:seal").status_code == 403
    assert shared_service.client.get("/v1/runs/run-nowhere").json()["code"] == "unknown-run"


def test_sealed_run_answers_410_and_sealing_twice_changes_nothing(running: RunningService) -> None:
    """A sealed run takes no query and no evaluation; its seal can be repeated after a lost answer."""
    run_id, token = running.open_run()
    running.client.get("/label/1", headers=token)
    first = running.client.post(f"/v1/runs/{run_id}:seal", headers=token)
    entries = len(running.entries())
    second = running.client.post(f"/v1/runs/{run_id}:seal", headers=token)
    assert first.json() == second.json() and first.json()["sealed_at"]
    assert len(running.entries()) == entries
    for answer in (
        running.client.get("/label/1", headers=token),
        running.client.post("/v1/labels:query", json={"ids": [1, 2]}, headers=token),
        running.client.post(f"/v1/runs/{run_id}/evaluations", json={"predictions": [0] * 50}, headers=token),
    ):
        assert (answer.status_code, answer.json()["code"]) == (410, "run-sealed")
    assert [entry["outcome"] for entry in running.entries(run=run_id)][-3:] == ["run-sealed"] * 3


def test_evaluation_answers_the_accuracy_and_closes_querying(running: RunningService, tiny_data: Path) -> None:
    """The accuracy is right; afterwards new labels are refused and logged, labels held stay free."""
    run_id, token = running.open_run()
    running.client.get("/label/1", headers=token)
    truth = read_test_labels(tiny_data)
    guesses = [*truth[:40], *((label + 1) % 3 for label in truth[40:])]
    answer = running.client.post(f"/v1/runs/{run_id}/evaluations", json={"predictions": guesses}, headers=token).json()
    assert (answer["correct"], answer["total"], answer["accuracy"]) == (40, 50, 0.8)
    assert (answer["evaluations_used"], answer["evaluations_allowed"]) == (1, 1)
    refused = running.client.get("/label/2", headers=token)
    assert (refused.status_code, refused.json()["code"]) == (409, "querying-closed")
    assert running.entries()[-1]["outcome"] == "querying-closed"
    assert running.client.get("/label/1", headers=token).json()["charged"] is False
    mixed = running.client.post("/v1/labels:query", json={"ids": [1, 2]}, headers=token)
    assert mixed.status_code == 409
    state = running.client.get(f"/v1/runs/{run_id}").json()
    assert state["querying_closed"] and state["evaluations"][0]["correct"] == 40


def test_declared_learning_curve_is_evaluated_at_each_budget_once(running: RunningService) -> None:
    """A run that declared k budgets has k evaluations, and each must name one of them."""
    run_id, token = running.open_run(budget=9, evaluation_budgets=[3, 6, 9])
    call = f"/v1/runs/{run_id}/evaluations"

    def evaluate(budget: int | None) -> httpx.Response:
        return running.client.post(call, json={"predictions": [0] * 50, "budget": budget}, headers=token)

    assert evaluate(4).json()["code"] == "evaluation-not-declared"
    assert evaluate(None).json()["code"] == "evaluation-not-declared"
    assert [evaluate(budget).json()["evaluations_used"] for budget in (3, 6)] == [1, 2]
    assert evaluate(3).status_code == 409
    assert evaluate(9).json()["evaluations_used"] == 3
    assert evaluate(9).json()["code"] == "evaluations-exhausted"


@pytest.mark.parametrize(
    ("predictions", "code"),
    [
        ([0] * 49, "invalid-predictions"),
        ([0] * 51, "invalid-predictions"),
        ([], "invalid-predictions"),
        ([0] * 49 + [3], "invalid-predictions"),
        ([0] * 49 + [-1], "invalid-predictions"),
        ([0] * 49 + [10**40], "invalid-predictions"),
        (["0"] * 50, "invalid-request"),
        ([0.0] * 50, "invalid-request"),
        ([True] * 50, "invalid-request"),
        ([None] * 50, "invalid-request"),
        ("0" * 50, "invalid-request"),
    ],
)
def test_bad_predictions_are_422_and_use_no_evaluation(
    shared_service: RunningService, predictions: object, code: str
) -> None:
    """Wrong length, unknown class, not numbers: refused with one sentence, and the evaluation is still there."""
    run_id, token = shared_service.open_run()
    answer = shared_service.client.post(
        f"/v1/runs/{run_id}/evaluations", json={"predictions": predictions}, headers=token
    )
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert shared_service.client.get(f"/v1/runs/{run_id}").json()["evaluations_used"] == 0


def test_a_key_answers_as_the_first_time_and_stands_for_one_request(running: RunningService) -> None:
    """A batch repeated under its key answers what was charged then, is logged as replayed, and costs nothing."""
    _, token = running.open_run(budget=5)

    def ask(ids: list[int], key: str) -> dict[str, Any]:
        headers = {**token, "Idempotency-Key": key}
        answer: dict[str, Any] = running.client.post("/v1/labels:query", json={"ids": ids}, headers=headers).json()
        return answer

    running.client.get("/label/1", headers=token)
    first = ask([1, 2, 3], "k")
    running.client.get("/label/4", headers=token)
    second = ask([1, 2, 3], "k")
    assert second.pop("replayed") and not first.pop("replayed")
    outcomes = [json.loads(answer.pop("receipt")["entry"])["outcome"] for answer in (first, second)]
    assert first == second and outcomes == ["revealed", "replayed"]
    assert (first["charged"], first["queries"], running.entries()[-1]["spent"]) == (2, 3, 4)
    assert ask([2], "k")["code"] == "idempotency-key-reused"
    # A refusal binds no key: its request is decided again.
    assert [ask([5, 6], "refused")["code"] for _ in range(2)] == ["label-budget-exhausted"] * 2
    assert ask([5], "refused")["charged"] == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é".encode().decode("latin-1")])
def test_malformed_idempotency_key_is_422(shared_service: RunningService, key: str) -> None:
    """A key is printable ASCII, 1 to 255 characters."""
    headers = {"Idempotency-Key": key.encode("latin-1")}
    answer = shared_service.client.post("/v1/labels:query", json={"ids": [1]}, headers=headers)
    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("call", "body", "counts"),
    [
        ("/v1/labels:query", {"ids": [1, 2]}, (2, 0)),
        ("/v1/runs/{run_id}/evaluations", {"predictions": [2] * 50}, (0, 1)),
    ],
)
def test_requests_under_one_key_that_arrive_together_get_one_answer(
    running: RunningService, call: str, body: dict[str, Any], counts: tuple[int, int]
) -> None:
    """Copies that arrive while the first is being answered wait for its answer; it is charged or counted once."""
    run_id, token = running.open_run()
    keyed = {**token, "Idempotency-Key": "k"}
    holding, release = threading.Event(), threading.Event()

    def hold(_unit: UnitOfWork) -> None:
        holding.set()
        release.wait(3)

    def ask() -> httpx.Response:
        return httpx.post(running.base_url + call.format(run_id=run_id), json=body, headers=keyed, timeout=30)

    # One writer's open transaction holds up the writers of all workers.
    running.service.writer.submit(hold)
    assert holding.wait(3)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask) for _ in range(6)]
        assert not wait(asked, timeout=0.5).done, "nobody is answered before the first answer is durable"
        release.set()
        answers = [future.result() for future in asked]
    assert {answer.status_code for answer in answers} == {200}
    bodies = [answer.json() for answer in answers]
    outcomes = [json.loads(body.pop("receipt")["entry"])["outcome"] for body in bodies]
    assert outcomes.count("replayed") == 5
    assert sorted(body.pop("replayed") for body in bodies) == [False] + [True] * 5
    assert all(body == bodies[0] for body in bodies)
    state = running.client.get(f"/v1/runs/{run_id}").json()
    assert (state["queries"], state["evaluations_used"]) == counts


def test_operators_limits_hold_for_runs(start_service: Callable[..., RunningService]) -> None:
    """The operator limits a run's budget and evaluations, and the labels and evaluations of all runs."""
    running = start_service(max_run_budget=5, max_evaluations=2, total_evaluations=1, total_budget=2)
    post = running.client.post
    assert post("/v1/runs", json={"name": "x", "budget": 6}).json()["code"] == "run-budget-too-large"
    declared = {"name": "x", "budget": 5, "evaluation_budgets": [1, 2, 3]}
    assert post("/v1/runs", json=declared).json()["code"] == "too-many-evaluations"
    answers = []
    for label_id, code in ((1, None), (2, "total-budget-exhausted")):
        run_id, token = running.open_run(budget=5)
        batch = post("/v1/labels:query", json={"ids": [label_id, 3]}, headers=token)
        assert batch.json().get("code") == code
        answers.append(post(f"/v1/runs/{run_id}/evaluations", json={"predictions": [0] * 50}, headers=token))
    assert [answer.status_code for answer in answers] == [200, 403]
    assert answers[1].json()["code"] == "evaluations-exhausted"


def test_registration_token_closes_opening_of_runs(service_settings: Callable[..., Settings]) -> None:
    """With a registration token set, only its holder opens runs."""
    with run_service(service_settings(registration_token="let me in".replace(" ", "-"))) as running:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = running.client.post("/v1/runs", json={"name": "x"}, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "registration-closed")
        allowed = {"Authorization": "Bearer let-me-in"}
        assert running.client.post("/v1/runs", json={"name": "x"}, headers=allowed).status_code == 201


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"name": "a\nb"},
        {"name": "a\x00b"},
        {"name": 5},
        {},
        {"name": "x", "budget": -1},
        {"name": "x", "budget": 1.5},
        {"name": "x", "budget": 2**40},
        {"name": "x", "budget": 5, "evaluation_budgets": [3, 2]},
        {"name": "x", "budget": 5, "evaluation_budgets": [3, 3]},
        {"name": "x", "budget": 5, "evaluation_budgets": [6]},
        {"name": "x", "unknown": 1},
    ],
)
def test_bad_runs_are_422(shared_service: RunningService, body: object) -> None:
    """A run that does not fit the contract is not opened."""
    answer = shared_service.client.post("/v1/runs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 100_000, b'{"name": "\\ud800"}', b'{"name": NaN}', b"\xff\xfe", b'{"name": 1e999}', b"null"],
)
def test_bodies_that_are_no_good_json_are_422(shared_service: RunningService, content: bytes) -> None:
    """Whatever is sent as a body, the answer is one sentence and never a fault."""
    answer = shared_service.client.post("/v1/runs", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")


def test_body_without_the_json_content_type_gets_a_hint(shared_service: RunningService) -> None:
    """With curl's default content type the answer names the header to send."""
    answer = shared_service.client.post("/v1/runs", data={"name": "x"})
    assert answer.status_code == 422 and "application/json" in answer.json()["detail"]

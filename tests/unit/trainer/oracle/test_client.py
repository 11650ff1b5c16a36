"""The client against a real server on a socket: retries, refusals, and no label that is paid twice."""

from __future__ import annotations

import json
import logging
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support import fake_label_service as fake
from tests.support.fake_label_service import TOKEN, FakeLabelService, Fault, answer_bytes, answer_json, edit
from trainer import errors
from trainer.oracle import LabelClient, transport

QUERY = "/v1/labels:query"
PATIENCE_S = 5.0


@dataclass
class FakeClock:
    """Time that passes only in pauses."""

    now: float = 0.0
    pauses: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Time for the transport, whose pauses are then as long as outside of tests."""
    clock = FakeClock()
    monkeypatch.undo()
    monkeypatch.setattr(transport, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let real time pass in small portions."""
    for name, seconds in {
        "TIMEOUT_S": 0.25,
        "FIRST_PAUSE_S": 0.01,
        "LONGEST_PAUSE_S": 0.05,
        "SILENT_WAIT_S": 0,
    }.items():
        monkeypatch.setattr(transport, name, seconds)


def closed_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_labels_come_back_in_the_order_asked(service: FakeLabelService, client: LabelClient) -> None:
    """The order of the answer is the order of the question, and a repeated id is asked once."""
    answer = client.query([7, 3, 7, 5], idempotency_key="a")
    assert [(label.id, label.label) for label in answer.labels] == [(7, 1), (3, 0), (5, 2)]
    assert (answer.charged, answer.queries, answer.run_id, answer.replayed) == (3, 3, "r1", False)
    assert answer.receipt is None
    assert service.charged_ids == [7, 3, 5]


def test_asking_again_under_the_same_key_charges_nothing(service: FakeLabelService, client: LabelClient) -> None:
    """A restarted trainer replays its last batch and gets the first answer."""
    first = client.query([1, 2], idempotency_key="a")
    client.query([3], idempotency_key="b")
    again = client.query([1, 2], idempotency_key="a")
    assert again.replayed and again.labels == first.labels and again.charged == 2
    assert service.charged_ids == [1, 2, 3]


def test_more_than_a_thousand_ids_are_asked_in_parts_with_keys_of_their_own(
    service: FakeLabelService, client: LabelClient
) -> None:
    """A large batch is split at the contract's limit, and its answer looks like one."""
    ids = list(range(2300, 0, -1))
    answer = client.query(ids, idempotency_key="big")
    assert [label.id for label in answer.labels] == ids
    assert (answer.charged, answer.queries) == (2300, 2300)
    assert [(len(body["ids"]), headers["Idempotency-Key"]) for _, _, headers, body in service.paths(QUERY)] == [
        *((1000, "big.0"), (1000, "big.1"), (300, "big.2"))
    ]


def test_a_query_without_ids_is_a_mistake_of_the_caller(client: LabelClient) -> None:
    """Nothing is sent for an empty batch."""
    with pytest.raises(ValueError, match="at least one id"):
        client.query([], idempotency_key="a")


def test_opening_a_run_makes_later_calls_its_own(service: FakeLabelService, client: LabelClient) -> None:
    """The token of the answer is sent from then on, and the registration token only once."""
    run = client.open_run("night run", 500, evaluation_budgets=[100, 500], registration_token="operators")
    client.query([1], idempotency_key="a")
    (_, _, opening, body), (_, _, asking, _) = service.paths("/v1/runs") + service.paths(QUERY)
    assert (run.run_id, run.token, run.budget, run.dataset.num_classes) == ("r1", TOKEN, 500, 3)
    assert body == {"name": "night run", "budget": 500, "evaluation_budgets": [100, 500]}
    assert opening["Authorization"] == "Bearer operators" and opening["Idempotency-Key"]
    assert asking["Authorization"] == f"Bearer {TOKEN}"


def test_a_run_opened_with_another_budget_is_refused(service: FakeLabelService, client: LabelClient) -> None:
    """The service must not hand out fewer or more labels than agreed."""
    service.fail("/v1/runs", edit(lambda answer: answer.update(budget=7)))
    with pytest.raises(errors.ServiceProtocolError, match="a run of 7 labels instead of 500"):
        client.open_run("x", 500)


def test_the_other_calls_answer_typed_values(service: FakeLabelService, client: LabelClient) -> None:
    """Readiness, data set, run, evaluation, seal and log: one call each."""
    client.wait_until_ready()
    assert client.dataset().class_names == fake.CLASS_NAMES
    state = client.run_state("r1")
    assert (state.budget, state.queries, state.sealed) == (10_000, 0, False)
    evaluation = client.evaluate("r1", [0] * 10, budget=5, idempotency_key="e")
    assert (evaluation.accuracy, evaluation.correct, evaluation.total) == (0.9, 9, 10)
    assert service.paths("/v1/runs/r1/evaluations")[0][3] == {"predictions": [0] * 10, "budget": 5}
    sealed = client.seal("r1")
    assert sealed.sealed_at and sealed.receipt is None
    summary = client.log_summary()
    mine = summary.run("r1")
    assert mine is not None and mine.queries == 3
    assert summary.run("nobody") is None and summary.distinct_labels_revealed_to_anybody == 4


@pytest.mark.parametrize(
    "fault",
    [
        fake.drop_before_answering,
        fake.lose_the_answer,
        fake.cut_the_body,
        fake.hang,
        answer_bytes(502, b"<html>bad gateway</html>", "text/html"),
        answer_json(503, {"code": "log-not-writable", "detail": "The disk is full."}),
        answer_bytes(504, b""),
        answer_json(429, {"code": "too-many-requests", "detail": "Slower."}, retry_after="0"),
    ],
    ids=["dropped", "answer lost", "body cut", "hangs", "502 html", "503", "504 empty", "429"],
)
def test_a_passing_failure_costs_a_pause_and_not_a_label(
    service: FakeLabelService, client: LabelClient, fault: Fault
) -> None:
    """Whatever goes wrong twice, the third try has the same bytes and key, and every label was charged once."""
    service.fail(QUERY, fault, fault)
    answer = client.query([4, 8], idempotency_key="round-3")
    assert [label.id for label in answer.labels] == [4, 8]
    assert service.charged_ids == [4, 8]
    tries = service.paths(QUERY)
    assert len(tries) == 3
    assert {(headers["Idempotency-Key"], tuple(body["ids"])) for _, _, headers, body in tries} == {("round-3", (4, 8))}


def test_a_service_that_restarts_in_the_middle_is_waited_for(
    service: FakeLabelService, client: LabelClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Down after the charge, up again on the same port: the labels arrive, paid once, and the user reads of it."""
    client.query([1], idempotency_key="a")
    service.fail(QUERY, fake.lose_the_answer)
    service.stop()
    restart = threading.Timer(0.3, service.start)
    restart.start()
    answer = client.query([2, 3], idempotency_key="b")
    restart.join()
    assert [label.id for label in answer.labels] == [2, 3] and answer.replayed
    assert service.charged_ids == [1, 2, 3]
    down, up = (record.getMessage() for record in caplog.records if record.name == transport.__name__)
    assert down == "the label service does not answer (connection refused); trying again for 5 s more"
    assert up.startswith("the label service answers again, after ")


def test_a_service_that_stays_away_is_given_up_after_the_patience(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The pauses grow with jitter up to their cap, add up to the patience, and the error advises the user."""
    url = f"http://127.0.0.1:{closed_port()}"
    with (
        LabelClient(url, patience_s=60) as client,
        pytest.raises(errors.ServiceUnavailable, match=r"did not answer for 60 s \(connection refused\).*--resume"),
    ):
        client.wait_until_ready()
    assert sum(clock.pauses) == pytest.approx(60)
    assert all(pause <= min(0.25 * 2**number, 15) for number, pause in enumerate(clock.pauses))
    assert max(clock.pauses) > 1 and len(set(clock.pauses)) == len(clock.pauses)
    assert len(caplog.records) == 1


def test_retry_after_is_respected_in_seconds_and_as_a_date(service: FakeLabelService, clock: FakeClock) -> None:
    """The pause is at least what the service asks for, in either form; nonsense counts as absent."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    for value in ("30", date, "soon"):
        service.fail("/readyz", answer_json(429, {"code": "too-many-requests"}, retry_after=value))
    with LabelClient(service.url) as client:
        client.wait_until_ready()
    assert clock.pauses[0] == 30
    assert 37 <= clock.pauses[1] <= 40
    assert clock.pauses[2] <= 1


def test_a_retry_after_beyond_the_patience_is_given_up_without_a_wait(
    service: FakeLabelService, clock: FakeClock
) -> None:
    """The client does not wait five minutes for a service that asked for an hour."""
    service.fail("/readyz", answer_json(503, {"code": "busy", "detail": "Restoring."}, retry_after="3600"))
    with (
        LabelClient(service.url) as client,
        pytest.raises(errors.ServiceUnavailable, match=r"asks to wait 3600 s \(status 503 busy: Restoring\), longer"),
    ):
        client.wait_until_ready()
    assert clock.pauses == []


def test_an_answer_that_drips_is_cut_off(service: FakeLabelService, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not keep the client for ever."""
    service.fail("/readyz", *[fake.drip] * 50)
    monkeypatch.setattr(transport, "TIMEOUT_S", 0.05)
    with (
        LabelClient(service.url, patience_s=0.2) as client,
        pytest.raises(errors.ServiceUnavailable, match="the answer came too slowly"),
    ):
        client.wait_until_ready()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "invalid-token", errors.NotAuthorized),
        (403, "not-your-run", errors.NotAuthorized),
        (403, "label-budget-exhausted", errors.BudgetExhausted),
        (403, "total-budget-exhausted", errors.BudgetExhausted),
        (404, "unknown-id", errors.UnknownLabelId),
        (409, "querying-closed", errors.QueryingClosed),
        (410, "run-sealed", errors.RunSealed),
        (413, "body-too-large", errors.RequestRefused),
        (422, "idempotency-key-reused", errors.RequestRefused),
        (500, "internal-error", errors.RequestRefused),
    ],
)
def test_a_refusal_is_one_typed_error_and_is_not_retried(
    service: FakeLabelService, client: LabelClient, status: int, code: str, kind: type[errors.RequestRefused]
) -> None:
    """Each stable code has its class, the service's sentence is passed on, and there is one try."""
    service.fail(QUERY, answer_json(status, {"code": code, "detail": "Because of this.", "status": status}))
    with pytest.raises(errors.RequestRefused, match=r"Because of this\.") as caught:
        client.query([1], idempotency_key="a")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code, caught.value.detail) == (status, code, "Because of this.")
    assert len(service.paths(QUERY)) == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (answer_bytes(200, b"<html>hello</html>", "text/html"), "not what a label service says"),
        (answer_bytes(404, b"<html>nginx</html>", "text/html"), "404 and text/html, which no label service does"),
        (answer_bytes(200, b'{"labels": [{"id": 1, "la'), "not what a label service says"),
        (answer_bytes(200, b""), "not what a label service says"),
        (answer_bytes(200, b"[" * 100_000), "not what a label service says"),
        (answer_bytes(200, b"\xff\x00\x80"), "not what a label service says"),
        (
            answer_bytes(200, b"no gzip", content_encoding="gzip"),
            r"is packed \(gzip\), though a plain one was",
        ),
        (answer_bytes(307, b"", location="http://127.0.0.1:9/elsewhere"), "answered .* with 307"),
        (fake.speak_no_http, "does not speak HTTP"),
        (
            answer_json(200, {"labels": [], "charged": 0, "queries": 0, "remaining": 1, "run_id": "r1"}),
            "answer has others",
        ),
    ],
    ids=["html", "html 404", "cut json", "empty", "deep", "binary", "bad gzip", "redirect", "ssh", "no labels"],
)
def test_garbage_is_a_protocol_error_at_once(
    service: FakeLabelService, client: LabelClient, fault: Fault, message: str
) -> None:
    """Garbage ends the run with one sentence instead of a retry or a traceback."""
    service.fail(QUERY, fault)
    with pytest.raises(errors.ServiceProtocolError, match=message):
        client.query([1], idempotency_key="a")
    assert len(service.paths(QUERY)) == 1


def set_label(**fields: object) -> Callable[[dict[str, Any]], object]:
    """Change the first label of an answer."""
    return lambda answer: answer["labels"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_label(id=9), "answer has others"),
        (set_label(id=2), "answer has others"),
        (set_label(label=3), "class 3"),
        (set_label(label=-1), "greater than or equal to 0"),
        (set_label(label="1"), "valid integer"),
        (set_label(label=True), "valid integer"),
        (set_label(label=0), "class 0"),
        (set_label(charged=1), "valid boolean"),
        (lambda answer: answer["labels"].append(answer["labels"][0] | {"charged": False}), "answer has others"),
        (lambda answer: answer.update(charged=1), "charges 1 labels and marks 2"),
        (lambda answer: answer.update(charged=-1), "greater than or equal to 0"),
        (lambda answer: answer.update(queries=1), "counts 1 in the whole run"),
        (lambda answer: answer.update(remaining=-1), "greater than or equal to 0"),
        (lambda answer: answer.pop("remaining"), "remaining: Field required"),
        (lambda answer: answer.update(run_id="other"), "run other instead of r1"),
    ],
)
def test_an_answer_that_does_not_fit_the_question_is_refused(
    service: FakeLabelService, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """Wrong ids, impossible classes, counts that contradict each other: none of them reaches the training."""
    receipts = tmp_path / "receipts.jsonl"
    with LabelClient(service.url, patience_s=PATIENCE_S, receipts_path=receipts) as client:
        client.open_run("x", 10)
        service.fail(QUERY, edit(change))
        with pytest.raises(errors.ServiceProtocolError, match=message):
            client.query([1, 2], idempotency_key="a")
    assert [json.loads(line)["call"] for line in receipts.read_text().splitlines()] == ["run-opened"]


def test_a_count_that_falls_betrays_a_replaced_database(service: FakeLabelService, client: LabelClient) -> None:
    """A service that forgot queries is caught, while the replay of an old answer is not mistaken for it."""
    client.query([1, 2, 3], idempotency_key="a")
    client.query([4], idempotency_key="b")
    assert client.query([1, 2, 3], idempotency_key="a").queries == 3
    service.charged_ids.clear()
    with pytest.raises(errors.ServiceProtocolError, match="counts 1 queries in this run and counted 4 before"):
        client.query([5], idempotency_key="c")


@pytest.mark.parametrize("change", [{"accuracy": 0.95}, {"correct": 11}, {"total": 9, "accuracy": 1.0, "correct": 9}])
def test_an_impossible_evaluation_is_refused(
    service: FakeLabelService, client: LabelClient, change: dict[str, object]
) -> None:
    """The accuracy must be the quotient of its counts, over the predictions submitted."""
    service.fail("/v1/runs/r1/evaluations", edit(lambda answer: answer.update(change)))
    with pytest.raises(errors.ServiceProtocolError):
        client.evaluate("r1", [0] * 10, idempotency_key="e")


def test_a_union_smaller_than_a_run_is_refused(service: FakeLabelService, client: LabelClient) -> None:
    """The log cannot have revealed fewer labels to all than to one."""
    service.fail("/v1/log/summary", edit(lambda answer: answer.update(distinct_labels_revealed_to_anybody=2)))
    with pytest.raises(errors.ServiceProtocolError, match="do not fit"):
        client.log_summary()


def test_receipts_are_kept_for_the_owner_only_and_without_the_token(service: FakeLabelService, tmp_path: Path) -> None:
    """Each answer that opens a run, or has labels, an accuracy or the seal, is one line in a 0600 file; no token."""
    path = tmp_path / "run" / "receipts.jsonl"
    with LabelClient(service.url, patience_s=PATIENCE_S, receipts_path=path) as client:
        client.open_run("x", 10)
        client.query([1, 2], idempotency_key="a")
        client.evaluate("r1", [0] * 10, idempotency_key="e")
        client.seal("r1")
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [receipt["call"] for receipt in kept] == ["run-opened", "query", "evaluation", "seal"]
    assert kept[1]["request"] == {"idempotency_key": "a", "ids": [1, 2]}
    assert kept[1]["answer"]["labels"][0] == {"id": 1, "label": 1, "label_name": "shirt", "charged": True}
    assert kept[1]["answer"]["receipt"] is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert TOKEN not in path.read_text()


def test_the_token_stays_out_of_logs_reprs_and_errors(
    service: FakeLabelService, caplog: pytest.LogCaptureFixture
) -> None:
    """With everything logged and an answer that is refused, the token is nowhere to be read."""
    caplog.set_level(logging.DEBUG)
    with LabelClient(service.url, patience_s=PATIENCE_S) as client:
        run = client.open_run("x", 10)
        service.fail(QUERY, fake.drop_before_answering, fake.drop_before_answering, fake.drop_before_answering)
        client.query([1], idempotency_key="a")
        service.fail("/v1/runs", edit(lambda answer: answer.update(dataset=None)))
        with pytest.raises(errors.ServiceProtocolError) as caught:
            client.open_run("y", 10)
        assert "dataset" in str(caught.value)
        assert TOKEN not in f"{client!r} {run!r} {caught.value!r} {caught.value.__cause__!r} {caplog.text}"


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://localhost", "http://", "http://[::1", "http://localhost:http", "file:///etc"]
)
def test_an_address_that_is_none_is_refused_before_anything_is_sent(url: str) -> None:
    """A mistyped --service is a sentence, not a traceback."""
    with pytest.raises(errors.ConfigError, match="http"):
        LabelClient(url)


def test_a_token_that_no_header_can_carry_is_refused_without_repeating_it() -> None:
    """A line break in a token is found before anything is sent, and the secret is not printed."""
    with pytest.raises(errors.ConfigError, match="token must be") as caught:
        LabelClient("http://127.0.0.1:1", token="secret\n")
    assert "secret" not in str(caught.value)


def test_the_address_may_have_a_path(service: FakeLabelService) -> None:
    """A service behind a prefix is found there."""
    with LabelClient(service.url + "/labels/", patience_s=PATIENCE_S) as client, pytest.raises(errors.RequestRefused):
        client.dataset()
    assert service.requests[-1][1] == "/labels/v1/dataset"


def test_a_receipt_that_cannot_be_kept_stops_before_the_label_is_used(
    service: FakeLabelService, tmp_path: Path
) -> None:
    """A label without its receipt is not handed out; asked again under the same key it costs nothing."""
    folder = tmp_path / "receipts.jsonl"
    folder.mkdir()
    with LabelClient(service.url, patience_s=PATIENCE_S, receipts_path=folder) as client:
        with pytest.raises(errors.RecordsUnwritable, match="--resume"):
            client.query([1], idempotency_key="a")
        folder.rmdir()
        assert client.query([1], idempotency_key="a").replayed
    assert service.charged_ids == [1]

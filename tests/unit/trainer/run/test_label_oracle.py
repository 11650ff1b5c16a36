"""The label oracle writes a question before it is asked and an answer before it is used, and checks the count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.fake_label_service import CLASS_NAMES, FakeLabelService, answer_json, edit
from trainer.acquisition.state import PoolState
from trainer.errors import DataError, RequestRefused, ServiceProtocolError, TrainerError
from trainer.oracle.client import LabelClient
from trainer.records.run_records import QUERIES_FILE, read_queries
from trainer.run.label_oracle import LabelOracle

QUERY = "/v1/labels:query"
POOL = 20


def oracle_of(client: LabelClient, out: Path) -> LabelOracle:
    """Open the oracle of a run's folder."""
    return LabelOracle(client, "r1", out, CLASS_NAMES, POOL)


def state(beliefs: torch.Tensor | None = None) -> PoolState:
    """Make a pool state with the same belief for all images."""
    return PoolState(
        features=torch.eye(POOL),
        neighbours=torch.zeros(POOL, 1, dtype=torch.long),
        similarities=torch.ones(POOL, 1),
        beliefs=None if beliefs is None else beliefs.expand(POOL, -1),
        labelled=torch.zeros(POOL, dtype=torch.bool),
        classes=len(CLASS_NAMES),
        labels=torch.full((POOL,), -1),
        round=0,
        images=torch.zeros(POOL, 8, 8, dtype=torch.uint8),
        embed=lambda: torch.eye(POOL),
    )


def ask(oracle: LabelOracle, round_number: int, *ids: int) -> None:
    """Ask for a round's labels without a guess."""
    oracle.ask(round_number, "random", torch.tensor(ids), state())


def test_answers_come_in_the_order_asked_with_what_was_guessed(client: LabelClient, tmp_path: Path) -> None:
    """A record has round, order, label, and the guess before asking."""
    oracle = oracle_of(client, tmp_path)
    ask(oracle, 0, 7, 3)
    oracle.ask(1, "margin", torch.tensor([5]), state(torch.tensor([0.2, 0.7, 0.1])))
    records = read_queries(tmp_path)
    assert [(r.order, r.round, r.id, r.label) for r in records] == [(0, 0, 7, 1), (1, 0, 3, 0), (2, 1, 5, 2)]
    assert [r.predicted for r in records] == [None, None, 1]
    assert records[2].confidence == pytest.approx(0.7)
    assert records[2].reason == "torn between shirt (0.70) and coat (0.20)"
    assert (oracle.queries, records) == (3, oracle.records)


def test_answered_gives_only_the_rounds_before(client: LabelClient, tmp_path: Path) -> None:
    """A round that is trained anew after a kill sees the labels it saw the first time, not later ones."""
    oracle = oracle_of(client, tmp_path)
    ask(oracle, 0, 7, 3)
    ask(oracle, 1, 5)
    ids, labels = oracle.answered(1, torch.device("cpu"))
    assert (ids.tolist(), labels.tolist()) == ([7, 3], [1, 0])
    assert [len(oracle.answered(number, torch.device("cpu"))[0]) for number in (0, 1, 2)] == [0, 2, 3]
    assert [oracle.has_answered(number) for number in (0, 1, 2)] == [True, True, False]


def test_question_that_failed_is_asked_again_unchanged(
    client: LabelClient, service: FakeLabelService, tmp_path: Path
) -> None:
    """What was pending when the run stopped is asked at the next start: the same ids under the same key."""
    service.fail(QUERY, answer_json(500, {"code": "internal-error", "detail": "A defect."}))
    with pytest.raises(RequestRefused):
        ask(oracle_of(client, tmp_path), 0, 7, 3)
    assert not (tmp_path / QUERIES_FILE).exists()
    oracle = oracle_of(client, tmp_path)
    assert [record.id for record in oracle.records] == [7, 3]
    asked = [(headers["Idempotency-Key"], body) for _, _, headers, body in service.paths(QUERY)]
    assert asked == [("r1-round-0", {"ids": [7, 3]})] * 2
    oracle_of(client, tmp_path)
    assert len(service.paths(QUERY)) == 2, "an answered question was asked once more"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is damaged"),
        ({"run_id": "r2"}, "belongs to another run"),
        ({"queries": [{"id": POOL, "reason": "", "predicted": None, "confidence": None}]}, "belongs to another run"),
        ({"queries": [{"id": -1, "reason": "", "predicted": None, "confidence": None}]}, "belongs to another run"),
    ],
)
def test_damaged_or_foreign_question_is_not_asked(
    content: bytes | dict[str, object], message: str, client: LabelClient, service: FakeLabelService, tmp_path: Path
) -> None:
    """A pending.json that this run did not write stops the run before anything is asked."""
    if isinstance(content, dict):
        whole = {"run_id": "r1", "round": 0, "strategy": "random", "queries": []}
        content = json.dumps(whole | content).encode()
    (tmp_path / "pending.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"pending\.json.*{message}"):
        oracle_of(client, tmp_path)
    assert service.paths(QUERY) == []


def test_somebody_else_asking_under_the_token_is_noticed(
    client: LabelClient, service: FakeLabelService, tmp_path: Path
) -> None:
    """If the service counts a label more than the trainer received, the run stops; what was paid for is kept."""
    oracle = oracle_of(client, tmp_path)
    service.fail(QUERY, edit(lambda answer: answer.update(queries=answer["queries"] + 1)))
    with pytest.raises(ServiceProtocolError, match=r"counts 3 queries.*received 2; somebody else"):
        ask(oracle, 0, 7, 3)
    assert [record.id for record in read_queries(tmp_path)] == [7, 3]


@pytest.mark.parametrize("tamper", ["drop the last line", "drop the first line", "hide a charge"])
def test_edited_queries_file_stops_the_run(tamper: str, client: LabelClient, tmp_path: Path) -> None:
    """A queries.jsonl that was edited between two sessions is noticed at the next question at the latest."""
    ask(oracle_of(client, tmp_path), 0, 7, 3)
    path = tmp_path / QUERIES_FILE
    first, last = path.read_text().splitlines(keepends=True)
    edited = {
        "drop the last line": first,
        "drop the first line": last,
        "hide a charge": first + last.replace('"charged":true', '"charged":false'),
    }[tamper]
    assert edited != first + last
    path.write_text(edited)
    with pytest.raises(TrainerError):
        ask(oracle_of(client, tmp_path), 1, 5)

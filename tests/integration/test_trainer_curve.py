"""A learning curve: frozen at each point before the next label is asked, and up to a point the run that ends there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.services import RunningService
from tests.support.tiny_trainer import TINY
from tests.support.trainer_runs import Arm, after, before, charges_of, outcome_of, run_and_die, run_to_end, settings_for
from trainer.config import PhaseConfig, RoundConfig
from trainer.oracle.client import LabelClient
from trainer.profiles import PROFILES
from trainer.records.run_records import read_queries
from trainer.run import pipeline
from trainer.run.evaluate import predictions_path, read_predictions

pytestmark = pytest.mark.usefixtures("tiny_profiles")

LONGER = TINY.model_copy(
    update={
        "name": "tiny-longer",
        "rounds": (
            *TINY.rounds[:-1],
            TINY.rounds[-1].model_copy(update={"evaluated": True}),
            RoundConfig(labels=24, phases=(PhaseConfig(epochs=1, consistency=1.0),)),
        ),
    }
)


def test_a_curve_is_up_to_a_point_the_run_that_ends_there(
    shared_service: RunningService, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same seed: the same eighteen labels, and the same predictions of every test image."""
    monkeypatch.setitem(PROFILES, LONGER.name, LONGER)
    short = run_to_end(settings_for(tmp_path / "short", tiny_data, shared_service))
    long = run_to_end(settings_for(tmp_path / "long", tiny_data, shared_service, profile="tiny-longer"))
    asked = [[record.id for record in read_queries(tmp_path / name)] for name in ("short", "long")]
    assert asked[1][:18] == asked[0]
    frozen = read_predictions(predictions_path(tmp_path / "long", 18))
    assert frozen.predictions == read_predictions(predictions_path(tmp_path / "short")).predictions
    assert long.points[0].evaluation == short.evaluation


def test_a_point_is_frozen_before_the_next_label_is_asked(
    shared_service: RunningService, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a label is asked, every evaluated budget below what is paid for is on the disk."""
    out, query, seen = tmp_path / "out", LabelClient.query, []

    def query_and_look(self: LabelClient, ids: list[int], **rest: str) -> object:
        paid = len(read_queries(out))
        seen.append((paid, sorted(path.name for path in out.glob("predictions*.json"))))
        return query(self, ids, **rest)

    monkeypatch.setattr(LabelClient, "query", query_and_look)
    run_to_end(settings_for(out, tiny_data, shared_service, profile="tiny-curve"))
    three, six = "predictions-at-3.json", "predictions-at-6.json"
    assert seen == [(0, []), (3, [three]), (6, [three, six]), (12, [three, six])]


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("when", [before, after])
def test_a_curve_killed_at_a_point_resumes_to_the_same_end(
    shared_service: RunningService, tiny_data: Path, tmp_path: Path, at: int, when: Callable[..., Arm]
) -> None:
    """Killed before or after any of the three points was frozen: the same points, no label charged twice."""
    settings = settings_for(tmp_path / "whole", tiny_data, shared_service, profile="tiny-curve")
    whole = run_to_end(settings)
    killed = settings_for(tmp_path / "out", tiny_data, shared_service, profile="tiny-curve")
    run_and_die(killed, when(pipeline, "freeze_predictions", at))
    result = run_to_end(killed.model_copy(update={"resume": True}))
    assert outcome_of(tmp_path / "out", result) == outcome_of(tmp_path / "whole", whole)
    assert [(point.labels, point.evaluation) for point in result.points] == [
        (point.labels, point.evaluation) for point in whole.points
    ]
    assert len(charges_of(shared_service, result.run_id).ids) == 18
    name = "predictions-at-3.json"
    first, second = (json.loads((tmp_path / folder / name).read_text())["predictions"] for folder in ("out", "whole"))
    assert first == second

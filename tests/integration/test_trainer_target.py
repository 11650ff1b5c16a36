"""`--target`: the run stops asking by its own estimate, trains to the end, and says so the same after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.services import RunningService
from tests.support.tiny_trainer import TINY
from tests.support.trainer_runs import after, charges_of, outcome_of, run_and_die, run_to_end, settings_for
from trainer.errors import ConfigError
from trainer.records.run_records import read_rounds
from trainer.run import active_loop

pytestmark = pytest.mark.usefixtures("tiny_profiles")


def test_a_target_that_is_met_at_once_ends_the_asking(
    shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """Twelve labels of eighteen, since the first round guesses nothing; the last round's training, and a result."""
    result = run_to_end(settings_for(tmp_path / "out", tiny_data, shared_service, target=0.0))
    assert len(charges_of(shared_service, result.run_id).ids) == result.queries_in_log == 12
    assert result.counts_agree
    assert [point.labels for point in result.points] == [12]
    assert result.points[0].estimate is not None and result.points[0].estimate_error is not None
    rounds = read_rounds(tmp_path / "out")
    assert [record.estimated_accuracy is not None for record in rounds[:2]] == [False, True]
    metrics = [json.loads(line)["stage"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert "round-2-1" in metrics


def test_a_target_out_of_reach_spends_the_budget(
    shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """No estimate reaches certainty with an error to spare."""
    result = run_to_end(settings_for(tmp_path / "out", tiny_data, shared_service, target=1.0))
    assert result.queries_in_log == TINY.budget


def test_a_killed_run_stops_where_an_uninterrupted_one_does(
    shared_service: RunningService, tiny_data: Path, tmp_path: Path
) -> None:
    """Killed right after the estimate was written: no label more, the same predictions."""
    whole = run_to_end(settings_for(tmp_path / "whole", tiny_data, shared_service, target=0.0))
    # Two rounds that were asked, and then the estimate.
    settings = settings_for(tmp_path / "out", tiny_data, shared_service, target=0.0)
    run_and_die(settings, after(active_loop, "append_round", 3))
    assert read_rounds(tmp_path / "out")[-1].estimated_accuracy is not None
    result = run_to_end(settings_for(tmp_path / "out", tiny_data, shared_service, target=0.0, resume=True))
    assert outcome_of(tmp_path / "out", result) == outcome_of(tmp_path / "whole", whole)


def test_a_curve_takes_no_target(shared_service: RunningService, tiny_data: Path, tmp_path: Path) -> None:
    """Its points are declared before the first query, and a target would leave some out."""
    with pytest.raises(ConfigError, match="has declared evaluations at 3, 6, 18 labels"):
        run_to_end(settings_for(tmp_path / "out", tiny_data, shared_service, profile="tiny-curve", target=0.9))

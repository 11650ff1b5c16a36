"""Budget, evaluation and rate decisions, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from label_service import errors
from label_service.ledger.limits import (
    GUEST,
    RunState,
    TokenBucket,
    Total,
    refuse_ended,
    refuse_evaluation,
    refuse_reveal,
)

RUN = RunState("run-1", budget=10, spent=7)
CURVE = replace(RUN, evaluation_budgets=(5, 10), evaluations_allowed=2)
FREE: list[Total] = []


@pytest.mark.parametrize(
    ("run", "totals", "new", "refusal"),
    [
        (RUN, FREE, 3, None),
        (RUN, FREE, 4, errors.LabelBudgetExhausted),
        (RUN, FREE, 0, None),
        (replace(RUN, spent=10), FREE, 0, None),
        (replace(RUN, spent=10), FREE, 1, errors.LabelBudgetExhausted),
        (replace(RUN, spent=12), FREE, 1, errors.LabelBudgetExhausted),
        (replace(RUN, evaluated_at=(None,)), FREE, 1, errors.QueryingClosed),
        (replace(RUN, evaluated_at=(None,)), FREE, 0, None),
        (RUN, [Total("All runs", 8, 10)], 2, None),
        (RUN, [Total("All runs", 8, 10)], 3, errors.TotalBudgetExhausted),
        (RUN, [Total("All runs", 8, 5)], 1, errors.TotalBudgetExhausted),
        (RunState(GUEST, 0, 0), FREE, 1, errors.GuestClosed),
        (RunState(GUEST, 1, 0), FREE, 1, None),
    ],
)
def test_reveals_are_granted_or_refused_for_the_right_reason(
    run: RunState, totals: list[Total], new: int, refusal: type[errors.Problem] | None
) -> None:
    """The whole table: replays are free, and each limit refuses by its own name."""
    found = refuse_reveal(run, totals, new)
    assert type(found) is (refusal or type(None))


@pytest.mark.parametrize(
    ("run", "totals", "budget", "refusal"),
    [
        (RUN, FREE, None, None),
        (RUN, FREE, 5, None),
        (replace(RUN, evaluated_at=(None,)), FREE, None, errors.EvaluationsExhausted),
        (RUN, [Total("All runs", 3, 3)], None, errors.EvaluationsExhausted),
        (RUN, [Total("All runs", 2, 3)], None, None),
        (RunState(GUEST, 5, 0, evaluations_allowed=0), FREE, None, errors.GuestHasNoEvaluations),
        (CURVE, FREE, 5, None),
        (CURVE, FREE, None, errors.EvaluationNotDeclared),
        (CURVE, FREE, 6, errors.EvaluationNotDeclared),
        (replace(CURVE, evaluated_at=(5,)), FREE, 5, errors.EvaluationNotDeclared),
    ],
)
def test_evaluations_are_granted_or_refused_for_the_right_reason(
    run: RunState, totals: list[Total], budget: int | None, refusal: type[errors.Problem] | None
) -> None:
    """Declared points once each, undeclared runs once, the guest never, the operator's total always."""
    found = refuse_evaluation(run, totals, budget)
    assert type(found) is (refusal or type(None))


def test_sealed_run_is_refused() -> None:
    """A seal ends everything."""
    assert refuse_ended(RUN) is None
    assert isinstance(refuse_ended(replace(RUN, sealed=True)), errors.RunSealed)


def test_bucket_gives_a_minutes_worth_and_refills() -> None:
    """60 a minute: 60 at once, then one a second; after the wait that it names, the ids are granted."""
    bucket = TokenBucket(size=60, level=60, at_s=0)
    bucket, wait_s = bucket.take(60, 0)
    assert wait_s == 0
    bucket, wait_s = bucket.take(10, 5)
    assert wait_s == 5
    bucket, wait_s = bucket.take(10, 5 + wait_s)
    assert wait_s == 0


def test_batch_larger_than_the_bucket_passes_when_full_and_leaves_a_debt() -> None:
    """Every legal batch can pass, however small the rate."""
    bucket = TokenBucket(size=60, level=60, at_s=0)
    bucket, wait_s = bucket.take(180, 0)
    assert (wait_s, bucket.level) == (0, -120)
    assert bucket.take(1, 60)[1] > 0
    assert bucket.take(1, 122)[1] == 0


def test_bucket_never_saves_up_more_than_a_minute() -> None:
    """After an idle day a run still gets only a minute's worth."""
    assert TokenBucket(60, 0, 0).take(1, 86_400)[0].level == 59

"""The run's own estimate is calibrated by the guesses made before asking, and by nothing else."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import torch

from trainer.records.run_records import QueryRecord
from trainer.run.accuracy_estimate import AccuracyEstimate, balanced_accuracy, estimate_accuracy, slope_at


def asked(confidence: float | None, right: int, wrong: int) -> list[QueryRecord]:
    """Make queries guessed with the same confidence, some of them right; None makes them not guessed."""
    guess = None if confidence is None else 1
    return [
        QueryRecord(
            order=number,
            round=1,
            id=number,
            strategy="s",
            reason="r",
            predicted=guess,
            confidence=confidence,
            label=1 if number < right else 0,
            charged=True,
            asked_at=datetime(2020, 1, 1, tzinfo=UTC),
        )
        for number in range(right + wrong)
    ]


def pool(*confidences: float) -> torch.Tensor:
    """Make beliefs about two classes from the confidence in the first."""
    top = torch.tensor(confidences)
    return torch.stack([top, 1 - top], 1)


def test_without_a_guess_there_is_no_estimate() -> None:
    """The cold start is asked without a guess, so nothing can be calibrated."""
    assert estimate_accuracy(pool(0.9), []) is None
    assert estimate_accuracy(pool(0.9), asked(None, 3, 2)) is None


def test_beliefs_that_were_half_right_at_a_half_stay_as_they_are() -> None:
    """If guesses were as right as their confidence, the shift is zero, and only the slope changes the mean."""
    estimate = estimate_accuracy(pool(0.6, 0.9), asked(0.5, 30, 30))
    expected = torch.sigmoid(slope_at(60) * torch.logit(torch.tensor([0.6, 0.9]))).mean()
    assert estimate is not None
    assert estimate.accuracy == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize(("right", "sign"), [(45, 1), (15, -1)])
def test_guesses_righter_than_they_said_raise_the_estimate(right: int, sign: int) -> None:
    """Guesses that were less often right lower it."""
    even, other = (estimate_accuracy(pool(0.7, 0.8), asked(0.5, hits, 60 - hits)) for hits in (30, right))
    assert even is not None and other is not None
    assert sign * (other.accuracy - even.accuracy) > 0.02


def test_more_guesses_make_the_error_smaller_and_never_nothing() -> None:
    """The model error remains."""
    errors = []
    for count in (2, 10, 30):
        estimate = estimate_accuracy(pool(0.6), asked(0.5, count, count))
        assert estimate is not None
        errors.append(estimate.standard_error)
    assert errors[0] > errors[1] > errors[2] > 0.005


def test_only_the_newest_guesses_count() -> None:
    """Old guesses, right or wrong, do not change the estimate."""
    new = asked(0.5, 100, 100)
    right, wrong = (estimate_accuracy(pool(0.7), asked(0.5, *old) + new) for old in ((200, 0), (0, 200)))
    assert right == wrong


def test_the_same_confidence_is_worth_more_after_more_labels() -> None:
    """Smoothed beliefs become more accurate, but hardly more confident."""
    guesses = asked(0.5, 5, 5)
    few, many = (estimate_accuracy(pool(0.8), asked(None, cold, 0) + guesses) for cold in (90, 390))
    assert few is not None and many is not None
    assert 0.8 < few.accuracy < many.accuracy - 0.02


def test_certain_beliefs_do_not_break_the_estimate() -> None:
    """Known labels are one-hot; the estimate stays at most 1."""
    estimate = estimate_accuracy(torch.eye(2), asked(1.0, 5, 0))
    assert estimate is not None
    assert 0.99 < estimate.accuracy <= 1


def test_a_target_is_met_with_one_standard_error_to_spare() -> None:
    """90.5% with a standard error of 1 point does not reach 90%."""
    assert not AccuracyEstimate(0.905, 0.01).reaches(0.9)
    assert AccuracyEstimate(0.911, 0.01).reaches(0.9)


def test_balanced_accuracy_follows_from_the_accuracy_that_was_answered() -> None:
    """Where calibration holds it is the truth, however wrong the confidence is, and whatever the classes' sizes."""
    generator = torch.Generator().manual_seed(0)
    truth = (torch.rand(20_000, generator=generator) < 0.1).long()
    evidence = 2 * truth - 1 + 1.2 * torch.randn(len(truth), generator=generator)
    # Logits of the second class as they should be, of which the beliefs say only a part.
    exact = 2 * evidence / 1.2**2 + torch.logit(torch.tensor(0.1))
    beliefs = torch.stack([-exact, exact], 1).div(2).softmax(1)
    guesses = beliefs.argmax(1)
    recalls = [float((guesses[truth == label] == label).float().mean()) for label in (0, 1)]
    accuracy = float((guesses == truth).float().mean())
    assert accuracy > 0.9 and recalls[1] < 0.6
    assert balanced_accuracy(beliefs.half(), accuracy, 100) == pytest.approx(sum(recalls) / 2, abs=0.02)
    timid = torch.stack([-exact, exact], 1).div(6).softmax(1)
    assert abs(balanced_accuracy(timid, accuracy, 100) - sum(recalls) / 2) < 0.1


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_all_right_and_all_wrong_are_balanced_too(accuracy: float) -> None:
    """The ends are reached, certain beliefs included."""
    beliefs = torch.tensor([[0.6, 0.3, 0.1], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])
    assert balanced_accuracy(beliefs, accuracy, 60) == pytest.approx(accuracy, abs=1e-6)

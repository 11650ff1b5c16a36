"""The line about the whole run tells the place, and the time left from what was measured."""

from __future__ import annotations

from trainer.config import PhaseConfig
from trainer.run.overall import Overall
from trainer.run.steps import Ask, Freeze, Train

SOFT = PhaseConfig(epochs=2, soft=1.0)
STRONG = PhaseConfig(epochs=3, consistency=1.0)
STEPS = [
    Ask(0, 10, 0, 10),
    Train(0, 0, SOFT),
    Ask(1, 20, 1, 20),
    Train(1, 0, SOFT),
    Train(1, 1, STRONG),
    Freeze(1, 20, True),
]


def test_time_left_is_what_like_steps_took() -> None:
    """Nothing is foretold before an epoch was measured; then each step counts as its kind has taken."""
    now, shown = 0.0, []
    overall = Overall(2, 20, shown.append, lambda: now)
    with overall.step(STEPS[0], STEPS[1:], 0):
        now += 4
    with overall.step(STEPS[1], STEPS[2:], 10) as epoch_ended:
        now += 10
        # One more epoch of 10 s; 4 s to ask; two and three epochs of 10 s; freezing was never measured.
        epoch_ended(1)
        now += 20
        # An epoch takes 15 s in the mean: 4 s to ask, five epochs.
        epoch_ended(2)
    assert shown == [
        "round 1 of 2, 0 of 20 labels",
        "round 1 of 2, 10 of 20 labels",
        "round 1 of 2, 10 of 20 labels, 1 min 4 s left",
        "round 1 of 2, 10 of 20 labels, 1 min 19 s left",
    ]


def test_training_with_other_losses_is_measured_apart() -> None:
    """An epoch with the consistency loss takes longer; one epoch of it corrects what was foretold."""
    now, shown = 0.0, []
    overall = Overall(1, 10, shown.append, lambda: now)
    with overall.step(Train(0, 0, SOFT), [Train(0, 1, STRONG)], 10) as epoch_ended:
        now += 5
        epoch_ended(1)
        now += 5
        epoch_ended(2)
    assert shown[-1].endswith("15 s left")
    with overall.step(Train(0, 1, STRONG), [], 10) as epoch_ended:
        now += 12
        epoch_ended(1)
    assert shown[-1].endswith("24 s left")

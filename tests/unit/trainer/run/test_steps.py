"""A profile expands into the steps of its run, in order."""

from __future__ import annotations

from trainer.config import PhaseConfig, RoundConfig
from trainer.profiles import CPU, SMOKE
from trainer.run.steps import Ask, Estimate, Freeze, Train, plan

PHASE = PhaseConfig(epochs=1)
PROFILE = SMOKE.model_copy(
    update={
        "rounds": (
            RoundConfig(labels=10, chosen_ahead=20, evaluated=True),
            RoundConfig(labels=20, phases=(PHASE, PHASE)),
            RoundConfig(labels=30, phases=(PHASE,)),
        )
    }
)


def test_steps_follow_the_rounds() -> None:
    """Each round asks and trains; predictions are frozen where declared and at the end."""
    assert plan(PROFILE, has_target=False) == [
        Ask(0, labels=10, chosen_in=0, chosen_until=20),
        Freeze(0, labels=10, is_end=False),
        Ask(1, labels=20, chosen_in=0, chosen_until=20),
        Train(1, 0, PHASE),
        Train(1, 1, PHASE),
        Ask(2, labels=30, chosen_in=2, chosen_until=30),
        Train(2, 0, PHASE),
        Freeze(2, labels=30, is_end=True),
    ]


def test_a_target_is_compared_after_each_round_that_trains_but_the_last() -> None:
    """After the last round there is nothing left to stop."""
    steps = plan(PROFILE, has_target=True)
    assert [step for step in steps if isinstance(step, Estimate)] == [Estimate(1)]
    assert steps.index(Estimate(1)) == steps.index(Train(1, 1, PHASE)) + 1


def test_the_default_chooses_its_first_forty_images_together() -> None:
    """They are asked for in three rounds; from sixty labels on each round chooses its own."""
    asks = [step for step in plan(CPU, has_target=False) if isinstance(step, Ask)]
    assert [(ask.chosen_in, ask.chosen_until) for ask in asks[:4]] == [(0, 40), (0, 40), (0, 40), (3, 60)]

"""Parts of the system that can be left out, to measure what each is worth.

Each takes a profile and answers it without one part, everything else unchanged.
"""

from collections.abc import Callable
from typing import Any

from trainer.config import Frozen, PhaseConfig, Profile, RoundConfig, ViewConfig

# Random crops and tone, as profile `paper` has them: SimCLR's kinds of change that mean something in grey images. The
# authors' own, for colour photographs, crop harder (down to 8% of the area) and change hue.
PAPER_VIEW = ViewConfig(scale=(0.45, 1.0), crop=True, aspect=0.3, tone=0.5)
# Where a network that has no graph to learn from is first trained: before the first labels that are chosen for doubt.
_FIRST_TRAINED = 40


def _changed(profile: Profile, part: str, **values: Any) -> Profile:  # noqa: ANN401 - each setting has its own type
    whole: Frozen = getattr(profile, part)
    return profile.model_copy(update={part: whole.model_copy(update=values)})


def _with_phases(profile: Profile, change: Callable[[PhaseConfig], PhaseConfig]) -> Profile:
    rounds = tuple(
        one.model_copy(update={"phases": tuple(change(phase) for phase in one.phases)}) for one in profile.rounds
    )
    return profile.model_copy(update={"rounds": rounds})


def without_hcl(profile: Profile) -> Profile:
    """Start from random weights, and leave their features out of the graph."""
    return _changed(_changed(profile, "pretrain", epochs=0), "graph", pretrained_weight=0.0)


def without_gradients(profile: Profile) -> Profile:
    """Show the encoder pixels, and build the graph of its features alone."""
    return _changed(
        _changed(profile, "encoder", front_end="pixels"), "graph", descriptor_weight=0.0, pretrained_weight=1.0
    )


def without_propagation(profile: Profile) -> Profile:
    """Believe the network alone, in learning and in predicting; it trains as soon as there are labels.

    No label spreads and no neighbour votes. What is chosen still averages the network's doubt over neighbourhoods.
    """

    def alone(phase: PhaseConfig) -> PhaseConfig:
        return phase.model_copy(update={"soft": 0.0, "consistency": 1.0, "trust_beliefs": 0.0})

    def begun(one: RoundConfig) -> RoundConfig:
        early = one.labels >= _FIRST_TRAINED and not one.phases
        return one.model_copy(update={"phases": (PhaseConfig(epochs=2, consistency=1.0),)}) if early else one

    started = profile.model_copy(update={"rounds": tuple(begun(one) for one in profile.rounds)})
    return _changed(_with_phases(started, alone), "graph", propagate=False)


def without_unlabelled(profile: Profile) -> Profile:
    """Train the network on the labels paid for alone, for as many steps."""
    return _with_phases(profile, lambda phase: phase.model_copy(update={"soft": 0.0, "consistency": 0.0}))


def without_choice(profile: Profile) -> Profile:
    """Ask for random images."""
    return profile.model_copy(update={"strategy": "random"})


def without_own_views(profile: Profile) -> Profile:
    """Pretrain on the views of HCL's paper instead of ours."""
    return _changed(profile, "pretrain", view=PAPER_VIEW)


ABLATIONS: dict[str, Callable[[Profile], Profile]] = {
    "hcl": without_hcl,
    "gradients": without_gradients,
    "propagation": without_propagation,
    "unlabelled": without_unlabelled,
    "choice": without_choice,
    "own-views": without_own_views,
}

"""A run as a flat list of steps: ask, train, estimate, freeze. Resuming leaves out the finished ones."""

from dataclasses import dataclass

from trainer.config import PhaseConfig, Profile


@dataclass(frozen=True)
class Ask:
    """Ask for the labels of a round's images, until the run has `labels` labels in total.

    Attributes:
        chosen_in: the round whose choice is used: this one, or an earlier one that chose for several rounds at once.
        chosen_until: the total number of labels that the choice of that round covers.
    """

    round: int
    labels: int
    chosen_in: int
    chosen_until: int


@dataclass(frozen=True)
class Train:
    """Fine-tune for one phase of a round."""

    round: int
    phase: int
    config: PhaseConfig


@dataclass(frozen=True)
class Estimate:
    """Estimate the accuracy after a round, and stop asking if it reaches the target."""

    round: int


@dataclass(frozen=True)
class Freeze:
    """Freeze the test predictions after a round."""

    round: int
    labels: int
    is_end: bool


Step = Ask | Train | Estimate | Freeze


def plan(profile: Profile, *, has_target: bool) -> list[Step]:
    """Expand a profile into the steps of its run; with a target, rounds that train are followed by an estimate."""
    steps: list[Step] = []
    last = len(profile.rounds) - 1
    for number, settings in enumerate(profile.rounds):
        ahead = (i for i in range(number) if (profile.rounds[i].chosen_ahead or 0) >= settings.labels)
        chosen_in = next(ahead, number)
        chooser = profile.rounds[chosen_in]
        steps.append(Ask(number, settings.labels, chosen_in, chooser.chosen_ahead or chooser.labels))
        steps += [Train(number, phase, config) for phase, config in enumerate(settings.phases)]
        if has_target and settings.phases and number < last:
            steps.append(Estimate(number))
        if settings.evaluated or number == last:
            steps.append(Freeze(number, settings.labels, is_end=number == last))
    return steps

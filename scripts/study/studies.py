"""The studies of `make study`, by name: which arms are compared over which seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.acquisition import STRATEGIES
from trainer.config import DEFAULT_STRATEGY, Profile
from trainer.profiles import ABLATIONS, profile_of


@dataclass(frozen=True)
class Arm:
    """Runs that differ in the seed only.

    Attributes:
        name: in tables.
        profile: of the trainer.
        seeds: one run each.
        strategy: of acquisition, None for the profile's; a name of its own or a plug-in.
        budget: labels in all, None for the profile's.
        rounds: as `--rounds` has them, None for the profile's.
    """

    name: str
    profile: str
    seeds: tuple[int, ...]
    strategy: str | None = None
    budget: int | None = None
    rounds: str | None = None

    @property
    def full_profile(self) -> Profile:
        """The profile with the arm's strategy, budget and rounds, as the trainer combines them."""
        profile = profile_of(self.profile, self.budget, self.rounds)
        return profile.model_copy(update={"strategy": self.strategy or profile.strategy})


@dataclass(frozen=True)
class Study:
    """Arms that are compared.

    Attributes:
        title: of the record.
        arms: the first is what the others are compared with.
    """

    title: str
    arms: tuple[Arm, ...]


def studies(seeds: Sequence[int]) -> dict[str, Study]:
    """Return the studies by name. Comparisons use the first three of the seeds, except HCL's, which uses all.

    HCL changes accuracy less than a seed does, so three seeds would not show it.
    """
    every, three = tuple(seeds), tuple(seeds[:3])
    return {
        "learning-curve": Study(
            "Accuracy by number of labels",
            (
                Arm(DEFAULT_STRATEGY, "curve", every),
                Arm("random", "curve", three, "random"),
            ),
        ),
        # Profile `brief` trains a fifth as long as the default: with full training this study would take days.
        "ablations": Study(
            "What each part is worth",
            (
                Arm("whole", "brief", every),
                Arm("random choice", "brief", three, "random"),
                *(
                    Arm(f"without {part}", f"brief-without-{part}", every if part == "hcl" else three)
                    for part in ABLATIONS
                    if part != "choice"
                ),
            ),
        ),
        # For a re-drawn split (DATA=): minutes a run, so that a change shows before it costs an hour.
        "graph-development": Study("The graph alone, on a development split", (Arm(DEFAULT_STRATEGY, "graph", every),)),
        "strategies": Study(
            "Query strategies on the graph alone",
            (
                Arm(DEFAULT_STRATEGY, "graph", three),
                *(Arm(name, "graph", three, name) for name in STRATEGIES if name != DEFAULT_STRATEGY),
            ),
        ),
    }

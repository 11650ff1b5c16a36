"""How far a whole run is: round, labels and time left, in one line."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from trainer.records.progress import duration
from trainer.run.steps import Step, Train


class Overall:
    """Measures the steps of a run while they are taken, and foretells the rest.

    An epoch of training takes about as long as the ones before it with the same losses, and a graph as long as the
    graphs before it. Nothing is foretold before the first epoch was measured.
    """

    def __init__(
        self, rounds: int, budget: int, show: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin to measure.

        Args:
            rounds: of the run.
            budget: labels that it may pay for.
            show: shows the line.
            clock: seconds.
        """
        self._rounds, self._budget, self._show, self._clock = rounds, budget, show, clock
        self._measured: defaultdict[str, list[float]] = defaultdict(list)
        self._labels = self._round = 0

    @contextmanager
    def step(self, step: Step, left: Sequence[Step], labels: int) -> Iterator[Callable[[int], None]]:
        """Show the line while a step is taken, and measure it.

        Args:
            step: to be taken now.
            left: the steps after it.
            labels: paid for so far.

        Yields:
            A function to call after each epoch of training with the number of epochs that are finished.
        """
        self._labels, self._round = labels, step.round
        last = self._clock()

        def epoch_ended(finished: int) -> None:
            nonlocal last
            assert isinstance(step, Train)
            now = self._clock()
            self._measured[_kind(step)].append(now - last)
            last = now
            self._tell(self._cost(step) / max(1, step.config.epochs) * (step.config.epochs - finished), left)

        self._tell(self._cost(step), left)
        yield epoch_ended
        if not isinstance(step, Train):
            self._measured[_kind(step)].append(self._clock() - last)

    def _tell(self, now_s: float, left: Sequence[Step]) -> None:
        text = f"round {self._round + 1} of {self._rounds}, {self._labels} of {self._budget} labels"
        if any(kind.startswith("train") for kind in self._measured):
            text += f", {duration(now_s + sum(map(self._cost, left)))} left"
        self._show(text)

    def _cost(self, step: Step) -> float:
        """Foretell the seconds of a step from those of its kind, or of any training if its kind is new."""
        times = self._measured.get(_kind(step), [])
        if isinstance(step, Train):
            times = times or [
                s for kind, several in self._measured.items() if kind.startswith("train") for s in several
            ]
        mean = sum(times) / len(times) if times else 0.0
        return mean * (step.config.epochs if isinstance(step, Train) else 1)


def _kind(step: Step) -> str:
    """Name what takes equally long."""
    if not isinstance(step, Train):
        return type(step).__name__
    losses = [name for name in ("soft", "consistency", "mixup", "contrast") if getattr(step.config, name) > 0]
    return f"train by {losses}"

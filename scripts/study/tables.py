"""The results of a record as a table and a picture: means, standard deviations, paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Point:
    """One evaluation.

    Attributes:
        labels: that the run had asked for.
        correct: test images predicted right.
        total: test images.
        seconds: of work until then, pretraining included.
        estimate: the run's own estimate of its accuracy, made without test labels, percent; None if it had none.
        predictions_sha256: of the predictions, as the signed entry has it; see `predictions.py`.
    """

    labels: int
    correct: int
    total: int
    seconds: float
    estimate: float | None = None
    predictions_sha256: str = ""

    @property
    def percent(self) -> float:
        """Accuracy, percent."""
        return 100 * self.correct / self.total


@dataclass(frozen=True)
class RunResults:
    """One run.

    Attributes:
        seed: of everything random.
        points: ascending in labels.
        log: id of its log.
        labels_of_others: labels that its log gave to anybody else.
        evaluations_of_others: accuracies that its log told anybody else.
        test: its test set, in words.
        cores: numbers of cores that it was made on, ascending; empty where not known.
        arithmetic: what its networks computed in; empty where not known.
        asked: ids of the images whose labels it was given, in order.
        published: title and path, in the record, of the files with its predictions and of the images it asked for.
    """

    seed: int
    points: tuple[Point, ...]
    log: str
    labels_of_others: int
    evaluations_of_others: int
    test: str
    cores: tuple[int, ...] = ()
    arithmetic: str = ""
    asked: tuple[int, ...] = ()
    published: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ArmResults:
    """Runs that differ in the seed only; `profile` is the trainer's that they were made with."""

    name: str
    runs: tuple[RunResults, ...]
    profile: str = ""

    def points_at(self, labels: int) -> dict[int, Point]:
        """Return the points after so many labels, by seed."""
        return {run.seed: point for run in self.runs for point in run.points if point.labels == labels}

    def percent_at(self, labels: int) -> dict[int, float]:
        """Return the accuracies after so many labels, percent, by seed."""
        return {seed: point.percent for seed, point in self.points_at(labels).items()}


@dataclass(frozen=True)
class RecordResults:
    """All of a record; the first arm is what the others are compared with."""

    title: str
    arms: tuple[ArmResults, ...]

    @property
    def labels(self) -> list[int]:
        """The numbers of labels at which every arm was evaluated, ascending; if there is none, those of any arm."""
        each = [{point.labels for run in arm.runs for point in run.points} for arm in self.arms]
        return sorted(set.intersection(*each) or set.union(*each)) if each else []

    @property
    def is_curve(self) -> bool:
        """Whether there is more than one point to draw."""
        return len(self.labels) > 1


def mean_and_sd(values: Sequence[float]) -> str:
    """Write a mean with the sample's standard deviation and size."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread} ({len(values)})"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% confidence interval of a mean (Student), of at least two values."""
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values) - half, statistics.mean(values) + half


def paired_difference(first: dict[int, float], second: dict[int, float]) -> str:
    """Write the mean of `first` - `second` over the seeds that both have, with a 95% confidence interval."""
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if len(differences) < 2:
        return "–"
    low, high = interval(differences)
    return f"{statistics.mean(differences):+.2f} ({low:+.2f} to {high:+.2f})"


def summary(results: RecordResults) -> list[str]:
    """Write the numbers that a record stands for, a line for each arm."""
    return [
        f"{arm.name}: "
        + ", ".join(
            f"{labels:,} labels {mean_and_sd(list(arm.percent_at(labels).values()))}" for labels in results.labels
        )
        for arm in results.arms
    ]


def render(results: RecordResults) -> str:
    """Write the record's page: accuracies, differences, estimates, times, and each run."""
    arms, labels = results.arms, results.labels
    test = " and ".join(sorted({run.test for arm in arms for run in arm.runs}))
    lines = [
        f"# {results.title}",
        "",
        f"Test accuracy, percent, on {test}: mean ± standard deviation (runs), by number of labels.",
        "",
        *_table(labels, arms, lambda arm, count: mean_and_sd(list(arm.percent_at(count).values()))),
    ]
    first, *others = arms
    if others:
        lines += [
            "",
            f"`{first.name}` minus the other, same seeds, points: mean (95% confidence interval, Student's t).",
            "",
            *_table(labels, others, lambda arm, at: paired_difference(first.percent_at(at), arm.percent_at(at))),
        ]
    if any(point.estimate is not None for arm in arms for count in labels for point in arm.points_at(count).values()):
        lines += [
            "",
            "What the runs themselves expected, reading no test label, minus the truth, points: mean, root mean square "
            "(runs).",
            "",
            *_table(labels, arms, lambda arm, count: error_of_estimates(list(arm.points_at(count).values()))),
        ]
    lines += ["", "Each run, with minutes of work until then, pretraining included:", ""]
    lines += [f"- {arm.name}, seed {run.seed}{_describe(run)}" for arm in arms for run in arm.runs]
    return "\n".join(lines) + "\n"


def error_of_estimates(points: Sequence[Point]) -> str:
    """Write how far the runs' own estimates are from their accuracies: mean, root mean square, number of runs."""
    errors = [point.estimate - point.percent for point in points if point.estimate is not None]
    if not errors:
        return "–"
    root_mean_square = statistics.mean(error * error for error in errors) ** 0.5
    return f"{statistics.mean(errors):+.2f}, {root_mean_square:.2f} ({len(errors)})"


def _table(labels: Sequence[int], arms: Sequence[ArmResults], cell: Callable[[ArmResults, int], str]) -> list[str]:
    """Write a row for each arm and a column for each number of labels."""
    rows = [[arm.name, *(cell(arm, count) for count in labels)] for arm in arms]
    head = "| | " + " | ".join(f"{count:,}" for count in labels) + " |"
    return [head, "|---|" + "---:|" * len(labels), *("| " + " | ".join(row) + " |" for row in rows)]


def _describe(run: RunResults) -> str:
    """Write how a run was computed, its accuracies, and what its log gave to others."""
    text = ""
    if run.cores:
        several = f"{run.cores[0]} to " if len(run.cores) > 1 else ""
        text += f", on {several}{run.cores[-1]} core{'s' if run.cores[-1] > 1 else ''}"
    text += f", in {run.arithmetic}" if run.arithmetic else ""
    points = (f"{point.labels:,}: {point.percent:.2f}% ({point.seconds / 60:.0f} min)" for point in run.points)
    text += f": {', '.join(points)}"
    if run.labels_of_others:
        text += f"; {run.labels_of_others} labels on its log were given to others"
    if run.evaluations_of_others:
        text += f"; {run.evaluations_of_others} accuracies on its log were told to others"
    if run.published:
        text += f" ({', '.join(f'[{title}]({path})' for title, path in run.published)})"
    return text


# A second panel enlarges the curves from this number of labels on: the claims are about that part.
_NEAR_LABELS = 100
# Smallest distance between two tick labels, as a share of the axis; closer ones would overlap.
_TICK_SHARE = 0.07


def draw(results: RecordResults, path: Path) -> None:
    """Draw the learning curves, mean and standard deviation of each arm, as an SVG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "labelmeter"
    from matplotlib import pyplot as plt

    labels = results.labels
    near = [count for count in labels if count >= _NEAR_LABELS]
    panels = [labels, near] if 1 < len(near) < len(labels) else [labels]
    figure, grid = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.4), squeeze=False)
    for axes, counts in zip(grid[0], panels, strict=True):
        _draw_panel(axes, results.arms, counts)
    grid[0][0].set_ylabel("test accuracy, %")
    grid[0][-1].legend(frameon=False, loc="lower right")
    figure.tight_layout()
    # Without the date, the same numbers make the same file.
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_panel(axes: Axes, arms: Sequence[ArmResults], counts: Sequence[int]) -> None:
    for arm in arms:
        reached = [count for count in counts if arm.percent_at(count)]
        accuracies = [list(arm.percent_at(count).values()) for count in reached]
        spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in accuracies]
        means = [statistics.mean(values) for values in accuracies]
        axes.errorbar(reached, means, yerr=spread, marker="o", markersize=4, capsize=3, label=arm.name)
    axes.axhline(90, color="0.6", linewidth=1, linestyle="--")
    axes.set_xscale("log")
    ticks: list[int] = []
    for count in counts:
        if not ticks or count >= (counts[-1] / counts[0]) ** _TICK_SHARE * ticks[-1]:
            ticks.append(count)
    axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
    axes.minorticks_off()
    axes.set_xlabel("labels asked for")
    axes.grid(visible=True, color="0.92")

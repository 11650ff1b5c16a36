"""The numbers of a record as a table and a picture: means, standard deviations, paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Point:
    """One evaluation.

    Attributes:
        labels: asked for until then.
        correct: test images predicted right.
        total: test images.
        seconds: of work until then.
        estimate: the accuracy that the run itself expected, without test labels, percent; None if it had no estimate.
    """

    labels: int
    correct: int
    total: int
    seconds: float
    estimate: float | None = None

    @property
    def percent(self) -> float:
        """Accuracy, percent."""
        return 100 * self.correct / self.total


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        seed: of everything random.
        points: ascend in labels.
        log: id of its log.
        others: labels that its log gave to anybody else.
        evaluations_of_others: accuracies that its log told anybody else.
        test: its test set, in words.
        cores: numbers of cores that it was worked at with, ascending; empty where that is not known.
        arithmetic: what its networks computed in; empty where that is not known.
    """

    seed: int
    points: tuple[Point, ...]
    log: str
    others: int
    evaluations_of_others: int
    test: str
    cores: tuple[int, ...] = ()
    arithmetic: str = ""


@dataclass(frozen=True)
class Arm:
    """Runs that differ in the seed only."""

    name: str
    runs: tuple[Run, ...]

    def at(self, labels: int) -> dict[int, float]:
        """Return the accuracies after so many labels, percent, by seed."""
        return {run.seed: point.percent for run in self.runs for point in run.points if point.labels == labels}


@dataclass(frozen=True)
class Numbers:
    """All of a record; the first arm is what others are compared with."""

    title: str
    arms: tuple[Arm, ...]

    @property
    def labels(self) -> list[int]:
        """The numbers of labels at which every arm was evaluated, ascending; if there is none, those of any arm."""
        each = [{point.labels for run in arm.runs for point in run.points} for arm in self.arms]
        return sorted(set.intersection(*each) or set.union(*each)) if each else []


def is_curve(numbers: Numbers) -> bool:
    """Tell whether there is more than one point to draw."""
    return len(numbers.labels) > 1


def mean_and_sd(values: Sequence[float]) -> str:
    """Write a mean with the sample's standard deviation and size."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread} ({len(values)})"


def paired_difference(first: dict[int, float], second: dict[int, float]) -> str:
    """Write the mean of `first` - `second` over the seeds that both have, with a 95% confidence interval (Student)."""
    # scipy comes with scikit-learn.
    from scipy import stats

    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if len(differences) < 2:
        return "–"
    mean = statistics.mean(differences)
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def render(numbers: Numbers) -> str:
    """Write the record's page: accuracies, differences, times, and each run."""
    labels = numbers.labels
    test = " and ".join(sorted({run.test for arm in numbers.arms for run in arm.runs}))
    lines = [
        f"# {numbers.title}",
        "",
        f"Test accuracy, percent, on {test}: mean ± standard deviation (runs), by number of labels.",
        "",
        *_head(labels),
    ]
    for arm in numbers.arms:
        cells = [mean_and_sd(list(arm.at(count).values())) for count in labels]
        lines.append(f"| {arm.name} | " + " | ".join(cells) + " |")
    whole = numbers.arms[0]
    if len(numbers.arms) > 1:
        lines += [
            "",
            f"`{whole.name}` minus the other, same seeds, points: mean (95% confidence interval, Student's t).",
            "",
            *_head(labels),
        ]
        for arm in numbers.arms[1:]:
            cells = [paired_difference(whole.at(count), arm.at(count)) for count in labels]
            lines.append(f"| {arm.name} | " + " | ".join(cells) + " |")
    lines += _estimates(numbers)
    lines += ["", "Each run, with minutes of work until then, pretraining included:", ""]
    for arm in numbers.arms:
        for run in arm.runs:
            said = ", ".join(f"{one.labels:,}: {one.percent:.2f}% ({one.seconds / 60:.0f} min)" for one in run.points)
            others = f"; {run.others} labels on its log were given to others" if run.others else ""
            if run.evaluations_of_others:
                others += f"; {run.evaluations_of_others} accuracies on its log were told to others"
            computed = _on_cores(run.cores) + (f", in {run.arithmetic}" if run.arithmetic else "")
            lines.append(f"- {arm.name}, seed {run.seed}{computed}: {said}{others}")
    return "\n".join(lines) + "\n"


def _head(labels: Sequence[int]) -> tuple[str, str]:
    return "| | " + " | ".join(f"{count:,}" for count in labels) + " |", "|---|" + "---:|" * len(labels)


def _on_cores(cores: tuple[int, ...]) -> str:
    if not cores:
        return ""
    several = f"{cores[0]} to " if len(cores) > 1 else ""
    return f", on {several}{cores[-1]} core{'s' if cores[-1] > 1 else ''}"


def _estimates(numbers: Numbers) -> list[str]:
    """Write how the runs' own estimates compare with the truth."""
    rows = []
    for arm in numbers.arms:
        cells = []
        for count in numbers.labels:
            points = [point for run in arm.runs for point in run.points if point.labels == count]
            off = [point.estimate - point.percent for point in points if point.estimate is not None]
            root = statistics.mean(one * one for one in off) ** 0.5 if off else 0.0
            cells.append(f"{statistics.mean(off):+.2f}, {root:.2f} ({len(off)})" if off else "–")
        rows.append(f"| {arm.name} | " + " | ".join(cells) + " |")
    if all("(" not in row for row in rows):
        return []
    return [
        "",
        "What the runs themselves expected, reading no test label, minus the truth, points: mean, root mean square "
        "(runs).",
        "",
        *_head(numbers.labels),
        *rows,
    ]


# From here on curves are drawn once more by themselves: what is claimed is too near the end to be seen in the whole.
_NEAR_LABELS = 100
# Ticks are apart by this share of the axis at least; nearer ones would be written over each other.
_TICK_SHARE = 0.07


def draw(numbers: Numbers, path: Path) -> None:
    """Draw the learning curves, mean and standard deviation of each arm, as an SVG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "labelmeter"
    from matplotlib import pyplot as plt

    labels = numbers.labels
    near = [count for count in labels if count >= _NEAR_LABELS]
    panels = [labels, near] if 1 < len(near) < len(labels) else [labels]
    figure, grid = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.4), squeeze=False)
    for axes, counts in zip(grid[0], panels, strict=True):
        _draw_panel(axes, numbers.arms, counts)
    grid[0][0].set_ylabel("test accuracy, %")
    grid[0][-1].legend(frameon=False, loc="lower right")
    figure.tight_layout()
    # Without the date, the same numbers make the same file.
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_panel(axes: Axes, arms: Sequence[Arm], counts: Sequence[int]) -> None:
    for arm in arms:
        reached = [count for count in counts if arm.at(count)]
        values = [list(arm.at(count).values()) for count in reached]
        spread = [statistics.stdev(one) if len(one) > 1 else 0.0 for one in values]
        means = [statistics.mean(one) for one in values]
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

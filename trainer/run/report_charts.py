"""The charts of the report as SVG elements, in the page's colours, with each number as a tooltip."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from trainer.records.run_records import MetricRecord, QueryRecord, wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Width and height of a chart in inches of 72 SVG units; the page scales it to its width.
_WIDE, _SMALL = (10.0, 5.0), (5.0, 3.2)
# What matplotlib draws with, and the variable of the page's style sheet that replaces it, in light and dark.
_COLOURS = {
    "#b85c00": "var(--orange)",
    "#2563b0": "var(--blue)",
    "#1b7f4b": "var(--green)",
    "#8a93a1": "var(--grey)",
    "#5d6675": "var(--soft)",
    "#d9dde4": "var(--line)",
}
ORANGE, BLUE, GREEN, GREY, _TEXT, _GRID = _COLOURS
SERIES_COLOURS = (BLUE, ORANGE, GREEN, GREY)


def page_colour(colour: str) -> str:
    """Return the variable of the page's style sheet that stands for one of this module's colours."""
    return _COLOURS[colour]


@dataclass(frozen=True)
class CurvePoint:
    """An accuracy at a number of labels, with its 95% interval."""

    labels: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """One line of a chart of accuracies; `colour` is one of this module's."""

    name: str
    points: tuple[CurvePoint, ...]
    colour: str
    marker: str = "o"
    line: str = "-"


def asking_curve(queries: Sequence[QueryRecord]) -> tuple[Series, ...]:
    """Compute how often the guess before asking was right, by round and over all rounds so far.

    The cold start has no guesses and counts as labels only.
    """
    by_round, so_far = [], []
    guesses_so_far: list[QueryRecord] = []
    labels = 0
    for _, batch in groupby(queries, key=lambda query: query.round):
        asked = list(batch)
        labels += len(asked)
        guesses = [query for query in asked if query.predicted is not None]
        if guesses:
            guesses_so_far += guesses
            by_round.append(_point(labels, guesses))
            so_far.append(_point(labels, guesses_so_far))
    if not by_round:
        return ()
    return Series("in the round", tuple(by_round), ORANGE), Series("so far", tuple(so_far), BLUE)


def _point(labels: int, guesses: Sequence[QueryRecord]) -> CurvePoint:
    right = sum(bool(query.is_right) for query in guesses)
    return CurvePoint(labels, right / len(guesses), *wilson_interval(right, len(guesses)))


def draw_accuracies(series: Sequence[Series], title: str) -> str | None:
    """Draw accuracies by number of labels; None without a point. The same series give the same text."""
    drawn = [one for one in series if one.points]
    if not drawn:
        return None
    with _chart(_WIDE, (0.09, 0.18, 0.89, 0.78), title) as (axes, tooltips, document):
        for one in drawn:
            labels = [point.labels for point in one.points]
            lows, highs = [point.low for point in one.points], [point.high for point in one.points]
            axes.vlines(labels, lows, highs, color=one.colour, alpha=0.45, linewidth=1.5)
            (line,) = axes.plot(
                labels, [p.accuracy for p in one.points], one.marker, ls=one.line, color=one.colour, linewidth=2.2
            )
            line.set(gid=one.name, clip_on=False)
            tooltips[one.name] = [
                f"{one.name}: {100 * p.accuracy:.1f}% ({100 * p.low:.1f}% to {100 * p.high:.1f}%) at {p.labels} labels"
                for p in one.points
            ]
        lowest = min(point.accuracy for one in drawn for point in one.points)
        bottom = max(0.0, min(0.9, math.floor(lowest * 10 - 0.2) / 10))
        axes.set(xlim=(0, None), ylim=(bottom, 1))
        _style_accuracies(axes, bottom)
    return document.svg


def _style_accuracies(axes: Axes, bottom: float) -> None:
    from matplotlib.ticker import MaxNLocator, MultipleLocator, PercentFormatter

    axes.set_xlabel("labels paid for", color=_TEXT, labelpad=12)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MultipleLocator(0.2 if bottom < 0.5 else 0.1 if bottom < 0.8 else 0.05))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def training_charts(metrics: Sequence[MetricRecord]) -> list[tuple[str, str, str]]:
    """Draw what was measured by epoch of fine-tuning: title, explanation, SVG.

    The epochs of all phases follow each other. A graph is measured between two phases, and stands where it was made.
    """
    # A resumed run may repeat an epoch; the later line counts, in the place of the first.
    kept = {(record.stage, record.step): record for record in metrics}
    epochs = 0
    values: dict[str, list[tuple[int, float]]] = {name: [] for name in _CHARTS}
    pretraining: list[tuple[int, float]] = []
    for record in kept.values():
        if record.stage == "pretrain":
            if record.values.get("loss") is not None:
                pretraining.append((record.step + 1, float(record.values["loss"] or 0)))
            continue
        epochs += record.stage != "graph"
        for name, several in values.items():
            value = record.values.get(name)
            if value is not None:
                several.append((epochs, value))
    axis = "epoch"
    if not epochs:
        # No network was trained: what there is, is measured once a round.
        axis = "round"
        values = {name: [(n + 1, value) for n, (_, value) in enumerate(several)] for name, several in values.items()}
    drawn = [("HCL loss", "Of the pretraining without labels, by epoch.", pretraining, "epoch")]
    drawn += [(title, about, values[name], axis) for name, (title, about) in _CHARTS.items()]
    return [(title, about, _draw_line(title, tuple(points), axis)) for title, about, points, axis in drawn if points]


_CHARTS = {
    "loss": ("Fine-tuning loss", "By epoch over all rounds; each new round changes what is learned."),
    "confident": ("Confident share", "Share of the pool whose guess is sure enough to be learned from."),
    "neighbour_purity": ("Neighbour purity", "Share of neighbours in the graph that are believed to share a class."),
}


# The report is written again after each round, and some of its charts are as before.
@functools.lru_cache(maxsize=8)
def _draw_line(title: str, points: tuple[tuple[int, float], ...], axis: str) -> str:
    with _chart(_SMALL, (0.17, 0.2, 0.8, 0.76), title) as (axes, tooltips, document):
        (line,) = axes.plot(*zip(*points, strict=True), "o-", color=BLUE, linewidth=1.8, markersize=3.5)
        line.set(gid="line", clip_on=False)
        tooltips["line"] = [f"{value:.4g} at {axis} {number}" for number, value in points]
        axes.set_xlabel(axis, color=_TEXT)
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter("{x:.3g}")
    return document.svg.replace('class="curve"', 'class="curve small"', 1)


@dataclass
class _Document:
    """What `_chart` has drawn, once it is left."""

    svg: str = ""


@contextmanager
def _chart(
    size: tuple[float, float], box: tuple[float, float, float, float], title: str
) -> Iterator[tuple[Axes, dict[str, list[str]], _Document]]:
    """Give axes to draw on, and make them an SVG element of the page afterwards."""
    # Imported late: it takes most of a second.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    tooltips: dict[str, list[str]] = {}
    document = _Document()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "labelmeter", "font.size": 14}):
        figure = Figure(size)
        axes = figure.add_axes(box)
        yield axes, tooltips, document
        axes.tick_params(colors=_GRID, labelcolor=_TEXT, pad=6)
        axes.grid(axis="y", color=_GRID)
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.spines["bottom"].set_color(_GRID)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True)
    document.svg = _inline_svg(file.getvalue(), tooltips, title)


def _inline_svg(document: bytes, tooltips: Mapping[str, list[str]], title: str) -> str:
    """Make an SVG document an element of a page: without addresses and size, in the page's colours, with tooltips."""
    root = ElementTree.fromstring(document)  # noqa: S314 - matplotlib has just written it
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    for name, texts in tooltips.items():
        for marker, text in zip(root.iterfind(f".//g[@id='{name}']//use"), texts, strict=True):
            ElementTree.SubElement(marker, "title").text = text
    _make_ids_unique(root, title)
    root.attrib = {"viewBox": root.attrib["viewBox"], "class": "curve", "role": "img", "aria-label": title}
    svg = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg


def _make_ids_unique(root: Any, title: str) -> None:  # noqa: ANN401 - an Element of the untyped module
    """Put the chart's title before its ids: a page has several charts, and a reference takes the first of a name."""
    prefix = "".join(char if char.isalnum() else "-" for char in title.lower())
    for element in root.iter():
        if "id" in element.attrib:
            element.set("id", f"{prefix}-{element.attrib['id']}")
        if element.attrib.get("href", "").startswith("#"):
            element.set("href", f"#{prefix}-{element.attrib['href'][1:]}")
        for name in ("clip-path", "style"):
            if "url(#" in element.attrib.get(name, ""):
                element.set(name, element.attrib[name].replace("url(#", f"url(#{prefix}-"))

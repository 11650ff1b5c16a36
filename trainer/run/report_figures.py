"""The numbers and pictures of the report, from the records alone: no file is read and no page written here."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.records.run_records import QueryRecord, wilson_interval

_SPRITE_COLUMNS = 32
# Width and height of the learning curve in inches of 72 SVG units; the page scales it to its width.
_CURVE_SIZE = (10.0, 5.5)
# What matplotlib draws with, and the variable of the page's style sheet that replaces it, in light and dark.
_COLOURS = {"#b85c00": "var(--orange)", "#2563b0": "var(--blue)", "#5d6675": "var(--soft)", "#d9dde4": "var(--line)"}
_ORANGE, _BLUE, _TEXT, _GRID = _COLOURS


@dataclass(frozen=True)
class SpriteSheet:
    """Thumbnails side by side in one lossless PNG, in the order of the images.

    Attributes:
        data_uri: The PNG as a data URI.
        width: Width of the sheet in pixels.
        height: Height of the sheet in pixels.
        offsets: Left and top of each thumbnail in pixels.
    """

    data_uri: str
    width: int
    height: int
    offsets: tuple[tuple[int, int], ...]


def sprite_sheet(images: npt.NDArray[np.uint8]) -> SpriteSheet:
    """Lay out images [N, H, W], uint8, unscaled, in rows of 32."""
    n, height, width = images.shape
    columns = max(1, min(n, _SPRITE_COLUMNS))
    rows = max(1, math.ceil(n / columns))
    sheet = np.zeros((rows * height, columns * width), dtype=np.uint8)
    offsets = []
    for index in range(n):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = images[index]
        offsets.append((left, top))
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return SpriteSheet(uri, columns * width, rows * height, tuple(offsets))


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy of guesses at a number of labels, with its 95% interval."""

    labels: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class LearningCurve:
    """Labels against the accuracy of guesses that were made before asking.

    Attributes:
        by_round: Share of each round's guesses that were right, at the labels after the round.
        so_far: The same over all rounds so far.
    """

    by_round: tuple[CurvePoint, ...]
    so_far: tuple[CurvePoint, ...]


def learning_curve(queries: Sequence[QueryRecord]) -> LearningCurve:
    """Compute the curve from queries in order; those without a guess (cold start) count as labels only."""
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
    return LearningCurve(tuple(by_round), tuple(so_far))


def _point(labels: int, guesses: Sequence[QueryRecord]) -> CurvePoint:
    right = sum(bool(query.is_right) for query in guesses)
    return CurvePoint(labels, right / len(guesses), *wilson_interval(right, len(guesses)))


def draw_curve(curve: LearningCurve) -> str | None:
    """Draw a learning curve as an SVG element for the page; None when it has no point.

    The same curve gives the same text. Each point has its numbers as a tooltip.
    """
    if not curve.by_round:
        return None
    # Imported late: it takes most of a second.
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, MultipleLocator, PercentFormatter

    drawn = {"guesses in the round": (curve.by_round, _ORANGE), "guesses so far": (curve.so_far, _BLUE)}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "labelmeter", "font.size": 14}):
        figure = Figure(_CURVE_SIZE)
        axes = figure.add_axes((0.11, 0.19, 0.87, 0.77))
        for name, (points, colour) in drawn.items():
            labels = [point.labels for point in points]
            lows, highs = [point.low for point in points], [point.high for point in points]
            axes.vlines(labels, lows, highs, color=colour, alpha=0.45, linewidth=1.5)
            line, *_ = axes.plot(labels, [point.accuracy for point in points], "o-", color=colour, linewidth=2.5)
            line.set(gid=name, clip_on=False)
        lowest = min(point.low for points, _ in drawn.values() for point in points)
        bottom = min(0.9, math.floor(lowest * 10) / 10)
        axes.set(xlim=(0, None), ylim=(bottom, 1))
        axes.set_xlabel("labels paid for", color=_TEXT, labelpad=14)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MultipleLocator(0.2 if bottom < 0.5 else 0.1 if bottom < 0.8 else 0.05))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.tick_params(colors=_GRID, labelcolor=_TEXT, pad=8)
        axes.grid(axis="y", color=_GRID)
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.spines["bottom"].set_color(_GRID)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True)
    tooltips = {
        name: [f"{name}: {100 * point.accuracy:.1f}% at {point.labels} labels" for point in points]
        for name, (points, _) in drawn.items()
    }
    return _inline_svg(file.getvalue(), tooltips)


def _inline_svg(document: bytes, tooltips: dict[str, list[str]]) -> str:
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
    root.attrib = {"viewBox": root.attrib["viewBox"], "class": "curve", "role": "img", "aria-label": "Learning curve"}
    svg = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg


def confusion(queries: Sequence[QueryRecord], num_classes: int) -> npt.NDArray[np.int64]:
    """Count labels [C] against guesses [C]; queries without a guess (cold start) are left out."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    for query in queries:
        if query.predicted is not None:
            counts[query.label, query.predicted] += 1
    return counts

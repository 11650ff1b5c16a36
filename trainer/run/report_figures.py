"""The numbers and pictures of the report, from the records alone: no file is read and no HTML written here."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.records.run_records import QueryRecord, RoundRecord, wilson_interval

# The drawing area of the learning curve in SVG units; the page scales it to its width.
CURVE_WIDTH, CURVE_HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 16, 16, 56
_SPRITE_COLUMNS = 32


@dataclass(frozen=True)
class SpriteSheet:
    """Thumbnails side by side in one lossless PNG, in the order given.

    Attributes:
        data_uri: The PNG as a data URI.
        width: Sheet width in pixels.
        height: Sheet height in pixels.
        offsets: Left and top of each thumbnail in pixels.
    """

    data_uri: str
    width: int
    height: int
    offsets: tuple[tuple[int, int], ...]


def sprite_sheet(images: npt.NDArray[np.uint8]) -> SpriteSheet:
    """Lay out images [N, H, W], uint8, pixel by pixel, in rows of 32."""
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
    """Accuracy on paid labels at a number of labels, with a 95% interval where counts are behind it."""

    labels: int
    accuracy: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class LearningCurve:
    """Labels against accuracy on labels paid for; a series without points is left out.

    Attributes:
        by_round: Share of each round's guesses that were right, at the labels after the round.
        cumulative: The same over all rounds so far.
        cross_validated: The graph's accuracy on paid labels held out in turn.
    """

    by_round: tuple[CurvePoint, ...]
    cumulative: tuple[CurvePoint, ...]
    cross_validated: tuple[CurvePoint, ...]


def learning_curve(queries: Sequence[QueryRecord], rounds: Sequence[RoundRecord]) -> LearningCurve:
    """Compute the curve from guesses made before asking; queries without a guess (cold start) do not count."""
    by_round, cumulative = [], []
    right_so_far = guesses_so_far = labels = 0
    for number in sorted({query.round for query in queries}):
        batch = [query for query in queries if query.round == number]
        labels += len(batch)
        guesses = [query for query in batch if query.predicted is not None]
        if not guesses:
            continue
        right = sum(query.predicted == query.label for query in guesses)
        right_so_far, guesses_so_far = right_so_far + right, guesses_so_far + len(guesses)
        by_round.append(CurvePoint(labels, right / len(guesses), *wilson_interval(right, len(guesses))))
        cumulative.append(
            CurvePoint(labels, right_so_far / guesses_so_far, *wilson_interval(right_so_far, guesses_so_far))
        )
    held_out = [(row.labels, row.cross_validated_accuracy) for row in rounds]
    cross_validated = [CurvePoint(labels, accuracy) for labels, accuracy in held_out if accuracy is not None]
    return LearningCurve(tuple(by_round), tuple(cumulative), tuple(cross_validated))


@dataclass(frozen=True)
class Series:
    """One line of a drawn curve: SVG path, points (x, y, tooltip, low y, high y), and a CSS class."""

    name: str
    css: str
    path: str
    points: tuple[tuple[float, float, str, float | None, float | None], ...]


@dataclass(frozen=True)
class DrawnCurve:
    """A learning curve in SVG units: series and the two axes' ticks (position, text)."""

    series: tuple[Series, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    left: int = _LEFT
    right: int = CURVE_WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = CURVE_HEIGHT - _BOTTOM
    width: int = CURVE_WIDTH
    height: int = CURVE_HEIGHT


def draw_curve(curve: LearningCurve) -> DrawnCurve | None:
    """Place a learning curve on its axes; None when it has no point."""
    named = (
        ("guesses in the round", "by-round", curve.by_round),
        ("guesses so far", "cumulative", curve.cumulative),
        ("graph, cross-validated", "cross-validated", curve.cross_validated),
    )
    points = [point for _, _, series in named for point in series]
    if not points:
        return None
    x_step = _round_step(max(point.labels for point in points) / 5)
    x_end = math.ceil(max(point.labels for point in points) / x_step) * x_step
    lowest = min(point.accuracy if point.low is None else point.low for point in points)
    y_start = min(0.9, math.floor(lowest * 10) / 10)
    y_step = 0.1 if y_start <= 0.7 else 0.05

    def x(labels: float) -> float:
        return round(_LEFT + labels / x_end * (CURVE_WIDTH - _LEFT - _RIGHT), 1)

    def y(accuracy: float) -> float:
        return round(_TOP + (1 - accuracy) / (1 - y_start) * (CURVE_HEIGHT - _TOP - _BOTTOM), 1)

    drawn = []
    for name, css, series in named:
        if not series:
            continue
        marks = []
        for point in series:
            text = f"{name}: {100 * point.accuracy:.1f}% at {point.labels} labels"
            low = None if point.low is None else y(point.low)
            high = None if point.high is None else y(point.high)
            marks.append((x(point.labels), y(point.accuracy), text, low, high))
        path = "M" + " L".join(f"{mark[0]} {mark[1]}" for mark in marks)
        drawn.append(Series(name, css, path, tuple(marks)))
    x_ticks = tuple((x(value), f"{value}") for value in range(0, x_end + 1, x_step))
    y_count = round((1 - y_start) / y_step)
    y_values = [y_start + index * y_step for index in range(y_count + 1)]
    return DrawnCurve(tuple(drawn), x_ticks, tuple((y(value), f"{100 * value:.0f}%") for value in y_values))


def _round_step(rough: float) -> int:
    """Return the first of 1, 2, 5, 10, 20, 50, … that is not smaller than a rough step."""
    power: int = 10 ** math.floor(math.log10(max(rough, 1)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


@dataclass(frozen=True)
class Confusion:
    """Guess before asking against the label paid for.

    Attributes:
        counts: counts[label, guess].
        guesses: Queries with a guess.
        right: Guesses that were right.
        without_guess: Queries of the cold start, which are left out.
    """

    counts: npt.NDArray[np.int64]
    guesses: int
    right: int
    without_guess: int


def confusion(queries: Sequence[QueryRecord], num_classes: int) -> Confusion:
    """Count guesses against labels."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    for query in queries:
        if query.predicted is not None:
            counts[query.label, query.predicted] += 1
    guesses = int(counts.sum())
    return Confusion(counts, guesses, int(np.trace(counts)), len(queries) - guesses)


def class_counts(queries: Sequence[QueryRecord], num_classes: int) -> list[int]:
    """Count the paid labels of each class."""
    labels = [query.label for query in queries]
    return [labels.count(label) for label in range(num_classes)]

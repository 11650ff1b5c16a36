"""The picture of a run's budget over time, as coordinates for an SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 14, 28
# The longest time between two marks is found among these.
_STEPS = (
    *(timedelta(seconds=n) for n in (1, 2, 5, 10, 15, 30)),
    *(timedelta(minutes=n) for n in (1, 2, 5, 10, 15, 30)),
    *(timedelta(hours=n) for n in (1, 2, 3, 6, 12)),
    *(timedelta(days=n) for n in (1, 2, 7, 14, 30, 90, 180, 365)),
)
_MARKS = 6


class BurnDown:
    """What is left of a budget, from the opening of a run to its latest entry.

    Attributes:
        line: the path of what is left, one step for each charge.
        area: the same, closed along the axis.
        marks: position and text of each mark in time.
        levels: position and text of each mark of the budget.
        evaluations: position and accuracy of each evaluation.
        table: time, charged so far and what is left, for readers who see no picture; a dozen rows at most.
    """

    width, height = WIDTH, HEIGHT
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM

    def __init__(
        self,
        opened_at: str,
        spending: Sequence[Mapping[str, Any]],
        evaluations: Sequence[Mapping[str, Any]],
        newest_at: str,
        budget: int,
    ) -> None:
        """Draw the entries.

        Args:
            opened_at: time of the run's first entry.
            spending: those that charged it, in order; some may be left out, the last may not.
            evaluations: its evaluations.
            newest_at: time of its latest entry.
            budget: the run's.
        """
        self._begin = datetime.fromisoformat(opened_at)
        self._end = max(datetime.fromisoformat(newest_at), self._begin + timedelta(seconds=1))
        self._budget: int = max(budget, 1, *(entry["spent"] for entry in spending))
        points = [(float(LEFT), self._y(budget))]
        for entry in spending:
            left = budget - entry["spent"]
            points += [(self._x(entry), points[-1][1]), (self._x(entry), self._y(left))]
        points.append((float(self.right), points[-1][1]))
        self.line = "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.area = f"{self.line} L{self.right},{self.bottom} L{LEFT},{self.bottom} Z"
        self.marks = self._time_marks()
        self.levels = [(self._y(level), f"{level:,}") for level in sorted({0, budget // 2, budget})]
        self.evaluations = [self._x(entry) for entry in evaluations]
        step = max(1, -(-len(spending) // 12))
        rows = list(spending[::-1][::step][::-1])
        self.table = [(entry["ts"], entry["spent"], budget - entry["spent"]) for entry in rows]

    def _x(self, entry: Mapping[str, Any]) -> float:
        share = (_time(entry) - self._begin) / (self._end - self._begin)
        return LEFT + min(max(share, 0.0), 1.0) * (self.right - LEFT)

    def _y(self, left: int) -> float:
        return TOP + (1 - max(left, 0) / self._budget) * (self.bottom - TOP)

    def _time_marks(self) -> list[tuple[float, str]]:
        span = self._end - self._begin
        step = next((step for step in _STEPS if span / step <= _MARKS), span / _MARKS)
        marks, after = [], timedelta()
        while after <= span:
            marks.append((LEFT + after / span * (self.right - LEFT), _short(after)))
            after += step
        return marks


def _time(entry: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(str(entry["ts"]))


def _short(after: timedelta) -> str:
    """Write a time since the opening, such as `1 h 30 min`."""
    seconds = round(after.total_seconds())
    if not seconds:
        return "0"
    parts = [(seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)

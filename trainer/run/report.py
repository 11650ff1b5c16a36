"""Write OUT/report.html: one page with the queries of a run, its learning curve, its accuracy and its cost.

The page needs no script, no network and no other file, and its content policy forbids them. It also works for a run
that has not ended, and leaves out what is not known yet. Its accuracies are measured on labels that the run paid for;
the only number from test labels is the label service's answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined

from trainer.errors import DataError
from trainer.records.files import replace_file
from trainer.records.progress import duration, read_stages
from trainer.records.run_records import QueryRecord, RunResult, read_queries, read_result
from trainer.run.report_figures import class_counts, confusion, draw_curve, learning_curve, sprite_sheet

REPORT_FILE = "report.html"
# Height of a thumbnail in CSS pixels, about: it is scaled by a whole factor, so that every pixel stays a square.
_SHOWN_HEIGHT = 56


def write_report(out_dir: Path, images: npt.NDArray[np.uint8], class_names: Sequence[str]) -> Path:
    """Write the report of a run, finished or not, and return its path.

    Args:
        out_dir: The run's folder with its records.
        images: The pool [N, H, W], uint8; only queried rows are read.
        class_names: Names by class number.

    Raises:
        DataError: The records are damaged, or do not fit the images or the class names.
        RecordsUnwritable: The report cannot be written.
    """
    queries = read_queries(out_dir)
    _check_fit(out_dir, queries, images, class_names)
    result = read_result(out_dir)
    stages = result.stage_seconds if result is not None else read_stages(out_dir)
    sheet = sprite_sheet(np.asarray(images[[query.id for query in queries]], dtype=np.uint8)) if queries else None
    environment = Environment(
        loader=PackageLoader("trainer.run"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["duration"] = duration
    page = environment.get_template(REPORT_FILE).render(
        result=result,
        cards=_cards(queries, result, stages),
        details=_details(queries, result),
        log_counts=_log_counts(result),
        curve=draw_curve(learning_curve(queries)),
        confusion=_confusion(queries, class_names),
        balance=_bars(class_names, class_counts(queries, len(class_names))),
        stages=_bars(list(stages), list(stages.values())),
        rounds=_gallery(queries, class_names, sheet.offsets if sheet else ()),
        queries=queries,
        sheet=sheet,
        thumb=_thumb_size(images),
        written_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    path = out_dir / REPORT_FILE
    replace_file(path, page)
    return path


def _check_fit(
    out_dir: Path, queries: Sequence[QueryRecord], images: npt.NDArray[np.uint8], class_names: Sequence[str]
) -> None:
    """Refuse images or class names that are not the run's."""
    if images.ndim != 3 or images.dtype != np.uint8:
        raise DataError(f"the report needs images [N, H, W] of bytes, and these are {images.dtype} {images.shape}.")
    for query in queries:
        if query.id >= len(images):
            raise DataError(
                f"{out_dir} asked for image {query.id}, and the data has {len(images)} images; "
                "give the --data that the run was made with."
            )
        if max(query.label, query.predicted or 0) >= len(class_names):
            raise DataError(
                f"{out_dir} has a label {query.label} or guess {query.predicted}, and there are {len(class_names)} "
                "class names; give the --data that the run was made with."
            )


def _percent(share: float | None, digits: int = 1) -> str:
    """Write a share as a percentage."""
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def _thumb_size(images: npt.NDArray[np.uint8]) -> dict[str, int]:
    """Return a thumbnail's shown width and height and the whole factor between them and the image's."""
    _, height, width = images.shape
    scale = max(1, round(_SHOWN_HEIGHT / max(height, 1)))
    return {"width": width * scale, "height": height * scale, "scale": scale}


def _cards(
    queries: Sequence[QueryRecord], result: RunResult | None, stages: dict[str, float]
) -> list[tuple[str, str, str, str]]:
    """Return the headline numbers: name, value, note, and a CSS class."""
    charged = sum(query.charged for query in queries)
    budget = f"of a budget of {result.budget}" if result else "so far"
    cards = [("Labels paid for", f"{charged}", budget, "")]
    if result:
        evaluation = result.evaluation
        interval = " to ".join(_percent(bound, 2) for bound in evaluation.ci95)
        note = f"95% interval {interval}; {evaluation.correct} of {evaluation.total} right"
        cards.append(("Test accuracy", _percent(evaluation.accuracy, 2), note, ""))
    else:
        cards.append(("Test accuracy", "–", "not evaluated yet", ""))
    cards.append(("Wall time", duration(sum(stages.values())), f"in {len(stages)} stages", ""))
    if result is None:
        cards.append(("Count", "–", "compared with the log at the end", ""))
    elif result.counts_agree:
        cards.append(("Count", "agrees ✓", f"trainer and log both count {result.queries_in_log}", "good"))
    else:
        note = f"trainer {result.queries_counted_by_trainer}, log {result.queries_in_log}"
        cards.append(("Count", "disagrees ✗", f"{note}: do not use this result", "bad"))
    return cards


def _details(queries: Sequence[QueryRecord], result: RunResult | None) -> list[tuple[str, str]]:
    """Return the other facts that a reader needs to repeat the run."""
    rows = []
    if result:
        rows = [("Run", result.run_id), ("Profile", result.profile), ("Seed", str(result.seed))]
        if name := result.dataset.get("name"):
            official = "official split" if result.dataset.get("official") is True else "not the official split"
            rows.append(("Data set", f"{name} ({official})"))
        rows.append(("Versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())))
        rows.append(("Arithmetic", result.arithmetic))
    if queries:
        rows.append(("Strategies", ", ".join(dict.fromkeys(query.strategy for query in queries))))
        rows.append(("First and last query", f"{_minute(queries[0].asked_at)} to {_minute(queries[-1].asked_at)}"))
    return [(name, value) for name, value in rows if value]


def _minute(time: datetime) -> str:
    """Write a time to the minute, with its zone."""
    return f"{time:%Y-%m-%d %H:%M} {time.tzname() or ''}".strip()


def _log_counts(result: RunResult | None) -> list[tuple[str, int]]:
    """Return the counts of the trainer and those of the log."""
    if result is None:
        return []
    return [
        ("Queries counted by the trainer", result.queries_counted_by_trainer),
        ("Queries of this run in the log", result.queries_in_log),
        ("Distinct labels of this run in the log", result.distinct_labels_in_log),
        ("Distinct labels the log revealed to anybody", result.distinct_labels_revealed_to_anybody),
    ]


def _bars(names: Sequence[str], values: Sequence[float]) -> list[dict[str, Any]]:
    """Return bars whose longest has width 100."""
    longest = max(values, default=0) or 1
    return [
        {"name": name, "value": value, "width": round(100 * value / longest, 1)}
        for name, value in zip(names, values, strict=True)
    ]


def _confusion(queries: Sequence[QueryRecord], class_names: Sequence[str]) -> dict[str, Any]:
    """Return the confusion matrix; the shade of a cell is its share of the row."""
    counted = confusion(queries, len(class_names))
    rows = []
    for label, name in enumerate(class_names):
        total = int(counted.counts[label].sum())
        cells = [
            {
                "count": int(count),
                "shade": round(0.75 * int(count) / total, 3) if total else 0,
                "right": label == guess,
                "title": f"{name} taken for {class_names[guess]}: {count} of {total}",
            }
            for guess, count in enumerate(counted.counts[label])
        ]
        rows.append({"name": name, "cells": cells, "total": total})
    return {
        "rows": rows,
        "names": list(class_names),
        "guesses": counted.guesses,
        "right": counted.right,
        "without_guess": counted.without_guess,
    }


def _gallery(
    queries: Sequence[QueryRecord], class_names: Sequence[str], offsets: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Return the queried images in order, by round."""
    rounds = []
    for number, batch in groupby(queries, key=lambda query: query.round):
        thumbs = []
        guessed = right = 0
        for query in batch:
            name = class_names[query.label]
            verdict, guess = "unguessed", "no guess before asking"
            if query.predicted is not None:
                guessed += 1
                right += query.predicted == query.label
                verdict = "right" if query.predicted == query.label else "wrong"
                sure = "" if query.confidence is None else f" ({_percent(query.confidence, 0)} sure)"
                guess = f"guess {class_names[query.predicted]}{sure}"
            free = "" if query.charged else "; not charged"
            text = f"query {query.order + 1}, image {query.id}: {name}; {guess}; {query.reason}{free}"
            left, top = offsets[query.order]
            thumbs.append({"name": name, "verdict": verdict, "text": text, "left": left, "top": top})
        rounds.append({"number": number, "thumbs": thumbs, "guessed": guessed, "right": right})
    return rounds

"""The published predictions of a run: written from its frozen files, and held against its signed entries.

`predictions.jsonl.gz` has one line for each evaluation of the run, in the order of its log: the class numbers of all
test images as canonical JSON, `[9,2,1,...]`. The SHA-256 of a line without its newline is the `predictions_sha256` of
that evaluation's signed entry.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scripts import files
from scripts.errors import RunError
from scripts.study.public_data import MAX_CLASSES, Classes
from scripts.study.tables import Point

PREDICTIONS_FILE = "predictions.jsonl.gz"
# A thousand evaluations of 10,000 images. A longer file is refused before it fills the memory.
_MAX_BYTES = 20_000_000


def write(trainer: Path, points: Sequence[Point], path: Path) -> None:
    """Write the predictions that a run froze at its points.

    Args:
        trainer: the run's folder of the trainer, with `predictions.json` and `predictions-at-N.json`.
        points: the run's evaluations, in the order of its log.
        path: the file to write.

    Raises:
        RunError: the frozen predictions of a point are missing, or are not those that were evaluated.
    """
    lines = []
    for point in points:
        frozen = trainer / f"predictions-at-{point.labels}.json"
        source = frozen if frozen.exists() else trainer / "predictions.json"
        line = json.dumps(files.read_json(source).get("predictions"), separators=(",", ":")).encode()
        if hashlib.sha256(line).hexdigest() != point.predictions_sha256:
            raise RunError(f"{source} does not hold the predictions that were evaluated with {point.labels} labels.")
        lines.append(line + b"\n")
    # Without a time stamp, the same predictions make the same file.
    path.write_bytes(gzip.compress(b"".join(lines), mtime=0))


def read(path: Path, points: Sequence[Point]) -> list[Classes]:
    """Return the published predictions of each point, once their hashes are those of the signed entries.

    Raises:
        RunError: the file cannot be read, or holds other predictions than those evaluated.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise RunError(f"{path} cannot be read ({error}).") from error
    lines = content.split(b"\n")
    if len(content) > _MAX_BYTES or lines.pop() or len(lines) != len(points):
        raise RunError(f"{path} does not have one line for each of the {len(points)} evaluations in the log.")
    for line, point in zip(lines, points, strict=True):
        if hashlib.sha256(line).hexdigest() != point.predictions_sha256:
            raise RunError(f"{path} does not hold the predictions that the log has with {point.labels} labels.")
    try:
        predictions = [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} has a line that is not JSON.") from error
    for classes in predictions:
        if not isinstance(classes, list) or not all(
            type(number) is int and 0 <= number < MAX_CLASSES for number in classes
        ):
            raise RunError(f"{path} has a line that is not a list of class numbers.")
    return [np.array(classes, np.int64) for classes in predictions]


def recount(path: Path, points: Sequence[Point], labels: Classes | None) -> None:
    """Check a run's published predictions, and count the right ones if the test labels are known.

    Args:
        path: the published file.
        points: the run's evaluations, in the order of its log.
        labels: test labels, (M,), or None.

    Raises:
        RunError: the predictions are not those evaluated, or another number of them is right.
    """
    for guesses, point in zip(read(path, points), points, strict=True):
        if labels is None:
            continue
        if len(guesses) != len(labels):
            raise RunError(f"{path} has {len(guesses)} predictions for {len(labels)} test labels.")
        correct = int((guesses == labels).sum())
        if (correct, len(labels)) != (point.correct, point.total):
            raise RunError(
                f"{path}: with {point.labels} labels {correct} of {len(labels)} predictions are right, "
                f"and the log has {point.correct} of {point.total}."
            )

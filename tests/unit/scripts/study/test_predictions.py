"""Published predictions are read back as they were evaluated, whatever the number of classes."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from scripts.errors import RunError
from scripts.study import predictions
from scripts.study.tables import Point


def published(folder: Path, line: bytes) -> tuple[Path, list[Point]]:
    """Publish a line as the predictions of one evaluation, of which two are right."""
    (folder / "p.gz").write_bytes(gzip.compress(line + b"\n"))
    return folder / "p.gz", [Point(10, 2, 3, 60.0, predictions_sha256=hashlib.sha256(line).hexdigest())]


def test_a_thousand_classes_are_recounted(tmp_path):
    """As `prepare` allows."""
    path, points = published(tmp_path, b"[999,0,300]")
    (read,) = predictions.read(path, points)
    assert read.tolist() == [999, 0, 300]
    predictions.recount(path, points, np.array([999, 1, 300]))
    with pytest.raises(RunError, match="3 of 3 predictions are right, and the log has 2 of 3"):
        predictions.recount(path, points, read)


@pytest.mark.parametrize("line", [b"[1,true]", b"[-1]", b"[1.0]", b"[99999999999999999999]", b"3"])
def test_what_are_no_class_numbers_is_refused(tmp_path, line):
    """In a sentence."""
    with pytest.raises(RunError, match="not a list of class numbers"):
        predictions.read(*published(tmp_path, line))

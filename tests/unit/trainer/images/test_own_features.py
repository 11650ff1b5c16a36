"""Own features are read whole and refused in a sentence."""

from pathlib import Path

import numpy as np
import pytest

from trainer.errors import DataError
from trainer.images.own_features import load_own_features


def test_rows_are_the_pool_and_then_the_test_images(tmp_path: Path) -> None:
    """Both parts as float32, and the file's digest."""
    rows = np.arange(20, dtype=np.float64).reshape(10, 2)
    np.save(tmp_path / "own.npy", rows)
    own = load_own_features(tmp_path / "own.npy", 7, 3)
    assert np.array_equal(own.pool.numpy(), rows[:7]) and np.array_equal(own.test.numpy(), rows[7:])
    assert len(own.sha256) == 64


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((9, 2)), "has 9 rows, and --features takes an array of 7 \\+ 3 rows"),
        (np.zeros((10, 2), int), "int64 \\[10, 2\\], and --features takes floating-point"),
        (np.zeros(10), "float64 \\[10\\]"),
        (np.array([[0.0]] * 9 + [[np.nan]]), "not finite in row 9"),
        (np.array([[0.0]] * 8 + [[1e300]] * 2), "not finite in row 8"),
        (np.array([[None]] * 10, dtype=object), "cannot be read as a NumPy file"),
    ],
)
def test_wrong_features_are_refused(array: np.ndarray, told: str, tmp_path: Path) -> None:
    """The sentence names what is wrong."""
    np.save(tmp_path / "own.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=told):
        load_own_features(tmp_path / "own.npy", 7, 3)


def test_no_file_or_another_is_refused(tmp_path: Path) -> None:
    """Missing, and text."""
    (tmp_path / "text.npy").write_text("no array")
    for name in ("none.npy", "text.npy"):
        with pytest.raises(DataError, match="cannot be read as a NumPy file"):
            load_own_features(tmp_path / name, 7, 3)

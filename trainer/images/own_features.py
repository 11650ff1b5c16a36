"""The user's own features of the images, from a NumPy file, in place of ours or beside them.

The file is one array [N + M, E]: the pool's N images first, in their order, then the M test images. It is read memory-
mapped. Features that somebody else's network made carry outside knowledge; the file's SHA-256 is in the run's result.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.errors import DataError

_CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class OwnFeatures:
    """Features of the pool and of the test images.

    Attributes:
        pool: float32 [N, E].
        test: float32 [M, E].
        sha256: of the file, hexadecimal.
    """

    pool: Tensor
    test: Tensor
    sha256: str


def load_own_features(path: Path, pool_size: int, test_size: int) -> OwnFeatures:
    """Read own features.

    Args:
        path: a `.npy` file of floating-point numbers [pool_size + test_size, E].
        pool_size: N.
        test_size: M.

    Raises:
        DataError: the file is missing or no such array, has another number of rows, or a number that is not finite.
    """
    wanted = f"an array of {pool_size} + {test_size} rows, the pool's images first and then the test images"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a NumPy file ({error}); --features takes {wanted}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] < 1:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise DataError(f"{path} holds {found}, and --features takes floating-point numbers: {wanted}")
    if len(array) != pool_size + test_size:
        raise DataError(f"{path} has {len(array)} rows, and --features takes {wanted}")
    rows = torch.empty(array.shape, dtype=torch.float32)
    for start in range(0, len(array), _CHUNK_ROWS):
        chunk = array[start : start + _CHUNK_ROWS]
        with np.errstate(over="ignore"):
            # A float64 that float32 cannot hold becomes infinite, and is refused as such.
            narrow = chunk.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(narrow).all(1))
        if len(bad):
            raise DataError(
                f"{path} has a number that is not finite in row {start + int(bad[0])}; compute the features again"
            )
        rows[start : start + len(chunk)] = torch.from_numpy(narrow)
    return OwnFeatures(rows[:pool_size], rows[pool_size:], digest)

"""IDX image files (Fashion-MNIST and others), read into memory as uint8.

This module reads image files only. It refuses label files by their magic number, so a label cannot enter the trainer
by mistake: labels come only over HTTP (`trainer/oracle`).

Format: IDX (http://yann.lecun.com/exdb/mnist, "the IDX file format"): a big-endian magic number, one big-endian
32-bit size per dimension, then the bytes.
"""

import gzip
import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.errors import DataError

# IDX magic numbers: two zero bytes, the element type (8 = unsigned byte), the number of dimensions.
IDX_IMAGES_MAGIC = 0x00000803
IDX_LABELS_MAGIC = 0x00000801

POOL_FILE = "train-images-idx3-ubyte"
TEST_FILE = "t10k-images-idx3-ubyte"


@dataclass(frozen=True)
class ImageSet:
    """The images of one data set, without labels.

    Attributes:
        pool: uint8 [N, H, W]; row i is the image that the label service calls `id` i.
        test: uint8 [M, H, W]; only predicted on, never trained on.
        fingerprint: identifies the data set, on resume and at the label service: the SHA-256 (hex) of two lines, the
            SHA-256 of the unpacked pool file and that of the test file.
    """

    pool: Tensor
    test: Tensor
    fingerprint: str


def load_images(folder: Path) -> ImageSet:
    """Read the pool and test images from an images-only folder.

    Args:
        folder: holds `train-images-idx3-ubyte` and `t10k-images-idx3-ubyte`, each plain or gzipped (`.gz`).

    Returns:
        The two image arrays on the CPU.

    Raises:
        DataError: the folder or a file is missing, cut short, not an IDX image file, or the two sets differ in size.
    """
    if not folder.is_dir():
        raise DataError(
            f"the image folder {folder} does not exist; make it with `python -m label_service prepare --data DIR` "
            "and pass DIR/images"
        )
    (pool, pool_digest), (test, test_digest) = (
        _read_idx_images(_find(folder, name)) for name in (POOL_FILE, TEST_FILE)
    )
    if pool.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{folder} holds pool images of {pool.shape[1]}x{pool.shape[2]} pixels and test images of "
            f"{test.shape[1]}x{test.shape[2]}; both must have one size"
        )
    return ImageSet(torch.from_numpy(pool), torch.from_numpy(test), fingerprint_of(pool_digest, test_digest))


def fingerprint_of(pool_sha256: str, test_sha256: str) -> str:
    """Compute an image set's fingerprint from the SHA-256 (hex) of its two unpacked files; see `ImageSet`."""
    return hashlib.sha256(f"{pool_sha256}\n{test_sha256}\n".encode()).hexdigest()


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(f"{folder} has no {name}.gz (nor {name}); it needs both {POOL_FILE}.gz and {TEST_FILE}.gz")


def _read_idx_images(path: Path) -> tuple[np.ndarray, str]:
    """Read an IDX image file: a writable uint8 array [N, H, W], and the SHA-256 of the unpacked file."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch it again, it may be cut short") from error
    if len(raw) < 16:
        raise DataError(f"{path} is too short to be an IDX image file; fetch it again")
    magic, count, height, width = struct.unpack(">IIII", raw[:16])
    if magic == IDX_LABELS_MAGIC:
        raise DataError(f"{path} holds labels; the trainer takes image files only")
    if magic != IDX_IMAGES_MAGIC:
        raise DataError(f"{path} is not an IDX image file (magic number 0x{magic:08x}, not 0x{IDX_IMAGES_MAGIC:08x})")
    expected = 16 + count * height * width
    if len(raw) != expected:
        raise DataError(f"{path} has {len(raw)} bytes where its header promises {expected}; fetch it again")
    if count == 0 or min(height, width) < 8:
        raise DataError(f"{path} holds {count} images of {height}x{width} pixels; at least one of 8x8 is needed")
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(count, height, width).copy()
    return images, hashlib.sha256(raw).hexdigest()

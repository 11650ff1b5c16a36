"""IDX image files (Fashion-MNIST and others), as uint8, grey or colour.

Small files are read into memory. A large plain file is mapped: its pages are read when somebody looks at them.

This module reads image files only. It refuses label files by their magic number, so a label cannot enter the trainer
by mistake: labels come only over HTTP (`trainer/oracle`).

Format: IDX (http://yann.lecun.com/exdb/mnist, "the IDX file format"): a big-endian magic number, one big-endian
32-bit size per dimension, then the bytes.
"""

import gzip
import hashlib
import math
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
IDX_COLOUR_IMAGES_MAGIC = 0x00000804
# Labels of one, two or four bytes.
IDX_LABELS_MAGICS = (0x00000801, 0x00000B01, 0x00000C01)
# Plain files of this size are mapped and not read; `prepare` keeps those plain.
MAPPED_FROM_BYTES = 256 * 1024 * 1024
BLOCK_BYTES = 8 * 1024 * 1024

POOL_FILE = "train-images-idx3-ubyte"
TEST_FILE = "t10k-images-idx3-ubyte"


@dataclass(frozen=True)
class ImageSet:
    """The images of one data set, without labels.

    Attributes:
        pool: uint8 [N, H, W], or [N, H, W, 3] in colour (red, green, blue); row i is the image that the label
            service calls `id` i.
        test: uint8 [M, H, W] or [M, H, W, 3], of the pool's size and channels; only predicted on, never trained on.
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
        The two image arrays on the CPU, mapped if their files are plain and large.

    Raises:
        DataError: the folder or a file is missing, cut short, not an IDX image file, or the two sets differ in size or
            channels.
    """
    if not folder.is_dir():
        raise DataError(
            f"the image folder {folder} does not exist; make it with `python -m label_service prepare --data DIR` "
            "and pass DIR/images"
        )
    (pool, pool_digest), (test, test_digest) = (
        _read_idx_images(_find(folder, name)) for name in (POOL_FILE, TEST_FILE)
    )
    if pool.ndim != test.ndim:
        raise DataError(f"{folder} holds grey images in one file and colour images in the other; both must be alike")
    if pool.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{folder} holds pool images of {pool.shape[1]}x{pool.shape[2]} pixels and test images of "
            f"{test.shape[1]}x{test.shape[2]}; both must have one size"
        )
    return ImageSet(pool, test, fingerprint_of(pool_digest, test_digest))


def fingerprint_of(pool_sha256: str, test_sha256: str) -> str:
    """Compute an image set's fingerprint from the SHA-256 (hex) of its two unpacked files; see `ImageSet`."""
    return hashlib.sha256(f"{pool_sha256}\n{test_sha256}\n".encode()).hexdigest()


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(f"{folder} has no {name}.gz (nor {name}); it needs both {POOL_FILE}.gz and {TEST_FILE}.gz")


def _read_idx_images(path: Path) -> tuple[Tensor, str]:
    """Read an IDX image file: uint8 [N, H, W] or [N, H, W, 3], and the SHA-256 of the unpacked file."""
    digest = hashlib.sha256()
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(20)
            shape = _shape_of(head, path)
            offset, size = 4 * (1 + len(shape)), math.prod(shape)
            is_mapped = path.suffix != ".gz" and size >= MAPPED_FROM_BYTES
            # What the header promises is not taken from memory before the file has shown that it has it.
            content = bytearray() if not is_mapped else None
            length = 0
            block = head
            while block:
                digest.update(block)
                length += len(block)
                if content is not None and length <= offset + size:
                    content += block
                block = file.read(BLOCK_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch it again, it may be cut short") from error
    if length != offset + size:
        raise DataError(f"{path} has {length} bytes where its header promises {offset + size}; fetch it again")
    if content is None:
        # "c": pages are read when they are looked at, and a write, which nobody makes, would stay in memory.
        images: np.ndarray = np.memmap(path, np.uint8, "c", offset, shape)
    else:
        images = np.frombuffer(content, np.uint8, offset=offset).reshape(shape)
    return torch.from_numpy(images), digest.hexdigest()


def _shape_of(head: bytes, path: Path) -> tuple[int, ...]:
    """Return the shape that the first bytes of an IDX image file promise.

    Raises:
        DataError: it is no image file, or its images are none, too small, or of other channels than 1 and 3.
    """
    if len(head) < 16:
        raise DataError(f"{path} is too short to be an IDX image file; fetch it again")
    magic = int.from_bytes(head[:4], "big")
    if magic in IDX_LABELS_MAGICS:
        raise DataError(f"{path} holds labels; the trainer takes image files only")
    if magic not in (IDX_IMAGES_MAGIC, IDX_COLOUR_IMAGES_MAGIC):
        raise DataError(
            f"{path} is not an IDX image file (magic number 0x{magic:08x}, not 0x{IDX_IMAGES_MAGIC:08x} or "
            f"0x{IDX_COLOUR_IMAGES_MAGIC:08x})"
        )
    axes = magic & 0xFF
    if len(head) < 4 * (1 + axes):
        raise DataError(f"{path} is too short to be an IDX image file; fetch it again")
    count, height, width, *channels = struct.unpack(f">{axes}I", head[4 : 4 * (1 + axes)])
    if count == 0 or min(height, width) < 8:
        raise DataError(f"{path} holds {count} images of {height}x{width} pixels; at least one of 8x8 is needed")
    if channels not in ([], [3]):
        raise DataError(f"{path} holds images of {channels[0]} channels; colour images have 3, grey ones no such axis")
    return (count, height, width, *channels)

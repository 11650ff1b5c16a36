"""IDX files, the format of the MNIST family: read, check and write.

An IDX file is a four-byte magic number (two zero bytes, element type, number of axes), one big-endian 32-bit size for
each axis, then the elements. Images are unsigned bytes with three axes (grey) or four (colour, the last axis is red,
green, blue). Labels have one axis, and are unsigned bytes, or signed integers of two or four bytes where there are more
classes than a byte holds. Image files are read and written in blocks, because they may be larger than memory.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from label_service.errors import DataRefused

# Source: https://yann.lecun.com/exdb/mnist/. The third byte is the element type, the last the number of axes.
UNSIGNED_BYTE = 0x08
GREY_IMAGES, COLOUR_IMAGES = 0x00000803, 0x00000804
LABEL_TYPES: dict[int, np.dtype[Any]] = {
    0x00000801: np.dtype(">u1"),
    0x00000B01: np.dtype(">i2"),
    0x00000C01: np.dtype(">i4"),
}
GZIP_MAGIC = b"\x1f\x8b"
BLOCK_BYTES = 8 * 1024 * 1024

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@contextmanager
def open_content(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, unpacked if its first bytes are those of gzip.

    Raises:
        DataRefused: the file cannot be read, or its gzip stream is cut short or damaged; also while it is read.
    """
    try:
        packed = is_packed(path)
        if not packed and path.suffix == ".gz":
            raise DataRefused(f"{path} is not a gzip file although its name says so; get the file again.")
        with gzip.open(path) if packed else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataRefused(f"{path} is cut short or damaged (its gzip stream is not whole); get it again.") from error
    except OSError as error:
        raise DataRefused(f"{path} cannot be read ({error.strerror}); check the folder and its permissions.") from error


def is_packed(path: Path) -> bool:
    """Return whether a file begins as gzip does.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(2) == GZIP_MAGIC


def read_content(path: Path) -> bytes:
    """Return the unpacked bytes of a file.

    Raises:
        DataRefused: see `open_content`.
    """
    with open_content(path) as file:
        return file.read()


def hash_content(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's unpacked bytes, read in blocks.

    Raises:
        DataRefused: see `open_content`.
    """
    digest = hashlib.sha256()
    with open_content(path) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def parse_labels(content: bytes, name: str) -> Labels:
    """Return the labels of an IDX file's bytes, shape (N,).

    Args:
        content: the unpacked file.
        name: what to call the file in an error.

    Raises:
        DataRefused: wrong magic number, or the header's count does not match the payload.
    """
    kind = LABEL_TYPES.get(_magic(content))
    if kind is None or len(content) < 8:
        raise DataRefused(
            f"{name} is not a label file in IDX format (which begins with 00000801); check which file it is."
        )
    (count,) = struct.unpack(">I", content[4:8])
    _check_payload(name, len(content) - 8, count * kind.itemsize)
    return np.frombuffer(content, dtype=kind, offset=8).astype(np.int64)


def read_images_header(file: BinaryIO, name: str) -> tuple[int, ...]:
    """Read the header of an image file: (N, height, width), or (N, height, width, 3).

    Args:
        file: at its beginning; at its first image afterwards.
        name: what to call the file in an error.

    Raises:
        DataRefused: wrong magic number, a header that is cut short, or a fourth axis that is neither 1 nor 3.
    """
    magic = file.read(4)
    axes = 4 if _magic(magic) == COLOUR_IMAGES else 3
    sizes = file.read(4 * axes)
    if _magic(magic) not in (GREY_IMAGES, COLOUR_IMAGES) or len(sizes) < 4 * axes:
        raise DataRefused(
            f"{name} is not an image file in IDX format (which begins with 00000803, or 00000804 in colour); check "
            "which file it is."
        )
    shape = struct.unpack(f">{axes}I", sizes)
    if 0 in shape[1:]:
        raise DataRefused(f"{name} announces images without a pixel; its header is damaged.")
    if axes == 4 and shape[3] not in (1, 3):
        raise DataRefused(
            f"{name} has {shape[3]:,} channels; grey images have 1 and colour images 3, as the last axis."
        )
    return shape


def read_image_blocks(file: BinaryIO, name: str, shape: tuple[int, ...]) -> Iterator[Bytes]:
    """Read the images after a header, in blocks of shape (n, height, width) or (n, height, width, 3).

    Raises:
        DataRefused: the header's sizes do not match the payload.
    """
    count, image = shape[0], shape[1:3] if shape[3:] in ((), (1,)) else shape[1:]
    size = int(np.prod(image, dtype=object))
    step = max(1, BLOCK_BYTES // max(1, size))
    read = 0
    # An announced image that is larger than any is a damaged header: its bytes are counted, not asked for at once.
    for start in range(0, count if size <= BLOCK_BYTES else 0, step):
        block = file.read(min(step, count - start) * size)
        read += len(block)
        if len(block) < min(step, count - start) * size:
            break
        yield np.frombuffer(block, dtype=np.uint8).reshape(-1, *image)
    while more := file.read(BLOCK_BYTES):
        read += len(more)
    _check_payload(name, read, count * size)


def parse_images(content: bytes, name: str) -> Bytes:
    """Return all images of an IDX file's bytes; see `read_images_header` and `read_image_blocks`."""
    file = io.BytesIO(content)
    shape = read_images_header(file, name)
    blocks = list(read_image_blocks(file, name, shape))
    return np.concatenate(blocks) if blocks else np.zeros(shape, dtype=np.uint8)


def labels_to_bytes(labels: Labels) -> bytes:
    """Return the IDX bytes of labels (N,), from 0 to 32,767: a byte each, or two where a byte is too small."""
    magic = 0x00000801 if int(labels.max(initial=0)) < 256 else 0x00000B01
    return struct.pack(">II", magic, len(labels)) + labels.astype(LABEL_TYPES[magic]).tobytes()


def images_header(shape: tuple[int, ...]) -> bytes:
    """Return the header of images (N, height, width) or (N, height, width, 3)."""
    return struct.pack(f">I{len(shape)}I", (UNSIGNED_BYTE << 8) | len(shape), *shape)


def to_bytes(array: Bytes) -> bytes:
    """Return the IDX bytes of an array of labels (N,) or of images."""
    return labels_to_bytes(array.astype(np.int64)) if array.ndim == 1 else images_header(array.shape) + array.tobytes()


def compress(content: bytes) -> bytes:
    """Gzip without a time stamp, so that the same content gives the same bytes."""
    return gzip.compress(content, compresslevel=6, mtime=0)


def write_blocks(path: Path, blocks: Iterable[bytes], packed: bool) -> tuple[str, int]:
    """Write a new file from blocks, gzipped as by `compress` or plain, and see it on the disk.

    Returns:
        SHA-256 (hex) and number of the unpacked bytes.

    Raises:
        OSError: the file cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) if packed else raw as file:
        for block in blocks:
            digest.update(block)
            size += len(block)
            file.write(block)
        if packed:
            file.close()
        raw.flush()
        os.fsync(raw.fileno())
    return digest.hexdigest(), size


def _magic(content: bytes) -> int:
    return int.from_bytes(content[:4], "big") if len(content) >= 4 else -1


def _check_payload(name: str, found: int, expected: int) -> None:
    if found != expected:
        raise DataRefused(f"{name} has {found:,} bytes after its header instead of {expected:,}; get the file again.")

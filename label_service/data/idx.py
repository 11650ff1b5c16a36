"""IDX files, the format of the MNIST family: read, check and write.

An IDX file is a four-byte magic number (two zero bytes, element type, number of axes), one big-endian 32-bit size for
each axis, then the elements. Only unsigned bytes are used here, with one axis for labels and three for images.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from label_service.errors import DataRefused

# Source: https://yann.lecun.com/exdb/mnist/. 0x08 means unsigned byte; the last byte is the number of axes.
LABELS_MAGIC = 0x00000801
IMAGES_MAGIC = 0x00000803
GZIP_MAGIC = b"\x1f\x8b"

Bytes = npt.NDArray[np.uint8]


def read_content(path: Path) -> bytes:
    """Return the IDX bytes of a file, unpacked if its first bytes are those of gzip.

    Raises:
        DataRefused: the file cannot be read, or its gzip stream is cut short or damaged.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataRefused(f"{path} cannot be read ({error.strerror}); check the folder and its permissions.") from error
    if not raw.startswith(GZIP_MAGIC):
        if path.suffix == ".gz":
            raise DataRefused(f"{path} is not a gzip file although its name says so; get the file again.")
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataRefused(f"{path} is cut short or damaged (its gzip stream is not whole); get it again.") from error


def parse_labels(content: bytes, name: str) -> Bytes:
    """Return the labels of an IDX file's bytes, shape (N,), uint8.

    Args:
        content: the unpacked file.
        name: what to call the file in an error.

    Raises:
        DataRefused: wrong magic number, or the header's count does not match the payload.
    """
    (count,) = _header(content, name, LABELS_MAGIC, "a label file")
    return _payload(content, name, (count,))


def parse_images(content: bytes, name: str) -> Bytes:
    """Return the images of an IDX file's bytes, shape (N, height, width), uint8.

    Raises:
        DataRefused: wrong magic number, or the header's sizes do not match the payload.
    """
    return _payload(content, name, _header(content, name, IMAGES_MAGIC, "an image file"))


def to_bytes(array: Bytes) -> bytes:
    """Return the IDX bytes of an array of labels (N,) or images (N, height, width)."""
    magic = (0x08 << 8) | array.ndim
    return struct.pack(f">I{array.ndim}I", magic, *array.shape) + array.tobytes()


def compress(content: bytes) -> bytes:
    """Gzip without a time stamp, so that the same content gives the same bytes."""
    return gzip.compress(content, compresslevel=6, mtime=0)


def _header(content: bytes, name: str, magic: int, kind: str) -> tuple[int, ...]:
    axes = magic & 0xFF
    size = 4 * (1 + axes)
    if len(content) < size or struct.unpack(">I", content[:4])[0] != magic:
        raise DataRefused(
            f"{name} is not {kind} in IDX format (which begins with {magic:08x}); check which file it is."
        )
    return struct.unpack(f">{axes}I", content[4:size])


def _payload(content: bytes, name: str, shape: tuple[int, ...]) -> Bytes:
    size = 4 * (1 + len(shape))
    expected = int(np.prod(shape, dtype=np.int64))
    if len(content) - size != expected:
        raise DataRefused(
            f"{name} has {len(content) - size:,} bytes after its header instead of {expected:,}; get the file again."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=size).reshape(shape)

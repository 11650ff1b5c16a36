"""IDX files: what is written is read back, and every kind of damage is one sentence."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from label_service.data import idx
from label_service.errors import DataRefused

LABELS = np.array([3, 1, 2], dtype=np.uint8)
IMAGES = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)


def test_written_arrays_are_read_back() -> None:
    """Labels and images survive a round through their bytes."""
    assert idx.parse_labels(idx.to_bytes(LABELS), "x").tolist() == [3, 1, 2]
    assert np.array_equal(idx.parse_images(idx.to_bytes(IMAGES), "x"), IMAGES)


def test_header_is_the_documented_one() -> None:
    """Magic number and sizes are big-endian, as the format says; written out by hand."""
    assert idx.to_bytes(LABELS) == b"\x00\x00\x08\x01\x00\x00\x00\x03\x03\x01\x02"
    assert idx.to_bytes(IMAGES)[:16] == struct.pack(">IIII", 0x803, 2, 4, 5)


def test_compressed_bytes_do_not_depend_on_the_time() -> None:
    """Preparing twice gives the same files: no time stamp is inside."""
    assert idx.compress(b"abc")[4:8] == b"\0\0\0\0"
    assert idx.compress(b"abc") == idx.compress(b"abc")


@pytest.mark.parametrize("gzipped", [True, False])
def test_plain_and_gzipped_files_read_alike(tmp_path: Path, gzipped: bool) -> None:
    """A file is known to be gzipped by its first bytes, not by its name."""
    path = tmp_path / "labels"
    path.write_bytes(idx.compress(b"content") if gzipped else b"content")
    assert idx.read_content(path) == b"content"


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:-1],
        lambda raw: raw[:-8] + b"\0" * 8,
        lambda raw: raw[:15] + bytes([raw[15] ^ 0xFF]) + raw[16:],
        lambda raw: raw[:4],
        lambda raw: b"<html>not found</html>",
        lambda raw: b"",
    ],
)
def test_damaged_gzip_file_is_refused(tmp_path: Path, damage: object) -> None:
    """Cut short, changed, or another file altogether: one sentence that names the file."""
    path = tmp_path / "labels.gz"
    path.write_bytes(damage(idx.compress(bytes(range(256)) * 8)))
    with pytest.raises(DataRefused, match=r"labels\.gz .*get (it|the file) again"):
        idx.read_content(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """A file that cannot be read is named, with the reason."""
    with pytest.raises(DataRefused, match="No such file"):
        idx.read_content(tmp_path / "labels.gz")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        idx.to_bytes(IMAGES),
        b"\0\0\x0d\x01" + struct.pack(">I", 3) + b"\1\2\3",
        b"not an idx file at all",
    ],
)
def test_wrong_magic_is_refused(content: bytes) -> None:
    """An image file, floats, or no IDX file in the place of labels."""
    with pytest.raises(DataRefused, match="is not a label file in IDX format"):
        idx.parse_labels(content, "train-labels")
    with pytest.raises(DataRefused, match="is not an image file in IDX format"):
        idx.parse_images(idx.to_bytes(LABELS), "train-images")


@pytest.mark.parametrize("change", [-1, 1])
def test_count_that_does_not_match_the_payload_is_refused(change: int) -> None:
    """One label too many or too few is seen, and the sentence says both numbers."""
    content = b"\0\0\x08\x01" + struct.pack(">I", 3 + change) + b"\1\2\3"
    with pytest.raises(DataRefused, match=f"has 3 bytes after its header instead of {3 + change}"):
        idx.parse_labels(content, "labels")


def test_huge_announced_sizes_do_not_overflow() -> None:
    """A header that announces more than memory holds is refused by arithmetic, not by an allocation."""
    content = struct.pack(">IIII", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    with pytest.raises(DataRefused, match="instead of"):
        idx.parse_images(content, "images")


def test_images_without_a_pixel_are_refused() -> None:
    """A header with a side of nothing."""
    with pytest.raises(DataRefused, match="images announces images without a pixel"):
        idx.parse_images(struct.pack(">IIII", 0x803, 5, 0, 28), "images")


def test_official_gzip_header_is_accepted(tmp_path: Path) -> None:
    """Files with a name inside their gzip header, as published, are read."""
    path = tmp_path / "labels.gz"
    with gzip.GzipFile(path, "wb") as file:
        file.write(idx.to_bytes(LABELS))
    assert idx.parse_labels(idx.read_content(path), "x").tolist() == [3, 1, 2]

"""The public images and labels behind a finished run, to recount its accuracy and to show what it asked for.

A run names its data by a fingerprint of the images and, for a re-drawn split, by a seed. The files come from Debian's
package dataset-fashion-mnist, or from a folder that `label_service prepare` made. They are read and drawn here without
the service's code, so that a fault there cannot hide here. Only the check of finished records reads labels.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scripts.errors import RunError
from scripts.run import DEFAULT_DATA
from trainer.images.data import POOL_FILE, TEST_FILE, fingerprint_of

Bytes = npt.NDArray[np.uint8]
Classes = npt.NDArray[np.int64]
# Class numbers are below this: the service keeps them in one byte, or in two with a sign.
MAX_CLASSES = 2**15

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FOLDERS = (DEBIAN_FOLDER, DEFAULT_DATA)
POOL_LABELS_FILE, TEST_LABELS_FILE = "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"
# The part of a prepared folder that each file is in.
FILES = {POOL_FILE: "images", TEST_FILE: "images", POOL_LABELS_FILE: "labels", TEST_LABELS_FILE: "labels"}
# SHA-256 of Fashion-MNIST's unpacked label files, and the fingerprint of its images. Computed from Debian's package.
OFFICIAL_LABELS_SHA256 = (
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)
OFFICIAL_FINGERPRINT = "d57b52adfaf61e86a95cfa1dd386f7a2b38856c09a0bbaa17bbba1aea3dcbfcb"
# What an IDX file's third byte says of its numbers.
_IDX_TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype(np.uint8), 0x0B: np.dtype(">i2"), 0x0C: np.dtype(">i4")}
# Test images of a re-drawn split (docs/own-data.md).
REDRAWN_TEST_SIZE = 10_000


@dataclass(frozen=True)
class Split:
    """A data set.

    Attributes:
        pool_images: (N, height, width); row i is the image with the id i.
        pool_labels: (N,).
        test_labels: (M,).
    """

    pool_images: Bytes
    pool_labels: Classes
    test_labels: Classes


def find_split(dataset: Mapping[str, Any], folders: tuple[Path, ...]) -> Split | None:
    """Find images and labels of a data set; None if no folder has them.

    Args:
        dataset: `dataset` of a run's `result.json`.
        folders: where to look.

    Raises:
        RunError: the run names a re-drawn split, and its images are not those of that split.
    """
    return _find_split(dataset["fingerprint"], dataset["redraw_seed"], folders)


@functools.cache
def _find_split(fingerprint: str, redraw_seed: int | None, folders: tuple[Path, ...]) -> Split | None:
    for folder in folders:
        contents = {name: content for name, part in FILES.items() if (content := _read(folder, part, name)) is not None}
        if len(contents) < len(FILES):
            continue
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        found = fingerprint_of(digests[POOL_FILE], digests[TEST_FILE])
        is_official = (digests[POOL_LABELS_FILE], digests[TEST_LABELS_FILE]) == OFFICIAL_LABELS_SHA256
        if found == OFFICIAL_FINGERPRINT and not is_official:
            raise RunError(f"{folder} has the images of Fashion-MNIST with other labels: get the files again.")
        pool, test, *labels = map(_parse, contents.values())
        pool_labels, test_labels = (classes.astype(np.int64) for classes in labels)
        if found == fingerprint:
            return Split(pool, pool_labels, test_labels)
        if found == OFFICIAL_FINGERPRINT and redraw_seed is not None:
            whole = (np.concatenate([pool, test]), np.concatenate([pool_labels, test_labels]))
            return _redraw([(pool, pool_labels), whole], redraw_seed, fingerprint)
    return None


def _read(folder: Path, part: str, name: str) -> bytes | None:
    """Return an unpacked file of a folder, prepared or flat; None if there is none that can be read."""
    for path in (folder / part / f"{name}.gz", folder / f"{name}.gz"):
        try:
            return gzip.decompress(path.read_bytes())
        except (OSError, EOFError, zlib.error):
            continue
    return None


def _parse(content: bytes) -> npt.NDArray[Any]:
    """Return the array of an IDX file: its third byte is the type, its fourth the number of axes, then their sizes."""
    kind, axes = _IDX_TYPES[content[2]], content[3]
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    return np.frombuffer(content, kind, offset=4 + 4 * axes).reshape(shape)


def _redraw(sources: list[tuple[Bytes, Classes]], seed: int, fingerprint: str) -> Split:
    """Draw a split again from each source of images and labels; the fingerprint says which of them it was.

    Raises:
        RunError: it was none of them.
    """
    for images, labels in sources:
        order = np.random.default_rng(seed).permutation(len(labels))
        test, pool = order[:REDRAWN_TEST_SIZE], order[REDRAWN_TEST_SIZE:]
        if fingerprint_of(_digest(images[pool]), _digest(images[test])) == fingerprint:
            return Split(images[pool], labels[pool], labels[test])
    raise RunError(f"its images are not those of the re-drawn split {seed} that it names.")


def _digest(images: Bytes) -> str:
    """Return the SHA-256 of images as an IDX file has them."""
    return hashlib.sha256(struct.pack(">4I", 0x0803, *images.shape) + images.tobytes()).hexdigest()

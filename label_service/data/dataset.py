"""What a data set is: its four files, its card (`dataset.json`), and how a folder is read and checked.

A prepared folder is parted so that the trainer can be given its images and nothing else:

    DIR/images/train-images-idx3-ubyte.gz, t10k-images-idx3-ubyte.gz
    DIR/labels/train-labels-idx1-ubyte.gz, t10k-labels-idx1-ubyte.gz, dataset.json     (mode 0700)
    DIR/dataset.json

Files are known by the SHA-256 of their *unpacked* content, so that a re-compressed copy is still the official file.
The service opens label files only; the images are opened by `prepare`, never by `seed` or `serve`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from label_service.data import idx
from label_service.errors import DataRefused

TRAIN_IMAGES = "train-images-idx3-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TEST_IMAGES, TRAIN_LABELS, TEST_LABELS)
PART = {TRAIN_IMAGES: "images", TEST_IMAGES: "images", TRAIN_LABELS: "labels", TEST_LABELS: "labels"}
CARD = "dataset.json"
# What a re-drawn split parts: the training images, for development, or all of them, for checks from outside.
RedrawFrom = Literal["training", "all"]

FASHION_MNIST = "Fashion-MNIST"
# Order and spelling of the data set's own README (github.com/zalandoresearch/fashion-mnist).
FASHION_MNIST_CLASSES: tuple[str, ...] = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# SHA-256 of the unpacked official files, computed from Debian's package dataset-fashion-mnist.
OFFICIAL_CONTENT_SHA256 = {
    TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
# SHA-256 of the gzipped files as published, from the same package: what a download must match byte for byte.
OFFICIAL_GZIP_SHA256 = {
    TRAIN_IMAGES: "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    TEST_IMAGES: "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    TRAIN_LABELS: "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    TEST_LABELS: "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}


class FileCard(BaseModel):
    """Identity of one file: SHA-256 of the bytes on disk and of the unpacked content, and its size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str
    content_sha256: str
    bytes: int


class DatasetCard(BaseModel):
    """What `dataset.json` says of a prepared folder.

    Attributes:
        official: the four files are the published Fashion-MNIST files in their places.
        pool_size: training images, the ones whose labels can be asked for; ids run from 0 to pool_size - 1.
        test_size: test images.
        image_shape: height and width in pixels.
        redraw_seed: seed of the re-drawn split, None for any other data.
        redrawn_from: the images that it parts: the training images, or all; None for any other data.
        source: where the files came from, in words.
        files: one card for each file, by its path inside the folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = 1
    name: str
    official: bool
    class_names: tuple[str, ...]
    pool_size: int
    test_size: int
    image_shape: tuple[int, int]
    redraw_seed: int | None
    redrawn_from: RedrawFrom | None = None
    source: str
    files: dict[str, FileCard]

    def content_sha256(self, name: str) -> str | None:
        """Return the recorded content hash of one of the four files, or None if the card has none."""
        card = self.files.get(stored_path(name))
        return card.content_sha256 if card else None

    def to_json(self) -> str:
        """Return the card as it is written to disk."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def stored_path(name: str) -> str:
    """Return the path of one of the four files inside a prepared folder."""
    return f"{PART[name]}/{name}.gz"


def sha256(content: bytes) -> str:
    """Return the SHA-256 of some bytes as lower-case hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def images_fingerprint(train_content_sha256: str, test_content_sha256: str) -> str:
    """Return a data set's fingerprint, made of its images only.

    It lets a trainer, which holds images and no label, check that it speaks to the service of the same images; made
    of labels it would be an oracle for small data sets.
    """
    return sha256(f"{train_content_sha256}\n{test_content_sha256}\n".encode())


def find_file(folder: Path, name: str) -> Path | None:
    """Return where one of the four files lies in a folder, flat or parted, gzipped or plain, or None."""
    for candidate in (folder / PART[name], folder):
        for suffix in (".gz", ""):
            path = candidate / f"{name}{suffix}"
            if path.is_file():
                return path
    return None


def check_place(name: str, content: bytes, where: Path) -> bool:
    """Refuse a known file in another file's place; return whether it is the known file in its own place.

    Raises:
        DataRefused: the content is one of the four official files, but not this one.
    """
    digest = sha256(content)
    for known, expected in OFFICIAL_CONTENT_SHA256.items():
        if digest == expected and known != name:
            raise DataRefused(f"{where} holds the official {known} under the name of {name}: put the files right.")
    return digest == OFFICIAL_CONTENT_SHA256[name]


def read_card(path: Path) -> DatasetCard | None:
    """Return the card at `path`, or None if there is none.

    Raises:
        DataRefused: the file is there but is no card.
    """
    try:
        return DatasetCard.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        raise DataRefused(f"{path} is no data set card that this version reads; prepare into a new folder.") from error


def count_classes(labels: Iterable[idx.Bytes]) -> int:
    """Return the number of classes: the largest label plus one."""
    return 1 + max(int(np.max(part)) if len(part) else 0 for part in labels)


def check_class_names(names: tuple[str, ...] | None, classes: int) -> tuple[str, ...]:
    """Return the class names to use: those given, or the class numbers.

    Raises:
        DataRefused: the number of names is not the number of classes.
    """
    if names is None:
        return tuple(str(number) for number in range(classes))
    if len(names) != classes:
        raise DataRefused(f"{len(names)} class names were given for {classes} classes; give one name for each class.")
    return names

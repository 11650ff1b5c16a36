"""What a data set is: its four files, its card (`dataset.json`), and how a folder of files is read.

A prepared folder separates images from labels, so that the trainer can be given the images and nothing else:

    DIR/images/train-images-idx3-ubyte.gz, t10k-images-idx3-ubyte.gz, images.json
    DIR/labels/train-labels-idx1-ubyte.gz, t10k-labels-idx1-ubyte.gz, dataset.json     (mode 0700)
    DIR/dataset.json

Large image files are plain, so that the trainer can map them into memory. `images.json` says how a picture became an
image, so that a prediction can do the same; it holds nothing about labels. A file is recognised by the SHA-256 of its
unpacked content, so that a re-compressed copy is still the official file.
The service opens label files only. `prepare` opens the images; `seed` and `serve` never do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from label_service.errors import DataRefused

TRAIN_IMAGES = "train-images-idx3-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
# The part of a prepared folder that each file is in.
PART = {TRAIN_IMAGES: "images", TEST_IMAGES: "images", TRAIN_LABELS: "labels", TEST_LABELS: "labels"}
FILES = tuple(PART)
CARD = "dataset.json"
# How a picture became an image; beside the images.
RECIPE = "images.json"
# The images that a re-drawn split is drawn from.
RedrawFrom = Literal["training", "all"]

FASHION_MNIST = "Fashion-MNIST"
# Order and spelling of the data set's own README (github.com/zalandoresearch/fashion-mnist).
FASHION_MNIST_CLASSES: tuple[str, ...] = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# SHA-256 of the official files, unpacked. Computed from Debian's package dataset-fashion-mnist.
OFFICIAL_CONTENT_SHA256 = {
    TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
# SHA-256 of the official files as they are published, gzipped, from the same package. A download must match it.
OFFICIAL_GZIP_SHA256 = {
    TRAIN_IMAGES: "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    TEST_IMAGES: "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    TRAIN_LABELS: "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    TEST_LABELS: "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}


class FileCard(BaseModel):
    """Identity of a file: SHA-256 of the bytes on disk and of the unpacked content, and its size on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str
    content_sha256: str
    bytes: int


class DatasetCard(BaseModel):
    """The content of `dataset.json`, which describes a prepared folder.

    Attributes:
        official: the four files are the published Fashion-MNIST files.
        pool_size: training images, whose labels can be asked for; ids run from 0 to pool_size - 1.
        test_size: test images.
        image_shape: height and width in pixels.
        channels: 1 for grey, 3 for colour.
        balanced: the operator declares that all classes are equally frequent. It is never counted.
        redraw_seed: seed of a re-drawn split, None for other data.
        redrawn_from: the images that the split was drawn from, None for other data and on older cards.
        source: where the files came from, for people.
        files: one card for each file, by its path inside the folder.
        made_from: hash of the source's file sizes and times and of the options; None for files that were in the
            folder itself, and on older cards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = 1
    name: str
    official: bool
    class_names: tuple[str, ...]
    pool_size: int
    test_size: int
    image_shape: tuple[int, int]
    channels: Literal[1, 3] = 1
    balanced: bool = False
    redraw_seed: int | None
    redrawn_from: RedrawFrom | None = None
    source: str
    files: dict[str, FileCard]
    made_from: str | None = None

    def path_of(self, name: str) -> str | None:
        """Return the path of one of the four files inside the folder, or None if the card does not list it."""
        return next((path for packed in (True, False) if (path := stored_path(name, packed)) in self.files), None)

    @property
    def content_sha256(self) -> dict[str, str]:
        """The content hash of each of the four files that the card lists, by the file's name."""
        paths = {name: self.path_of(name) for name in FILES}
        return {name: self.files[path].content_sha256 for name, path in paths.items() if path is not None}

    def to_json(self) -> str:
        """Return the text of `dataset.json`."""
        return f"{self.model_dump_json(indent=2)}\n"


def stored_path(name: str, packed: bool = True) -> str:
    """Return the path of one of the four files inside a prepared folder, gzipped or plain."""
    return f"{PART[name]}/{name}{'.gz' if packed else ''}"


def sha256(content: bytes) -> str:
    """Return the SHA-256 of bytes in lower-case hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def describe_file(stored: bytes, content: bytes) -> FileCard:
    """Return the card of a file with these bytes on disk and this unpacked content."""
    return FileCard(sha256=sha256(stored), content_sha256=sha256(content), bytes=len(stored))


def images_fingerprint(content_sha256: Mapping[str, str]) -> str | None:
    """Return a data set's fingerprint, made of its images only, or None if their hashes are not known.

    With it a trainer, which has images and no label, checks that the service has the labels of the same images. A
    fingerprint made of the labels would let anybody guess the labels of a small data set.

    Args:
        content_sha256: hashes of the unpacked files, by the file's name.
    """
    train, test = (content_sha256.get(name) for name in (TRAIN_IMAGES, TEST_IMAGES))
    return sha256(f"{train}\n{test}\n".encode()) if train and test else None


def find_file(folder: Path, name: str) -> Path | None:
    """Find one of the four files in a folder, prepared or flat, gzipped or plain; None if it is not there."""
    return find_flat_file(folder / PART[name], name) or find_flat_file(folder, name)


def find_flat_file(folder: Path, name: str) -> Path | None:
    """Find one of the four files in exactly this folder, gzipped or plain; None if it is not there."""
    paths = (folder / f"{name}{suffix}" for suffix in (".gz", ""))
    return next((path for path in paths if path.is_file()), None)


def is_official(name: str, digest: str, path: Path) -> bool:
    """Return whether a file is the official Fashion-MNIST file of its name.

    Args:
        name: one of the four files.
        digest: SHA-256 of its unpacked content.
        path: where it was read, for the error.

    Raises:
        DataRefused: it is an official file under the name of another.
    """
    for known, expected in OFFICIAL_CONTENT_SHA256.items():
        if digest == expected and known != name:
            raise DataRefused(f"{path} holds the official {known} under the name of {name}: put the files right.")
    return digest == OFFICIAL_CONTENT_SHA256[name]


def read_card(path: Path) -> DatasetCard | None:
    """Read a card; None if there is no file.

    Raises:
        DataRefused: the file is not a card.
    """
    try:
        return DatasetCard.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        raise DataRefused(f"{path} is no data set card that this version reads; prepare into a new folder.") from error


def check_class_names(names: tuple[str, ...] | None, classes: int) -> tuple[str, ...]:
    """Return the class names: those given, or the class numbers.

    Raises:
        DataRefused: there are more or fewer names than classes.
    """
    if names is None:
        return tuple(str(number) for number in range(classes))
    if len(names) != classes:
        raise DataRefused(f"{len(names)} class names were given for {classes} classes; give one name for each class.")
    return names

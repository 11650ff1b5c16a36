"""What every reader returns."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from label_service.data import idx
from label_service.errors import DataRefused


class Batch(NamedTuple):
    """Images (n, height, width) or (n, height, width, 3), uint8, their labels (n,), and what to call them."""

    images: idx.Bytes
    labels: idx.Labels
    name: str


@dataclass(frozen=True)
class Source:
    """A data set as it lies on disk.

    Attributes:
        name: what to call it.
        parts: training images and test images, or one part that is still to be divided; each is read once.
        class_names: by class number; None if the source has none.
        keeps_order: ids are the places of the images in the source.
        files: the four IDX files, by name; empty for other sources.
        balanced: its card declares so.
    """

    name: str
    parts: tuple[Iterable[Batch], ...]
    class_names: tuple[str, ...] | None = None
    keeps_order: bool = False
    files: Mapping[str, Path] = field(default_factory=dict)
    balanced: bool = False


def require(module: str, extra: str) -> ModuleType:
    """Import a package that only some sources need.

    Raises:
        DataRefused: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataRefused(
            f"This source needs the package {module.split('.')[0]}; install labelmeter with its extra {extra}."
        ) from error


def number_classes(values: Iterable[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Give class names their numbers: by value if all names are numbers, else in alphabetical order.

    Returns:
        The number of each name, and the names in order.
    """
    distinct = set(values)
    are_numbers = all(value.isascii() and value.isdecimal() for value in distinct)
    names = sorted(distinct, key=lambda value: (int(value) if are_numbers else 0, value))
    return {name: number for number, name in enumerate(names)}, tuple(names)


def as_labels(values: object, name: str) -> idx.Labels:
    """Return class numbers as an array (n,).

    Raises:
        DataRefused: they are not whole numbers.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise DataRefused(f"{name} has labels that are no whole numbers ({array.dtype}); give class numbers from 0 up.")
    return array.reshape(-1).astype(np.int64)

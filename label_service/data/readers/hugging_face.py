"""A Hugging Face data set that `save_to_disk` has written: one column of images, one of class labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from label_service.data.readers.source import Batch, Source, require
from label_service.errors import DataRefused

MARKS = ("dataset_dict.json", "dataset_info.json")


def open_saved(folder: Path) -> Source:
    """Return the source that a saved data set is.

    Raises:
        DataRefused: it is damaged, has not exactly one column of images and one of classes, or no split `train`.
    """
    datasets = require("datasets", "huggingface")
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # damaged JSON, Arrow and file lists each raise something else
        raise DataRefused(f"{folder} is no data set that `datasets` reads ({type(error).__name__}).") from error
    if isinstance(loaded, datasets.DatasetDict):
        if "train" not in loaded:
            raise DataRefused(f"{folder} has no split train; its splits are {', '.join(loaded)}.")
        parts = [loaded[name] for name in ("train", "test") if name in loaded]
    else:
        parts = [loaded]
    features = parts[0].features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)] or [
        name for name in ("label", "labels") if name in features
    ]
    if len(images) != 1 or len(labels) != 1:
        raise DataRefused(
            f"{folder} has {len(images)} columns of images and {len(labels)} of classes; leave one of each."
        )
    names = getattr(features[labels[0]], "names", None)
    # Undecoded: the pictures are decoded as those of every other source.
    raw = [part.cast_column(images[0], datasets.Image(decode=False)) for part in parts]
    return Source(
        folder.resolve().name,
        tuple(_read(part, images[0], labels[0]) for part in raw),
        tuple(names) if names else None,
    )


def _read(part: Any, image: str, label: str) -> Iterator[Batch]:  # noqa: ANN401 - datasets has no types
    pictures = require("label_service.data.readers.pictures", "sources")
    for number, row in enumerate(part):
        where = f"row {number}"
        stored = row[image]
        if not stored or not stored.get("bytes"):
            raise DataRefused(f"{where} has no picture of its own; embed the pictures before save_to_disk.")
        if not isinstance(row[label], int) or isinstance(row[label], bool):
            raise DataRefused(f"{where} has no class number; {label} must hold whole numbers.")
        yield Batch(pictures.decode(stored["bytes"], where)[None], np.array([row[label]]), where)

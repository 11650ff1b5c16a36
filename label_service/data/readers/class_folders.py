"""A folder of pictures: a folder for each class, in `train/` and `test/` or in one folder that is still undivided."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from label_service.data.readers.source import Batch, Source, number_classes, require
from label_service.errors import DataRefused

SUFFIXES = (".png", ".jpg", ".jpeg")


def open_folder(root: Path) -> Source:
    """Return the source that a folder is.

    Raises:
        DataRefused: it has no class folders, an empty one, other files, links that leave it, or train/ and test/ have
            different classes.
    """
    folders = {entry.name for entry in _entries(root) if entry.is_dir()}
    if "train" in folders and "test" in folders:
        listed = [_list_classes(root / part, root) for part in ("train", "test")]
        if different := listed[0].keys() ^ listed[1].keys():
            raise DataRefused(
                f"{root} has different classes in train/ and test/ ({_some(different)}); each class needs a folder in "
                "both."
            )
    elif "train" in folders or "test" in folders:
        raise DataRefused(
            f"{root} has only one of train/ and test/; add the other, or give one folder and --test-share."
        )
    else:
        listed = [_list_classes(root, root)]
    numbers, names = number_classes(listed[0])
    parts = [root / part for part in ("train", "test")] if len(listed) == 2 else [root]
    return Source(
        name=root.resolve().name,
        parts=tuple(_read(part, files, numbers) for part, files in zip(parts, listed, strict=True)),
        class_names=names,
    )


def _list_classes(folder: Path, root: Path) -> dict[str, list[str]]:
    """Return the names of the pictures of each class."""
    inside = root.resolve()
    classes: dict[str, list[str]] = {}
    for entry in _entries(folder):
        _refuse_leaving(entry, inside)
        if entry.is_dir():
            classes[entry.name] = []
            for file in _entries(Path(entry.path)):
                _refuse_leaving(file, inside)
                if file.is_dir() or not file.name.lower().endswith(SUFFIXES):
                    raise DataRefused(f"{file.path} is no PNG or JPEG file; a class folder holds only those.")
                classes[entry.name].append(file.name)
            if not classes[entry.name]:
                raise DataRefused(f"The class folder {entry.path} is empty; fill it or remove it.")
    if not classes:
        raise DataRefused(f"{folder} has no class folders; put the pictures of each class into a folder of its own.")
    return classes


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, without hidden files, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataRefused(
            f"{folder} cannot be read ({error.strerror}); check the folder and its permissions."
        ) from error


def _refuse_leaving(entry: os.DirEntry[str], inside: Path) -> None:
    if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(inside):
        raise DataRefused(f"{entry.path} is a link that leaves {inside}; copy what it points to into the folder.")


def _read(folder: Path, classes: Mapping[str, list[str]], numbers: Mapping[str, int]) -> Iterator[Batch]:
    pictures = require("label_service.data.readers.pictures", "sources")
    for name, files in classes.items():
        label = np.array([numbers[name]])
        for file in files:
            path = folder / name / file
            yield Batch(pictures.decode(path, str(path))[None], label, str(path))


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown}, …"

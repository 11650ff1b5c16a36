"""A CSV file of pictures: columns `path` and `label`, and `split` (train or test) if the data are divided already."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from label_service.data.readers.source import Batch, Source, number_classes, require
from label_service.errors import DataRefused

SPLITS = ("train", "test")


def open_table(table: Path) -> Source:
    """Return the source that a CSV file is. Paths are relative to its folder.

    Raises:
        DataRefused: a column, a file or a label is missing, a path leaves the folder, or a split has another name.
    """
    rows: dict[str, list[tuple[Path, str]]] = {}
    root = table.parent.resolve()
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            if not {"path", "label"} <= set(columns):
                raise DataRefused(f"{table} has no columns path and label; name them in its first line.")
            for row in reader:
                where = f"{table}, line {reader.line_num}"
                path, label, split = row["path"], row["label"], row.get("split") if "split" in columns else ""
                if not path or not label:
                    raise DataRefused(f"{where}, has no path or no label; give both.")
                if "split" in columns and split not in SPLITS:
                    raise DataRefused(f"{where}, has the split {split!r}; it must be train or test.")
                picture = table.parent / path
                if not picture.resolve().is_relative_to(root):
                    raise DataRefused(f"{where}, names {path}, which leaves the folder of the table; copy it into it.")
                if not picture.is_file():
                    raise DataRefused(f"{where}, names {path}, and there is no such file.")
                rows.setdefault(split or "", []).append((picture, label.strip()))
    except (OSError, ValueError, csv.Error) as error:
        raise DataRefused(f"{table} cannot be read as CSV in UTF-8 ({error}).") from error
    if not rows:
        raise DataRefused(f"{table} has no rows below its first line.")
    parts = [rows[name] for name in SPLITS if name in rows] if "" not in rows else [rows[""]]
    if "" not in rows and len(parts) < 2:
        raise DataRefused(f"{table} has only one of the splits train and test; leave the column out, or use both.")
    numbers, names = number_classes(label for part in parts for _, label in part)
    return Source(table.stem, tuple(_read(part, numbers) for part in parts), names)


def _read(rows: Sequence[tuple[Path, str]], numbers: dict[str, int]) -> Iterator[Batch]:
    pictures = require("label_service.data.readers.pictures", "sources")
    for path, label in rows:
        yield Batch(pictures.decode(path, str(path))[None], np.array([numbers[label]]), str(path))

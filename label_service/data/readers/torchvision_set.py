"""A torchvision data set that lies on disk: `torchvision:NAME:ROOT`. Nothing is downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np

from label_service.data.readers.source import Batch, Source, require
from label_service.errors import DataRefused


def open_torchvision(name: str, root: str) -> Source:
    """Return the source that a class of `torchvision.datasets` reads from a folder.

    Raises:
        DataRefused: there is no such class, it needs more than a folder and a part, or the folder does not have it.
    """
    try:
        datasets = require("torchvision.datasets", "torchvision")
    except RuntimeError:
        # PyPI's torchvision beside a CPU-only torch: its import describes two operators that nobody has declared.
        # Declarations last as long as this object.
        operators = require("torch.library", "torchvision").Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        datasets = require("torchvision.datasets", "torchvision")
    kind: Any = getattr(datasets, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, datasets.VisionDataset)):
        raise DataRefused(f"torchvision has no data set {name}; see torchvision.datasets for the names.")
    make: Any = kind  # each class takes arguments of its own
    takes = inspect.signature(kind).parameters
    fixed = {"download": False} if "download" in takes else {}
    if "train" in takes:
        choices: list[dict[str, Any]] = [{"train": True}, {"train": False}]
    elif "split" in takes:
        choices = [{"split": "train"}, {"split": "test"}]
    else:
        choices = [{}]
    try:
        sets = [make(root=root, **fixed, **choice) for choice in choices]
    except Exception as error:  # each class has errors of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataRefused(f"torchvision cannot read {name} from {root} ({reason}).") from error
    names = getattr(sets[0], "classes", None)
    return Source(name, tuple(_read(part, name) for part in sets), tuple(map(str, names)) if names else None)


def _read(part: Any, name: str) -> Iterator[Batch]:  # noqa: ANN401 - torchvision has no types
    pictures = require("label_service.data.readers.pictures", "sources")
    for number in range(len(part)):
        where = f"image {number} of {name}"
        try:
            image, label = part[number]
        except Exception as error:  # a damaged picture makes a decoder raise nearly anything
            raise DataRefused(f"{where} cannot be read ({type(error).__name__}); get the data set again.") from error
        if isinstance(label, bool) or not isinstance(label, int | np.integer):
            raise DataRefused(f"{where} has no class number; the set must be one of classification.")
        yield Batch(pictures.to_array(image)[None], np.array([int(label)]), where)

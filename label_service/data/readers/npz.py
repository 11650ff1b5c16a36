"""An NPZ file: `x_train`, `y_train`, `x_test` and `y_test`, or the first two alone. Arrays are read in blocks."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from label_service.data import idx
from label_service.data.readers.source import Batch, Source, as_labels, number_classes
from label_service.errors import DataRefused

DAMAGED = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError)
LAYOUT = "(N, height, width), or (N, height, width, 3) in colour"


def open_npz(path: Path) -> Source:
    """Return the source that an NPZ file is.

    Raises:
        DataRefused: it is damaged, or an array is missing or has a shape or type that holds no images or labels.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = {name.removesuffix(".npy") for name in archive.namelist()}
            parts = [part for part in ("train", "test") if f"x_{part}" in held or f"y_{part}" in held]
            for name in [f"{kind}_{part}" for part in parts or ["train"] for kind in "xy"]:
                if name not in held or "train" not in parts:
                    raise DataRefused(
                        f"{path} has no array {name if name not in held else 'x_train'}; "
                        "it needs x_train, y_train, x_test, y_test."
                    )
            labels = [_read_labels(archive, path, f"y_{part}") for part in parts]
    except DAMAGED as error:
        raise DataRefused(f"{path} is no NPZ file, or damaged ({error}); write it again with numpy.savez.") from error
    names = None
    if any(array.dtype.kind in "US" for array in labels):
        texts = [array.astype(str).reshape(-1) for array in labels]
        numbers, names = number_classes(text for array in texts for text in np.unique(array).tolist())
        labels = [np.array([numbers[text] for text in array.tolist()], dtype=np.int64) for array in texts]
    checked = [as_labels(array, f"{path}: y_{part}") for part, array in zip(parts, labels, strict=True)]
    return Source(
        path.stem,
        tuple(_read(path, f"x_{part}", array) for part, array in zip(parts, checked, strict=True)),
        names,
    )


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(file)
    if dtype.hasobject:
        raise DataRefused(f"{name} holds Python objects, which are not read; save an array of numbers.")
    return shape, fortran, dtype


def _read_labels(archive: zipfile.ZipFile, path: Path, array: str) -> npt.NDArray[Any]:
    name = f"{path}: {array}"
    with archive.open(f"{array}.npy") as file:
        shape, _, dtype = _header(file, name)
        if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
            raise DataRefused(f"{name} has the shape {shape}; labels have one axis.")
        content = file.read(shape[0] * dtype.itemsize)
    return np.frombuffer(content, dtype)[: shape[0]]


def _read(path: Path, array: str, labels: idx.Labels) -> Iterator[Batch]:
    name = f"{path}: {array}"
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{array}.npy") as file:
            shape, fortran, dtype = _header(file, name)
            image = shape[1:3] if shape[3:] == (1,) else shape[1:]
            if fortran or len(shape) < 3 or image[2:] not in ((), (3,)) or math.prod(image) > idx.BLOCK_BYTES:
                raise DataRefused(f"{name} has the shape {shape}{' in Fortran order' * fortran}; images have {LAYOUT}.")
            if shape[0] != len(labels):
                raise DataRefused(f"{name} has {shape[0]:,} images and {len(labels):,} labels: they do not match.")
            size = math.prod(image) * dtype.itemsize
            step = max(1, idx.BLOCK_BYTES // max(1, size))
            for start in range(0, shape[0], step):
                count = min(step, shape[0] - start)
                block = np.frombuffer(file.read(count * size), dtype).reshape(count, *image)
                yield Batch(_to_bytes(block, name), labels[start : start + count], name)
    except DAMAGED as error:
        raise DataRefused(f"{name} is damaged ({error}); write the file again.") from error


def _to_bytes(block: npt.NDArray[Any], name: str) -> idx.Bytes:
    """Return pixels as bytes: whole numbers from 0 to 255 as they are, floats from 0 to 1 scaled to 0 to 255."""
    kind = block.dtype.kind
    if kind == "b":
        return block.astype(np.uint8) * np.uint8(255)
    if kind == "f":
        if not np.isfinite(block).all():
            raise DataRefused(f"{name} holds NaN or infinite pixels; replace them.")
        if block.min() < 0 or block.max() > 1:
            raise DataRefused(f"{name} holds floats outside 0 to 1; scale them to 0 to 1, or save bytes from 0 to 255.")
        scaled: idx.Bytes = np.rint(block * 255).astype(np.uint8)
        return scaled
    if kind not in "iu" or block.min() < 0 or block.max() > 255:
        raise DataRefused(f"{name} holds pixels that are not from 0 to 255 ({block.dtype}); scale them.")
    return block.astype(np.uint8)

"""The four IDX files of a folder, prepared or flat, gzipped or plain. Their order is kept: it is what ids mean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from label_service.data import idx
from label_service.data.dataset import (
    CARD,
    FILES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    find_file,
    read_card,
)
from label_service.data.readers.source import Batch, Source
from label_service.errors import DataRefused


def open_idx(folder: Path) -> Source:
    """Return the source that a folder of IDX files is.

    Raises:
        DataRefused: a file is missing, damaged, or of another kind, or images and labels differ in number or size.
    """
    found = {name: find_file(folder, name) for name in FILES}
    files = {name: path for name, path in found.items() if path is not None}
    for name in FILES:
        if name not in files:
            raise DataRefused(
                f"{folder} has no {name}.gz (or plain {name}); a data set needs all of {', '.join(FILES)}."
            )
    shapes, parts = [], []
    for images, labels, part in ((TRAIN_IMAGES, TRAIN_LABELS, "training"), (TEST_IMAGES, TEST_LABELS, "test")):
        with idx.open_content(files[images]) as file:
            shape = idx.read_images_header(file, images)
        numbers = idx.parse_labels(idx.read_content(files[labels]), labels)
        if shape[0] != len(numbers):
            raise DataRefused(f"There are {shape[0]:,} {part} images and {len(numbers):,} labels: they do not match.")
        if not shape[0]:
            raise DataRefused(f"The {part} files hold no image at all; check which data set this is.")
        shapes.append(shape[1:])
        parts.append(_read(files[images], images, numbers))
    if shapes[0][:2] != shapes[1][:2]:
        raise DataRefused("Training and test images have different sizes in pixels; check that they belong together.")
    card = read_card(folder / CARD)
    return Source(
        card.name if card else folder.resolve().name,
        tuple(parts),
        card.class_names if card else None,
        keeps_order=True,
        files=files,
        balanced=card is not None and card.balanced,
    )


def _read(path: Path, name: str, labels: idx.Labels) -> Iterator[Batch]:
    with idx.open_content(path) as file:
        shape = idx.read_images_header(file, name)
        start = 0
        for block in idx.read_image_blocks(file, name, shape):
            yield Batch(block, labels[start : start + len(block)], str(path))
            start += len(block)

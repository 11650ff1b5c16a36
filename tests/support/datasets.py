"""A tiny data set in IDX form, prepared as `label_service prepare` would, with classes a small net can tell apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from label_service.data import idx
from label_service.data.dataset import (
    CARD,
    FILES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    DatasetCard,
    describe_file,
    stored_path,
)


def make_idx_dataset(
    folder: Path, pool: int = 200, test: int = 50, classes: int = 3, side: int = 28, seed: int = 0
) -> Path:
    """Write a parted data folder (other data: it needs `--other-data`) and return it.

    Each class is a bright bar at its own angle through the middle, on noise, so that classes are separable by
    gradients as well as by pixels. Every class occurs in both parts if they are large enough.

    Args:
        folder: where to write `images/`, `labels/` and `dataset.json`.
        pool: training images.
        test: test images.
        classes: number of classes.
        side: height and width in pixels.
        seed: of everything random.
    """
    generator = np.random.default_rng(seed)
    arrays = {}
    for count, images_name, labels_name in ((pool, TRAIN_IMAGES, TRAIN_LABELS), (test, TEST_IMAGES, TEST_LABELS)):
        labels = generator.permutation(np.arange(count) % classes).astype(np.uint8)
        arrays[images_name] = _bars(labels, classes, side, generator)
        arrays[labels_name] = labels
    contents = {name: idx.to_bytes(arrays[name]) for name in FILES}
    files = {}
    for name in FILES:
        path = folder / stored_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        packed = idx.compress(contents[name])
        path.write_bytes(packed)
        files[stored_path(name)] = describe_file(packed, contents[name])
    (folder / "labels").chmod(0o700)
    card = DatasetCard(
        name="synthetic bars",
        official=False,
        class_names=tuple(f"bar {number}" for number in range(classes)),
        pool_size=pool,
        test_size=test,
        image_shape=(side, side),
        redraw_seed=None,
        source="made by the tests",
        files=files,
    )
    for part in (folder, folder / "labels"):
        (part / CARD).write_text(card.to_json())
    return folder


def read_pool_labels(folder: Path) -> list[int]:
    """Return the pool labels of a folder: what only a test may do."""
    return idx.parse_labels(idx.read_content(folder / stored_path(TRAIN_LABELS)), "pool").tolist()


def read_test_labels(folder: Path) -> list[int]:
    """Return the test labels of a folder: what only a test may do."""
    return idx.parse_labels(idx.read_content(folder / stored_path(TEST_LABELS)), "test").tolist()


def read_card_json(folder: Path) -> dict[str, object]:
    """Return a folder's card as plain JSON."""
    return json.loads((folder / CARD).read_text())


def _bars(labels: np.ndarray, classes: int, side: int, generator: np.random.Generator) -> np.ndarray:
    """Return noisy images of bars, (N, side, side) uint8; bar `k` of `classes` has the angle k·180°/classes."""
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    angles = np.pi * labels / classes + generator.normal(0, 0.08, len(labels))
    distance = np.abs(rows * np.cos(angles)[:, None, None] - columns * np.sin(angles)[:, None, None])
    images = 200.0 * (distance < side / 9) + generator.normal(25, 12, (len(labels), side, side))
    return np.clip(images, 0, 255).astype(np.uint8)

"""Load a re-drawn split for development; the official one is refused, so that no benchmark reads its test labels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from label_service.data import idx
from label_service.data.dataset import CARD, TEST_LABELS, TRAIN_LABELS, read_card, stored_path
from trainer.images.data import ImageSet, load_images


def redraw_seed_of(folder: Path) -> int | None:
    """Return the seed of the split that a prepared folder holds, None if it is no re-drawn one."""
    card = read_card(folder / CARD)
    return None if card is None else card.redraw_seed


def load_split(folder: Path) -> tuple[ImageSet, Tensor, Tensor]:
    """Return a split's images, and the labels of its pool and of its test images, int64 [N] and [M]."""
    pool_labels, test_labels = (
        torch.from_numpy(idx.parse_labels(idx.read_content(folder / stored_path(name)), name).copy()).long()
        for name in (TRAIN_LABELS, TEST_LABELS)
    )
    return load_images(folder / "images"), pool_labels, test_labels

"""Images, settings and metrics small enough that a network learns in a second."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.datasets import make_idx_dataset, read_pool_labels
from trainer.config import EncoderConfig, FinetuneConfig, PretrainConfig, ViewConfig
from trainer.images.data import load_images
from trainer.learning.encoder import Encoder

CPU = torch.device("cpu")
TINY_ENCODER = EncoderConfig(widths=(8, 8), projection=6)
SHIFTED = ViewConfig(flip=False, translate_px=1)


class RecordedMetrics:
    """Replaces a MetricWriter, whose imports take seconds; raises KeyboardInterrupt at a chosen write."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._interrupt_at = interrupt_at

    def write(self, stage: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        if len(self.rows) == self._interrupt_at:
            raise KeyboardInterrupt
        self.rows.append({"stage": stage, "step": step, "epoch": epoch, **values})

    def write_point(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Leave out what is for TensorBoard alone."""

    def write_images(self, name: str, step: int, images: object) -> None:
        """Leave out what is for TensorBoard alone."""


def pretrain_config(**changes: object) -> PretrainConfig:
    """Make settings of two short epochs."""
    few = {"epochs": 2, "batch": 8, "steps": 2, "temperature": 0.5, "beta": 1.0, "tau_plus": 0.1, "view": SHIFTED}
    return PretrainConfig.model_validate(few | changes)


def finetune_config(**changes: object) -> FinetuneConfig:
    """Make settings of small, few steps."""
    few = {
        "batch": 12,
        "labelled_batch": 12,
        "steps": 3,
        "weak": SHIFTED,
        "strong": ViewConfig(translate_px=2, erase=0.5),
    }
    return FinetuneConfig.model_validate(few | changes)


def bars(folder: Path, pool: int = 60, side: int = 12) -> tuple[Tensor, Tensor]:
    """Make bars, each its own mirror image, uint8 [N, side, side], and their classes, int64 [N]."""
    make_idx_dataset(folder, pool=pool, test=6, classes=2, side=side)
    return load_images(folder / "images").pool, torch.tensor(read_pool_labels(folder))


def same_weights(first: Mapping[str, Tensor], second: Mapping[str, Tensor], prefix: str = "") -> bool:
    """Tell whether two state dicts agree bit for bit in all that begins with the prefix, which must be something."""
    names = [name for name in first if name.startswith(prefix)]
    assert names and names == [name for name in second if name.startswith(prefix)]
    return all(torch.equal(first[name], second[name]) for name in names)


def copied(network: Encoder) -> dict[str, Tensor]:
    """Copy a network's weights, so that training on does not change them."""
    return {name: value.clone() for name, value in network.state_dict().items()}

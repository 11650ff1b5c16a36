"""Large pools out of small ones: random views of the same images."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.config import ViewConfig
from trainer.images.augment import random_view

# Images whose views are drawn at once.
_DRAWN = 4096


def random_views(images: Tensor, count: int, view: ViewConfig, generator: torch.Generator) -> Tensor:
    """Draw views of grey images, uint8 [N, H, W], one image after another and again from the first: [count, H, W]."""
    rows = torch.arange(count) % len(images)
    views = torch.empty((count, *images.shape[1:]), dtype=torch.uint8)
    for places in torch.arange(count).split(_DRAWN):
        drawn = random_view(images[rows[places]], view, generator)
        views[places] = (drawn * 255).round().to(torch.uint8).squeeze(1)
    return views

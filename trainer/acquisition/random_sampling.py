"""Random sampling: the baseline of all other strategies."""

import torch
from torch import Tensor

from trainer.acquisition.state import PoolState


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Draw uniformly from the unlabelled images."""
    return state.draw(batch, generator)

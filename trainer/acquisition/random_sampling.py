"""Random sampling: the strategy every other must beat."""

import torch
from torch import Tensor

from trainer.acquisition.state import PoolState


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Draw uniformly from the unlabelled images."""
    return state.draw(batch, generator)

"""Margin sampling: T. Scheffer et al., "Active hidden Markov models for information extraction", IDA 2001."""

import torch
from torch import Tensor

from trainer.acquisition.state import PoolState


def uncertainty(beliefs: Tensor) -> Tensor:
    """Compute one minus the gap between the two likeliest classes: [N, C] -> [N], in [0, 1]."""
    top = beliefs.topk(2, dim=1).values
    return 1 - (top[:, 0] - top[:, 1])


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Take the unlabelled images with the smallest margins; random ones without beliefs."""
    if state.beliefs is None:
        return state.draw(batch, generator)
    return state.best(uncertainty(state.beliefs), batch)

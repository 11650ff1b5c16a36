"""Least confidence: D. D. Lewis and W. A. Gale, "A sequential algorithm for training text classifiers", SIGIR 1994."""

import torch
from torch import Tensor

from trainer.acquisition.state import PoolState


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Take the unlabelled images whose likeliest class is least likely; random ones without beliefs."""
    if state.beliefs is None:
        return state.draw(batch, generator)
    return state.best(1 - state.beliefs.max(1).values, batch)

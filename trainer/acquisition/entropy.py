"""Entropy sampling: I. Dagan and S. P. Engelson, "Committee-based sampling for training classifiers", ICML 1995.

The entropy of one model replaces that of a committee, as in B. Settles, "Active learning literature survey", 2009.
"""

import torch
from torch import Tensor

from trainer.acquisition.state import PoolState


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Take the unlabelled images of the highest entropy; random ones without beliefs."""
    if state.beliefs is None:
        return state.draw(batch, generator)
    return state.best(torch.special.entr(state.beliefs).sum(1), batch)

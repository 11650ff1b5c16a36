"""Entropy sampling: I. Dagan and S. P. Engelson, "Committee-based sampling for training classifiers", ICML 1995.

One model's entropy stands for the committee's, as in B. Settles, "Active learning literature survey", 2009.
"""

import torch
from torch import Tensor

from trainer.acquisition.state import PoolState


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Take the unlabelled images of the highest entropy; random ones while there is no belief."""
    if state.beliefs is None:
        return state.draw(batch, generator)
    return state.best(torch.special.entr(state.beliefs).sum(1), batch)

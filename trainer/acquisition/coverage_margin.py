"""The default: cover the pool first, then ask where a whole neighbourhood is torn between two classes.

Cold start: medoids of k-means clusters, so that every kind of image is seen once. Afterwards: an image's margin
averaged with its neighbours' (a lone odd image teaches nothing about others), and each pick halves the worth of its
neighbours, so that one batch does not ask the same question many times.
"""

import torch
from torch import Tensor

from trainer.acquisition.clustering import most_typical, spherical_kmeans
from trainer.acquisition.margin import uncertainty
from trainer.acquisition.state import PoolState

# How much of a neighbour's worth is left once an image beside it is asked.
WORTH_LEFT = 0.5


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Take cluster medoids in the cold start, then the most uncertain neighbourhoods."""
    batch = min(batch, len(state.free))
    if state.beliefs is None:
        return _cover(state, batch, generator)
    own = uncertainty(state.beliefs)
    worth = (own + own[state.neighbours].mean(1)) / 2
    worth[state.labelled] = -1
    chosen: list[int] = []
    for _ in range(batch):
        pick = int(worth.argmax())
        chosen.append(pick)
        near = state.neighbours[pick]
        worth[near] = torch.where(worth[near] > 0, worth[near] * WORTH_LEFT, worth[near])
        worth[pick] = -1
    return torch.tensor(chosen, dtype=torch.long, device=state.features.device)


def _cover(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    free = state.free
    features = state.features[free]
    assigned = spherical_kmeans(features, batch, generator)
    medoids = [most_typical(features, assigned, cluster) for cluster in assigned.unique().tolist()]
    chosen = free[torch.tensor(medoids, dtype=torch.long, device=free.device)]
    return state.fill_up(chosen, batch, generator)

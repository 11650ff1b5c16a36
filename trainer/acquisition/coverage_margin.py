"""Cover the pool first, then ask where a whole neighbourhood is torn between two classes.

While there are few labels: medoids of the largest k-means clusters that no label is in, so that every kind of image is
seen. Afterwards: an image's margin
averaged with its neighbours' (a lone odd image teaches nothing about others), and each pick halves the worth of its
neighbours, so that one batch does not ask the same question many times.
"""

import torch
from torch import Tensor

from trainer.acquisition.clustering import by_coverage, most_typical, spherical_kmeans
from trainer.acquisition.margin import uncertainty
from trainer.acquisition.state import PoolState

# Labels a class, on average, up to which kinds of images are looked for: fewer tell too little to be torn by.
COVERED_PER_CLASS = 4
# How much of a neighbour's worth is left once an image beside it is asked.
WORTH_LEFT = 0.5
# Picks that are put in order of what they cover: the order counts where few labels are asked in parts.
_ORDERED = 100


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Take medoids of uncovered clusters at first, then the most uncertain neighbourhoods."""
    batch = min(batch, len(state.free))
    if state.beliefs is None or is_covering(state):
        return cover(state, batch, generator)
    worth = neighbourhood_uncertainty(state, state.beliefs)
    worth[state.labelled] = -1
    chosen: list[int] = []
    for _ in range(batch):
        pick = int(worth.argmax())
        chosen.append(pick)
        near = state.neighbours[pick]
        worth[near] = torch.where(worth[near] > 0, worth[near] * WORTH_LEFT, worth[near])
        worth[pick] = -1
    return torch.tensor(chosen, dtype=torch.long, device=state.features.device)


def is_covering(state: PoolState) -> bool:
    """Tell whether there are still so few labels that kinds of images are looked for."""
    return int(state.labelled.sum()) < COVERED_PER_CLASS * state.classes


def neighbourhood_uncertainty(state: PoolState, beliefs: Tensor) -> Tensor:
    """Average each image's margin uncertainty with its neighbours': [N], in [0, 1]."""
    own = uncertainty(beliefs)
    return (own + own[state.neighbours].mean(1)) / 2


def cover(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Part the pool into as many clusters as there will be labels; take the medoids of the largest without one.

    The first hundred are in order of what each adds to the coverage, so that a beginning of them is a good choice too.
    """
    clusters = min(int(state.labelled.sum()) + batch, len(state.features))
    assigned, _ = spherical_kmeans(state.features, clusters, generator)
    size = torch.bincount(assigned, minlength=clusters)
    size[assigned[state.labelled]] = 0
    largest = size.argsort(descending=True, stable=True)[: int((size > 0).sum())][:batch]
    medoids = [most_typical(state.features, assigned, cluster) for cluster in largest.tolist()]
    chosen = torch.tensor(medoids, dtype=torch.long, device=state.features.device)
    first, rest = chosen[:_ORDERED], chosen[_ORDERED:]
    known = state.labelled.nonzero().flatten()
    return state.fill_up(torch.cat([by_coverage(state.features, first, known), rest]), batch, generator)

"""Cover the pool first, then ask where whole neighbourhoods are uncertain between two classes.

While there are few labels: medoids of the largest k-means clusters without a label, so that every kind of image is
labelled. Afterwards: the uncertainty of an image averaged with its neighbours' (a single odd image says nothing about
others). Each pick halves the scores of its neighbours, so that the images of a batch differ.
"""

import torch
from torch import Tensor

from trainer.acquisition.clustering import by_coverage, most_typical, spherical_kmeans
from trainer.acquisition.margin import uncertainty
from trainer.acquisition.state import PoolState

# Up to this number of labels a class, on average, beliefs are too poor to choose by, and the pool is covered.
COVERED_PER_CLASS = 4
# Factor of a neighbour's score when an image beside it is picked.
NEIGHBOUR_DISCOUNT = 0.5
# Number of picks that are ordered by coverage: the order matters when few labels are asked for in parts.
_ORDERED = 100


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Take medoids of uncovered clusters at first, then the most uncertain neighbourhoods."""
    batch = min(batch, len(state.free))
    if state.beliefs is None or is_covering(state):
        return cover(state, batch, generator)
    scores = neighbourhood_uncertainty(state, state.beliefs)
    scores[state.labelled] = -1
    chosen: list[int] = []
    for _ in range(batch):
        pick = int(scores.argmax())
        chosen.append(pick)
        near = state.neighbours[pick]
        scores[near] = torch.where(scores[near] > 0, scores[near] * NEIGHBOUR_DISCOUNT, scores[near])
        scores[pick] = -1
    return torch.tensor(chosen, dtype=torch.long, device=state.features.device)


def is_covering(state: PoolState) -> bool:
    """Tell whether there are so few labels that the pool is still to be covered."""
    return int(state.labelled.sum()) < COVERED_PER_CLASS * state.classes


def neighbourhood_uncertainty(state: PoolState, beliefs: Tensor) -> Tensor:
    """Average each image's margin uncertainty with its neighbours': [N], in [0, 1]."""
    own = uncertainty(beliefs)
    return (own + own[state.neighbours].mean(1)) / 2


def cover(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Take the medoids of the largest clusters without a label; there are as many clusters as there will be labels.

    The first hundred medoids are ordered by coverage, so that the first few of them are a good choice too.
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

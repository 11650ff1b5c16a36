"""TypiClust: ask for the most typical image of each cluster without a label.

Source: G. Hacohen et al., "Active learning on a budget: opposite strategies suit high and low budgets", ICML 2022.
Departure: typicality is the mean similarity to the neighbours in the pool's graph, not to those in the cluster.
"""

import torch
from torch import Tensor

from trainer.acquisition.clustering import spherical_kmeans
from trainer.acquisition.state import PoolState

# The paper caps the number of clusters at 500 to keep them larger than a neighbourhood.
MAX_CLUSTERS = 500


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Cluster into labelled + batch clusters; take the most typical image of the largest uncovered ones, in turn."""
    batch = min(batch, len(state.free))
    clusters = min(int(state.labelled.sum()) + batch, MAX_CLUSTERS, len(state.features))
    assigned, _ = spherical_kmeans(state.features, clusters, generator)
    typicality = state.similarities.mean(1)
    free = ~state.labelled
    covered = torch.bincount(assigned[state.labelled], minlength=clusters)
    size = torch.bincount(assigned[free], minlength=clusters)
    chosen: list[int] = []
    while len(chosen) < batch:
        # Fewest labels first, then the largest cluster: beyond MAX_CLUSTERS picks, clusters are visited again.
        candidates = (size > 0).nonzero().flatten()
        fewest = candidates[covered[candidates] == covered[candidates].min()]
        cluster = int(fewest[size[fewest].argmax()])
        members = ((assigned == cluster) & free).nonzero().flatten()
        pick = int(members[typicality[members].argmax()])
        chosen.append(pick)
        free[pick] = False
        covered[cluster] += 1
        size[cluster] -= 1
    return torch.tensor(chosen, dtype=torch.long, device=state.features.device)

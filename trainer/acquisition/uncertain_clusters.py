"""Cover what is uncertain: cluster the pool by uncertainty-weighted k-means, ask for the centre of each cluster.

While there are few labels it covers the whole pool (`coverage_margin.cover`). Afterwards an image weighs as much as it
and its neighbours are torn between two classes, and each cluster of that weight is asked about where it is heaviest and
most typical. So the batch lies where many images are uncertain in like ways, and no two picks ask the same.
What that is worth: docs/decisions/0018-clusters-of-uncertainty.md.

Source: F. Zhdanov, "Diverse mini-batch active learning", 2019. Departures: spherical k-means; weights of the
neighbourhood and to a power; the pick is typical and torn, instead of nearest to the centre.
"""

import torch
from torch import Tensor

from trainer.acquisition.clustering import spherical_kmeans
from trainer.acquisition.coverage_margin import cover, is_covering, neighbourhood_uncertainty
from trainer.acquisition.state import PoolState

# The higher, the more the weight is that of the most torn neighbourhoods alone; 4 and 8 were alike, 1 and 2 worse.
SHARPNESS = 4.0


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Take medoids of uncovered clusters at first, then the centres of clusters of uncertainty."""
    batch = min(batch, len(state.free))
    if state.beliefs is None or is_covering(state):
        return cover(state, batch, generator)
    weights = neighbourhood_uncertainty(state, state.beliefs).pow(SHARPNESS)
    weights[state.labelled] = 0
    clusters = min(batch, int((weights > 0).sum()))
    if clusters == 0:
        return state.draw(batch, generator)
    assigned, similarity = spherical_kmeans(state.features, clusters, generator, weights=weights)
    worth = similarity.clamp_min(0) * weights
    picks = []
    for cluster in assigned[weights > 0].unique().tolist():
        members = ((assigned == cluster) & ~state.labelled).nonzero().flatten()
        picks.append(members[worth[members].argmax()])
    return state.fill_up(torch.stack(picks), batch, generator)

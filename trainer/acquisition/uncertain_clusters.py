"""Cover what is uncertain: cluster the pool by uncertainty-weighted k-means, and ask for one image of each cluster.

While there are few labels it covers the whole pool (`coverage_margin.cover`). Afterwards the weight of an image is the
uncertainty of its neighbourhood, and the pick of a cluster is the image with the largest product of weight and
similarity to the centre. So a batch comes from regions with many uncertain images, and its images are not alike.
How much that gains: docs/decisions/0018-clusters-of-uncertainty.md.

Source: F. Zhdanov, "Diverse mini-batch active learning", 2019. Departures: spherical k-means; weights of the
neighbourhood, raised to a power; the pick is uncertain and typical, not the nearest to the centre.
"""

import torch
from torch import Tensor

from trainer.acquisition.clustering import spherical_kmeans
from trainer.acquisition.coverage_margin import cover, is_covering, neighbourhood_uncertainty
from trainer.acquisition.state import PoolState

# The power of the weights. 4 and 8 were equally good, 1 and 2 worse.
SHARPNESS = 4.0


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """While labels are few, cover the pool; later take the best-scored image of each uncertainty-weighted cluster."""
    batch = min(batch, len(state.free))
    if state.beliefs is None or is_covering(state):
        return cover(state, batch, generator)
    weights = neighbourhood_uncertainty(state, state.beliefs).pow(SHARPNESS)
    weights[state.labelled] = 0
    clusters = min(batch, int((weights > 0).sum()))
    if clusters == 0:
        return state.draw(batch, generator)
    assigned, similarity = spherical_kmeans(state.features, clusters, generator, weights=weights)
    scores = similarity.clamp_min(0) * weights
    picks = []
    for cluster in assigned[weights > 0].unique().tolist():
        members = ((assigned == cluster) & ~state.labelled).nonzero().flatten()
        picks.append(members[scores[members].argmax()])
    return state.fill_up(torch.stack(picks), batch, generator)

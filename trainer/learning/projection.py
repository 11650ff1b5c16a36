"""A map of images: two dimensions in which images with similar features lie close together.

Each point is pulled to its nearest neighbours and pushed away from points drawn at random, under a Student kernel, from
the two leading principal axes on (J. Tang et al., "Visualizing large-scale and high-dimensional data", WWW 2016;
L. McInnes et al., "UMAP", 2018). Only neighbourhoods have a meaning on such a map; distances between groups have none.
"""

import torch
from torch import Tensor

from trainer.learning.graph import nearest_neighbours

_NEIGHBOURS = 15
# Points that push each point in a step, and the share of a neighbour's pull: about five times as many push as pull.
_PUSHING, _PULL = 25, 0.33
_STEPS = 200
_LONGEST_MOVE = 4.0


def project(features: Tensor, generator: torch.Generator) -> Tensor:
    """Lay out unit vectors, float32 [N, D], on a plane.

    A few thousand points take seconds: choose that many from a larger pool. The generator, on the features' device,
    draws the points that push.

    Returns:
        float32 [N, 2], centred; identical vectors may coincide.
    """
    N = len(features)
    centred = features - features.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -2:]
    places: Tensor = centred @ axes
    # Too few points for neighbours, or for a second axis: the axes are the map.
    if N <= 3 or places.shape[1] < 2:
        return torch.nn.functional.pad(places, (0, 2 - places.shape[1]))
    places = 10 * places / places.abs().max().clamp_min(1e-12)
    k = min(_NEIGHBOURS, N - 1)
    near = nearest_neighbours(features, features, k + 1)[1][:, 1:]
    for step in range(_STEPS):
        to_near = places[near] - places.unsqueeze(1)
        pull = (2 * to_near / (1 + to_near.square().sum(2, keepdim=True))).sum(1)
        drawn = torch.randint(N, (N, _PUSHING), generator=generator, device=features.device)
        away = places.unsqueeze(1) - places[drawn]
        squares = away.square().sum(2, keepdim=True)
        push = (2 * away / ((0.001 + squares) * (1 + squares))).clamp(-_LONGEST_MOVE, _LONGEST_MOVE).sum(1)
        move = (_PULL * pull + push).clamp(-_LONGEST_MOVE, _LONGEST_MOVE)
        places = places + 0.5 * (1 - step / _STEPS) * move
    return places - places.mean(0)

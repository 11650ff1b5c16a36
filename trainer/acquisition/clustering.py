"""Spherical k-means on unit vectors, shared by the strategies that want coverage."""

import torch
import torch.nn.functional as F
from torch import Tensor


def spherical_kmeans(features: Tensor, clusters: int, generator: torch.Generator, steps: int = 15) -> Tensor:
    """Cluster unit vectors by cosine similarity (Lloyd's algorithm from random members).

    Args:
        features: float32 [N, D], unit vectors.
        clusters: at most N.
        generator: for the first centres.
        steps: iterations.

    Returns:
        The cluster of each row, int64 [N], in [0, clusters); some clusters may be empty.
    """
    start = torch.randperm(len(features), generator=generator, device=generator.device)[:clusters]
    centres = features[start.to(features.device)]
    assigned = _assign(features, centres)
    for _ in range(steps):
        sums = torch.zeros_like(centres).index_add_(0, assigned, features)
        empty = sums.square().sum(1) == 0
        centres = torch.where(empty.unsqueeze(1), centres, F.normalize(sums, dim=1))
        assigned = _assign(features, centres)
    return assigned


def _assign(features: Tensor, centres: Tensor) -> Tensor:
    return torch.cat([(part @ centres.T).argmax(1) for part in features.split(8192)])


def most_typical(features: Tensor, assigned: Tensor, cluster: int) -> int:
    """Find the member of a cluster nearest to the cluster's mean direction (its medoid, to first order)."""
    members = (assigned == cluster).nonzero().flatten()
    similarity = features[members] @ F.normalize(features[members].sum(0), dim=0)
    return int(members[similarity.argmax()])

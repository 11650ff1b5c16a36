"""Spherical k-means on unit vectors, medoids, and greedy ordering by coverage."""

import torch
import torch.nn.functional as F
from torch import Tensor


def spherical_kmeans(
    features: Tensor, clusters: int, generator: torch.Generator, steps: int = 15, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cluster unit vectors by cosine similarity (Lloyd's algorithm from random members).

    Args:
        features: float32 [N, D], unit vectors.
        clusters: at most N, and at most the number of positive weights.
        generator: for the first centres.
        steps: iterations.
        weights: float32 [N], >= 0, of each vector in its centre and in the draw of the first centres; None for equal
            weights.

    Returns:
        The cluster of each row, int64 [N], in [0, clusters), and the row's similarity to the centre, float32 [N]. Some
        clusters may be empty.
    """
    centres = features[_draw_centres(len(features), clusters, generator, weights).to(features.device)]
    assigned, similarity = _assign(features, centres)
    weighted = features if weights is None else features * weights.unsqueeze(1)
    for _ in range(steps):
        sums = torch.zeros_like(centres).index_add_(0, assigned, weighted)
        empty = sums.square().sum(1) == 0
        centres = torch.where(empty.unsqueeze(1), centres, F.normalize(sums, dim=1))
        assigned, similarity = _assign(features, centres)
    return assigned, similarity


def _draw_centres(count: int, clusters: int, generator: torch.Generator, weights: Tensor | None) -> Tensor:
    """Draw the rows of the first centres without replacement, in proportion to their weights."""
    if weights is None:
        return torch.randperm(count, generator=generator, device=generator.device)[:clusters]
    # The largest of u^(1/w) is a draw without replacement (P. Efraimidis and P. Spirakis, IPL 2006).
    chance = torch.rand(count, generator=generator, device=generator.device, dtype=torch.double).to(weights.device)
    keys = torch.where(weights > 0, chance.log() / weights.double(), torch.full_like(chance, -torch.inf))
    return keys.topk(clusters).indices


def _assign(features: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    best = [(rows @ centres.T).max(1) for rows in features.split(8192)]
    return torch.cat([part.indices for part in best]), torch.cat([part.values for part in best])


def most_typical(features: Tensor, assigned: Tensor, cluster: int) -> int:
    """Find the member of a cluster most similar to the mean of the cluster (its medoid, to first order)."""
    members = (assigned == cluster).nonzero().flatten()
    similarity = features[members] @ F.normalize(features[members].sum(0), dim=0)
    return int(members[similarity.argmax()])


def by_coverage(features: Tensor, picks: Tensor, known: Tensor) -> Tensor:
    """Order picks so that each next one adds most to the coverage of the pool.

    Greedy maximisation of facility location (K. Wei, R. Iyer and J. Bilmes, "Submodularity in data subset selection and
    active learning", ICML 2015).

    Args:
        features: float32 [N, D], unit vectors.
        picks: int64 [B], none twice; [N, B + L] similarities are held at once.
        known: int64 [L], images that cover already.

    Returns:
        The picks, int64 [B], in that order; of equal picks the earlier first.
    """
    # -1 is the lowest cosine: without known images, any first pick adds coverage.
    opposite = torch.full((len(features), 1), -1.0, device=features.device)
    nearest = torch.cat([opposite, features @ features[known].T], 1).max(1).values
    similarity = features @ features[picks].T
    order: list[int] = []
    for _ in range(len(picks)):
        gain = (similarity - nearest.unsqueeze(1)).clamp_min(0).sum(0)
        gain[order] = -1
        best = int(gain.argmax())
        order.append(best)
        nearest = torch.maximum(nearest, similarity[:, best])
    return picks[torch.tensor(order, dtype=torch.long, device=picks.device)]

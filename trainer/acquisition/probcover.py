"""ProbCover: cover as much of the pool as possible with balls of equal radius around labelled images.

Source: O. Yehuda et al., "Active learning through a covering lens", NeurIPS 2022. The radius is the largest at which
95% of the balls are pure, with as many k-means clusters as classes in place of the classes (their section 4.2).
Departure: purity is measured on a sample of balls, and no ball is stored.
"""

import torch
from torch import Tensor

from trainer.acquisition.clustering import spherical_kmeans
from trainer.acquisition.state import PoolState

PURITY = 0.95
# Number of balls on which purity is estimated: its standard error is then half a percent.
_SAMPLE = 2000
_CHUNK = 1024


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Take, one by one, the image whose ball holds most images that are not covered."""
    batch = min(batch, len(state.free))
    features = state.features
    reach = pure_similarity(features, state.classes, generator)
    uncovered = torch.ones(len(features), dtype=torch.bool, device=features.device)
    for part in state.labelled.nonzero().flatten().split(_CHUNK):
        uncovered &= ~(features @ features[part].T >= reach).any(1)
    gain = _ball_counts(features, uncovered.nonzero().flatten(), reach)
    gain[state.labelled] = -1
    chosen: list[int] = []
    while len(chosen) < batch and gain.max() > 0:
        pick = int(gain.argmax())
        chosen.append(pick)
        newly = ((features @ features[pick] >= reach) & uncovered).nonzero().flatten()
        uncovered[newly] = False
        gain -= _ball_counts(features, newly, reach)
        gain[pick] = -1
        gain[state.labelled] = -1
    # If everything is covered, the rest is random.
    return state.fill_up(torch.tensor(chosen, dtype=torch.long, device=features.device), batch, generator)


def pure_similarity(features: Tensor, classes: int, generator: torch.Generator) -> float:
    """Find the largest radius at which `PURITY` of the balls hold one cluster only, as a cosine similarity.

    Args:
        features: float32 [N, D], unit vectors.
        classes: number of clusters, at most N.
        generator: for k-means and the sample.
    """
    assigned, _ = spherical_kmeans(features, min(classes, len(features)), generator)
    sample = torch.randperm(len(features), generator=generator, device=generator.device)[:_SAMPLE].to(features.device)
    nearest_other = []
    for part in sample.split(_CHUNK):
        similarity = features[part] @ features.T
        similarity[assigned[part].unsqueeze(1) == assigned] = -1
        nearest_other.append(similarity.max(1).values)
    # A ball is pure if its radius is shorter than the distance of the nearest image of another cluster.
    boundary = torch.cat(nearest_other).quantile(PURITY)
    return float(torch.nextafter(boundary, torch.full_like(boundary, 2)))


def _ball_counts(features: Tensor, members: Tensor, reach: float) -> Tensor:
    """Count, for each image, how many of `members` lie in its ball: int64 [N]."""
    counts = torch.zeros(len(features), dtype=torch.long, device=features.device)
    for part in members.split(_CHUNK):
        counts += (features @ features[part].T >= reach).sum(1)
    return counts

"""BADGE: k-means++ on the last layer's gradients, with the likeliest class as the label.

Source: J. T. Ash et al., "Deep batch active learning by diverse, uncertain gradient lower bounds", ICLR 2020.
An image's gradient is the outer product of (belief - one-hot of the likeliest class) and its features, C x D numbers.
The inner product of two gradients is the product of the inner products of their factors, so no gradient is formed.
Departure: features of the graph and beliefs of graph and network, because a graph has no last layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.acquisition.state import PoolState


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Draw images in proportion to their squared gradient distance to those drawn; random ones without beliefs."""
    if state.beliefs is None:
        return state.draw(batch, generator)
    batch = min(batch, len(state.free))
    beliefs, features = state.beliefs, state.features
    residual = beliefs - F.one_hot(beliefs.argmax(1), beliefs.shape[1])
    norm = residual.square().sum(1) * features.square().sum(1)
    # The first centre is the largest gradient, as in the authors' code. Labelled images are excluded.
    available = (~state.labelled).to(norm.dtype)
    distance = norm * available
    chosen: list[int] = []
    for _ in range(batch):
        pick = int(distance.argmax()) if not chosen else _draw(distance, available, generator)
        chosen.append(pick)
        product = (residual @ residual[pick]) * (features @ features[pick])
        to_pick = (norm + norm[pick] - 2 * product).clamp_min(0)
        distance = torch.minimum(distance, to_pick) if len(chosen) > 1 else to_pick
        available[pick] = 0
        distance = distance * available
    return torch.tensor(chosen, dtype=torch.long, device=features.device)


def _draw(distance: Tensor, available: Tensor, generator: torch.Generator) -> int:
    """Draw in proportion to the distances, or evenly if all are zero (duplicates, certain beliefs)."""
    weights = distance if bool(distance.sum() > 0) else available
    # By inversion: torch.multinomial takes at most 2^24 categories, and the generator is on the CPU.
    total = weights.double().cumsum(0)
    point = torch.rand((), generator=generator, dtype=torch.double, device=generator.device).to(total.device)
    index = int(torch.searchsorted(total, point * total[-1], right=True))
    return min(index, int(weights.nonzero()[-1]))

"""BADGE: k-means++ on the gradients that the likeliest class would give the last layer.

Source: J. T. Ash et al., "Deep batch active learning by diverse, uncertain gradient lower bounds", ICLR 2020.
An image's gradient is the outer product of (belief - one-hot of the likeliest class) and its features, C x D numbers.
The product of two such gradients is the product of their factors' products, so none is ever written out. Departure:
the features are the graph's and the beliefs those of graph and network, since a fresh graph has no last layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.acquisition.state import PoolState


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Draw images in proportion to their squared gradient distance to those drawn; random ones while no belief is."""
    if state.beliefs is None:
        return state.draw(batch, generator)
    batch = min(batch, len(state.free))
    beliefs, features = state.beliefs, state.features
    residual = beliefs - F.one_hot(beliefs.argmax(1), beliefs.shape[1])
    norm = residual.square().sum(1) * features.square().sum(1)
    # The first centre is the largest gradient, as in the authors' code; a labelled image has none.
    open_to_choice = (~state.labelled).to(norm.dtype)
    distance = norm * open_to_choice
    chosen: list[int] = []
    for _ in range(batch):
        pick = int(distance.argmax()) if not chosen else _draw(distance, open_to_choice, generator)
        chosen.append(pick)
        product = (residual @ residual[pick]) * (features @ features[pick])
        to_pick = (norm + norm[pick] - 2 * product).clamp_min(0)
        distance = torch.minimum(distance, to_pick) if len(chosen) > 1 else to_pick
        open_to_choice[pick] = 0
        distance = distance * open_to_choice
    return torch.tensor(chosen, dtype=torch.long, device=features.device)


def _draw(distance: Tensor, open_to_choice: Tensor, generator: torch.Generator) -> int:
    """Draw in proportion to the distances, or evenly from what is left where all are zero (duplicates, certainty)."""
    weights = distance if bool(distance.sum() > 0) else open_to_choice
    # By inversion: torch.multinomial takes no more than 2^24 categories, and the generator is the CPU's.
    total = weights.double().cumsum(0)
    point = torch.rand((), generator=generator, dtype=torch.double, device=generator.device).to(total.device)
    index = int(torch.searchsorted(total, point * total[-1], right=True))
    return min(index, int(weights.nonzero()[-1]))

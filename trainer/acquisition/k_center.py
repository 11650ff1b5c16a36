"""k-center greedy (core-set): O. Sener and S. Savarese, "Active learning for CNNs: a core-set approach", ICLR 2018."""

import torch
from torch import Tensor

from trainer.acquisition.state import PoolState


def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
    """Take, one by one, the image farthest from all that are labelled or taken; without labels the first is random."""
    batch = min(batch, len(state.free))
    features = state.features
    # Similarity to the nearest labelled or taken image; lower than any cosine while there is none.
    nearest = torch.full((len(features),), -2.0, device=features.device)
    for index in state.labelled.nonzero().flatten().tolist():
        nearest = torch.maximum(nearest, features @ features[index])
    # Higher than any cosine, so that it is never the minimum.
    nearest[state.labelled] = 2.0
    chosen: list[int] = []
    for _ in range(batch):
        first = not chosen and not state.labelled.any()
        pick = int(state.draw(1, generator)) if first else int(nearest.argmin())
        chosen.append(pick)
        nearest = torch.maximum(nearest, features @ features[pick])
        nearest[pick] = 2.0
        nearest[state.labelled] = 2.0
    return torch.tensor(chosen, dtype=torch.long, device=features.device)

"""All that a query strategy may look at; no label that was not paid for, and no test image."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class PoolState:
    """The pool before a query; strategies must not change it.

    Attributes:
        features: float32 [N, D], unit vectors.
        neighbours: int64 [N, k], nearest first, without the node itself.
        similarities: float32 [N, k], cosine similarities of those neighbours.
        beliefs: float32 [N, C], class probabilities, or None before the first label.
        labelled: bool [N].
        classes: number of classes, C.
        labels: int64 [N], the labels paid for, and -1 where none was.
        round: number of the round that asks, from 0.
        images: uint8 [N, H, W], or [N, H, W, 3] in colour, at the size that is learned from.
        embed: computes `embeddings`, which costs a pass of the network over the pool.
    """

    features: Tensor
    neighbours: Tensor
    similarities: Tensor
    beliefs: Tensor | None
    labelled: Tensor
    classes: int
    labels: Tensor
    round: int
    images: Tensor
    embed: Callable[[], Tensor]

    @cached_property
    def embeddings(self) -> Tensor:
        """The network's features of the pool, unit vectors, float32 [N, E]; computed at the first look.

        They are those of the fine-tuned network, and of the pretrained one before the first training.
        """
        return self.embed()

    @property
    def free(self) -> Tensor:
        """The unlabelled indices, ascending: int64 [F]."""
        return (~self.labelled).nonzero().flatten()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` distinct unlabelled indices, or all if there are fewer."""
        free = self.free
        order = torch.randperm(len(free), generator=generator, device=generator.device).to(free.device)
        return free[order[:count]]

    def best(self, scores: Tensor, batch: int) -> Tensor:
        """Take the unlabelled indices with the highest scores [N]; of equal scores the lower index first."""
        free = self.free
        return free[scores[free].argsort(descending=True, stable=True)[:batch]]

    def fill_up(self, chosen: Tensor, batch: int, generator: torch.Generator) -> Tensor:
        """Fill a selection up to `batch` indices (or to all that are free) with random unlabelled ones."""
        missing = min(batch, len(self.free)) - len(chosen)
        if missing <= 0:
            return chosen[:batch]
        taken = self.labelled.clone()
        taken[chosen] = True
        return torch.cat([chosen, replace(self, labelled=taken).draw(missing, generator)])

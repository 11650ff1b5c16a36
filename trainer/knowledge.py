"""What is believed of every image: the graph's propagation and the network's prediction, joined."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import GraphConfig
from trainer.descriptor import Descriptor
from trainer.encoder import Encoder
from trainer.finetune import embed, predict
from trainer.graph import NeighbourGraph, balance_classes, build_graph, propagate_labels


class FeatureSpace:
    """Features that do not change while fine-tuning: the descriptor beside the pretrained encoder's embedding."""

    def __init__(self, pool: Tensor, encoder: Encoder, config: GraphConfig) -> None:
        """Fit the descriptor and embed the pool.

        Args:
            pool: uint8 [N, H, W].
            encoder: pretrained, not yet fine-tuned; embedded now, not kept.
            config: dimensions and weights.
        """
        self.config = config
        self._descriptor = Descriptor(pool, config.descriptor_dimensions)
        self.pool = join(self._descriptor(pool), config.pretrained_weight * embed(encoder, pool))

    def describe(self, images: Tensor) -> Tensor:
        """Describe other images by the descriptor alone: uint8 [M, H, W] -> unit vectors [M, D]."""
        return self._descriptor(images)


def join(*features: Tensor) -> Tensor:
    """Concatenate weighted features [N, D_i] and normalise the rows."""
    return F.normalize(torch.cat(features, 1), dim=1)


@dataclass(frozen=True)
class Knowledge:
    """Graph and network at one moment; `beliefs` adds the labels.

    Attributes:
        features: float32 [N, D], unit vectors, of which the graph is made.
        graph: the neighbour graph.
        predictions: float32 [N, C] of the network, or None while it is untrained.
    """

    features: Tensor
    graph: NeighbourGraph
    predictions: Tensor | None
    alpha: float

    @classmethod
    def of(cls, space: FeatureSpace, pool: Tensor, network: Encoder | None) -> "Knowledge":
        """Look at the pool with a fine-tuned network, or (None) with the unchanging features alone."""
        config = space.config
        if network is None:
            return cls(space.pool, build_graph(space.pool, config.neighbours), None, config.alpha)
        features = join(space.pool, config.finetuned_weight * embed(network, pool))
        return cls(features, build_graph(features, config.neighbours), predict(network, pool), config.alpha)

    def beliefs(self, ids: Tensor, labels: Tensor, classes: int) -> Tensor:
        """Join the graph's propagation of the known labels with the network's predictions.

        The two are experts of one opinion each: their geometric mean, rebalanced, is better than either.

        Args:
            ids: int64 [L], queried images.
            labels: int64 [L].
            classes: C.

        Returns:
            float32 [N, C], rows summing to one, one-hot where the label is known.
        """
        spread = propagate_labels(self.graph, ids, labels, classes, alpha=self.alpha)
        if self.predictions is None:
            return spread
        joint = (spread * self.predictions.clamp_min(1e-6)).sqrt()
        joint = balance_classes(joint / joint.sum(1, keepdim=True))
        joint[ids] = F.one_hot(labels, classes).to(joint.dtype)
        return joint

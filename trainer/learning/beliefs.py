"""Beliefs: class probabilities of every image, from the labels spread over the graph and the network's predictions."""

import copy
import hashlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import GraphConfig
from trainer.errors import ConfigError
from trainer.images.descriptor import Descriptor
from trainer.learning.encoder import Encoder
from trainer.learning.finetune import embed_and_predict, predict
from trainer.learning.graph import (
    NeighbourGraph,
    balance_classes,
    build_graph,
    estimate_class_prior,
    nearest_neighbours,
    neighbours_for,
    propagate_labels,
)
from trainer.learning.losses import PROBABILITY_FLOOR

# With the default smoothing of 0.8, the error left after 20 steps is 0.8^20, about 1%.
_SMOOTHING_STEPS = 20
# Numbers held at once by the votes of neighbours; more votes are counted in parts.
_VOTE_NUMBERS = 2**24


class FeatureSpace:
    """Descriptor, pretrained, own and fine-tuned features, concatenated into unit vectors.

    Attributes:
        config: weights and sizes.
        pretrained: a copy of the pretrained encoder.
        found: see `distinct_images`.
    """

    def __init__(self, pool: Tensor, encoder: Encoder, config: GraphConfig, own: Tensor | None = None) -> None:
        """Fit the descriptor to the pool and compute what fine-tuning does not change.

        Args:
            pool: uint8 [N, H, W] or [N, H, W, 3].
            encoder: the pretrained one; its weights are copied.
            config: weights and sizes.
            own: float32 [N, E], the user's features of the pool, which join ours or replace them
                (`GraphConfig.own_features`).
        """
        self.config = config
        # Of a hundred copies of one image each would be the only neighbours of the others.
        self.found = distinct_images(pool, config.neighbours)
        self._descriptor = None if config.own_features == "alone" else Descriptor(pool, config.descriptor_dimensions)
        self.pretrained = copy.deepcopy(encoder).requires_grad_(False)
        self._fixed_pool = self._fixed(pool, own)

    def state(self) -> dict[str, Any]:
        """Return what embeds other images, to keep in a file; no feature of the pool is in it."""
        described = None if self._descriptor is None else self._descriptor.state()
        return {"descriptor": described, "pretrained": self.pretrained.state_dict(), "found": self.found}

    @classmethod
    def restored(cls, config: GraphConfig, encoder: Encoder, state: dict[str, Any]) -> "FeatureSpace":
        """Make a space that embeds other images of what `state` returned; the encoder takes its weights."""
        space = cls.__new__(cls)
        encoder.load_state_dict(state["pretrained"])
        space.config, space.pretrained, space.found = config, encoder.requires_grad_(False), state["found"]
        space._descriptor = None if state["descriptor"] is None else Descriptor.restored(state["descriptor"])
        return space

    def embed_pool(self, finetuned: Tensor | None) -> Tensor:
        """Embed the pool, float32 [N, D], with the fine-tuned network's embedding [N, E] where there is one."""
        return self._join(self._fixed_pool, finetuned)

    def embed(self, images: Tensor, network: Encoder | None, own: Tensor | None = None) -> Tensor:
        """Embed other images in the same space.

        Args:
            images: uint8 [M, H, W] or [M, H, W, 3].
            network: the fine-tuned one, where the pool was embedded with it.
            own: float32 [M, E], their own features, where the pool has such.

        Returns:
            float32 [M, D], unit vectors.

        Raises:
            ConfigError: the pool has own features, and these images have none.
        """
        finetuned = None if network is None else embed_and_predict(network, images)[0]
        return self._join(self._fixed(images, own), finetuned)

    def _fixed(self, images: Tensor, own: Tensor | None) -> Tensor:
        if (own is None) != (self.config.own_features is None):
            raise ConfigError("this run learns from --features, so images without a row there cannot be predicted")
        if own is not None and self._descriptor is None:
            return F.normalize(own, dim=1)
        assert self._descriptor is not None
        pretrained = self.config.pretrained_weight * embed_and_predict(self.pretrained, images)[0]
        described = self.config.descriptor_weight * self._descriptor(images)
        fixed = F.normalize(torch.cat([described, pretrained], 1), dim=1)
        return fixed if own is None else F.normalize(torch.cat([fixed, F.normalize(own, dim=1)], 1), dim=1)

    def _join(self, fixed: Tensor, finetuned: Tensor | None) -> Tensor:
        if finetuned is None:
            return fixed
        return F.normalize(torch.cat([fixed, self.config.finetuned_weight * finetuned], 1), dim=1)


def distinct_images(pool: Tensor, copies: int) -> Tensor | None:
    """Find the images to keep where the pool has more than so many copies of one.

    Args:
        pool: uint8 [N, …].
        copies: images with at most so many copies beside them all stay.

    Returns:
        int64 [M], ascending: all rows but the second and later ones of the images with more copies; None for all rows.
    """
    groups: dict[bytes, list[int]] = {}
    for row, image in enumerate(pool.cpu().numpy()):
        groups.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), []).append(row)
    surplus = [row for rows in groups.values() if len(rows) > copies for row in rows[1:]]
    if not surplus:
        return None
    kept = torch.ones(len(pool), dtype=torch.bool)
    kept[surplus] = False
    return kept.nonzero().flatten().to(pool.device)


@dataclass(frozen=True)
class JointModel:
    """Graph and network at one moment, without any label.

    Attributes:
        space: the feature space.
        network: the fine-tuned network, or None while there is none.
        features: float32 [N, D], unit vectors of the pool.
        graph: the neighbour graph of the features.
        predictions: float32 [N, C] of the network, or None.
        balanced: whether all classes are equally frequent in the pool; if not, their shares are estimated.
    """

    space: FeatureSpace
    network: Encoder | None
    features: Tensor
    graph: NeighbourGraph
    predictions: Tensor | None
    balanced: bool = True

    @classmethod
    def build(
        cls,
        space: FeatureSpace,
        pool: Tensor,
        network: Encoder | None,
        *,
        classes: int | None = None,
        balanced: bool = True,
    ) -> "JointModel":
        """Build the graph and the predictions of the pool; without a network, the graph of the fixed features.

        The number of classes lowers that of neighbours on a small pool; None keeps the configured one.
        """
        embedding, predictions = (None, None) if network is None else embed_and_predict(network, pool)
        features = space.embed_pool(embedding)
        k = space.config.neighbours
        k = k if classes is None else neighbours_for(len(features), classes, k)
        return cls(space, network, features, build_graph(features, k, space.found), predictions, balanced)

    def class_prior(self, ids: Tensor, labels: Tensor, classes: int) -> Tensor | None:
        """Estimate the share of each class in the pool, float32 [C]; None where all are equally frequent."""
        if self.balanced:
            return None
        return estimate_class_prior(self.graph, ids, labels, classes)

    def embeddings(self, pool: Tensor) -> Tensor:
        """Embed the pool by the fine-tuned network, or by the pretrained one while there is none: float32 [N, E]."""
        return embed_and_predict(self.network or self.space.pretrained, pool)[0]

    def beliefs(self, ids: Tensor, labels: Tensor, classes: int) -> Tensor:
        """Join the graph's propagation of the known labels with the network's predictions.

        Graph and network are experts that err on different images. Their weighted geometric mean, balanced and
        smoothed over the graph, was right on 91.3% of a pool where propagation alone reached 90.9% and the network
        90.0% (1,000 labels, re-drawn split 1).

        Args:
            ids: int64 [L], queried images.
            labels: int64 [L].
            classes: C.

        Returns:
            float32 [N, C], rows summing to one, one-hot where the label is known.
        """
        config = self.space.config
        if not config.propagate:
            return self._beliefs_without_graph(ids, labels, classes)
        class_prior = self.class_prior(ids, labels, classes)
        spread = propagate_labels(self.graph, ids, labels, classes, alpha=config.alpha, class_prior=class_prior)
        if self.predictions is None:
            return spread
        predicted = self.predictions.clamp_min(PROBABILITY_FLOOR)
        joint = spread.pow(config.graph_share) * predicted.pow(1 - config.graph_share)
        joint = balance_classes(joint / joint.sum(1, keepdim=True), class_prior)
        return propagate_labels(
            self.graph,
            ids,
            labels,
            classes,
            alpha=config.smoothing,
            steps=_SMOOTHING_STEPS,
            start=joint,
            class_prior=class_prior,
        )

    def _beliefs_without_graph(self, ids: Tensor, labels: Tensor, classes: int) -> Tensor:
        """Return the network's predictions (uniform ones without a network), one-hot where the label is known."""
        if self.predictions is None:
            beliefs = torch.full((len(self.features), classes), 1 / classes, device=self.features.device)
        else:
            class_prior = self.class_prior(ids, labels, classes)
            beliefs = balance_classes(self.predictions.clamp_min(PROBABILITY_FLOOR), class_prior)
        beliefs[ids] = F.one_hot(labels, classes).to(beliefs.dtype)
        return beliefs

    def predict(self, images: Tensor, beliefs: Tensor, own: Tensor | None = None) -> Tensor:
        """Classify other images by the network and a vote of their neighbours in the pool.

        Args:
            images: uint8 [M, H, W] or [M, H, W, 3].
            beliefs: float32 [N, C] of the pool; a neighbour votes with its belief.
            own: float32 [M, E], see `FeatureSpace.embed`.

        Returns:
            Class probabilities, float32 [M, C].
        """
        config = self.space.config
        if not config.propagate and self.network is not None:
            return predict(self.network, images)
        found = self.space.found
        keys = self.features if found is None else self.features[found]
        k = max(1, min(self.graph.neighbours.shape[1], len(keys)))
        similarities, indices = nearest_neighbours(self.space.embed(images, self.network, own), keys, k)
        indices = indices if found is None else found[indices]
        weights = torch.softmax(similarities / config.vote_temperature, 1)
        rows = max(1, _VOTE_NUMBERS // (k * beliefs.shape[1]))
        votes = [
            (beliefs[part] * weight.unsqueeze(2)).sum(1)
            for part, weight in zip(indices.split(rows), weights.split(rows), strict=True)
        ]
        vote = torch.cat(votes)
        if self.network is None:
            return vote
        predicted = predict(self.network, images).clamp_min(PROBABILITY_FLOOR)
        joint = vote.clamp_min(PROBABILITY_FLOOR).pow(config.vote_share) * predicted.pow(1 - config.vote_share)
        return joint / joint.sum(1, keepdim=True)

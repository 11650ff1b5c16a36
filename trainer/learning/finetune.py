"""Semi-supervised fine-tuning: learn from the labels paid for and from confident pseudo-labels.

A phase mixes four losses over the whole pool:

- labelled: cross entropy on weak views of the queried images;
- soft: cross entropy of weak views against the beliefs of graph and network (distillation);
- consistency: the prediction on a strong view must agree with a confident pseudo-label, which the teacher, a moving
  average of the student, makes on a weak view (FixMatch, K. Sohn et al., NeurIPS 2020; teacher: A. Tarvainen and
  H. Valpola, NeurIPS 2017). The teacher's prediction is multiplied by the beliefs, and then aligned to the
  classes' shares in the pool (ReMixMatch, D. Berthelot et al., ICLR 2020). Pairs of strong views can be mixed, and are
  then to be of both pseudo-labels (E. Arazo et al., "Pseudo-labeling and confirmation bias in deep semi-supervised
  learning", IJCNN 2020: mixup keeps the student from learning wrong pseudo-labels by heart);
- contrast: HCL of the student's strong view and the teacher's weak one. How much an image is a negative of another
  depends on how sure the beliefs are that their classes differ.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from trainer.config import FinetuneConfig, PhaseConfig
from trainer.images.augment import random_view
from trainer.images.pixels import as_planes
from trainer.learning.device import mixed_precision
from trainer.learning.encoder import Encoder
from trainer.learning.epochs import Schedule, TrainingState, train_epochs
from trainer.learning.losses import (
    PROBABILITY_FLOOR,
    hard_negative_loss,
    mixed_pseudo_label_loss,
    pseudo_label_loss,
    soft_cross_entropy,
)
from trainer.learning.parallel import Share, side_by_side
from trainer.learning.ranks import by_rows, everywhere, replicate
from trainer.records.progress import MetricWriter

_WARMUP_STEPS = 100
# Share of each step in the running average of the teacher's class distribution.
_CLASS_AVERAGE_STEP = 0.01
# Measured on two cores: a third faster than 2,000 images at a time, whose maps do not fit the cache.
_EVALUATION_CHUNK = 1000
# Of larger images than this many pixels a side, fewer at a time.
_EVALUATION_SIDE = 32

Tensors = tuple[Tensor, ...] | list[Tensor]


def moving_average(student: Encoder, decay: float) -> AveragedModel:
    """Copy a network as the start of the moving average of its parameters and normalisation statistics.

    Step n moves the average by 1 - min(decay, (1 + n) / (10 + n)): early steps are larger, so that the start is
    forgotten.
    """

    def follow(averaged: Tensors, current: Tensors, steps: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            n = int(steps)
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))
        else:
            torch._foreach_copy_(averaged, current)

    average = AveragedModel(student, multi_avg_fn=follow, use_buffers=True).requires_grad_(False).eval()
    # The first step, n = 1, is an average too; from zero on it would be a copy.
    average.n_averaged.fill_(1)
    return average


class FineTuner:
    """A student network, its teacher, and the pool they learn from.

    Attributes:
        student: trained in place.
    """

    def __init__(
        self, encoder: Encoder, images: Tensor, config: FinetuneConfig, *, seed: int, metrics: MetricWriter | None
    ) -> None:
        """Make the teacher from the encoder as it is, which becomes the student.

        Images are uint8 [N, H, W] or [N, H, W, 3], the pool on the device to train on.
        """
        self.student = encoder
        self._average = moving_average(encoder, config.teacher_decay)
        self._images = images
        self._config = config
        self._seed = seed
        self._metrics = metrics

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to another rank; the metrics, which rank 0 writes, stay."""
        return _arrived, (self.student, self._images, self._config, self._seed, self._average.state_dict())

    @property
    def teacher(self) -> Encoder:
        """The student's moving average, which makes the predictions."""
        return cast(Encoder, self._average.module)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of student and teacher, to keep in a checkpoint."""
        return {"student": self.student.state_dict(), "teacher": self._average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the weights of student and teacher."""
        self.student.load_state_dict(state["student"])
        self._average.load_state_dict(state["teacher"])

    @everywhere("on_epoch")
    def train_phase(
        self,
        phase: PhaseConfig,
        ids: Tensor,
        labels: Tensor,
        beliefs: Tensor,
        *,
        class_prior: Tensor | None = None,
        name: str,
        title: str = "fine-tuning",
        state: TrainingState | None = None,
        on_epoch: Callable[[TrainingState], None] = lambda _: None,
    ) -> None:
        """Train for one phase.

        Args:
            phase: epochs, losses, learning rate.
            ids: int64 [L], queried images.
            labels: int64 [L], their classes.
            beliefs: float32 [N, C], soft targets of the whole pool, rows summing to one.
            class_prior: float32 [C], share of each class in the pool, to which pseudo-labels are aligned; None where
                all classes are equally frequent.
            name: seeds the phase's randomness and names its metrics; unique in a run.
            title: what a reader of the progress sees.
            state: of an interrupted phase, to go on with.
            on_epoch: called after each epoch with the phase's state, for checkpoints.
        """
        config, classes = self._config, beliefs.shape[1]
        if state is not None:
            class_average = state["class_average"]
        elif class_prior is not None:
            class_average = class_prior.clone()
        else:
            class_average = torch.full((classes,), 1 / classes, device=self._images.device)
        replicas = replicate(self.student, self._images.device)
        forward = functools.partial(self._forward, phase, ids, labels, beliefs, class_average, class_prior)

        def step(batch: Tensor) -> Tensor:
            measured = replicas.learn(batch, forward, _weighted_sum)
            class_average.lerp_(measured[2:], _CLASS_AVERAGE_STEP)
            return measured[:2]

        train_epochs(
            replicas,
            self._parameter_groups(with_head=phase.contrast > 0),
            Schedule(
                name=name,
                title=title,
                rows=len(self._images),
                batch=config.batch,
                epochs=phase.epochs,
                max_steps=config.steps,
                learning_rate=phase.learning_rate,
                warmup_steps=_WARMUP_STEPS,
            ),
            step,
            seed=self._seed,
            metrics=self._metrics,
            measures=("loss", "confident"),
            state=state,
            after_step=lambda: self._average.update_parameters(self.student),
            on_epoch=lambda reached: on_epoch(reached | {"class_average": class_average}),
        )

    def _parameter_groups(self, *, with_head: bool) -> list[dict[str, Any]]:
        """Return what AdamW trains; biases and normalisation scales are not decayed."""
        head = set() if with_head else {id(parameter) for parameter in self.student.projection_head.parameters()}
        parameters = [parameter for parameter in self.student.parameters() if id(parameter) not in head]
        return [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self._config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def _forward(
        self,
        phase: PhaseConfig,
        ids: Tensor,
        labels: Tensor,
        beliefs: Tensor,
        class_average: Tensor,
        class_prior: Tensor | None,
        share: Share[Encoder],
    ) -> Tensor:
        """Compute a share's loss, its part of confident pseudo-labels and its class average: float32 [2 + C]."""
        config, device = self._config, self._images.device
        generator, batch = share.generator, share.batch
        drawn = torch.randint(
            len(ids), (max(1, round(config.labelled_batch * share.weight)),), generator=generator, device=device
        )
        views = {"labelled": random_view(self._images[ids[drawn]], config.weak, generator)}
        has_strong = phase.consistency > 0 or phase.contrast > 0
        if phase.soft > 0 or has_strong:
            weak = random_view(self._images[batch], config.weak, generator)
        if phase.soft > 0:
            views["weak"] = weak
        if has_strong:
            views["strong"] = random_view(self._images[batch], config.strong, generator)
        if phase.consistency > 0 and phase.mixup > 0:
            partner, part = _draw_mix(len(batch), phase.mixup, generator)
            rest = 1 - part.view(-1, 1, 1, 1)
            views["mixed"] = views["strong"].lerp(views["strong"][partner], rest)
            if phase.contrast == 0:
                del views["strong"]
        sizes = [len(view) for view in views.values()]
        with mixed_precision(device):
            features = share.network(torch.cat(list(views.values())))
            logits = dict(zip(views, share.network.classify_features(features).split(sizes), strict=True))
        loss = F.cross_entropy(logits["labelled"], labels[drawn])
        confident, classes = torch.zeros((), device=device), class_average
        if phase.soft > 0:
            loss = loss + phase.soft * soft_cross_entropy(logits["weak"], beliefs[batch])
        if has_strong:
            with torch.no_grad(), mixed_precision(device):
                taught = self.teacher(weak)
        if phase.consistency > 0:
            guess, classes = self._guess(taught, beliefs[batch], phase, class_average, class_prior)
            confident = (guess.max(1).values >= phase.threshold).float().mean()
            if phase.mixup > 0:
                consistency = mixed_pseudo_label_loss(logits["mixed"], guess, partner, part, threshold=phase.threshold)
            else:
                consistency = pseudo_label_loss(logits["strong"], guess, threshold=phase.threshold)
            loss = loss + phase.consistency * consistency
        if phase.contrast > 0:
            with mixed_precision(device):
                strong = share.network.project_features(dict(zip(views, features.split(sizes), strict=True))["strong"])
                with torch.no_grad():
                    kept = self.teacher.project_features(taught)
            loss = loss + phase.contrast * hard_negative_loss(
                strong,
                kept,
                temperature=config.contrast_temperature,
                beta=config.contrast_beta,
                tau_plus=0.0,
                different=1 - beliefs[batch] @ beliefs[batch].T,
            )
        return torch.cat([torch.stack([loss, confident]), classes])

    @torch.no_grad()
    def _guess(
        self, taught: Tensor, beliefs: Tensor, phase: PhaseConfig, class_average: Tensor, class_prior: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Multiply the teacher's predictions, of its features, by the beliefs, then align them to the classes' shares.

        Returns:
            The aligned predictions [B, C], and the mean [C] of the predictions before they were aligned.
        """
        with mixed_precision(self._images.device):
            logits = self.teacher.classify_features(taught)
        joint = (logits.log_softmax(1) + phase.trust_beliefs * beliefs.clamp_min(PROBABILITY_FLOOR).log()).softmax(1)
        aligned = joint / class_average if class_prior is None else joint * (class_prior / class_average)
        return aligned / aligned.sum(1, keepdim=True), joint.mean(0)


def _arrived(student: Encoder, images: Tensor, config: FinetuneConfig, seed: int, average: dict[str, Any]) -> FineTuner:
    tuner = FineTuner(student, images, config, seed=seed, metrics=None)
    tuner._average.load_state_dict(average)
    return tuner


def _draw_mix(images: int, concentration: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a partner for each image, int64 [B], and the larger share of a Beta(a, a) for the image itself, [B].

    The larger share: the mix then resembles the image more than its partner (MixMatch, D. Berthelot et al., NeurIPS
    2019).
    """
    partner = torch.randperm(images, generator=generator, device=generator.device)
    # torch's own draws from a Beta distribution take no generator.
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    share = torch.from_numpy(np.random.default_rng(seed).beta(concentration, concentration, images)).float()
    return partner, torch.maximum(share, 1 - share).to(generator.device)


def _weighted_sum(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0)


def predict(network: Encoder, images: Tensor) -> Tensor:
    """Predict with test-time averaging over mirror images and shifts by one pixel.

    Args:
        network: put into evaluation mode.
        images: uint8 [N, H, W] or [N, H, W, 3].

    Returns:
        Class probabilities, float32 [N, C].
    """
    return by_rows(_predict, images, network)[0]


def _predict(images: Tensor, network: Encoder) -> tuple[Tensor, ...]:
    def compute(x: Tensor) -> tuple[Tensor, ...]:
        padded = F.pad(x, (1, 1, 1, 1))
        H, W = x.shape[2:]
        shifted = [padded[:, :, dy : dy + H, dx : dx + W] for dy, dx in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))]
        variants = [network.classify(variant).softmax(1) for y in shifted for variant in (y, y.flip(3))]
        return (torch.stack(variants).mean(0),)

    return _evaluate(network, images, compute, (network.classifier.out_features,), "predicting")


def embed_and_predict(network: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Embed and predict images with averaging over mirror images only, at a fifth of the cost of `predict`.

    Returns:
        Unit vectors float32 [N, D], and class probabilities float32 [N, C].
    """
    features, predictions = by_rows(_embed_and_predict, images, network)
    return features, predictions


def _embed_and_predict(images: Tensor, network: Encoder) -> tuple[Tensor, ...]:
    def compute(x: Tensor) -> tuple[Tensor, ...]:
        features = [network(variant) for variant in (x, x.flip(3))]
        prediction = torch.stack([network.classifier(rows).float().softmax(1) for rows in features]).mean(0)
        return F.normalize(features[0].float() + features[1].float(), dim=1), prediction

    return _evaluate(network, images, compute, (network.width, network.classifier.out_features), "computing features")


def _evaluate(
    network: Encoder,
    images: Tensor,
    compute: Callable[[Tensor], tuple[Tensor, ...]],
    widths: Sequence[int],
    title: str,
) -> tuple[Tensor, ...]:
    """Put a network into evaluation mode, and compute on uint8 images in chunks [B, channels, H, W] in [0, 1].

    Results, float32 [N, width] for each width, are made first and filled in: kept as they come, each would hold a gap
    open in the memory that the chunk before has freed, 12 MB a chunk. The title is what a reader of the progress sees.
    """
    network.eval()
    H, W = images.shape[1:3]
    size = max(1, _EVALUATION_CHUNK * _EVALUATION_SIDE**2 // max(_EVALUATION_SIDE**2, H * W))
    results = tuple(torch.empty(len(images), width, device=images.device) for width in widths)

    @torch.no_grad()
    def compute_chunk(start: int) -> None:
        rows = slice(start, start + size)
        with mixed_precision(images.device):
            for result, part in zip(results, compute(as_planes(images[rows])), strict=True):
                result[rows] = part

    side_by_side(compute_chunk, range(0, len(images), size), images.device, title)
    return results

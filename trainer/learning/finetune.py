"""Semi-supervised fine-tuning: learn from the labels paid for and from one's own consistent guesses.

A phase mixes three losses over the whole pool:

- labelled: cross entropy on weak views of the queried images;
- soft: cross entropy of weak views against the beliefs of graph and network (distillation);
- consistency: a strong view must agree with what the teacher, a moving average of the student, is sure of on a weak
  view (FixMatch, K. Sohn et al., NeurIPS 2020; teacher: A. Tarvainen and H. Valpola, NeurIPS 2017). The graph's
  beliefs enter the teacher's as a second expert, and the classes' average is aligned to balance (ReMixMatch,
  D. Berthelot et al., ICLR 2020).
"""

import copy
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import FinetuneConfig, PhaseConfig
from trainer.images.augment import random_view
from trainer.learning.device import generator_for, mixed_precision
from trainer.learning.encoder import Encoder
from trainer.learning.losses import pseudo_label_loss, soft_cross_entropy
from trainer.learning.parallel import Replicas, Share, parts_on, side_by_side
from trainer.learning.pretrain import cosine_rate
from trainer.records.progress import MetricWriter, progress

_WARMUP_STEPS = 100
# Share of each step in the running average of the teacher's class distribution.
_CLASS_AVERAGE_STEP = 0.01
# Measured on two cores: 1,000 images at once are a third faster than 2,000, whose maps leave the cache.
_EVALUATION_CHUNK = 1000

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Teacher:
    """An exponential moving average of a network's parameters and statistics."""

    def __init__(self, student: Encoder, decay: float) -> None:
        self.network = copy.deepcopy(student).requires_grad_(False).eval()
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """Move one step towards the student; early steps are larger, so that the start is forgotten."""
        self.steps += 1
        rate = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        own: list[Tensor] = list(self.network.parameters())
        theirs = [parameter.detach() for parameter in student.parameters()]
        for mine, other in zip(self.network.buffers(), student.buffers(), strict=True):
            if mine.is_floating_point():
                own.append(mine)
                theirs.append(other)
            else:
                mine.copy_(other)
        torch._foreach_lerp_(own, theirs, rate)


@dataclass
class PhaseState:
    """Where a phase stands: what a checkpoint keeps beside the networks."""

    epoch: int
    optimizer: dict[str, Any] | None
    class_average: Tensor


class FineTuner:
    """The student, its teacher, and the images they learn from.

    Attributes:
        student: trained in place.
        teacher: what predictions are made with.
    """

    def __init__(
        self, encoder: Encoder, images: Tensor, config: FinetuneConfig, *, seed: int, metrics: MetricWriter
    ) -> None:
        """Start from an encoder as it is.

        Args:
            encoder: with pretrained weights (or random ones); becomes the student.
            images: uint8 [N, H, W] of the pool, on the device to train on.
            config: batch sizes, views, optimiser.
            seed: of the run; each epoch derives its own generator.
            metrics: receives losses and the share of confident guesses an epoch.
        """
        self.student = encoder
        self._replicas = Replicas(encoder, parts_on(images.device))
        self.teacher = Teacher(encoder, config.teacher_decay)
        self._images = images
        self._config = config
        self._seed = seed
        self._metrics = metrics
        self._epochs_done = 0

    def train_phase(
        self,
        phase: PhaseConfig,
        ids: Tensor,
        labels: Tensor,
        beliefs: Tensor,
        *,
        name: str,
        state: PhaseState | None = None,
        on_epoch: Callable[[PhaseState], None] = lambda _: None,
    ) -> None:
        """Train for one phase.

        Args:
            phase: epochs, losses, learning rate.
            ids: int64 [L], queried images.
            labels: int64 [L], their classes.
            beliefs: float32 [N, C], soft targets of the whole pool, rows summing to one.
            name: seeds the phase's randomness and names its metrics; unique in a run.
            state: of an interrupted phase, to go on with.
            on_epoch: called after each epoch with the phase's state, for checkpoints.
        """
        config, device = self._config, self._images.device
        C = beliefs.shape[1]
        optimizer = self._optimizer(phase)
        if state is None:
            state = PhaseState(0, None, torch.full((C,), 1 / C, device=device))
        elif state.optimizer is not None:
            optimizer.load_state_dict(state.optimizer)
        whole = max(1, len(self._images) // config.batch)
        steps = whole if config.steps is None else min(config.steps, whole)
        learn = functools.partial(self._learn, phase, ids, labels, beliefs, state.class_average)
        for epoch in range(state.epoch, phase.epochs):
            generators = [generator_for(device, self._seed, name, epoch, index) for index in range(parts_on(device))]
            order = torch.randperm(len(self._images), generator=generators[0], device=device)
            self._replicas.train()
            totals = torch.zeros(2, device=device)
            for step in progress(range(steps), steps, f"{name} {epoch + 1}/{phase.epochs}"):
                rate = cosine_rate(epoch * steps + step, phase.epochs * steps, phase.learning_rate, _WARMUP_STEPS)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                batch = order[step * config.batch : (step + 1) * config.batch]
                shares = self._replicas.deal(batch, generators)
                measured, classes = zip(*side_by_side(learn, shares, device), strict=True)
                self._replicas.gather_gradients()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                self.teacher.follow(self.student)
                state.class_average.lerp_(torch.stack(classes).sum(0), _CLASS_AVERAGE_STEP)
                totals += torch.stack(measured).sum(0)
            mean_loss, mean_confident = (totals / steps).tolist()
            log.info(
                "%s epoch %d/%d: loss %.4f, confident %.2f", name, epoch + 1, phase.epochs, mean_loss, mean_confident
            )
            self._metrics.write(name, epoch, epoch + 1, {"loss": mean_loss, "confident": mean_confident})
            state.epoch, state.optimizer = epoch + 1, optimizer.state_dict()
            on_epoch(state)

    def _optimizer(self, phase: PhaseConfig) -> torch.optim.Optimizer:
        """Make AdamW; biases and normalisation scales are not decayed. The projection head has done its work."""
        head = {id(parameter) for parameter in self.student.projection_head.parameters()}
        parameters = [parameter for parameter in self.student.parameters() if id(parameter) not in head]
        return torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self._config.weight_decay},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=phase.learning_rate,
        )

    def _learn(
        self,
        phase: PhaseConfig,
        ids: Tensor,
        labels: Tensor,
        beliefs: Tensor,
        class_average: Tensor,
        share: Share[Encoder],
    ) -> tuple[Tensor, Tensor]:
        """Add a share of a step's gradient to its network.

        Returns:
            Loss and share of confident guesses [2], and the guesses' class distribution [C], weighted by the share.
        """
        config, device = self._config, self._images.device
        network, generator, batch = share.network, share.generator, share.batch
        drawn = torch.randint(
            len(ids), (max(1, round(config.labelled_batch * share.weight)),), generator=generator, device=device
        )
        views = [random_view(self._images[ids[drawn]], config.weak, generator)]
        weak = views[0][:0]
        if phase.soft > 0 or phase.consistency > 0:
            weak = random_view(self._images[batch], config.weak, generator)
        if phase.soft > 0:
            views.append(weak)
        if phase.consistency > 0:
            views.append(random_view(self._images[batch], config.strong, generator))
        with mixed_precision(device):
            logits = list(network.classify(torch.cat(views)).split([len(view) for view in views]))
        loss = F.cross_entropy(logits.pop(0), labels[drawn])
        confident, classes = torch.zeros((), device=device), class_average
        if phase.soft > 0:
            loss = loss + phase.soft * soft_cross_entropy(logits.pop(0), beliefs[batch])
        if phase.consistency > 0:
            guess, classes = self._guess(weak, beliefs[batch], phase, class_average)
            confident = (guess.max(1).values >= phase.threshold).float().mean()
            loss = loss + phase.consistency * pseudo_label_loss(logits.pop(0), guess, threshold=phase.threshold)
        (loss * share.weight).backward()
        return torch.stack([loss.detach(), confident]) * share.weight, classes * share.weight

    @torch.no_grad()
    def _guess(self, weak: Tensor, beliefs: Tensor, phase: PhaseConfig, class_average: Tensor) -> tuple[Tensor, Tensor]:
        """Join teacher and graph as a product of experts, then align the classes' average to balance.

        Returns:
            The guesses [B, C], and the mean [C] of what they were before they were aligned.
        """
        with mixed_precision(self._images.device):
            logits = self.teacher.network.classify(weak)
        joint = (logits.log_softmax(1) + phase.trust_beliefs * beliefs.clamp_min(1e-6).log()).softmax(1)
        aligned = joint / class_average
        return aligned / aligned.sum(1, keepdim=True), joint.mean(0)


def predict(network: Encoder, images: Tensor, *, shifts: bool = False) -> Tensor:
    """Predict with test-time averaging over mirror images.

    Args:
        network: put into evaluation mode.
        images: uint8 [N, H, W].
        shifts: average over shifts by one pixel too, at five times the cost.

    Returns:
        Class probabilities, float32 [N, C].
    """

    def answer(x: Tensor) -> Tensor:
        placed = _shifts(x) if shifts else [x]
        variants = [network.classify(y).softmax(1) for shifted in placed for y in (shifted, shifted.flip(3))]
        return torch.stack(variants).mean(0)

    return torch.cat(_evaluate(network, images, answer))


def _shifts(x: Tensor) -> list[Tensor]:
    padded = F.pad(x, (1, 1, 1, 1))
    H, W = x.shape[2:]
    return [padded[:, :, dy : dy + H, dx : dx + W] for dy, dx in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))]


def embed_and_predict(network: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Answer what `embed` and `predict` (without shifts) would, at the cost of one of them."""

    def answer(x: Tensor) -> tuple[Tensor, Tensor]:
        both = [network(y) for y in (x, x.flip(3))]
        guess = torch.stack([network.classifier(one).float().softmax(1) for one in both]).mean(0)
        return both[0].float() + both[1].float(), guess

    features, answers = zip(*_evaluate(network, images, answer), strict=True)
    return F.normalize(torch.cat(features), dim=1), torch.cat(answers)


def embed(network: Encoder, images: Tensor) -> Tensor:
    """Embed images, each averaged with its mirror image: uint8 [N, H, W] -> unit vectors, float32 [N, D]."""

    def answer(x: Tensor) -> Tensor:
        both: Tensor = network(x).float() + network(x.flip(3)).float()
        return both

    return F.normalize(torch.cat(_evaluate(network, images, answer)), dim=1)


def _evaluate(network: Encoder, images: Tensor, answer: Callable[[Tensor], Answer]) -> list[Answer]:
    """Ask a network in evaluation about uint8 images [N, H, W], chunk by chunk, as [B, 1, H, W] in [0, 1]."""
    network.eval()

    @torch.no_grad()
    def ask(chunk: Tensor) -> Answer:
        with mixed_precision(images.device):
            return answer(chunk.unsqueeze(1).float() / 255)

    return side_by_side(ask, images.split(_EVALUATION_CHUNK), images.device)

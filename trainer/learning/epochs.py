"""The training loop of pretraining and fine-tuning.

AdamW under a learning rate that warms up linearly and falls along a cosine; metrics and a checkpoint after each epoch.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from trainer.learning.parallel import Replicas
from trainer.records.progress import MetricWriter, progress

# What a checkpoint stores of an unfinished training besides the network weights; callers may add entries.
TrainingState = dict[str, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        name: seeds the randomness and names the metrics; unique in a run.
        title: what a reader of the progress sees.
        rows: number of images in the pool.
        batch: images per step.
        epochs: passes over the pool.
        max_steps: limit on the steps per epoch; None for the whole pool.
        learning_rate: the highest rate, reached after the warm-up.
        warmup_steps: steps until the highest rate.
    """

    name: str
    title: str
    rows: int
    batch: int
    epochs: int
    max_steps: int | None
    learning_rate: float
    warmup_steps: int

    @property
    def steps(self) -> int:
        """Steps an epoch, at least one."""
        whole = max(1, self.rows // self.batch)
        return whole if self.max_steps is None else min(self.max_steps, whole)

    def learning_rate_at(self, step: int) -> float:
        """Compute the learning rate of a step, counted over all epochs: linear warm-up, then a cosine to zero."""
        cosine = 1 + math.cos(math.pi * step / max(self.epochs * self.steps, 1))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup_steps) * 0.5 * cosine


def train_epochs(
    replicas: Replicas[Any],
    parameter_groups: Iterable[dict[str, Any]],
    schedule: Schedule,
    step: Callable[[Tensor], Tensor],
    *,
    seed: int,
    metrics: MetricWriter | None,
    measures: Sequence[str] = ("loss",),
    state: TrainingState | None = None,
    after_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[TrainingState], None],
) -> None:
    """Train the first of the replicas in place.

    Args:
        replicas: put into training mode.
        parameter_groups: of AdamW, without a learning rate.
        schedule: how long and how fast.
        step: takes the row numbers of a batch, int64 [B]; adds the step's gradients and returns what `measures` names.
        seed: of the run; each epoch derives its own generators.
        metrics: receives the means of `measures` and the last learning rate an epoch; None where another process does.
        measures: names of what a step measures.
        state: of an interrupted training, to go on with.
        after_step: called after each step of the optimiser.
        on_epoch: called after each epoch with the state to keep in a checkpoint.
    """
    # LambdaLR multiplies `lr` by what the schedule returns. The schedule returns the whole rate, so `lr` is 1.
    optimizer = torch.optim.AdamW(parameter_groups, lr=1.0, fused=True)
    first_epoch = 0
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        first_epoch = state["epoch"]
    scheduler = LambdaLR(optimizer, schedule.learning_rate_at, last_epoch=first_epoch * schedule.steps - 1)
    for epoch in range(first_epoch, schedule.epochs):
        generator = replicas.start_epoch(seed, schedule.name, epoch)
        order = torch.randperm(schedule.rows, generator=generator, device=generator.device)
        batches = order[: schedule.steps * schedule.batch].split(schedule.batch)
        totals = torch.zeros(len(measures), device=generator.device)
        for batch in progress(batches, schedule.steps, f"{schedule.title}, epoch {epoch + 1} of {schedule.epochs}"):
            totals += step(batch)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
            after_step()
        means = {name: total / schedule.steps for name, total in zip(measures, totals.tolist(), strict=True)}
        log.info(
            "%s, epoch %d of %d: %s",
            schedule.title,
            epoch + 1,
            schedule.epochs,
            ", ".join(f"{name} {mean:.4f}" for name, mean in means.items()),
        )
        rate = schedule.learning_rate_at((epoch + 1) * schedule.steps - 1)
        if metrics is not None:
            metrics.write(schedule.name, epoch, epoch + 1, means | {"learning_rate": rate})
        on_epoch({"epoch": epoch + 1, "optimizer": optimizer.state_dict()})

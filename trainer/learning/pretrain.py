"""Contrastive pretraining with hard negatives (HCL): images in, an encoder out, no label involved.

Checkpoints after every epoch, and resumes at the epoch where it was stopped.
"""

import logging
import math
from pathlib import Path

import torch
from torch import Tensor

from trainer.config import EncoderConfig, PretrainConfig
from trainer.errors import ResumeError
from trainer.images.augment import random_view
from trainer.learning.checkpoint import load_checkpoint, save_checkpoint
from trainer.learning.device import derived_seed, generator_for, mixed_precision
from trainer.learning.encoder import Encoder
from trainer.learning.losses import hard_negative_loss
from trainer.learning.parallel import Replicas, Share, parts_on, side_by_side
from trainer.records.progress import MetricWriter, progress

ENCODER_FILE = "encoder.pt"
_PROGRESS_FILE = "pretrain.pt"
_WARMUP_STEPS = 200

log = logging.getLogger(__name__)


def new_encoder(config: EncoderConfig, classes: int, seed: int, device: torch.device) -> Encoder:
    """Make an encoder whose random weights depend on the seed alone."""
    torch.manual_seed(derived_seed(seed, "weights"))
    encoder = Encoder(config, classes)
    # torch's stubs leave the memory format out of Module.to
    return encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def cosine_rate(step: int, total: int, peak: float, warmup: int) -> float:
    """Compute the learning rate of a step: linear warm-up, then a cosine to zero."""
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / max(total, 1)))


def pretrain(
    images: Tensor,
    encoder: Encoder,
    config: PretrainConfig,
    *,
    seed: int,
    identity: str,
    out: Path,
    metrics: MetricWriter,
) -> Path:
    """Pretrain the encoder in place and save it.

    Args:
        images: uint8 [N, H, W], on the device to train on.
        encoder: its classifier is not touched.
        config: views, loss and schedule.
        seed: of the run; each epoch derives its own generator.
        identity: of data, seed and configuration; a half-done pretraining of another identity is refused.
        out: folder for checkpoints.
        metrics: receives `loss` and `learning_rate` an epoch.

    Returns:
        The file of finished weights.

    Raises:
        ResumeError: the folder holds a pretraining of another identity.
        RecordsUnwritable: a checkpoint cannot be written.
    """
    finished, half_done = out / ENCODER_FILE, out / _PROGRESS_FILE
    if finished.exists():
        load_encoder(encoder, finished, identity)
        log.info("pretraining was finished before: %s", finished)
        return finished
    device = images.device
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    first_epoch = 0
    if half_done.exists():
        state = load_checkpoint(half_done, device)
        _demand_identity(state, identity, half_done)
        encoder.load_state_dict(state["encoder"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch = state["epoch"]
        log.info("pretraining goes on after epoch %d of %d", first_epoch, config.epochs)
    whole = max(1, len(images) // config.batch)
    steps = whole if config.steps is None else min(config.steps, whole)
    replicas = Replicas(encoder, parts_on(device))
    for epoch in range(first_epoch, config.epochs):
        generators = [generator_for(device, seed, "pretrain", epoch, index) for index in range(parts_on(device))]
        order = torch.randperm(len(images), generator=generators[0], device=device)
        replicas.train()
        total_loss = torch.zeros((), device=device)
        for step in progress(range(steps), steps, f"pretrain {epoch + 1}/{config.epochs}"):
            rate = cosine_rate(epoch * steps + step, config.epochs * steps, config.learning_rate, _WARMUP_STEPS)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = images[order[step * config.batch : (step + 1) * config.batch]]
            loss = _contrast(config, replicas.deal(batch, generators), device)
            replicas.gather_gradients()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total_loss += loss
        mean_loss = float(total_loss) / steps
        log.info("pretrain epoch %d/%d: loss %.4f", epoch + 1, config.epochs, mean_loss)
        metrics.write("pretrain", epoch, epoch + 1, {"loss": mean_loss, "learning_rate": rate})
        save_checkpoint(
            half_done,
            {
                "encoder": encoder.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epoch": epoch + 1,
                "identity": identity,
            },
        )
    save_checkpoint(finished, {"encoder": encoder.state_dict(), "identity": identity})
    half_done.unlink(missing_ok=True)
    return finished


def _contrast(config: PretrainConfig, shares: list[Share[Encoder]], device: torch.device) -> Tensor:
    """Add one step's gradients to the networks; return the loss.

    Each network embeds two views of its share of the images; the loss is that of all embeddings together, so every
    image is a negative of every other.
    """

    def embed(share: Share[Encoder]) -> Tensor:
        views = torch.cat([random_view(share.batch, config.view, share.generator) for _ in range(2)])
        with mixed_precision(device):
            return share.network.project(views)

    embeddings = side_by_side(embed, shares, device)
    gathered = [one.detach().requires_grad_() for one in embeddings]
    pairs = [one.chunk(2) for one in gathered]
    loss = hard_negative_loss(
        torch.cat([first for first, _ in pairs]),
        torch.cat([second for _, second in pairs]),
        temperature=config.temperature,
        beta=config.beta,
        tau_plus=config.tau_plus,
    )
    loss.backward()
    side_by_side(lambda pair: pair[0].backward(pair[1].grad), zip(embeddings, gathered, strict=True), device)
    return loss.detach()


def load_encoder(encoder: Encoder, path: Path, identity: str | None) -> None:
    """Load pretrained weights, every one of them.

    Args:
        encoder: changed in place; keeps its own classifier, which pretraining never trained.
        path: an `encoder.pt`.
        identity: what the weights must have been made from, or None to take any weights that fit.

    Raises:
        ResumeError: the file is damaged, of another identity, or of another architecture.
    """
    state = load_checkpoint(path, next(encoder.parameters()).device)
    if identity is not None:
        _demand_identity(state, identity, path)
    own = encoder.state_dict()
    weights = {name: value for name, value in state.get("encoder", {}).items() if not name.startswith("classifier.")}
    wanted = {name for name in own if not name.startswith("classifier.")}
    if set(weights) != wanted or any(own[name].shape != value.shape for name, value in weights.items()):
        raise ResumeError(f"{path} holds weights of another encoder; use the profile that it was pretrained with")
    encoder.load_state_dict(own | weights)


def _demand_identity(state: dict[str, object], identity: str, path: Path) -> None:
    if state.get("identity") != identity:
        raise ResumeError(
            f"{path} was made with other data, another seed or another configuration; choose another --out or remove it"
        )

"""Contrastive pretraining with hard negatives (HCL): images in, an encoder out, no label involved.

Writes a checkpoint after every epoch, and resumes after the last one written.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainer.config import EncoderConfig, PretrainConfig
from trainer.errors import ResumeError
from trainer.images.augment import random_view
from trainer.learning.checkpoint import load_checkpoint, save_checkpoint
from trainer.learning.device import derived_seed, mixed_precision
from trainer.learning.encoder import Encoder
from trainer.learning.epochs import Schedule, TrainingState, train_epochs
from trainer.learning.losses import hard_negative_loss
from trainer.learning.parallel import Share
from trainer.learning.ranks import everywhere, replicate
from trainer.records.progress import MetricWriter

ENCODER_FILE = "encoder.pt"
_PROGRESS_FILE = "pretrain.pt"
_WARMUP_STEPS = 200

log = logging.getLogger(__name__)


def new_encoder(config: EncoderConfig, classes: int, seed: int, device: torch.device, *, channels: int = 1) -> Encoder:
    """Make an encoder for grey images (1 channel) or colour (3) whose random weights depend only on the seed."""
    torch.manual_seed(derived_seed(seed, "weights"))
    encoder = Encoder(config, classes, channels)
    # torch's stubs for Module.to lack the memory format.
    return encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


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
    """Pretrain the encoder in place, all but its classifier; return the file of finished weights.

    Images are uint8 [N, H, W] or [N, H, W, 3], on the device to train on. The identity is that of data, seed and
    configuration.

    Raises:
        ResumeError: the folder holds damaged files, or files of another identity.
        RecordsUnwritable: a checkpoint cannot be written.
    """
    finished, half_done = out / ENCODER_FILE, out / _PROGRESS_FILE
    if finished.exists():
        load_encoder(encoder, finished, identity)
        log.info("pretraining was finished before: %s", finished)
        return finished
    state = None
    if half_done.exists():
        state = load_checkpoint(half_done, images.device)
        _require_identity(state, identity, half_done)
        encoder.load_state_dict(state["encoder"])
        log.info("pretraining goes on after epoch %d of %d", state["epoch"], config.epochs)
    _train(
        images,
        encoder,
        config,
        seed,
        state,
        metrics=metrics,
        on_epoch=lambda reached: save_checkpoint(
            half_done, reached | {"encoder": encoder.state_dict(), "identity": identity}
        ),
    )
    save_checkpoint(finished, {"encoder": encoder.state_dict(), "identity": identity})
    half_done.unlink(missing_ok=True)
    return finished


@everywhere("metrics", "on_epoch")
def _train(
    images: Tensor,
    encoder: Encoder,
    config: PretrainConfig,
    seed: int,
    state: TrainingState | None,
    *,
    metrics: MetricWriter | None = None,
    on_epoch: Callable[[TrainingState], None] = lambda _: None,
) -> None:
    replicas = replicate(encoder, images.device)

    def embed_views(share: Share[Encoder]) -> Tensor:
        """Embed two views of each image: [2B, D], the second views after the first."""
        views = torch.cat([random_view(images[share.batch], config.view, share.generator) for _ in range(2)])
        with mixed_precision(images.device):
            return share.network.project(views)

    def contrast(embeddings: Sequence[Tensor], _: Sequence[float]) -> Tensor:
        """Compute the loss of all embeddings together, so that every image is a negative of every other."""
        first, second = zip(*(part.chunk(2) for part in embeddings), strict=True)
        loss = hard_negative_loss(
            torch.cat(first),
            torch.cat(second),
            temperature=config.temperature,
            beta=config.beta,
            tau_plus=config.tau_plus,
        )
        return loss.unsqueeze(0)

    train_epochs(
        replicas,
        [{"params": list(encoder.parameters()), "weight_decay": config.weight_decay}],
        Schedule(
            name="pretrain",
            title="pretraining",
            rows=len(images),
            batch=config.batch,
            epochs=config.epochs,
            max_steps=config.steps,
            learning_rate=config.learning_rate,
            warmup_steps=_WARMUP_STEPS,
        ),
        lambda batch: replicas.learn(batch, embed_views, contrast),
        seed=seed,
        metrics=metrics,
        state=state,
        on_epoch=on_epoch,
    )


def load_encoder(encoder: Encoder, path: Path, identity: str | None) -> None:
    """Load all pretrained weights but the classifier's, or none; identity None accepts any weights that fit.

    Raises:
        ResumeError: the file is damaged, of another identity, or of another architecture.
    """
    state = load_checkpoint(path, next(encoder.parameters()).device)
    if identity is not None:
        _require_identity(state, identity, path)
    own = encoder.state_dict()
    weights = {name: value for name, value in state.get("encoder", {}).items() if not name.startswith("classifier.")}
    wanted = {name for name in own if not name.startswith("classifier.")}
    if set(weights) != wanted or any(own[name].shape != value.shape for name, value in weights.items()):
        raise ResumeError(
            f"{path} holds weights of another encoder; use the profile and the kind of images (grey or "
            "colour) that it was pretrained with"
        )
    encoder.load_state_dict(own | weights)


def _require_identity(state: dict[str, object], identity: str, path: Path) -> None:
    if state.get("identity") != identity:
        raise ResumeError(
            f"{path} was made with other data, another seed or another configuration; choose another --out or remove it"
        )

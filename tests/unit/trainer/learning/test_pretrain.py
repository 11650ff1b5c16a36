"""Pretraining learns, resumes bit for bit, and loads no weights of another run or encoder."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.tiny_learning import CPU, TINY_ENCODER, RecordedMetrics, bars, copied, pretrain_config, same_weights
from trainer.config import EncoderConfig, PretrainConfig
from trainer.errors import ResumeError
from trainer.learning.checkpoint import load_checkpoint
from trainer.learning.encoder import Encoder
from trainer.learning.pretrain import ENCODER_FILE, load_encoder, new_encoder, pretrain


def noise(count: int = 24) -> Tensor:
    """Make images of noise."""
    return torch.randint(0, 256, (count, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def run(
    out: Path,
    encoder: Encoder | None = None,
    config: PretrainConfig | None = None,
    *,
    images: Tensor | None = None,
    identity: str = "this run",
    interrupt_at: int | None = None,
) -> tuple[Encoder, RecordedMetrics]:
    """Pretrain in a folder."""
    out.mkdir(exist_ok=True)
    encoder = new_encoder(TINY_ENCODER, 3, 0, CPU) if encoder is None else encoder
    metrics = RecordedMetrics(interrupt_at)
    path = pretrain(
        noise() if images is None else images,
        encoder,
        config or pretrain_config(),
        seed=0,
        identity=identity,
        out=out,
        metrics=metrics,  # type: ignore[arg-type]
    )
    assert path == out / ENCODER_FILE
    return encoder, metrics


def interrupted(out: Path, config: PretrainConfig | None = None) -> Path:
    """Pretrain until the second epoch is nearly over."""
    with pytest.raises(KeyboardInterrupt):
        run(out, config=config, interrupt_at=1)
    assert not (out / ENCODER_FILE).exists()
    return out


def test_an_interrupted_pretraining_ends_with_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    """Stopped in the second of three epochs and resumed from other random weights, nothing is different at the end."""
    config = pretrain_config(epochs=3)
    whole, metrics = run(tmp_path / "whole", config=config)
    other = new_encoder(TINY_ENCODER, 3, 99, CPU)
    other.classifier.load_state_dict(whole.classifier.state_dict())
    resumed, later = run(interrupted(tmp_path / "resumed", config), other, config)
    assert same_weights(resumed.state_dict(), whole.state_dict())
    saved = [load_checkpoint(tmp_path / name / ENCODER_FILE, CPU)["encoder"] for name in ("whole", "resumed")]
    assert same_weights(*saved)
    assert later.rows == metrics.rows[1:]
    assert [path.name for path in (tmp_path / "resumed").iterdir()] == [ENCODER_FILE]


def test_training_changes_the_weights(tmp_path: Path) -> None:
    """The twin of the comparison above: it sees a difference of one epoch."""
    first, _ = run(tmp_path / "one", config=pretrain_config(epochs=1))
    second, _ = run(tmp_path / "two")
    assert not same_weights(first.state_dict(), second.state_dict(), "backbone.")


def test_pretraining_leaves_the_classifier_alone(tmp_path: Path) -> None:
    """No label is involved, so nothing of the classifier moves, weight decay included."""
    before = copied(new_encoder(TINY_ENCODER, 3, 0, CPU))
    encoder, _ = run(tmp_path)
    assert same_weights(encoder.state_dict(), before, "classifier.")


def test_a_finished_pretraining_is_not_done_again(tmp_path: Path) -> None:
    """The second call loads what the first one made, and trains nothing."""
    first, _ = run(tmp_path)
    second, metrics = run(tmp_path, new_encoder(TINY_ENCODER, 3, 99, CPU))
    assert metrics.rows == []
    assert same_weights(second.state_dict(), first.state_dict(), "backbone.")


def test_no_epochs_keep_the_random_weights(tmp_path: Path) -> None:
    """With epochs = 0 the file holds the encoder as it was made."""
    encoder, _ = run(tmp_path, config=pretrain_config(epochs=0))
    assert same_weights(encoder.state_dict(), new_encoder(TINY_ENCODER, 3, 0, CPU).state_dict())
    saved = load_checkpoint(tmp_path / ENCODER_FILE, CPU)["encoder"]
    assert same_weights(saved, encoder.state_dict())


def test_the_loss_falls(tmp_path: Path) -> None:
    """On sixty bars, twelve epochs bring the contrastive loss well below its beginning."""
    images, _ = bars(tmp_path / "data")
    config = pretrain_config(epochs=12, batch=15, steps=None, learning_rate=0.2)
    _, metrics = run(tmp_path / "out", config=config, images=images)
    losses = [row["loss"] for row in metrics.rows]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0] - 0.2, losses


def test_a_half_done_pretraining_of_another_identity_is_refused(tmp_path: Path) -> None:
    """Other data, another seed or configuration: one sentence, and the files stay."""
    interrupted(tmp_path)
    kept = (tmp_path / "pretrain.pt").read_bytes()
    with pytest.raises(ResumeError, match=r"pretrain\.pt was made with other data, another seed"):
        run(tmp_path, identity="another run")
    assert (tmp_path / "pretrain.pt").read_bytes() == kept


def test_a_finished_pretraining_of_another_identity_is_refused(tmp_path: Path) -> None:
    """The finished file must have the identity; without an identity any weights that fit are loaded."""
    encoder, _ = run(tmp_path)
    with pytest.raises(ResumeError, match=r"encoder\.pt was made with other data"):
        run(tmp_path, identity="another run")
    other = new_encoder(TINY_ENCODER, 3, 99, CPU)
    load_encoder(other, tmp_path / ENCODER_FILE, None)
    assert same_weights(other.state_dict(), encoder.state_dict(), "backbone.")


def test_loading_keeps_the_classifier_of_the_loader(tmp_path: Path) -> None:
    """Weights made beside two classes serve ten, whose classifier stays as it was."""
    encoder, _ = run(tmp_path, new_encoder(TINY_ENCODER, 2, 0, CPU))
    ten = new_encoder(TINY_ENCODER, 10, 5, CPU)
    before = copied(ten)
    load_encoder(ten, tmp_path / ENCODER_FILE, "this run")
    assert same_weights(ten.state_dict(), before, "classifier.")
    for prefix in ("backbone.", "projection_head."):
        assert same_weights(ten.state_dict(), encoder.state_dict(), prefix)


@pytest.mark.parametrize(
    "other",
    [
        EncoderConfig(widths=(8, 9), projection=6),
        EncoderConfig(widths=(8, 8, 8), projection=6),
        EncoderConfig(widths=(8, 8), blocks=2, projection=6),
        EncoderConfig(widths=(8, 8), projection=5),
    ],
    ids=["wider", "deeper", "more blocks", "other projection"],
)
def test_weights_of_another_architecture_are_refused_whole(tmp_path: Path, other: EncoderConfig) -> None:
    """No weight is loaded from a file that does not fit."""
    run(tmp_path)
    encoder = new_encoder(other, 3, 0, CPU)
    before = copied(encoder)
    with pytest.raises(ResumeError, match="weights of another encoder; use the profile"):
        load_encoder(encoder, tmp_path / ENCODER_FILE, None)
    assert same_weights(encoder.state_dict(), before)


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    """A checkpoint that lacks weights, or has other names for them, is refused."""
    path = tmp_path / ENCODER_FILE
    weights = new_encoder(TINY_ENCODER, 3, 0, CPU).state_dict()
    for content in ({}, {"encoder": {f"module.{name}": value for name, value in weights.items()}}):
        torch.save(content, path)
        with pytest.raises(ResumeError, match="weights of another encoder"):
            load_encoder(new_encoder(TINY_ENCODER, 3, 0, CPU), path, None)

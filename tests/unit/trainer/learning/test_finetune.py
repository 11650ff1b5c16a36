"""Fine-tuning starts from the pretrained weights, learns its targets, and resumes bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.tiny_learning import (
    CPU,
    SHIFTED,
    TINY_ENCODER,
    RecordedMetrics,
    bars,
    copied,
    finetune_config,
    pretrain_config,
    same_weights,
)
from trainer.config import PhaseConfig
from trainer.learning.checkpoint import load_checkpoint, save_checkpoint
from trainer.learning.encoder import Encoder
from trainer.learning.epochs import TrainingState
from trainer.learning.finetune import FineTuner, embed_and_predict, moving_average, predict
from trainer.learning.pretrain import load_encoder, new_encoder, pretrain

MIXED = PhaseConfig(epochs=2, soft=1.0, consistency=1.0, threshold=0.4)


def tuner_of(encoder: Encoder, images: Tensor, metrics: RecordedMetrics | None = None, **changes: object) -> FineTuner:
    """Make a fine-tuner with tiny settings."""
    return FineTuner(
        encoder,
        images,
        finetune_config(**changes),
        seed=0,
        metrics=metrics or RecordedMetrics(),  # type: ignore[arg-type]
    )


def uniform(images: Tensor, classes: int = 3) -> Tensor:
    """Make uniform beliefs."""
    return torch.full((len(images), classes), 1 / classes)


def accuracy(network: Encoder, images: Tensor, labels: Tensor) -> float:
    """Share of right predictions."""
    return (predict(network, images).argmax(1) == labels).float().mean().item()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor]:
    """Sixty bars, upright and level, and their classes."""
    return bars(tmp_path_factory.mktemp("bars"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, data: tuple[Tensor, Tensor]) -> Path:
    """An `encoder.pt` that two epochs have made."""
    metrics = RecordedMetrics()
    return pretrain(
        data[0],
        new_encoder(TINY_ENCODER, 2, 0, CPU),
        pretrain_config(learning_rate=0.1),
        seed=0,
        identity="x",
        out=tmp_path_factory.mktemp("pretrained"),
        metrics=metrics,  # type: ignore[arg-type]
    )


def starts_from(tuner: FineTuner, path: Path) -> bool:
    """Tell whether student and teacher both hold the file's backbone, statistics included, bit for bit."""
    weights = load_checkpoint(path, CPU)["encoder"]
    return all(same_weights(network.state_dict(), weights, "backbone.") for network in (tuner.student, tuner.teacher))


def test_fine_tuning_starts_from_the_pretrained_weights(data: tuple[Tensor, Tensor], pretrained: Path) -> None:
    """Before the first step, student and teacher are the pretrained encoder and nothing like a fresh one."""
    encoder = new_encoder(TINY_ENCODER, 3, 0, CPU)
    fresh = copied(encoder)
    load_encoder(encoder, pretrained, "x")
    tuner = tuner_of(encoder, data[0])
    assert starts_from(tuner, pretrained)
    learned = [name for name in fresh if name.startswith("backbone.") and fresh[name].ndim == 4]
    assert learned and not any(torch.equal(tuner.student.state_dict()[name], fresh[name]) for name in learned)


def test_the_first_steps_are_taken_from_the_pretrained_weights(data: tuple[Tensor, Tensor], pretrained: Path) -> None:
    """A phase at a rate of almost nothing leaves the student at the pretrained weights: training does not restart."""
    encoder = new_encoder(TINY_ENCODER, 3, 0, CPU)
    fresh = copied(encoder)
    load_encoder(encoder, pretrained, "x")
    tuner = tuner_of(encoder, data[0])
    phase = PhaseConfig(epochs=1, soft=1.0, learning_rate=1e-9)
    tuner.train_phase(phase, torch.tensor([0]), data[1][:1], uniform(data[0]), name="still")
    weights = load_checkpoint(pretrained, CPU)["encoder"]
    for name, value in tuner.student.named_parameters():
        if name.startswith("backbone."):
            torch.testing.assert_close(value.detach(), weights[name], rtol=0, atol=1e-6)
    assert max((weights[name] - fresh[name]).abs().max() for name in weights if name.startswith("backbone.stem")) > 1e-3


@pytest.mark.parametrize("mistake", ["not loaded", "prefixed and not strict", "teacher made before"])
def test_the_check_of_the_start_can_fail(data: tuple[Tensor, Tensor], pretrained: Path, mistake: str) -> None:
    """The twin: the check above sees the mistakes that lose pretrained weights silently."""
    encoder = new_encoder(TINY_ENCODER, 3, 0, CPU)
    weights = load_checkpoint(pretrained, CPU)["encoder"]
    if mistake == "prefixed and not strict":
        # Saved from a wrapper and loaded with strict=False, so that no name matches.
        encoder.load_state_dict({f"module.{name}": value for name, value in weights.items()}, strict=False)
    tuner = tuner_of(encoder, data[0])
    if mistake == "teacher made before":
        load_encoder(tuner.student, pretrained, "x")
    assert not starts_from(tuner, pretrained)


def test_an_interrupted_phase_ends_with_the_same_weights_bit_for_bit(
    tmp_path: Path, data: tuple[Tensor, Tensor]
) -> None:
    """Student, teacher and class average of a resumed phase equal those of an uninterrupted one."""
    images, labels = data
    ids, beliefs = torch.arange(9), torch.randn(60, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
    last: list[TrainingState] = []
    whole = tuner_of(new_encoder(TINY_ENCODER, 3, 0, CPU), images)
    whole.train_phase(MIXED, ids, labels[:9], beliefs, name="mixed", on_epoch=last.append)

    first = tuner_of(new_encoder(TINY_ENCODER, 3, 0, CPU), images)
    path = tmp_path / "phase.pt"

    def save_and_stop(state: TrainingState) -> None:
        save_checkpoint(path, first.state_dict() | {"phase": state})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.train_phase(MIXED, ids, labels[:9], beliefs, name="mixed", on_epoch=save_and_stop)
    saved = load_checkpoint(path, CPU)
    assert saved["phase"]["epoch"] == 1

    second = tuner_of(new_encoder(TINY_ENCODER, 3, 99, CPU), images)
    second.load_state_dict(saved)
    resumed: list[TrainingState] = []
    second.train_phase(MIXED, ids, labels[:9], beliefs, name="mixed", state=saved["phase"], on_epoch=resumed.append)
    assert same_weights(second.student.state_dict(), whole.student.state_dict())
    assert same_weights(second.teacher.state_dict(), whole.teacher.state_dict())
    assert torch.equal(resumed[-1]["class_average"], last[-1]["class_average"])
    assert not same_weights(saved["student"], whole.student.state_dict(), "backbone."), "the second epoch does train"


def test_a_phase_s_name_seeds_it(data: tuple[Tensor, Tensor]) -> None:
    """The same name and seed give the same weights, another name others."""
    ends = []
    for name in ("a", "a", "b"):
        tuner = tuner_of(new_encoder(TINY_ENCODER, 3, 0, CPU), data[0])
        tuner.train_phase(PhaseConfig(epochs=1), torch.arange(5), data[1][:5], uniform(data[0]), name=name)
        ends.append(tuner.student.state_dict())
    assert same_weights(ends[0], ends[1])
    assert not same_weights(ends[0], ends[2], "backbone.")


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_teacher_is_the_moving_average_of_its_formula(decay: float) -> None:
    """teacher <- d teacher + (1 - d) student with d = min(decay, (1 + n) / (10 + n)), for weights and statistics."""
    student = new_encoder(TINY_ENCODER, 3, 0, CPU)
    teacher = moving_average(student, decay)
    expected = {name: value.double() for name, value in student.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for n in range(1, 13):
        with torch.no_grad():
            for value in student.state_dict().values():
                if value.is_floating_point():
                    value.copy_(torch.randn(value.shape, generator=generator))
                else:
                    value.add_(1)
        teacher.update_parameters(student)
        d = min(decay, (1 + n) / (10 + n))
        for name, value in student.state_dict().items():
            old = expected[name]
            expected[name] = d * old + (1 - d) * value if value.is_floating_point() else value.double()
    own = teacher.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(own[name].double(), value, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.module.training


@pytest.mark.parametrize("source", ["labels", "beliefs"])
def test_labels_and_beliefs_are_learned(data: tuple[Tensor, Tensor], source: str) -> None:
    """From labels of 24 images, or from right beliefs about all, student and teacher come to know the classes."""
    images, labels = data
    given = torch.arange(24 if source == "labels" else 3)
    phase = PhaseConfig(epochs=25, soft=float(source == "beliefs"), learning_rate=0.05)
    tuner = tuner_of(new_encoder(TINY_ENCODER, 3, 0, CPU), images, steps=40, teacher_decay=0.8, weak=SHIFTED)
    seen = images[given] if source == "labels" else images
    known = labels[given] if source == "labels" else labels
    before = accuracy(tuner.student, seen, known)
    tuner.train_phase(phase, given, labels[given], F.one_hot(labels, 3).float(), name=source)
    assert before < 0.7
    assert accuracy(tuner.student, seen, known) > 0.9
    assert accuracy(tuner.teacher, seen, known) > 0.9


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_share_of_confident_guesses_is_counted(
    data: tuple[Tensor, Tensor], threshold: float, expected: float
) -> None:
    """Every guess reaches a threshold of nothing, and a fresh network's none of certainty."""
    metrics = RecordedMetrics()
    tuner = tuner_of(new_encoder(TINY_ENCODER, 3, 0, CPU), data[0], metrics)
    phase = PhaseConfig(epochs=2, consistency=1.0, threshold=threshold)
    tuner.train_phase(phase, torch.arange(3), data[1][:3], uniform(data[0]), name="guess")
    assert [row["confident"] for row in metrics.rows] == pytest.approx([expected] * 2)
    assert [row["epoch"] for row in metrics.rows] == [1, 2]


def test_the_projection_head_is_not_trained(data: tuple[Tensor, Tensor]) -> None:
    """Fine-tuning leaves the contrastive head as it was, weight decay included."""
    encoder = new_encoder(TINY_ENCODER, 3, 0, CPU)
    before = copied(encoder)
    tuner_of(encoder, data[0]).train_phase(MIXED, torch.arange(3), data[1][:3], uniform(data[0]), name="phase")
    assert same_weights(encoder.state_dict(), before, "projection_head.")
    assert not same_weights(encoder.state_dict(), before, "classifier.")


def test_hcl_beside_the_other_losses_trains_the_projection_head(data: tuple[Tensor, Tensor]) -> None:
    """A phase with the contrastive loss trains the head, and brings an image's views closer than those of others."""
    encoder = new_encoder(TINY_ENCODER, 3, 0, CPU)
    before = copied(encoder)
    phase = PhaseConfig(epochs=2, contrast=1.0)
    metrics = RecordedMetrics()
    tuner = tuner_of(encoder, data[0], metrics)
    tuner.train_phase(phase, torch.arange(3), data[1][:3], uniform(data[0]), name="contrast")
    assert not same_weights(encoder.state_dict(), before, "projection_head.")
    assert metrics.rows[1]["loss"] < metrics.rows[0]["loss"]


@pytest.mark.parametrize("contrast", [0.0, 0.5])
def test_a_network_learns_from_mixed_images(data: tuple[Tensor, Tensor], contrast: float) -> None:
    """Mixed strong views teach the beliefs' classes to unmixed images, also beside HCL."""
    images, labels = data
    seen, known = images[:40], labels[:40]
    given = torch.arange(4)
    tuner = tuner_of(new_encoder(TINY_ENCODER, 3, 0, CPU), seen)
    phase = PhaseConfig(
        epochs=20, consistency=1.0, trust_beliefs=1.0, threshold=0.0, mixup=0.75, contrast=contrast, learning_rate=0.02
    )
    tuner.train_phase(phase, given, labels[given], F.one_hot(known, 3).float(), name="mixed")
    assert accuracy(tuner.student, seen, known) > 0.9


def test_predictions_are_probabilities_and_blind_to_mirroring(data: tuple[Tensor, Tensor]) -> None:
    """Rows sum to one; an image and its mirror image are predicted alike; the network ends in evaluation mode."""
    network = new_encoder(TINY_ENCODER, 3, 0, CPU).train()
    predictions = predict(network, data[0])
    assert predictions.shape == (60, 3) and predictions.dtype == torch.float32 and not predictions.requires_grad
    torch.testing.assert_close(predictions.sum(1), torch.ones(60))
    assert predictions.min() >= 0
    torch.testing.assert_close(predict(network, data[0].flip(2)), predictions, rtol=0, atol=0.01)
    assert not network.training


def test_embeddings_are_unit_vectors_blind_to_mirroring(data: tuple[Tensor, Tensor]) -> None:
    """An image and its mirror image get the same unit vector, and the same probabilities beside it."""
    network = new_encoder(TINY_ENCODER, 3, 0, CPU).train()
    (features, predictions), mirrored = embed_and_predict(network, data[0]), embed_and_predict(network, data[0].flip(2))
    assert features.shape == (60, 8) and features.dtype == predictions.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(60))
    torch.testing.assert_close(predictions.sum(1), torch.ones(60))
    torch.testing.assert_close(mirrored, (features, predictions), rtol=0, atol=0.01)
    # A network on constant images has nothing to average over, and both ways of predicting agree.
    black = torch.zeros_like(data[0][:3])
    torch.testing.assert_close(embed_and_predict(network, black)[1], predict(network, black), rtol=0, atol=0.01)
    assert not network.training

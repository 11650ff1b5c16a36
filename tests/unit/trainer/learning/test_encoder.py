"""Encoders have the promised shapes, start from the seed alone, and never from somebody's weights."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError

from trainer.config import EncoderConfig
from trainer.learning.encoder import Encoder, OrientedBackbone, resnet18_backbone
from trainer.learning.pretrain import new_encoder
from trainer.profiles import PROFILES

CPU = torch.device("cpu")
TINY = EncoderConfig(widths=(8, 16), projection=6)
RESNET = EncoderConfig(backbone="resnet18", projection=16)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (27, 29), (12, 9)])
@pytest.mark.parametrize(("config", "features"), [(TINY, 16), (RESNET, 512)], ids=["oriented", "resnet18"])
def test_shapes_are_as_documented_for_any_image_size(
    config: EncoderConfig, features: int, height: int, width: int
) -> None:
    """Features, embeddings and logits have their sizes, odd image sizes included; heads answer in float32."""
    encoder = Encoder(config, classes=3).eval()
    images = torch.rand(2, 1, height, width)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder.width == features
        assert encoder(images).shape == (2, features)
        embeddings, logits = encoder.project(images), encoder.classify(images)
    assert embeddings.shape == (2, config.projection) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    assert logits.shape == (2, 3) and logits.dtype == torch.float32


def test_blocks_and_widths_make_the_backbone() -> None:
    """Each stage has its blocks, and each stage but the first halves the maps."""
    backbone = OrientedBackbone((8, 8, 16), blocks=2)
    assert len(backbone.stages) == 6 and backbone.width == 16
    maps = backbone.stages(torch.rand(1, 8, 14, 14))
    assert maps.shape == (1, 16, 4, 4)


def test_every_weight_can_learn() -> None:
    """A loss on both heads gives every parameter a gradient."""
    encoder = Encoder(TINY, classes=3)
    images = torch.rand(8, 1, 12, 12)
    (encoder.project(images)[:, 0].sum() + encoder.classify(images)[:, 0].sum()).backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("config", [TINY, PROFILES["cpu"].encoder], ids=["narrowest", "default"])
def test_gradients_do_not_depend_on_the_memory_order(config: EncoderConfig) -> None:
    """The order that training uses has other kernels, and some were wrong (`EncoderConfig.widths`)."""
    torch.manual_seed(1)
    plain = Encoder(config, classes=3)
    ordered = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    images = torch.rand(8, 1, 12, 12)
    for encoder in (plain, ordered):
        (encoder.project(images)[:, 0].sum() + encoder.classify(images)[:, 0].sum()).backward()
    for (name, parameter), other in zip(plain.named_parameters(), ordered.parameters(), strict=True):
        torch.testing.assert_close(
            other.grad, parameter.grad, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: name + text
        )


def test_stages_too_narrow_for_every_processor_are_refused() -> None:
    """Their gradients are wrong on some."""
    with pytest.raises(ValidationError, match="greater than or equal to 8"):
        EncoderConfig(widths=(4, 8))


@pytest.mark.parametrize("config", [TINY, RESNET], ids=["oriented", "resnet18"])
def test_new_weights_depend_on_the_seed_alone(config: EncoderConfig) -> None:
    """The same seed gives the same weights whatever was drawn before; another seed gives others."""
    torch.manual_seed(1)
    first = new_encoder(config, 3, 7, CPU).state_dict()
    torch.manual_seed(2)
    torch.rand(10)
    again, other = new_encoder(config, 3, 7, CPU).state_dict(), new_encoder(config, 3, 8, CPU).state_dict()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    convolutions = [name for name, value in first.items() if value.ndim == 4]
    assert convolutions and not any(torch.equal(first[name], other[name]) for name in convolutions)


@pytest.mark.parametrize("config", [TINY, RESNET], ids=["oriented", "resnet18"])
def test_the_number_of_classes_changes_the_classifier_only(config: EncoderConfig) -> None:
    """Backbone and projection head are the same for three classes and ten: pretraining needs no class count."""
    three, ten = (new_encoder(config, classes, 0, CPU).state_dict() for classes in (3, 10))
    shared = [name for name in three if not name.startswith("classifier.")]
    assert all(torch.equal(three[name], ten[name]) for name in shared)
    assert ten["classifier.weight"].shape[0] == 10


def test_the_resnet_is_made_for_small_grey_images_with_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 3x3 first convolution on one channel, no max-pool, and no weights from a hub, even if some are cached."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were asked from a hub")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    backbone = resnet18_backbone()
    assert backbone.conv1.weight.shape == (64, 1, 3, 3)
    assert isinstance(backbone.maxpool, torch.nn.Identity)
    # Trained weights have other statistics and scales of batch normalisation.
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean)) for norm in norms)
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in norms)


def test_resnet_maps_keep_their_size_through_the_stem() -> None:
    """28 pixels enter the first stage as 28: three halvings leave 4 by 4, not 1 by 1."""
    backbone = resnet18_backbone().eval()
    sizes = []
    backbone.layer4.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[2:]))
    with torch.no_grad():
        backbone(torch.rand(1, 1, 28, 28))
    assert sizes == [(4, 4)]

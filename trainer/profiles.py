"""The named profiles."""

from trainer.config import (
    EncoderConfig,
    FinetuneConfig,
    PhaseConfig,
    PretrainConfig,
    Profile,
    RoundConfig,
    ViewConfig,
)
from trainer.errors import ConfigError

# Two-pixel shifts and mirroring: strong views cost the classifier points at this length of training.
_MILD = ViewConfig(translate_px=2)
# Mild geometry, strong tone, erasing: clothes keep their outline whatever their colour.
_TONE_VIEW = ViewConfig(scale=(0.8, 1.1), rotation_deg=10, translate_px=2, tone=0.6, texture=0.15, erase=0.7)
_STRONG = ViewConfig(scale=(0.8, 1.1), rotation_deg=10, translate_px=2, tone=0.5, texture=0.1, erase=0.5)
_SOFT = PhaseConfig(epochs=2, soft=1.0)
_CONSISTENT = PhaseConfig(epochs=3, consistency=1.0)

CPU = Profile(
    name="cpu",
    about="The default without a GPU.",
    # The first labels teach the graph alone: a network that learned from them would know less than the graph does.
    rounds=(
        RoundConfig(labels=40),
        RoundConfig(labels=100),
        RoundConfig(labels=200, phases=(_SOFT,)),
        RoundConfig(labels=400, phases=(_CONSISTENT,)),
        RoundConfig(labels=600, phases=(_CONSISTENT,)),
        RoundConfig(labels=800, phases=(_CONSISTENT,)),
        RoundConfig(labels=1000, phases=(PhaseConfig(epochs=6, consistency=1.0),) * 2),
    ),
    encoder=EncoderConfig(),
    pretrain=PretrainConfig(epochs=8, temperature=0.3, beta=1.0, tau_plus=0.1, view=_TONE_VIEW),
    finetune=FinetuneConfig(weak=_MILD, strong=_STRONG),
)

GPU = CPU.model_copy(
    update={
        "name": "gpu",
        "about": "A wider encoder and four times the training; the default where CUDA is found.",
        "encoder": EncoderConfig(widths=(64, 128, 256), blocks=2, projection=128),
        "pretrain": CPU.pretrain.model_copy(update={"epochs": 100, "batch": 512}),
        "rounds": (*CPU.rounds[:-1], RoundConfig(labels=1000, phases=(PhaseConfig(epochs=80, consistency=1.0),))),
    }
)

PAPER = Profile(
    name="paper",
    about="HCL's published setting (Robinson et al., 2021) as the seed project used it: ResNet-18, batch 512, 100 "
    "epochs, random crops, t 0.5, beta 1, tau_plus 0.1. Hours on a GPU, days on two cores.",
    rounds=(
        *(RoundConfig(labels=labels, phases=(PhaseConfig(epochs=1, soft=1.0),)) for labels in (100, 500, 1000, 2500)),
        RoundConfig(labels=5000, phases=(PhaseConfig(epochs=3, soft=1.0), *CPU.rounds[-1].phases)),
    ),
    encoder=EncoderConfig(backbone="resnet18", projection=128),
    pretrain=PretrainConfig(
        epochs=100,
        batch=512,
        learning_rate=1e-3,
        weight_decay=1e-6,
        temperature=0.5,
        beta=1.0,
        tau_plus=0.1,
        view=ViewConfig(scale=(0.45, 1.0), crop=True, aspect=0.3, tone=0.5),
    ),
    finetune=CPU.finetune,
)

SMOKE = CPU.model_copy(
    update={
        "name": "smoke",
        "about": "The same path in a minute or two on two cores, for tests; its accuracy is not the point.",
        "rounds": (
            RoundConfig(labels=20),
            RoundConfig(labels=40, phases=(PhaseConfig(epochs=1, soft=1.0),)),
            RoundConfig(labels=60, phases=(PhaseConfig(epochs=1, soft=1.0), PhaseConfig(epochs=1, consistency=1.0))),
        ),
        "pool_limit": 6000,
        "encoder": EncoderConfig(widths=(8, 16, 32), projection=32),
        "pretrain": CPU.pretrain.model_copy(update={"epochs": 2, "steps": 20, "batch": 128}),
        "finetune": CPU.finetune.model_copy(update={"steps": 20, "batch": 128}),
    }
)

PROFILES: dict[str, Profile] = {profile.name: profile for profile in (CPU, GPU, PAPER, SMOKE)}


def profile_named(name: str) -> Profile:
    """Look a profile up.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PROFILES:
        raise ConfigError(f"there is no profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]

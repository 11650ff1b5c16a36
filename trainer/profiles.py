"""The named profiles.

`NAME-without-PART` is profile NAME without one of its parts (`ablations.py`), to measure what the part is worth.
"""

from trainer.ablations import ABLATIONS, PAPER_VIEW
from trainer.config import EncoderConfig, FinetuneConfig, PhaseConfig, PretrainConfig, Profile, RoundConfig, ViewConfig
from trainer.errors import ConfigError

# Two-pixel shifts and mirroring: strong views cost the classifier points at this length of training.
_MILD = ViewConfig(translate_px=2)
# Mild geometry, strong tone, erasing: clothes keep their outline whatever their colour.
_TONE_VIEW = ViewConfig(scale=(0.8, 1.1), rotation_deg=10, translate_px=2, tone=0.6, texture=0.15, erase=0.7)
_STRONG = ViewConfig(scale=(0.9, 1.1), rotation_deg=5, translate_px=2, erase=0.5)
_SOFT = PhaseConfig(epochs=2, soft=1.0)


def _consistency(epochs: int) -> PhaseConfig:
    return PhaseConfig(epochs=epochs, consistency=1.0)


def _on_its_own(epochs: int) -> PhaseConfig:
    """Let the network follow its own sure guesses alone: what it errs in otherwise than the graph, the joint mends."""
    return PhaseConfig(epochs=epochs, consistency=1.0, trust_beliefs=0.0, threshold=0.95)


# When a budget is spent, what is left to gain is time: one long cycle (docs/decisions/0020).
_LAST = (_consistency(4), _on_its_own(12))

CPU = Profile(
    name="cpu",
    about="The default without a GPU.",
    # The first labels teach the graph alone: a network that learned from them would know less than the graph does.
    # From sixty on it learns before it chooses: what is asked is worth most when it knows the labels before it.
    rounds=(
        # What is chosen before any label is known is chosen at once, and asked in parts.
        RoundConfig(labels=10, chosen_ahead=40),
        *(RoundConfig(labels=labels) for labels in (20, 40)),
        RoundConfig(labels=60, phases=(_SOFT,)),
        *(RoundConfig(labels=labels, phases=(_consistency(2),)) for labels in (80, 100)),
        *(RoundConfig(labels=labels, phases=(_consistency(4),)) for labels in (150, 200, 250, 300, 350)),
        RoundConfig(labels=400, phases=_LAST),
    ),
    encoder=EncoderConfig(),
    pretrain=PretrainConfig(epochs=8, temperature=0.3, beta=1.0, tau_plus=0.1, view=_TONE_VIEW),
    finetune=FinetuneConfig(weak=_MILD, strong=_STRONG),
)

_CURVE_POINTS = (10, 20, 40, 100, 200, 300, 400)

CURVE = CPU.model_copy(
    update={
        "name": "curve",
        "about": "The default, gone on with to 1,000 labels, its predictions frozen at seven points on the way.",
        "rounds": tuple(
            one.model_copy(update={"evaluated": one.labels in _CURVE_POINTS})
            for one in (
                *CPU.rounds,
                *(RoundConfig(labels=labels, phases=(_consistency(5),)) for labels in (600, 800)),
                RoundConfig(labels=1000, phases=(_consistency(8),)),
            )
        ),
    }
)

GRAPH = CPU.model_copy(
    update={
        "name": "graph",
        "about": "The default's graph without its network, to 400 labels: labels spread over the graph of descriptor "
        "and HCL features, in a minute or two once HCL is done; to compare query strategies.",
        "rounds": (
            RoundConfig(labels=40),
            RoundConfig(labels=100, evaluated=True),
            *(RoundConfig(labels=labels) for labels in (150, 200, 250, 300, 350)),
            RoundConfig(labels=400, evaluated=True),
        ),
    }
)

# A fifth of the default's training. Its curve has one point that is the graph's alone and one after the network.
BRIEF = CPU.model_copy(
    update={
        "name": "brief",
        "about": "The default's parts and budget with a fifth of its training, in minutes once HCL is done; to compare "
        "what each part is worth.",
        "rounds": (
            RoundConfig(labels=40),
            RoundConfig(labels=100, evaluated=True),
            RoundConfig(labels=200, phases=(_consistency(2),)),
            RoundConfig(labels=300),
            RoundConfig(labels=400, phases=(_consistency(2), _on_its_own(4))),
        ),
    }
)

GPU = CPU.model_copy(
    update={
        "name": "gpu",
        "about": "A wider encoder and four times the training; the default where CUDA is found.",
        "encoder": EncoderConfig(widths=(64, 128, 256), blocks=2, projection=128),
        "pretrain": CPU.pretrain.model_copy(update={"epochs": 100, "batch": 512}),
        "rounds": (*CPU.rounds[:-1], RoundConfig(labels=CPU.budget, phases=(_consistency(80),))),
    }
)

PAPER = Profile(
    name="paper",
    about="HCL's published setting (Robinson et al., 2021) as the seed project used it: ResNet-18, batch 512, 100 "
    "epochs, random crops, t 0.5, beta 1, tau_plus 0.1. Hours on a GPU, days on two cores.",
    rounds=(
        *(RoundConfig(labels=labels, phases=(PhaseConfig(epochs=1, soft=1.0),)) for labels in (100, 500, 1000, 2500)),
        RoundConfig(labels=5000, phases=(PhaseConfig(epochs=3, soft=1.0), PhaseConfig(epochs=12, consistency=1.0))),
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
        view=PAPER_VIEW,
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

PROFILES: dict[str, Profile] = {profile.name: profile for profile in (CPU, GPU, CURVE, BRIEF, GRAPH, PAPER, SMOKE)}


def profile_named(name: str) -> Profile:
    """Look a profile up; `NAME-without-PART` is one with a part taken out.

    Raises:
        ConfigError: there is none of that name.
    """
    whole, without, part = name.partition("-without-")
    if whole not in PROFILES:
        raise ConfigError(f"there is no profile {whole!r}; choose one of {', '.join(PROFILES)}")
    if not without:
        return PROFILES[whole]
    if part not in ABLATIONS:
        raise ConfigError(f"there is no part {part!r} to leave out; choose one of {', '.join(ABLATIONS)}")
    return ABLATIONS[part](PROFILES[whole]).model_copy(update={"name": name})

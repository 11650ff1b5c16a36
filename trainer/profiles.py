"""The named profiles, and the ablations: parts that a profile can leave out, to measure what each is worth.

`NAME-without-PART` is profile NAME without one part, everything else unchanged.
"""

from collections.abc import Callable
from typing import Any, Literal

from trainer.config import EncoderConfig, FinetuneConfig, PhaseConfig, PretrainConfig, Profile, RoundConfig, ViewConfig
from trainer.errors import ConfigError

# Random crops and tone, as profile `paper` has them: the changes of SimCLR that mean something in grey images. The
# authors' own, for colour photographs, crop harder (down to 8% of the area) and change hue.
PAPER_VIEW = ViewConfig(scale=(0.45, 1.0), crop=True, aspect=0.3, tone=0.5)
# Two-pixel shifts and mirroring: with stronger weak views, training of this length was less accurate.
_MILD = ViewConfig(translate_px=2)
# Mild geometry, strong tone, erasing: the outline of clothes does not depend on their colour.
_TONE_VIEW = ViewConfig(scale=(0.8, 1.1), rotation_deg=10, translate_px=2, tone=0.6, texture=0.15, erase=0.7)
_STRONG = ViewConfig(scale=(0.9, 1.1), rotation_deg=5, translate_px=2, erase=0.5)
_SOFT = PhaseConfig(epochs=2, soft=1.0)


def _consistency(epochs: int) -> PhaseConfig:
    return PhaseConfig(epochs=epochs, consistency=1.0)


def _on_its_own(epochs: int) -> PhaseConfig:
    """Learn only from the network's own confident guesses.

    The network then makes other errors than the graph, and joining the two corrects some of them.
    """
    return PhaseConfig(epochs=epochs, consistency=1.0, trust_beliefs=0.0, threshold=0.95)


# When the budget is spent, only longer training can help: one long cycle (docs/decisions/0020).
_LAST = (_consistency(4), _on_its_own(12))

CPU = Profile(
    name="cpu",
    about="The default without a GPU.",
    # The graph alone learns from the first labels: a network trained on so few is less accurate than the graph.
    # From sixty labels on, each choice uses a network trained on the labels before it.
    rounds=(
        # The first forty images are chosen together, before any label is known, and asked for in parts.
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
        "about": "The default continued to 1,000 labels, with predictions frozen at seven points on the way.",
        "rounds": tuple(
            settings.model_copy(update={"evaluated": settings.labels in _CURVE_POINTS})
            for settings in (
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

# Of its two evaluated points, at the first no network is trained yet.
BRIEF = CPU.model_copy(
    update={
        "name": "brief",
        "about": "The default's parts and budget with a fifth of its training, in minutes once HCL is done; to measure "
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


# Fewer images have no neighbourhoods to learn from.
_SMALLEST_POOL = 10
# Without the graph, the network is first trained at this number of labels: later choices need its beliefs.
_FIRST_TRAINED = 40


def _changed(profile: Profile, part: str, **values: Any) -> Profile:  # noqa: ANN401 - each setting has its own type
    return profile.model_copy(update={part: getattr(profile, part).model_copy(update=values)})


def _with_phases(profile: Profile, change: Callable[[PhaseConfig], PhaseConfig]) -> Profile:
    rounds = tuple(
        settings.model_copy(update={"phases": tuple(change(phase) for phase in settings.phases)})
        for settings in profile.rounds
    )
    return profile.model_copy(update={"rounds": rounds})


def without_hcl(profile: Profile) -> Profile:
    """Start from random weights, and leave the network's features out of the graph."""
    return _changed(_changed(profile, "pretrain", epochs=0), "graph", pretrained_weight=0.0)


def without_gradients(profile: Profile) -> Profile:
    """Give the encoder pixels, and build the graph from its features alone."""
    return _changed(
        _changed(profile, "encoder", front_end="pixels"), "graph", descriptor_weight=0.0, pretrained_weight=1.0
    )


def without_propagation(profile: Profile) -> Profile:
    """Use the network's beliefs alone, in training and in predicting, and train it as soon as there are labels.

    No label spreads and no neighbour votes. The choice of images still averages uncertainty over neighbourhoods.
    """

    def without_graph(phase: PhaseConfig) -> PhaseConfig:
        return phase.model_copy(update={"soft": 0.0, "consistency": 1.0, "trust_beliefs": 0.0})

    def trained(settings: RoundConfig) -> RoundConfig:
        if settings.phases or settings.labels < _FIRST_TRAINED:
            return settings
        return settings.model_copy(update={"phases": (_consistency(2),)})

    started = profile.model_copy(update={"rounds": tuple(map(trained, profile.rounds))})
    return _changed(_with_phases(started, without_graph), "graph", propagate=False)


def without_unlabelled(profile: Profile) -> Profile:
    """Train the network only on the labels paid for, for as many steps."""
    return _with_phases(profile, lambda phase: phase.model_copy(update={"soft": 0.0, "consistency": 0.0}))


def without_choice(profile: Profile) -> Profile:
    """Ask for random images."""
    return profile.model_copy(update={"strategy": "random"})


def without_own_views(profile: Profile) -> Profile:
    """Pretrain on the views of HCL's paper instead of ours."""
    return _changed(profile, "pretrain", view=PAPER_VIEW)


def with_own_features(profile: Profile, use: Literal["alone", "beside"]) -> Profile:
    """Build the graph from the user's features, alone or beside ours.

    Where ours are not used and no network is fine-tuned, none is pretrained.
    """
    profile = _changed(profile, "graph", own_features=use)
    if use == "alone" and not any(settings.phases for settings in profile.rounds):
        profile = _changed(profile, "pretrain", epochs=0)
    return profile


ABLATIONS: dict[str, Callable[[Profile], Profile]] = {
    "hcl": without_hcl,
    "gradients": without_gradients,
    "propagation": without_propagation,
    "unlabelled": without_unlabelled,
    "choice": without_choice,
    "own-views": without_own_views,
}


def profile_of(name: str, budget: int | None, rounds: str | None) -> Profile:
    """Look a profile up, with another budget or other rounds such as "20,40,100".

    Raises:
        ConfigError: there is no such profile, or budget and rounds do not fit.
    """
    profile = profile_named(name)
    if rounds is not None:
        if budget is not None:
            raise ConfigError("rounds end at their last number, which is the budget; leave the budget out")
        return profile.with_rounds(tuple(int(labels) for labels in rounds.split(",")))
    return profile if budget is None else profile.with_budget(budget)


def fit_to_pool(profile: Profile, pool_size: int, *, is_asked: bool) -> Profile:
    """Lower the profile's own budget to half of a small pool; a budget that was asked for stays.

    Raises:
        ConfigError: more labels were asked for than there are images, or there are too few images to learn from.
    """
    if pool_size < _SMALLEST_POOL:
        raise ConfigError(
            f"a pool of {pool_size} images is too small to learn from; at least {_SMALLEST_POOL} are needed"
        )
    there = min(pool_size, profile.pool_limit or pool_size)
    if profile.budget <= there // 2:
        return profile
    if is_asked:
        if profile.budget > there:
            raise ConfigError(f"{profile.budget} labels are more than the {there} images of the pool; lower --budget")
        return profile
    return profile.with_budget(there // 2)


def profile_named(name: str) -> Profile:
    """Look a profile up by NAME or NAME-without-PART.

    Raises:
        ConfigError: there is no such profile or part.
    """
    whole, without, part = name.partition("-without-")
    if whole not in PROFILES:
        raise ConfigError(f"there is no profile {whole!r}; choose one of {', '.join(PROFILES)}")
    if not without:
        return PROFILES[whole]
    if part not in ABLATIONS:
        raise ConfigError(f"there is no part {part!r} to leave out; choose one of {', '.join(ABLATIONS)}")
    return ABLATIONS[part](PROFILES[whole]).model_copy(update={"name": name})

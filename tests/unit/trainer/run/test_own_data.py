"""The learner on data unlike Fashion-MNIST: colour, 8 and 64 pixels, 3 and 300 classes, small pools, duplicates.

Labels come from memory; what the service adds is tested in tests/integration.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.memory_oracle import oracle_in_memory
from tests.support.tiny_learning import CPU, RecordedMetrics, finetune_config
from trainer.acquisition.plugin import load_strategy
from trainer.config import EncoderConfig, PhaseConfig, Profile, RoundConfig
from trainer.errors import ConfigError
from trainer.images.pixels import channels_of, to_working_size
from trainer.learning.pretrain import new_encoder
from trainer.profiles import GRAPH, SMOKE, fit_to_pool, with_own_features
from trainer.records.progress import StageClock
from trainer.run.active_loop import ActiveLoop, LearnedState
from trainer.run.memory import Sizes, needed_bytes, require_memory


def squares(labels: Tensor, side: int, *, colour: bool, seed: int = 0) -> Tensor:
    """Draw images that tell their class by where and how large a bright square is, and in colour by its hue too."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 40, (len(labels), side, side, 3 if colour else 1))
    half = side // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        corner = label % 4
        size = half - 1 - (label // 4) % 2
        top, left = half * (corner // 2), half * (corner % 2)
        image[top : top + size, left : left + size, label % 3 if colour else 0] += 180
    return torch.from_numpy(images.astype(np.uint8)).squeeze(3)


def profile_of(budget: int, *, trained: bool, **more: object) -> Profile:
    phases = (PhaseConfig(epochs=1, soft=1.0, consistency=1.0),) if trained else ()
    return SMOKE.model_copy(
        update={
            "rounds": (RoundConfig(labels=budget // 2), RoundConfig(labels=budget, phases=phases)),
            "encoder": EncoderConfig(widths=(8, 8), projection=8),
            "finetune": finetune_config(),
            "pool_limit": None,
            **more,
        }
    )


def learn(
    pool: Tensor,
    labels: Tensor,
    classes: int,
    profile: Profile,
    out: Path,
    *,
    balanced: bool,
    own: Tensor | None = None,
) -> LearnedState:
    images = to_working_size(pool, profile.working_px)
    encoder = new_encoder(profile.encoder, classes, 0, CPU, channels=channels_of(pool))
    loop = ActiveLoop(
        images,
        encoder,
        profile,
        oracle_in_memory(labels, classes, out),
        load_strategy(profile.strategy),
        seed=1,
        identity="x",
        out=out,
        clock=StageClock(out),
        metrics=cast(Any, RecordedMetrics()),
        balanced=balanced,
        own_features=own,
    )
    *_, learned = loop.run()
    guessed = learned.model.predict(images, learned.beliefs, own)
    assert bool(guessed.isfinite().all()) and guessed.shape == (len(pool), classes)
    assert torch.allclose(guessed.sum(1), torch.ones(len(pool)), atol=1e-3)
    return learned


def accuracy(learned: LearnedState, labels: Tensor) -> float:
    return float((learned.beliefs.argmax(1) == labels).float().mean())


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("side", "colour", "classes", "pool", "budget"),
    [(8, False, 3, 50, 12), (8, True, 4, 500, 40), (64, True, 4, 100, 20), (28, True, 3, 200, 20)],
)
def test_sizes_and_colours_are_learned_from(
    side: int, colour: bool, classes: int, pool: int, budget: int, trained: bool, tmp_path: Path
) -> None:
    """Squares in the corners, with and without a network: most of the pool is right."""
    labels = torch.arange(pool) % classes
    images = squares(labels, side, colour=colour)
    learned = learn(images, labels, classes, profile_of(budget, trained=trained), tmp_path, balanced=True)
    assert accuracy(learned, labels) > 0.8


def test_three_hundred_classes_fit(tmp_path: Path) -> None:
    """One label for each class at the most: beliefs are finite, and what was labelled is known."""
    labels = torch.arange(900) % 300
    own = torch.nn.functional.one_hot(labels, 300).float() + 0.01 * torch.rand(900, 300)
    profile = with_own_features(profile_of(300, trained=False), "alone")
    learned = learn(squares(labels, 8, colour=False), labels, 300, profile, tmp_path, balanced=True, own=own)
    assert accuracy(learned, labels) > 0.6


def test_copies_of_one_image_break_nothing(tmp_path: Path) -> None:
    """Half of the pool is one image; labels still reach the others, and the copies."""
    labels = torch.arange(300) % 3
    images = squares(labels, 16, colour=False)
    images, labels = torch.cat([images, images[:1].expand(300, -1, -1)]), torch.cat([labels, labels[:1].expand(300)])
    learned = learn(images, labels, 3, profile_of(30, trained=False), tmp_path, balanced=False)
    assert accuracy(learned, labels) > 0.9


def test_shares_of_imbalanced_classes_are_estimated(tmp_path: Path) -> None:
    """Ten to one: better than the constant guess, and better than with equal shares taken for granted."""
    labels = torch.cat([torch.zeros(400, dtype=torch.long), torch.full((40,), 1), torch.full((40,), 2)])
    images = squares(labels, 12, colour=False)
    images[::3] = torch.randint(0, 120, images[::3].shape, dtype=torch.uint8)
    profile = profile_of(24, trained=False)
    results = {}
    for balanced in (True, False):
        (tmp_path / str(balanced)).mkdir()
        learned = learn(images, labels, 3, profile, tmp_path / str(balanced), balanced=balanced)
        results[balanced] = accuracy(learned, labels)
        shares = learned.class_shares
        assert shares.is_estimated == (not balanced)
    assert results[False] > max(400 / 480, results[True])
    assert shares.largest == "0"
    assert abs(shares.constant_guess - 400 / 480) < 0.1


def test_memory_that_is_not_there_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence has the need, what there is, and ways out; what fits is let through."""
    sizes = Sizes(pool=1_000_000, test=10_000, height=224, width=224, channels=3, classes=1000)
    assert needed_bytes(sizes, GRAPH) > 30 * 2**30
    monkeypatch.setattr("trainer.run.memory.available_bytes", lambda _: 2**31)
    with pytest.raises(ConfigError, match=r"GB of memory with profile graph, and 2.0 GB are free; prepare fewer or"):
        require_memory(sizes, GRAPH, CPU)
    require_memory(Sizes(pool=500, test=100, height=8, width=8, channels=1, classes=3), GRAPH, CPU)


def test_budget_fits_the_pool() -> None:
    """A profile's own budget shrinks to half of the pool; one that was asked for is refused when it is too large."""
    assert fit_to_pool(GRAPH, 60_000, is_asked=False) == GRAPH
    assert fit_to_pool(GRAPH, 50, is_asked=False).budget == 25
    assert fit_to_pool(GRAPH, 500, is_asked=True).budget == 400
    with pytest.raises(ConfigError, match="400 labels are more than the 50 images of the pool"):
        fit_to_pool(GRAPH, 50, is_asked=True)
    with pytest.raises(ConfigError, match="a pool of 9 images is too small"):
        fit_to_pool(GRAPH, 9, is_asked=False)

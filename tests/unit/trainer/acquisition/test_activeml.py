"""scikit-activeml's own strategies choose from this trainer's features, labels and beliefs."""

from __future__ import annotations

import pytest
import torch

from tests.unit.trainer.acquisition.test_strategies import cold_state, generator, groups, state_of, warm_state
from trainer.acquisition import activeml, plugin
from trainer.acquisition.plugin import load_strategy
from trainer.errors import ConfigError

pytest.importorskip("skactiveml", reason="NO SCIKIT-ACTIVEML: install the extra `activeml`")


@pytest.mark.parametrize("name", ["ProbCover", "TypiClust", "UncertaintySampling", "Badge", "CoreSet"])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_its_strategies_choose_what_every_strategy_must(name: str, warm: bool) -> None:
    """As many unlabelled images as asked for, none twice, and the same ones under the same seed."""
    state = warm_state() if warm else cold_state()
    strategy = load_strategy(f"skactiveml:{name}")
    picks = strategy.choose(state, 9, generator(4))
    assert torch.equal(strategy.choose(state, 9, generator(4)), picks)
    assert picks.unique().numel() == 9
    assert not state.labelled[picks].any()


def test_its_margin_sampling_is_ours() -> None:
    """It sees the beliefs of graph and network: `margin_sampling` and our `margin` pick the same images."""
    pool = pytest.importorskip("skactiveml.pool")
    state = warm_state()
    ours = load_strategy("margin").choose(state, 8, generator())
    assert pool.UncertaintySampling().method is not None
    theirs = load_strategy("skactiveml.pool:UncertaintySampling").choose(state, 40, generator())
    least_confident = load_strategy("least-confidence").choose(state, 8, generator())
    assert set(theirs[:8].tolist()) == set(least_confident.tolist())
    assert set(ours.tolist()) <= set(theirs.tolist())


def test_its_coverage_leaves_no_group_out() -> None:
    """Of four far groups, one labelled, CoreSet asks one of each of the other three."""
    state = state_of(groups([8, 8, 8, 8]), None, [1])
    picks = load_strategy("skactiveml:CoreSet").choose(state, 3, generator())
    assert sorted(int(pick) // 8 for pick in picks) == [1, 2, 3]


def test_a_large_pool_is_seen_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds all pairs in memory sees a sample, another one each time, and still chooses in the whole pool."""
    monkeypatch.setattr(activeml, "MAX_UNLABELLED", 20)
    strategy = load_strategy("skactiveml:ProbCover")
    seen = {int(pick) for seed in range(6) for pick in strategy.choose(warm_state(200), 5, generator(seed))}
    assert len(seen) > 20


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NoSuch", "has no pool strategy NoSuch"),
        ("QueryByCommittee", "needs ensemble"),
        ("DropQuery", "needs a classifier to fit"),
        ("DiscriminativeAL", "needs discriminator"),
    ],
)
def test_what_cannot_be_adapted_is_refused_before_anything_is_asked(name: str, words: str) -> None:
    """In a sentence that says what is missing."""
    with pytest.raises(ConfigError, match=words):
        load_strategy(f"activeml:{name}")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain installation does not have it."""

    def missing(_: str) -> str:
        raise plugin.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(plugin.importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"pip install 'labelmeter\[activeml\]'"):
        load_strategy("skactiveml:ProbCover")

"""Query strategies: each is a file with `select(state, batch, generator) -> indices`, and a line in `STRATEGIES` below.

Strategies from outside this package are loaded by `plugin.py`.

May import: config, errors.
Must not import: `oracle`, `run`, `learning`; a strategy sees no label that is not paid for (`PoolState`).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias, cast

from trainer.config import DEFAULT_STRATEGY
from trainer.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainer.acquisition.state import PoolState

Strategy: TypeAlias = "Callable[[PoolState, int, torch.Generator], Tensor]"

# To add a strategy, write its file and its line: the name for `--strategy`, and the module in this folder.
# tests/unit/trainer/acquisition/test_strategies.py then checks what all strategies promise.
STRATEGIES = {
    "badge": "badge",
    "coverage-margin": "coverage_margin",
    "entropy": "entropy",
    "k-center": "k_center",
    "least-confidence": "least_confidence",
    "margin": "margin",
    "probcover": "probcover",
    "random": "random_sampling",
    "typiclust": "typiclust",
    "uncertain-clusters": "uncertain_clusters",
}


def strategy_named(name: str) -> Strategy:
    """Import a strategy of this package.

    Raises:
        ConfigError: there is no such strategy.
    """
    if name not in STRATEGIES:
        raise unknown_strategy(name)
    return cast(Strategy, import_module(f"{__name__}.{STRATEGIES[name]}").select)


def unknown_strategy(name: str) -> ConfigError:
    """Return the error that names the strategies that there are."""
    return ConfigError(
        f"there is no query strategy {name!r}; choose one of {', '.join(sorted(STRATEGIES))}, or your own by its file "
        "(./mine.py) or as package.module:function"
    )


def explain(state: PoolState, index: int, class_names: tuple[str, ...]) -> str:
    """Describe in a short phrase what was believed about an image before asking for its label."""
    if state.beliefs is None:
        return "cold start: nothing was known yet"
    top = state.beliefs[index].topk(2)
    (first, second), (p1, p2) = top.indices.tolist(), top.values.tolist()
    return f"torn between {class_names[first]} ({p1:.2f}) and {class_names[second]} ({p2:.2f})"


__all__ = ["DEFAULT_STRATEGY", "STRATEGIES", "Strategy", "explain", "strategy_named", "unknown_strategy"]

"""Query strategies: what to ask next.

Each strategy is one file with one function of one signature, `select(state, batch, generator) -> indices`, and one
line in `FILES`. To add your own, write the file and the line; `tests/unit/trainer/acquisition/test_strategies.py`
then holds it to the promises that all of them keep.

A strategy is imported when it is looked up: its name alone is read without PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias, cast

from trainer.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainer.acquisition.state import PoolState

Strategy: TypeAlias = "Callable[[PoolState, int, torch.Generator], Tensor]"

DEFAULT_STRATEGY = "uncertain-clusters"

# The name for `--strategy`, and the file of this folder that has it.
FILES = {
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
    """Import a strategy.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in FILES:
        raise ConfigError(f"there is no query strategy {name!r}; choose one of {', '.join(sorted(FILES))}")
    return cast(Strategy, import_module(f"{__name__}.{FILES[name]}").select)


def explain(state: PoolState, index: int, class_names: tuple[str, ...]) -> str:
    """Say in a short phrase why an image was worth asking: what the learner believed of it before."""
    if state.beliefs is None:
        return "cold start: nothing was known yet"
    top = state.beliefs[index].topk(2)
    (first, second), (p1, p2) = top.indices.tolist(), top.values.tolist()
    return f"torn between {class_names[first]} ({p1:.2f}) and {class_names[second]} ({p2:.2f})"


__all__ = ["DEFAULT_STRATEGY", "FILES", "Strategy", "explain", "strategy_named"]

"""Query strategies: what to ask next.

Each strategy is one file with one function of one signature, `select(state, batch, generator) -> indices`, and one
line in `STRATEGIES`. To add your own, write the file and the line; `tests/unit/trainer/test_acquisition.py` then
holds it to the promises that all of them keep.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.acquisition import (
    badge,
    coverage_margin,
    entropy,
    k_center,
    least_confidence,
    margin,
    probcover,
    random_sampling,
    typiclust,
    uncertain_clusters,
)
from trainer.acquisition.state import PoolState
from trainer.errors import ConfigError

Strategy = Callable[[PoolState, int, torch.Generator], Tensor]

DEFAULT_STRATEGY = "uncertain-clusters"

STRATEGIES: dict[str, Strategy] = {
    "badge": badge.select,
    "coverage-margin": coverage_margin.select,
    "entropy": entropy.select,
    "k-center": k_center.select,
    "least-confidence": least_confidence.select,
    "margin": margin.select,
    "probcover": probcover.select,
    "random": random_sampling.select,
    "typiclust": typiclust.select,
    "uncertain-clusters": uncertain_clusters.select,
}


def strategy_named(name: str) -> Strategy:
    """Look a strategy up.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"there is no query strategy {name!r}; choose one of {', '.join(sorted(STRATEGIES))}")
    return STRATEGIES[name]


def explain(state: PoolState, index: int, class_names: tuple[str, ...]) -> str:
    """Say in a short phrase why an image was worth asking: what the learner believed of it before."""
    if state.beliefs is None:
        return "cold start: nothing was known yet"
    top = state.beliefs[index].topk(2)
    (first, second), (p1, p2) = top.indices.tolist(), top.values.tolist()
    return f"torn between {class_names[first]} ({p1:.2f}) and {class_names[second]} ({p2:.2f})"


__all__ = ["DEFAULT_STRATEGY", "STRATEGIES", "PoolState", "Strategy", "explain", "strategy_named"]

"""Adapter of scikit-activeml: its pool strategies choose from this trainer's features and beliefs.

Source: D. Kottke et al., "scikit-activeml: a library and toolbox for active learning algorithms", 2021; package
scikit-activeml, extra `activeml`. A strategy is given the joint features as `X`, the labels paid for as `y`, and, where
it asks for a classifier, one that answers with the beliefs of graph and network, so that nothing is trained here.
Strategies that ask for an ensemble, a regressor, a discriminator or a classifier to fit are refused.

Departure: many of its strategies hold all pairs of images in memory, so they see the labelled images and at most
`MAX_UNLABELLED` others, drawn anew each time.
"""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainer.acquisition.state import PoolState
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.acquisition import Strategy

# 8,000 x 8,000 distances in float64 are half a gigabyte.
MAX_UNLABELLED = 8000
_NO_LABEL = -1
_GIVEN = {"self", "X", "y", "candidates", "batch_size", "clf", "fit_clf", "return_utilities", "update"}

# These fit the classifier that they are given, and beliefs cannot be fitted (scikit-activeml 1.0).
_FITS_ITS_OWN = {"DropQuery", "EpistemicUncertaintySampling", "FourDs", "MonteCarloEER", "ValueOfInformationEER"}


def adapt(class_name: str, name: str) -> Strategy:
    """Make a strategy of a class of `skactiveml.pool`; `name` is what the user wrote.

    Raises:
        ConfigError: there is no such class, or it needs what this adapter does not have.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from skactiveml import pool

    kind: Any = getattr(pool, class_name, None) if class_name in pool.__all__ else None
    query_of: Any = getattr(kind, "query", None)
    if query_of is None:
        raise ConfigError(f"scikit-activeml has no pool strategy {class_name}; see its documentation for their names")
    query, settings = inspect.signature(query_of).parameters, inspect.signature(kind.__init__).parameters
    needed = [key for key, value in query.items() if value.default is value.empty and key not in _GIVEN]
    needed += [
        key
        for key, value in settings.items()
        if value.default is value.empty and value.kind is value.POSITIONAL_OR_KEYWORD and key not in {"self", "classes"}
    ]
    needed += ["a classifier to fit"] if class_name in _FITS_ITS_OWN else []
    if needed:
        raise ConfigError(f"{name} needs {' and '.join(needed)}, which this trainer cannot give it; choose another one")

    def select(state: PoolState, batch: int, generator: torch.Generator) -> Tensor:
        """Ask the strategy; without beliefs, one that needs a classifier draws at random."""
        if "clf" in query and state.beliefs is None:
            return state.draw(batch, generator)
        drawn = state.draw(MAX_UNLABELLED, generator)
        known = state.labelled.nonzero().flatten()
        rows = torch.cat([known, drawn])
        wanted = min(batch, len(drawn))
        # scikit-learn wants float64 or float32 on the CPU; float32 halves the distances' memory.
        X = np.ascontiguousarray(state.features[rows].cpu().numpy())
        y = np.full(len(rows), _NO_LABEL)
        y[: len(known)] = state.labels[known].cpu().numpy()
        offered: dict[str, Any] = {
            "missing_label": _NO_LABEL,
            "random_state": int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device)),
            "classes": list(range(state.classes)),
            "n_classes": state.classes,
        }
        strategy = kind(**{key: value for key, value in offered.items() if key in settings})
        more: dict[str, Any] = {}
        if "clf" in query:
            assert state.beliefs is not None
            more = {"clf": _belief_classifier(X, state.beliefs[rows].cpu().double().numpy()), "fit_clf": False}
        with warnings.catch_warnings():
            # What it says of its own data types and convergence is not about the run.
            warnings.simplefilter("ignore")
            # Without candidates, it takes those without a label.
            picks = strategy.query(X=X, y=y, batch_size=wanted, **more)
        return rows[torch.from_numpy(np.asarray(picks, dtype=np.int64)).to(rows.device)]

    return select


def _belief_classifier(X: np.ndarray[Any, Any], beliefs: np.ndarray[Any, Any]) -> Any:  # noqa: ANN401 - untyped library
    """Make a classifier of scikit-activeml whose prediction for a row of X is the belief about that image."""
    from skactiveml.base import SkactivemlClassifier

    places = {row.tobytes(): place for place, row in enumerate(X)}

    class Beliefs(SkactivemlClassifier):  # type: ignore[misc]
        """Looks a row up; duplicates share a belief."""

        def fit(self, X: object, y: object, sample_weight: object = None) -> Beliefs:
            """Learn nothing."""
            return self

        def predict_proba(self, X: object) -> np.ndarray[Any, Any]:
            """Return the beliefs [B, C] about rows [B, D]."""
            rows = np.ascontiguousarray(X, dtype=np.float32)
            return beliefs[[places[row.tobytes()] for row in rows]]

        def predict_freq(self, X: object) -> np.ndarray[Any, Any]:
            """Return the beliefs as frequencies of one observation."""
            return self.predict_proba(X)

    classifier = Beliefs(classes=list(range(beliefs.shape[1])), missing_label=_NO_LABEL)
    classifier.classes_ = np.arange(beliefs.shape[1])
    return classifier

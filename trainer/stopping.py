"""A run's own estimate of its accuracy, from no test label: when is the target met?

The beliefs say how sure they are of each image of the pool; labels asked say how right such beliefs were, since each
image was guessed before it was asked. One number is fitted to that, the shift `a` of Platt's calibration

    P(right) = sigmoid(a + SLOPE * logit(confidence)),

and the estimate is the mean of P over the pool. (J. Platt, "Probabilistic outputs for support vector machines", 1999;
fitted on the guesses made before asking: A. P. Dawid's prequential principle, JRSS A 147, 1984.) Images are asked for
their uncertainty and never for their label, so P given the confidence is the same for them as for the rest of the pool.
What they cannot tell is the slope, since confident beliefs are hardly ever asked about: it is a constant, measured on
re-drawn splits (docs/trainer.md, "When to stop").
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.records import QueryRecord

# Measured on re-drawn splits: beliefs above a half are righter than they say (1.28 to 1.48, docs/decisions/0021).
SLOPE = 1.35
# Standard deviation of the shift before any answer: beliefs of unlike runs differ by about so much.
_PRIOR_SD = 0.5
# The newest guesses alone: the first ones were made by beliefs that knew much less.
_GUESSES = 200
# What remained between estimate and pool accuracy on re-drawn splits beside the fit's own error, in shares.
_MODEL_ERROR = 0.01
_NEWTON_STEPS = 20


@dataclass(frozen=True)
class Estimate:
    """An expected share of right predictions, and its standard error."""

    accuracy: float
    error: float

    def reaches(self, target: float) -> bool:
        """Tell whether the target is met with one standard error to spare."""
        return self.accuracy - self.error >= target


def estimate_accuracy(beliefs: Tensor, asked: Sequence[QueryRecord]) -> Estimate | None:
    """Estimate the accuracy of beliefs about the pool.

    Args:
        beliefs: float32 [N, C], rows summing to one, one-hot where the label is known.
        asked: all queries so far, in order; those asked without a guess tell nothing.

    Returns:
        The estimate; None while no guess was made before asking.
    """
    guessed = [
        (record.confidence, record.predicted == record.label)
        for record in asked
        if record.predicted is not None and record.confidence is not None
    ][-_GUESSES:]
    if not guessed:
        return None
    confidence = torch.tensor([pair[0] for pair in guessed], dtype=torch.double)
    right = torch.tensor([pair[1] for pair in guessed], dtype=torch.double)
    shift, shift_sd = _fit_shift(SLOPE * _logit(confidence), right)
    slopes = SLOPE * _logit(beliefs.max(1).values.double().cpu())
    chances = torch.sigmoid(shift + slopes)
    # How far the mean moves with the shift: the derivative of the sigmoid.
    sensitivity = float((chances * (1 - chances)).mean())
    return Estimate(float(chances.mean()), math.hypot(sensitivity * shift_sd, _MODEL_ERROR))


def _logit(share: Tensor) -> Tensor:
    return torch.logit(share.clamp(1e-4, 1 - 1e-4))


def _fit_shift(offsets: Tensor, right: Tensor) -> tuple[float, float]:
    """Fit `a` of sigmoid(a + offset) under its prior by Newton's method; return it with its standard deviation."""
    shift, precision = 0.0, 1 / _PRIOR_SD**2
    curvature = precision
    for _ in range(_NEWTON_STEPS):
        chances = torch.sigmoid(shift + offsets)
        gradient = float((right - chances).sum()) - precision * shift
        curvature = float((chances * (1 - chances)).sum()) + precision
        shift += gradient / curvature
    return shift, curvature**-0.5

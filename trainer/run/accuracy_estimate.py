"""A run's own estimate of its accuracy, made without test labels, to decide when the target is met.

Each image of the pool has a belief of some confidence. Platt's calibration turns it into a probability of being right,

    P(right) = sigmoid(a + slope * logit(confidence)),

and the estimate is the mean of P over the pool (J. Platt, "Probabilistic outputs for support vector machines", 1999).

The slope is a constant of the method, measured on re-drawn splits and one run on the official pool. It grows with the
number of labels: beliefs smoothed over the graph become more accurate with more labels, but hardly more confident. The
shift `a` is fitted on the run's own guesses made before asking (the prequential principle: A. P. Dawid, JRSS A 147,
1984), under a narrow prior: the images asked for are the most uncertain ones and say little about the others, so they
may correct beliefs that are far off, but not decide how accurate the confident ones are. How good the estimate is:
docs/trainer.md, "When to stop".

Once the label service has answered the accuracy of the test images, the shift is known instead of estimated, and tells
what it does not answer: the balanced accuracy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.records.run_records import QueryRecord

# Slope at a hundred labels, and by how much it grows when their number grows e-fold (docs/decisions/0021).
_SLOPE, _SLOPE_GROWTH = 1.05, 0.17
# Standard deviation of the shift before any answer.
_PRIOR_SD = 0.1
# Only the newest guesses count: the first ones were made from far fewer labels.
_GUESSES = 200
# Standard error that remained in the runs measured, beside that of the fit.
_MODEL_ERROR = 0.012
_NEWTON_STEPS = 20
# A shift so large that every prediction is right or wrong, and the halvings that find one to a hundred-millionth.
_FARTHEST_SHIFT, _BISECTIONS = 40.0, 32
# A class with less belief than half an image, over all images, is not believed to be there.
_FEWEST_IMAGES = 0.5


@dataclass(frozen=True)
class AccuracyEstimate:
    """What a run expects of its beliefs about the pool.

    Attributes:
        accuracy: expected share of right predictions.
        standard_error: of that share.
    """

    accuracy: float
    standard_error: float

    def reaches(self, target: float) -> bool:
        """Tell whether the target is met with one standard error to spare."""
        return self.accuracy - self.standard_error >= target


def estimate_accuracy(beliefs: Tensor, asked: Sequence[QueryRecord]) -> AccuracyEstimate | None:
    """Estimate the accuracy of beliefs about the pool.

    Args:
        beliefs: float32 [N, C], rows summing to one, one-hot where the label is known.
        asked: all queries so far, in order; those asked without a guess are not used.

    Returns:
        The estimate; None while no guess was made before asking.
    """
    guessed = [(record.confidence, record.is_right) for record in asked if record.confidence is not None][-_GUESSES:]
    if not guessed:
        return None
    confidence, right = torch.tensor(guessed, dtype=torch.double).unbind(1)
    slope = slope_at(len(asked))
    shift, shift_sd = _fit_shift(slope * _logit(confidence), right)
    chances = torch.sigmoid(shift + slope * _logit(beliefs.max(1).values.double().cpu()))
    # How far the mean moves with the shift: the derivative of the sigmoid.
    sensitivity = float((chances * (1 - chances)).mean())
    error = math.hypot(sensitivity * shift_sd, _MODEL_ERROR)
    return AccuracyEstimate(float(chances.mean()), error)


def balanced_accuracy(beliefs: Tensor, accuracy: float, labels: int) -> float:
    """Estimate the mean recall of the classes, where the accuracy of the predictions is known.

    Each prediction is right with the chance that its confidence gives, shifted so that the mean is the accuracy. An
    image counts for its predicted class with that chance, and for the other classes with the rest, in proportion to its
    beliefs in them. Classes that no image is believed to be in are left out.

    Args:
        beliefs: floating point [M, C], rows summing to one, of the images that the accuracy is about.
        accuracy: share of them that is predicted right.
        labels: paid for.
    """
    beliefs = beliefs.double()
    offsets = slope_at(labels) * _logit(beliefs.max(1).values)
    low, high = -_FARTHEST_SHIFT, _FARTHEST_SHIFT
    for _ in range(_BISECTIONS):
        shift = (low + high) / 2
        low, high = (shift, high) if float(torch.sigmoid(shift + offsets).mean()) < accuracy else (low, shift)
    chances = torch.sigmoid((low + high) / 2 + offsets)
    predicted = beliefs.argmax(1, keepdim=True)
    mass = beliefs.scatter(1, predicted, 0)
    mass *= ((1 - chances) / mass.sum(1).clamp_min(1e-12)).unsqueeze(1)
    mass.scatter_(1, predicted, chances.unsqueeze(1))
    right = torch.zeros(beliefs.shape[1], dtype=torch.double).index_add_(0, predicted.squeeze(1), chances)
    held = mass.sum(0)
    present = held > _FEWEST_IMAGES
    return float((right[present] / held[present]).mean())


def slope_at(labels: int) -> float:
    """Compute the slope of the calibration after a number of labels, at least one."""
    return _SLOPE + _SLOPE_GROWTH * math.log(labels / 100)


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

"""What a run knows of its classes' sizes: what always guessing one class would score, without any test label."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassShares:
    """The largest class.

    Attributes:
        is_estimated: whether the shares in the pool are estimated; otherwise the data set declares equal shares.
        largest: name of the class that is most frequent in the pool, as far as the run knows. Where the data set
            declares equal shares, it is the most frequent among the labels.
        constant_guess: its share of the pool: the accuracy to expect of guessing always this class.
        largest_among_labels: the largest share that one class has of the labels paid for.
    """

    is_estimated: bool
    largest: str
    constant_guess: float
    largest_among_labels: float


def class_shares(labels: Tensor, class_prior: Tensor | None, class_names: tuple[str, ...]) -> ClassShares:
    """Summarise labels paid for, int64 [L], at least one, and the classes' shares of the pool, [C], None if equal."""
    counts = torch.bincount(labels.cpu(), minlength=len(class_names))
    by_size = counts if class_prior is None else class_prior
    largest = int(by_size.argmax())
    return ClassShares(
        is_estimated=class_prior is not None,
        largest=class_names[largest],
        constant_guess=1 / len(class_names) if class_prior is None else float(class_prior[largest]),
        largest_among_labels=int(counts.max()) / len(labels),
    )

"""Re-drawn splits: a pool and a test set drawn anew.

For development the test set is taken out of the training images, so that the official one stays unread. For those who
check from outside, pool and test set may be drawn from all images: a split that nobody has developed on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from label_service.data.idx import Bytes

# Design, rule 6: 10,000 of the 60,000 training images play the test set. As many as the official test set has, so that
# a split of all 70,000 has the official sizes.
REDRAWN_TEST_SIZE = 10_000


class Split(NamedTuple):
    """Images (N, height, width) and labels (N,) of a pool and of a test set, uint8."""

    pool_images: Bytes
    pool_labels: Bytes
    test_images: Bytes
    test_labels: Bytes


def redraw(images: Bytes, labels: Bytes, seed: int, test_size: int = REDRAWN_TEST_SIZE) -> Split:
    """Part images at random into a pool and a test set.

    Args:
        images: (N, height, width), uint8.
        labels: (N,), uint8.
        seed: of `numpy.random.default_rng`; the same seed gives the same split everywhere.
        test_size: images that play the test set, smaller than N.

    Returns:
        The split, both parts in the drawn order: the first `test_size` of the permutation are the test set.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    test, pool = order[:test_size], order[test_size:]
    return Split(images[pool], labels[pool], images[test], labels[test])

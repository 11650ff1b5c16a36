"""The map keeps neighbours together, and is there for pools of any size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.learning.projection import project


def groups(several: int, each: int, dimensions: int = 32) -> Tensor:
    """Make unit vectors in groups, one after the other."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(several, dimensions, generator=generator).repeat_interleave(each, 0)
    return F.normalize(centres + 0.3 * torch.randn(several * each, dimensions, generator=generator), dim=1)


def test_neighbours_stay_neighbours() -> None:
    """The nearest point on the map is of the same group, and the same generator gives the same map."""
    features = groups(6, 80)
    places = project(features, torch.Generator().manual_seed(1))
    distances = torch.cdist(places, places).fill_diagonal_(float("inf"))
    group = torch.arange(480) // 80
    assert (group[distances.argmin(1)] == group).float().mean() > 0.99
    assert torch.equal(places, project(features, torch.Generator().manual_seed(1)))
    # Not on one spot: the points of a group fill an area.
    assert distances.min(1).values.median() > 0


@pytest.mark.parametrize("n", [1, 2, 3, 4, 30])
def test_small_pools_and_duplicates_have_a_map(n: int) -> None:
    """A handful of images, all the same or not, is laid out without a NaN."""
    for features in (groups(1, n), torch.ones(n, 5) / 5**0.5, torch.ones(n, 1)):
        places = project(features, torch.Generator().manual_seed(1))
        assert places.shape == (n, 2) and torch.isfinite(places).all()

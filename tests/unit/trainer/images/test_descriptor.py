"""The descriptor sees edges and their directions, and its vectors lie on the unit sphere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainer.images.descriptor import (
    CELL_PX,
    ORIENTATION_BINS,
    Descriptor,
    OrientedGradients,
    normalise_contrast,
    raw_descriptor,
)


def random_images(count: int = 40, height: int = 12, width: int = 12, seed: int = 0) -> Tensor:
    """Make images of noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width), generator=generator, dtype=torch.uint8)


def ramp(angle: float, side: int = 16) -> Tensor:
    """Make an image whose brightness grows evenly in a direction, [1, 1, side, side] in [0, 1]."""
    rows, columns = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    return (0.5 + 0.3 * (math.cos(angle) * (columns - 0.5) + math.sin(angle) * (rows - 0.5))).view(1, 1, side, side)


@pytest.mark.parametrize("turned", range(2 * ORIENTATION_BINS))
def test_the_energy_of_an_edge_goes_to_the_bin_of_its_direction(turned: int) -> None:
    """A gradient turned by k bins has all its energy in bin k, and opposite directions count as the same."""
    maps = OrientedGradients()(ramp(turned * math.pi / ORIENTATION_BINS))[0, :, 1:-1, 1:-1]
    energy = maps.sum((1, 2))
    assert int(energy.argmax()) == turned % ORIENTATION_BINS
    assert energy.max() / energy.sum() > 0.999


def test_an_edge_between_two_bins_is_split_between_them() -> None:
    """Votes are soft: a quarter of the way from bin 1 to bin 2, three quarters of the energy are in bin 1."""
    energy = OrientedGradients()(ramp(1.25 * math.pi / ORIENTATION_BINS))[0, :, 1:-1, 1:-1].sum((1, 2))
    shares = energy / energy.sum()
    assert shares[1].item() == pytest.approx(0.75, abs=0.01)
    assert shares[2].item() == pytest.approx(0.25, abs=0.01)


def test_the_front_end_has_nothing_to_learn_and_nothing_to_save() -> None:
    """No parameter, no entry in a checkpoint."""
    assert list(OrientedGradients().parameters()) == []
    assert OrientedGradients().state_dict() == {}


@pytest.mark.parametrize(("height", "width"), [(28, 28), (27, 29), (8, 13)])
def test_maps_have_one_value_a_cell_and_bin(height: int, width: int) -> None:
    """Height and width are halved, rounded down."""
    maps = OrientedGradients()(torch.rand(3, 1, height, width))
    assert maps.shape == (3, ORIENTATION_BINS, height // CELL_PX, width // CELL_PX)


def test_maps_do_not_lose_small_gradients_under_autocast() -> None:
    """The front end computes in float32 whatever the precision around it."""
    images = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = OrientedGradients()(images)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, OrientedGradients()(images))


def test_contrast_does_not_change_normalised_maps() -> None:
    """Half the contrast of a well-lit image leaves the normalised maps nearly as they were."""
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    full, half = (normalise_contrast(OrientedGradients()(images * scale)) for scale in (1.0, 0.5))
    assert (full - half).abs().max() < 0.05 * full.max()


def test_an_image_of_28_pixels_has_1014_numbers() -> None:
    """Six bins on 13 by 13 overlapping places, all finite and none negative."""
    raw = raw_descriptor(random_images(3, 28, 28), OrientedGradients())
    assert raw.shape == (3, 1014)
    assert raw.isfinite().all() and raw.min() >= 0


def test_descriptions_are_unit_vectors_and_always_the_same() -> None:
    """Rows have length one; fitting and describing again, and in other chunks, gives the same."""
    pool = random_images()
    first = Descriptor(pool, 16)(pool)
    assert first.shape == (40, 16) and first.dtype == torch.float32
    torch.testing.assert_close(first.norm(dim=1), torch.ones(40))
    assert torch.equal(Descriptor(pool, 16)(pool), first)
    chunked = Descriptor(pool, 16, chunk=7)(pool)
    # Axes have no sign of their own, so compare what the graph uses: similarities.
    torch.testing.assert_close(chunked @ chunked.T, first @ first.T, rtol=0, atol=1e-3)


def test_like_images_are_nearer_than_unlike_ones() -> None:
    """An image with a little noise is most similar to itself without."""
    pool = random_images()
    noisy = (pool.int() + torch.randint(-6, 7, pool.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 255)
    descriptor = Descriptor(pool, 32)
    similarities = descriptor(noisy.to(torch.uint8)) @ descriptor(pool).T
    assert torch.equal(similarities.argmax(1), torch.arange(40))


@pytest.mark.parametrize("count", [2, 5])
def test_a_pool_that_spans_fewer_axes_gives_fewer(count: int) -> None:
    """N images span N - 1 axes about their mean; no axis of mere rounding is blown up to matter."""
    pool = random_images(count)
    assert Descriptor(pool, 128)(pool).shape == (count, count - 1)


@pytest.mark.parametrize("value", [0, 200])
def test_constant_images_have_a_finite_description(value: int) -> None:
    """An image without an edge is described without a NaN, among others or in a pool of nothing else."""
    flat = torch.full((6, 12, 12), value, dtype=torch.uint8)
    among_others = Descriptor(torch.cat([flat, random_images()]), 16)(flat)
    assert among_others.isfinite().all() and among_others.shape == (6, 16)
    assert Descriptor(flat, 16)(flat).isfinite().all()

"""Views change images as configured, draw only from their generator, and stay images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.config import ViewConfig
from trainer.images.augment import random_view
from trainer.profiles import PROFILES

UNCHANGED = ViewConfig(flip=False)
PROFILE_VIEWS = [
    view
    for profile in PROFILES.values()
    for view in (profile.pretrain.view, profile.finetune.weak, profile.finetune.strong)
]


def generator(seed: int = 0) -> torch.Generator:
    """Make a generator."""
    return torch.Generator().manual_seed(seed)


def random_images(count: int = 16, height: int = 12, width: int = 14) -> Tensor:
    """Make images of noise, which no mirror leaves as they are."""
    return torch.randint(0, 256, (count, height, width), generator=generator(99), dtype=torch.uint8)


def dots(count: int, side: int = 28) -> Tensor:
    """Make black images with a bright 2x2 dot in the middle."""
    images = torch.zeros(count, side, side, dtype=torch.uint8)
    images[:, side // 2 - 1 : side // 2 + 1, side // 2 - 1 : side // 2 + 1] = 255
    return images


def centres_px(views: Tensor) -> Tensor:
    """Find each image's centre of brightness, [B, 2] (row, column), in pixels from the middle."""
    x = views.squeeze(1)
    rows, columns = (torch.arange(size) - (size - 1) / 2 for size in x.shape[1:])
    mass = x.sum((1, 2))
    return torch.stack([(x.sum(2) * rows).sum(1) / mass, (x.sum(1) * columns).sum(1) / mass], 1)


def test_a_view_that_changes_nothing_is_the_image() -> None:
    """Without any change a view is the image divided by 255, in a channel of its own, as float32."""
    images = random_images()
    view = random_view(images, UNCHANGED, generator())
    assert view.dtype == torch.float32
    torch.testing.assert_close(view, images.unsqueeze(1) / 255, rtol=0, atol=0)


def test_mirroring_mirrors_half_the_images_and_does_nothing_else() -> None:
    """Each view is the image or its mirror image, left and right exchanged; about half are."""
    images = random_images(400)
    view = random_view(images, ViewConfig(), generator())
    straight = images.unsqueeze(1) / 255
    same = (view == straight).flatten(1).all(1)
    mirrored = (view == straight.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 160 <= mirrored.sum() <= 240


@pytest.mark.parametrize("view", PROFILE_VIEWS, ids=range(len(PROFILE_VIEWS)))
def test_the_generator_decides_the_view(view: ViewConfig) -> None:
    """The same generator state gives the same view, another seed another; the global generator does not matter."""
    images = random_images()
    torch.manual_seed(1)
    first = random_view(images, view, generator(5))
    torch.manual_seed(2)
    assert torch.equal(random_view(images, view, generator(5)), first)
    assert not torch.equal(random_view(images, view, generator(6)), first)


def test_the_global_generator_is_left_alone() -> None:
    """A view draws nothing from torch's own generator."""
    before = torch.get_rng_state()
    random_view(random_images(), PROFILES["cpu"].finetune.strong, generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("view", PROFILE_VIEWS, ids=range(len(PROFILE_VIEWS)))
def test_views_stay_images(view: ViewConfig) -> None:
    """Shape [B, 1, H, W], values in [0, 1], nothing infinite, and the images themselves are not changed."""
    images = random_images()
    kept = images.clone()
    views = random_view(images, view, generator())
    assert views.shape == (16, 1, 12, 14)
    assert views.min() >= 0 and views.max() <= 1
    assert views.isfinite().all()
    assert torch.equal(images, kept)


def test_black_stays_black_under_tone_and_texture() -> None:
    """Lighting and fabric change what is there; the empty background stays empty."""
    views = random_view(torch.zeros(8, 12, 12, dtype=torch.uint8), ViewConfig(tone=0.6, texture=0.3), generator())
    assert views.max() < 1e-3


def test_tone_keeps_the_order_of_grey_values() -> None:
    """Gamma and gain never make a darker pixel brighter than a lighter one of the same image."""
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8).view(1, 8, 8).expand(20, 8, 8)
    views = random_view(ramp, ViewConfig(flip=False, tone=0.6), generator()).flatten(1)
    assert (views.diff(dim=1) >= 0).all()
    assert views.mean(1).std() > 0.05, "the tone does change"


@pytest.mark.parametrize("pixels", [1.0, 3.0])
def test_shifts_reach_the_configured_pixels_and_no_further(pixels: float) -> None:
    """A dot's centre moves by at most translate_px in rows and columns, evenly either way."""
    centres = centres_px(random_view(dots(500), ViewConfig(flip=False, translate_px=pixels), generator()))
    assert centres.abs().max() <= pixels + 1e-3
    assert (centres.abs().amax(0) > 0.9 * pixels).all()
    assert (centres.mean(0).abs() < 0.15 * pixels).all()


def test_zoom_and_rotation_keep_the_middle_in_place() -> None:
    """Without a shift or a crop, the middle of the image stays in the middle."""
    view = ViewConfig(flip=False, scale=(0.7, 1.3), rotation_deg=30)
    assert centres_px(random_view(dots(100), view, generator())).abs().max() < 0.1


def test_rotation_turns_by_at_most_the_configured_degrees() -> None:
    """A dot right of the middle moves on a circle, up or down by at most the sine of the angle."""
    images = torch.zeros(300, 28, 28, dtype=torch.uint8)
    images[:, 13:15, 22:24] = 255
    rows, columns = centres_px(random_view(images, ViewConfig(flip=False, rotation_deg=20), generator())).unbind(1)
    turned_deg = torch.rad2deg(torch.atan2(rows, columns))
    assert 18 < turned_deg.abs().max() < 21
    torch.testing.assert_close(torch.hypot(rows, columns), torch.full((300,), 9.0), rtol=0, atol=0.2)


def test_a_scale_below_one_shows_a_part_of_the_image_larger() -> None:
    """Zoom 0.5 doubles the side of the dot: four times the brightness in all."""
    views = random_view(dots(3), ViewConfig(flip=False, scale=(0.5, 0.5)), generator())
    assert (views.sum((1, 2, 3)) / 4).tolist() == pytest.approx([4.0] * 3, rel=0.15)


def test_a_crop_may_lie_anywhere_but_inside_the_image() -> None:
    """Random crops move the middle away, and never show anything from outside a bright image."""
    bright = torch.full((200, 16, 16), 255, dtype=torch.uint8)
    view = ViewConfig(scale=(0.5, 0.8), crop=True)
    # Only the outermost half pixel may be mixed with the black outside.
    assert random_view(bright, view, generator())[:, :, 1:-1, 1:-1].min() == pytest.approx(1.0, abs=1e-5)
    offsets = centres_px(random_view(dots(200), ViewConfig(scale=(0.75, 0.75), crop=True), generator()))
    assert (offsets.nan_to_num().amax(0) > 2).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_configured_share_of_images_loses_a_rectangle(share: float) -> None:
    """Erasing fills one rectangle of one grey in that share of the images, and leaves the others whole."""
    # No grey drawn is exactly 2/255, so every changed pixel is seen.
    images = torch.full((600, 20, 20), 2, dtype=torch.uint8)
    views = random_view(images, ViewConfig(flip=False, erase=share), generator()).squeeze(1)
    changed = (views - 2 / 255).abs() > 1e-6
    hit = changed.flatten(1).any(1)
    assert hit.float().mean().item() == pytest.approx(share, abs=0.06)
    for view, mask in zip(views[hit], changed[hit], strict=True):
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows.unsqueeze(1) & columns.unsqueeze(0)), "it is a rectangle"
        assert rows.diff().sum() <= 2 and columns.diff().sum() <= 2
        assert 2 <= rows.sum() <= 11 and 2 <= columns.sum() <= 11
        assert view[mask].unique().numel() == 1

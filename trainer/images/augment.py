"""Random views of image batches, made on the images' device from a generator passed in.

Contrastive pretraining takes two views an image; fine-tuning takes a weak one to learn labels from and a strong one
for consistency. The kinds of change are named in `ViewConfig`; profiles choose their strengths.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import ViewConfig


def random_view(images: Tensor, view: ViewConfig, generator: torch.Generator) -> Tensor:
    """Draw one random view of each image.

    Args:
        images: uint8 [B, H, W].
        view: kinds and strengths of change.
        generator: on the images' device; the only source of randomness.

    Returns:
        float32 [B, 1, H, W], in [0, 1].
    """
    x = images.unsqueeze(1).float() / 255
    x = _geometry(x, view, generator)
    B = len(x)
    if view.tone > 0:
        # Gamma and gain together stand for lighting and fabric colour: shape stays, grey values do not.
        gamma = torch.exp(_uniform((B, 1, 1, 1), -view.tone, view.tone, x, generator))
        gain = 1 + _uniform((B, 1, 1, 1), -view.tone, view.tone, x, generator) / 2
        x = x.clamp_min(1e-6).pow(gamma) * gain
    if view.texture > 0:
        coarse = torch.randn((B, 1, 7, 7), generator=generator, device=x.device)
        smooth = F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)
        # Multiplied, so that the empty background stays empty.
        x = x * (1 + view.texture * smooth)
    if view.erase > 0:
        x = _erase(x, view.erase, generator)
    return x.clamp(0, 1)


def _uniform(shape: tuple[int, ...], low: float, high: float, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=like.device) * (high - low) + low


def _geometry(x: Tensor, view: ViewConfig, generator: torch.Generator) -> Tensor:
    """Flip, scale, rotate and shift each image by one bilinear resampling; pixels from outside are black."""
    B, _, H, W = x.shape
    flip = torch.ones(B, device=x.device)
    if view.flip:
        flip = torch.where(torch.rand(B, generator=generator, device=x.device) < 0.5, -1.0, 1.0)
    if not view.moves:
        return torch.where(flip.view(-1, 1, 1, 1) < 0, x.flip(3), x)
    low, high = view.scale
    # Zoom is uniform in log space; the aspect ratio changes by at most the same factor view.aspect either way.
    zoom = torch.exp(_uniform((B,), math.log(low), math.log(high), x, generator))
    aspect = torch.exp(_uniform((B,), -view.aspect, view.aspect, x, generator) / 2)
    angle = _uniform((B,), -view.rotation_deg, view.rotation_deg, x, generator) * (math.pi / 180)
    shift = _uniform((B, 2), -1, 1, x, generator)
    # A crop of scale < 1 may lie anywhere in the image; translate_px comes on top.
    room = (1 - zoom).clamp_min(0) if view.crop else torch.zeros_like(zoom)
    dx = shift[:, 0] * (room + 2 * view.translate_px / W)
    dy = shift[:, 1] * (room + 2 * view.translate_px / H)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    theta = torch.stack(
        [
            torch.stack([cos * aspect * flip, -sin * aspect, dx], 1),
            torch.stack([sin / aspect * flip, cos / aspect, dy], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [B, 1, H, W], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _erase(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Fill one random rectangle, 15 to 50% of each side long, with one random grey, in a share of the images."""
    B, _, H, W = x.shape
    size = _uniform((B, 2), 0.15, 0.5, x, generator)
    start = torch.rand((B, 2), generator=generator, device=x.device) * (1 - size)
    grey = torch.rand((B, 1, 1, 1), generator=generator, device=x.device)
    chosen = torch.rand((B, 1), generator=generator, device=x.device) < probability
    rows = (torch.arange(H, device=x.device) + 0.5) / H
    columns = (torch.arange(W, device=x.device) + 0.5) / W
    in_rows = (rows >= start[:, :1]) & (rows < start[:, :1] + size[:, :1]) & chosen
    in_columns = (columns >= start[:, 1:]) & (columns < start[:, 1:] + size[:, 1:])
    inside = (in_rows.unsqueeze(2) & in_columns.unsqueeze(1)).unsqueeze(1)
    return torch.where(inside, grey, x)

"""Random views of image batches, computed on the device of the images.

Contrastive pretraining uses two views of each image; fine-tuning uses weak views and strong ones. `ViewConfig` names
the kinds of change; profiles choose their strengths.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import ViewConfig
from trainer.images.pixels import as_planes

# Smallest grey value before the power of the gamma correction.
_DARKEST = 1e-6


def random_view(images: Tensor, view: ViewConfig, generator: torch.Generator) -> Tensor:
    """Draw one random view of each image.

    Args:
        images: uint8 [B, H, W], or [B, H, W, 3] in colour.
        view: kinds and strengths of change.
        generator: on the device of the images; the only source of randomness.

    Returns:
        float32 [B, channels, H, W], in [0, 1]; a change of tone or texture is that of all channels.
    """
    x = as_planes(images)
    x = _geometry(x, view, generator)
    B = len(x)
    if view.tone > 0:
        # Gamma and gain stand for lighting and the colour of the fabric: they change grey values, not shapes.
        gamma = torch.exp(_uniform((B, 1, 1, 1), -view.tone, view.tone, x, generator))
        gain = 1 + _uniform((B, 1, 1, 1), -view.tone, view.tone, x, generator) / 2
        x = x.clamp_min(_DARKEST).pow(gamma) * gain
    if view.texture > 0:
        coarse = torch.randn((B, 1, 7, 7), generator=generator, device=x.device)
        smooth = F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)
        # Multiplied, so that the background stays black.
        x = x * (1 + view.texture * smooth)
    if view.erase > 0:
        x = _erase(x, view.erase, generator)
    return x.clamp(0, 1)


def _uniform(shape: tuple[int, ...], low: float, high: float, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=like.device) * (high - low) + low


def _geometry(x: Tensor, view: ViewConfig, generator: torch.Generator) -> Tensor:
    """Flip, zoom, rotate and shift each image by one bilinear resampling; pixels from outside are black."""
    B, _, H, W = x.shape
    flip = torch.ones(B, device=x.device)
    if view.flip:
        flip = torch.where(torch.rand(B, generator=generator, device=x.device) < 0.5, -1.0, 1.0)
    if not view.moves:
        return torch.where(flip.view(-1, 1, 1, 1) < 0, x.flip(3), x)
    low, high = view.scale
    # Zoom and aspect ratio are uniform in log space.
    zoom = torch.exp(_uniform((B,), math.log(low), math.log(high), x, generator))
    aspect = torch.exp(_uniform((B,), -view.aspect, view.aspect, x, generator) / 2)
    angle = _uniform((B,), -view.rotation_deg, view.rotation_deg, x, generator) * (math.pi / 180)
    shift = _uniform((B, 2), -1, 1, x, generator)
    # A crop may be anywhere in the image; translate_px is added to that.
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
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _erase(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Fill a random rectangle, 15 to 50% of each side long, with a random grey, in a share of the images."""
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

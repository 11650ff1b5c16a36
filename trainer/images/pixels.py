"""Pixels as the learner takes them: grey or colour, at a size that it can work with.

Images are uint8 [N, H, W] in grey and [N, H, W, 3] in colour. The networks get planes, float [B, channels, H, W].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Images whose longest side is shorter are enlarged by a whole factor: the gradients need cells of two pixels.
SMALLEST_PX = 16
# No side is reduced below this: a long, narrow image stays narrow.
_NARROWEST_PX = 8
CHUNK_BYTES = 2**26


def channels_of(images: Tensor) -> int:
    """Return 1 for grey images [N, H, W] and 3 for colour [N, H, W, 3]."""
    return 1 if images.ndim == 3 else images.shape[3]


def as_planes(images: Tensor) -> Tensor:
    """Turn uint8 images [B, H, W] or [B, H, W, 3] into planes in [0, 1], float32 [B, channels, H, W]."""
    planes = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return planes.float() / 255


def working_shape(height: int, width: int, longest_px: int) -> tuple[int, int]:
    """Return height and width at which images are learned from.

    Args:
        height: of the images as they are, pixels.
        width: likewise.
        longest_px: longest side to work with; longer images are reduced to it, and very small ones enlarged.
    """
    longest = max(height, width)
    if longest > longest_px:
        return max(_NARROWEST_PX, round(height * longest_px / longest)), max(
            _NARROWEST_PX, round(width * longest_px / longest)
        )
    factor = 1 if longest >= SMALLEST_PX else -(-SMALLEST_PX // longest)
    return height * factor, width * factor


def to_working_size(images: Tensor, longest_px: int) -> Tensor:
    """Bring images to their working size; images that have it already are returned as they are.

    Reducing averages the pixels under each new one; enlarging is bilinear. Images are read in chunks, so that a
    memory-mapped pool is never in memory at its full size.

    Args:
        images: uint8 [N, H, W] or [N, H, W, 3].
        longest_px: see `working_shape`.

    Returns:
        uint8 [N, h, w] or [N, h, w, 3].
    """
    H, W = images.shape[1:3]
    shape = working_shape(H, W, longest_px)
    if shape == (H, W):
        return images
    resized = torch.empty((len(images), *shape, *images.shape[3:]), dtype=torch.uint8, device=images.device)
    mode = "area" if shape[0] <= H and shape[1] <= W else "bilinear"
    rows = max(1, CHUNK_BYTES // (4 * images[0].numel()))
    for start in range(0, len(images), rows):
        chunk = images[start : start + rows]
        planes = F.interpolate(as_planes(chunk), shape, mode=mode)
        pixels = (planes * 255).round().clamp(0, 255).to(torch.uint8)
        resized[start : start + len(chunk)] = pixels.squeeze(1) if images.ndim == 3 else pixels.permute(0, 2, 3, 1)
    return resized

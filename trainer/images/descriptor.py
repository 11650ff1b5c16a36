"""Oriented-gradient maps, and a descriptor computed from them.

The maps are the fixed front end of the encoder; the descriptor is a feature of the neighbour graph. Nothing here is
learned from labels: the principal axes are those of the pool's images.

Source: N. Dalal and B. Triggs, "Histograms of oriented gradients for human detection", CVPR 2005: unsigned
orientations, soft votes, overlapping contrast normalisation. Departures: cells of 2 pixels and six bins, for images of
28 pixels; half-whitened principal components instead of a linear SVM.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.images.pixels import as_planes

# Measured on the pool's images: as good as nine bins, and a third cheaper.
ORIENTATION_BINS = 6
CELL_PX = 2
# Keeps the normalisation of a black background finite; squared gradient of images in [0, 1].
CONTRAST_EPSILON = 1e-3
# More cells a side are pooled: the descriptor's covariance has the square of its length in entries.
_MOST_CELLS = 17
# Cells a side of the mean colours, and their weight beside the outlines: of a colour image either may tell the class.
_COLOUR_GRID = 4
_COLOUR_WEIGHT = 2.0


class OrientedGradients(nn.Module):
    """Compute maps of gradient energy by orientation, without parameters.

    In colour, the gradient of a pixel is that of the channel where it is largest (Dalal and Triggs).

    Shapes: images [B, channels, H, W] in [0, 1] -> maps [B, ORIENTATION_BINS, H / 2, W / 2] (H and W rounded down to
    even).
    """

    centres: Tensor

    def __init__(self) -> None:
        super().__init__()
        centres = torch.arange(ORIENTATION_BINS) * math.pi / ORIENTATION_BINS
        self.register_buffer("centres", centres.view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the maps in float32, also under autocast: small gradients vanish in bfloat16."""
        with torch.autocast(images.device.type, enabled=False):
            padded = F.pad(images.float(), (1, 1, 1, 1), mode="replicate")
            dx = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
            dy = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
            if images.shape[1] > 1:
                strongest = (dx * dx + dy * dy).argmax(1, keepdim=True)
                dx, dy = dx.gather(1, strongest), dy.gather(1, strongest)
            magnitude = torch.sqrt(dx * dx + dy * dy + 1e-12)
            angle = torch.atan2(dy, dx)
            # Distance of undirected orientations, in bins; a vote is split linearly between the two nearest bins.
            turns = (angle - self.centres) / math.pi
            distance = (turns - turns.round()).abs() * ORIENTATION_BINS
            return F.avg_pool2d(magnitude * (1 - distance).clamp_min(0), CELL_PX)


def normalise_contrast(maps: Tensor) -> Tensor:
    """Divide each cell of [B, C, H, W] by the root of the gradient energy in the 3x3 cells around it."""
    energy = F.avg_pool2d(maps.square().sum(1, keepdim=True), 3, stride=1, padding=1, count_include_pad=False)
    return maps / torch.sqrt(energy + CONTRAST_EPSILON)


def raw_descriptor(images: Tensor, front_end: OrientedGradients) -> Tensor:
    """Concatenate contrast-normalised maps, pooled over 4 pixels at a stride of 2, into one vector an image.

    Of images with more than 17 cells a side, more pixels are pooled together, so that the vector stays short. In
    colour, the mean colours of a coarse grid follow, without their brightness.

    Args:
        images: uint8 [B, H, W], or [B, H, W, 3] in colour.
        front_end: the maps, on the same device.

    Returns:
        float32 [B, D]; D = 6 * 13 * 13 = 1014 for grey images of 28 pixels.
    """
    planes = as_planes(images)
    maps = normalise_contrast(front_end(planes))
    coarser = -(-max(maps.shape[2:]) // _MOST_CELLS)
    if coarser > 1:
        maps = F.avg_pool2d(maps, [min(coarser, side) for side in maps.shape[2:]])
    pooled = F.avg_pool2d(maps, [min(2, side) for side in maps.shape[2:]], stride=1)
    # The square root reduces the weight of the few strong edges in Euclidean distances.
    outlines = pooled.sqrt().flatten(1)
    if planes.shape[1] == 1:
        return outlines
    chroma = F.adaptive_avg_pool2d(planes - planes.mean(1, keepdim=True), _COLOUR_GRID)
    return torch.cat([outlines, _COLOUR_WEIGHT * chroma.flatten(1)], 1)


class Descriptor:
    """The oriented-gradient descriptor, rotated to principal axes of the pool and half-whitened.

    Half-whitening divides each axis by the fourth root of its variance: halfway between keeping and equalising the
    variances.
    """

    def __init__(self, pool: Tensor, dimensions: int = 128, chunk: int = 2048) -> None:
        """Fit the axes.

        Args:
            pool: uint8 [N, H, W] or [N, H, W, 3]; its device is used throughout.
            dimensions: number of principal axes to keep; fewer if the pool spans fewer.
            chunk: images per step, to bound memory.
        """
        self._front_end = OrientedGradients().to(pool.device)
        self._chunk = chunk
        total, outer, count = None, None, 0
        for images in pool.split(chunk):
            raw = raw_descriptor(images, self._front_end).double()
            total = raw.sum(0) if total is None else total + raw.sum(0)
            outer = raw.T @ raw if outer is None else outer + raw.T @ raw
            count += len(raw)
        assert total is not None and outer is not None
        self._mean = (total / count).float()
        covariance = outer / count - torch.outer(total, total) / count**2
        variances, axes = torch.linalg.eigh(covariance)
        keep = torch.arange(len(variances) - 1, -1, -1, device=pool.device)[:dimensions]
        keep = keep[variances[keep] > variances.max() * 1e-9]
        self._axes = (axes[:, keep] / variances[keep].pow(0.25)).float()

    def state(self) -> dict[str, Tensor]:
        """Return what was fitted, to keep in a file."""
        return {"mean": self._mean, "axes": self._axes}

    @classmethod
    def restored(cls, state: dict[str, Tensor], chunk: int = 2048) -> "Descriptor":
        """Make a descriptor of what `state` returned."""
        descriptor = cls.__new__(cls)
        descriptor._front_end = OrientedGradients().to(state["axes"].device)
        descriptor._chunk, descriptor._mean, descriptor._axes = chunk, state["mean"], state["axes"]
        return descriptor

    def __call__(self, images: Tensor) -> Tensor:
        """Describe uint8 images [N, H, W] or [N, H, W, 3] as unit vectors, float32 [N, dimensions]."""
        parts = [
            (raw_descriptor(part, self._front_end) - self._mean) @ self._axes for part in images.split(self._chunk)
        ]
        return F.normalize(torch.cat(parts), dim=1)

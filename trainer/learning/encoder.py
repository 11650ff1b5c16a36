"""The encoder, its projection head for contrastive learning, and its classifier for fine-tuning.

Two backbones: `oriented`, a small residual network behind a fixed oriented-gradient front end (the default), and
`resnet18`, torchvision's with a 3x3 first convolution and no max-pool (for comparison with other work: profile
`paper`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import EncoderConfig
from trainer.images.descriptor import ORIENTATION_BINS, OrientedGradients, normalise_contrast


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (K. He et al., CVPR 2016, the basic block)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C, H / stride, W / stride]."""
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class OrientedBackbone(nn.Module):
    """Fixed oriented gradients and quarter-resolution pixels, then residual stages on 14x14 maps.

    Shapes: images [B, channels, H, W] in [0, 1] -> features [B, widths[-1]].
    """

    def __init__(self, widths: tuple[int, ...], blocks: int, *, channels: int = 1, gradients: bool = True) -> None:
        super().__init__()
        self.front_end = OrientedGradients() if gradients else None
        # Contrast-normalised gradients, plain gradients' energy, and the four pixels under each cell.
        maps = (ORIENTATION_BINS + 1 if gradients else 0) + 4 * channels
        self.stem = nn.Sequential(nn.Conv2d(maps, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        stages: list[nn.Module] = []
        previous = widths[0]
        for depth, width in enumerate(widths):
            for block in range(blocks):
                stages.append(ResidualBlock(previous, width, 2 if depth > 0 and block == 0 else 1))
                previous = width
        self.stages = nn.Sequential(*stages)
        self.width = previous

    def forward(self, images: Tensor) -> Tensor:
        """Compute features; the front end runs in float32, the rest in the autocast type."""
        even = images[:, :, : images.shape[2] // 2 * 2, : images.shape[3] // 2 * 2]
        x = 2 * F.pixel_unshuffle(even, 2) - 1
        if self.front_end is not None:
            maps = self.front_end(even)
            x = torch.cat([normalise_contrast(maps), 4 * maps.sum(1, keepdim=True), x], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.stages(self.stem(x)).mean((2, 3))
        return features


def resnet18_backbone(channels: int = 1) -> nn.Module:
    """Make torchvision's ResNet-18 for small images, with random weights; features [B, 512]."""
    from trainer.learning.torchvision_compat import torchvision

    network: nn.Module = torchvision.models.resnet18(weights=None)
    network.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    return network


class Encoder(nn.Module):
    """A backbone with two heads: `project` for the contrastive loss, `classify` for labels.

    Attributes:
        width: features an image, D.
    """

    def __init__(self, config: EncoderConfig, classes: int, channels: int = 1) -> None:
        """Draw random weights from torch's global generator; seed it first (`new_encoder`).

        Args:
            config: backbone and sizes.
            classes: number of classes, C.
            channels: 1 for grey images, 3 for colour.
        """
        super().__init__()
        if config.backbone == "resnet18":
            self.backbone, self.width = resnet18_backbone(channels), 512
        else:
            gradients = config.front_end == "gradients"
            oriented = OrientedBackbone(config.widths, config.blocks, channels=channels, gradients=gradients)
            self.backbone, self.width = oriented, oriented.width
        hidden = max(self.width, config.projection)
        # SimCLR's head (T. Chen et al., ICML 2020), for HCL alone.
        self.projection_head = nn.Sequential(
            nn.Linear(self.width, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, config.projection),
        )
        self.classifier = nn.Linear(self.width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Embed [B, channels, H, W] in [0, 1] as features [B, D]."""
        features: Tensor = self.backbone(images)
        return features

    def project(self, images: Tensor) -> Tensor:
        """Embed as unit vectors for the contrastive loss: [B, projection], float32."""
        return self.project_features(self(images))

    def project_features(self, features: Tensor) -> Tensor:
        """Map features [B, D] to unit vectors for the contrastive loss: [B, projection], float32."""
        return F.normalize(self.projection_head(features).float(), dim=1)

    def classify(self, images: Tensor) -> Tensor:
        """Compute logits [B, C], float32."""
        return self.classify_features(self(images))

    def classify_features(self, features: Tensor) -> Tensor:
        """Map features [B, D] to logits [B, C], float32."""
        logits: Tensor = self.classifier(features).float()
        return logits

"""Compare our pretraining with the published way, in turns on the same cores: `python -m benchmarks.pretraining`.

Both train the same encoder by the same loss on batches of the same size. The published way is written anew from the
paper (J. Robinson et al., ICLR 2021): images are PIL's, torchvision changes one at a time, a DataLoader's workers hand
over batches, the loss is the formula as printed, Adam learns, all in float32. Ours is `trainer/learning/pretrain.py`.
The images are random, because no time depends on what they show. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer.config import PretrainConfig
from trainer.images.augment import random_view
from trainer.learning.device import (
    arithmetic_on,
    available_cores,
    keep_freed_memory,
    mixed_precision,
    pick_device,
    use_all_cores,
)
from trainer.learning.losses import hard_negative_loss
from trainer.learning.parallel import parts_on, side_by_side
from trainer.learning.pretrain import new_encoder, pretrain
from trainer.learning.torchvision_compat import torchvision
from trainer.profiles import CPU
from trainer.records.progress import MetricWriter


class TwoViews(Dataset[tuple[Tensor, Tensor]]):
    """Two views of each image, made one image at a time as in SimCLR's and HCL's published code."""

    def __init__(self, images: Tensor) -> None:
        """Keep uint8 images [N, H, W] as arrays."""
        transforms = torchvision.transforms
        self._images = images.numpy()
        self._view = transforms.Compose(
            [
                transforms.RandomResizedCrop(images.shape[2]),
                transforms.RandomHorizontalFlip(),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        """Return N."""
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return two views, float32 [1, H, W] each."""
        image = Image.fromarray(self._images[index])
        return self._view(image), self._view(image)


def printed_loss(first: Tensor, second: Tensor, config: PretrainConfig) -> Tensor:
    """Compute HCL's loss of unit vectors [B, D] as the paper prints it (equations 4 and 5)."""
    views = torch.cat([first, second])
    count = 2 * len(first) - 2
    similar = torch.exp(views @ views.T / config.temperature)
    mask = ~torch.eye(len(first), dtype=torch.bool, device=views.device).repeat(2, 2)
    negatives = similar[mask].view(2 * len(first), count)
    positives = torch.exp((first * second).sum(1) / config.temperature).repeat(2)
    importance = negatives**config.beta
    reweighted = count * (importance * negatives).sum(1) / importance.sum(1)
    hard = (reweighted - config.tau_plus * count * positives) / (1 - config.tau_plus)
    hard = hard.clamp_min(count * math.exp(-1 / config.temperature))
    return -torch.log(positives / (positives + hard)).mean()


def published_way(images: Tensor, config: PretrainConfig, device: torch.device, workers: int) -> Callable[[], None]:
    """Return a function that trains one pass over the images the published way."""
    encoder = new_encoder(CPU.encoder, 10, 0, device)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3, weight_decay=1e-6)
    loader = DataLoader(
        TwoViews(images.cpu()), config.batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )

    def run() -> None:
        encoder.train()
        for first, second in loader:
            embeddings = [encoder.project(views.to(device)) for views in (first, second)]
            loss = printed_loss(embeddings[0], embeddings[1], config)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            # As published: the loss is shown at each step.
            loss.item()

    run()  # The workers start.
    return run


def our_way(images: Tensor, config: PretrainConfig) -> Callable[[], None]:
    """Return a function that trains one pass over the images our way, from new weights each time."""

    def run() -> None:
        encoder = new_encoder(CPU.encoder, 10, 0, images.device)
        with tempfile.TemporaryDirectory() as out, MetricWriter(Path(out)) as metrics:
            pretrain(images, encoder, config, seed=0, identity="", out=Path(out), metrics=metrics)

    run()
    return run


def encoder_alone(images: Tensor, config: PretrainConfig) -> Callable[[], None]:
    """Return a function that runs what no implementation can leave out: forward and backward on finished views."""
    device = images.device
    parts = parts_on(device)
    encoders = [new_encoder(CPU.encoder, 10, 0, device) for _ in range(parts)]
    rows = torch.arange(config.batch, device=device).chunk(parts)
    views = [
        torch.cat([random_view(images[part], config.view, torch.Generator(device).manual_seed(0)) for _ in range(2)])
        for part in rows
    ]

    def half(index: int) -> None:
        with mixed_precision(device):
            embeddings = encoders[index].project(views[index])
        hard_negative_loss(*embeddings.chunk(2), temperature=config.temperature).backward()

    def run() -> None:
        for _ in range(len(images) // config.batch):
            side_by_side(half, range(parts), device)

    run()
    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.pretraining", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=5120, help="in one pass; default: 5120")
    parser.add_argument("--workers", type=int, help="of the DataLoader; default: one for each core")
    given = parser.parse_args()
    use_all_cores()
    keep_freed_memory()
    device, cores = pick_device(), available_cores()
    config = CPU.pretrain.model_copy(update={"epochs": 1})
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (given.images, 28, 28), dtype=torch.uint8, generator=generator).to(device)
    ways = {
        "published": published_way(images, config, device, cores if given.workers is None else given.workers),
        "ours": our_way(images, config),
        "encoder alone": encoder_alone(images, config),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(max(1, given.rounds)):
        for name, run in ways.items():
            began_s = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began_s)
    first, second = F.normalize(torch.randn(2, 64, 32, generator=generator), dim=2)
    ours = hard_negative_loss(first, second, temperature=config.temperature, beta=config.beta, tau_plus=config.tau_plus)
    # Both ways must do the same work, or the comparison means nothing.
    torch.testing.assert_close(ours, printed_loss(first, second, config))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"\n{cores} cores, device {device}, ours in {arithmetic_on(device)}; batches of {config.batch}, "
        f"medians of {len(seconds['ours'])} rounds of {given.images:,} images\n"
    )
    print("| | images/s | least | most |\n|---|---:|---:|---:|")
    for name in ("published", "ours"):
        rates = [given.images / value for value in seconds[name]]
        print(f"| {name} | {statistics.median(rates):,.0f} | {min(rates):,.0f} | {max(rates):,.0f} |")
    print(f"\nours against published: {median['published'] / median['ours']:.1f} times")
    print(f"forward and backward of the encoder in our time: {median['encoder alone'] / median['ours']:.0%}")


if __name__ == "__main__":
    main()

"""What work side by side is worth: `python -m benchmarks.training_speed`.

Times, in turns, one step of forward and backward of the default network: all cores on the whole batch, and each of two
parts on its half of the cores (`trainer/parallel.py`). Prints both and their ratio. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.device import keep_freed_memory, mixed_precision, use_all_cores
from trainer.encoder import Encoder
from trainer.parallel import Replicas, available_cores, part, parts_on, side_by_side
from trainer.pretrain import new_encoder
from trainer.profiles import CPU

DEVICE = torch.device("cpu")
_WARMUP_STEPS = 5


def learn(pair: tuple[Encoder, Tensor]) -> None:
    """Forward and backward, as in training."""
    network, images = pair
    with mixed_precision(DEVICE):
        logits = network.classify(images)
    logits.square().mean().backward()


def seconds(step: Callable[[], None]) -> float:
    """Time one step."""
    began_s = time.perf_counter()
    step()
    return time.perf_counter() - began_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.training_speed", description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each kind; default: 60")
    steps = max(1, parser.parse_args().steps)
    use_all_cores()
    keep_freed_memory()
    encoder = new_encoder(CPU.encoder, 10, 0, DEVICE)
    replicas = Replicas(encoder, parts_on(DEVICE))
    replicas.train()
    images = torch.rand(CPU.finetune.batch + CPU.finetune.labelled_batch, 1, 28, 28)

    def whole() -> None:
        learn((encoder, images))
        encoder.zero_grad(set_to_none=True)

    def parted() -> None:
        side_by_side(learn, zip(replicas.networks, part(images, parts_on(DEVICE)), strict=True), DEVICE)
        replicas.gather_gradients()
        encoder.zero_grad(set_to_none=True)

    took: dict[str, list[float]] = {"whole": [], "parted": []}
    for _ in range(_WARMUP_STEPS):
        whole()
        parted()
    for _ in range(steps):
        took["whole"].append(seconds(whole))
        took["parted"].append(seconds(parted))
    medians = {name: 1000 * statistics.median(values) for name, values in took.items()}
    print(f"{available_cores()} cores, {len(images)} images a step, {steps} steps each, medians\n")
    print("| | ms a step |\n|---|---:|")
    print(f"| all cores on the whole batch | {medians['whole']:.0f} |")
    print(f"| each of {parts_on(DEVICE)} parts on its share of the cores | {medians['parted']:.0f} |")
    print(f"| ratio | {medians['whole'] / medians['parted']:.2f} |")


if __name__ == "__main__":
    main()

"""Measure what work side by side gains: `python -m benchmarks.training_speed`.

Times steps of consistency training of the default profile, views and teacher included, on random images: with all cores
on the whole batch, and in turn with each half of the batch on half of the cores (`trainer/learning/parallel.py`).
Prints both and their ratio. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from trainer.config import PhaseConfig
from trainer.learning import parallel
from trainer.learning.device import available_cores, keep_freed_memory, use_all_cores
from trainer.learning.finetune import FineTuner
from trainer.learning.pretrain import new_encoder
from trainer.profiles import CPU
from trainer.records.progress import MetricWriter

DEVICE = torch.device("cpu")
STEPS = 30
PHASE = PhaseConfig(epochs=1, consistency=1.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.training_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help=f"{STEPS} steps of each kind a round; default: 5")
    rounds = max(1, parser.parse_args().rounds)
    use_all_cores()
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (CPU.finetune.batch * STEPS, 28, 28), dtype=torch.uint8, generator=generator)
    beliefs = torch.full((len(images), 10), 0.1)
    ids = torch.arange(100)
    config = CPU.finetune.model_copy(update={"steps": STEPS})
    step_ms: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as out, MetricWriter(Path(out)) as metrics:
        tuners = {}
        for parts in step_ms:
            parallel._CPU_PARTS = parts
            tuners[parts] = FineTuner(new_encoder(CPU.encoder, 10, 0, DEVICE), images, config, seed=0, metrics=metrics)
        # The first round warms up and is not counted.
        for number in range(rounds + 1):
            for parts, tuner in tuners.items():
                parallel._CPU_PARTS = parts
                parallel._workers.cache_clear()
                began_s = time.perf_counter()
                tuner.train_phase(PHASE, ids, ids % 10, beliefs, name=f"{parts}-{number}")
                if number:
                    step_ms[parts].append(1000 * (time.perf_counter() - began_s) / STEPS)
    whole, halves = (statistics.median(step_ms[parts]) for parts in (1, 2))
    print(f"\n{available_cores()} cores, medians of {rounds} rounds of {STEPS} steps\n")
    print("| | ms a step |\n|---|---:|")
    print(f"| all cores on the whole batch | {whole:.0f} |")
    print(f"| each of two halves on its share of the cores | {halves:.0f} |")
    print(f"| ratio | {whole / halves:.2f} |")


if __name__ == "__main__":
    main()

"""Measure what work side by side gains: `python -m benchmarks.training_speed`.

Times steps of consistency training of the default profile, views and teacher included, on random images, in turns:

- all cores on the whole batch;
- each half of the batch on half of the cores, in two threads (`trainer/learning/parallel.py`);
- the same halves in two processes that talk by gloo (`trainer/learning/ranks.py`).

Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tests.support.two_ranks import two_ranks
from trainer.config import PhaseConfig
from trainer.learning import parallel, ranks
from trainer.learning.device import arithmetic_on, available_cores, keep_freed_memory
from trainer.learning.finetune import FineTuner
from trainer.learning.pretrain import new_encoder
from trainer.profiles import CPU
from trainer.records.progress import MetricWriter

DEVICE = torch.device("cpu")
PHASE = PhaseConfig(epochs=1, consistency=1.0)


KINDS = {
    "whole": "all cores on the whole batch",
    "threads": "each of two halves on its share of the cores, in two threads",
    "processes": "the same in two processes (gloo)",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.training_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--steps", type=int, default=30, help="of each kind a round; default: 30")
    parser.add_argument("--batch", type=int, default=CPU.finetune.batch, help="unlabelled images a step")
    parser.add_argument("--labelled", type=int, default=CPU.finetune.labelled_batch, help="labelled images a step")
    options = parser.parse_args()
    rounds, steps = max(1, options.rounds), max(1, options.steps)
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.batch * steps, 28, 28), dtype=torch.uint8, generator=generator)
    beliefs = torch.full((len(images), 10), 0.1)
    ids = torch.arange(100)
    changes = {"batch": options.batch, "labelled_batch": options.labelled, "steps": steps}
    config = CPU.finetune.model_copy(update=changes)
    step_ms: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as out, MetricWriter(Path(out)) as metrics, second_process():
        group = ranks._group
        tuners = {
            kind: FineTuner(new_encoder(CPU.encoder, 10, 0, DEVICE), images, config, seed=0, metrics=metrics)
            for kind in KINDS
        }
        # The first round warms up and is not counted.
        for number in range(rounds + 1):
            for kind, tuner in tuners.items():
                parallel._CPU_PARTS = 1 if kind == "whole" else 2
                ranks._group = group if kind == "processes" else None
                torch.set_num_threads(max(1, available_cores() // (2 if kind == "processes" else 1)))
                parallel._workers.cache_clear()
                began_s = time.perf_counter()
                tuner.train_phase(PHASE, ids, ids % 10, beliefs, name=f"{kind}-{number}")
                if number:
                    step_ms[kind].append(1000 * (time.perf_counter() - began_s) / steps)
        ranks._group = group
    whole = statistics.median(step_ms["whole"])
    print(f"\n{available_cores()} cores, {arithmetic_on(DEVICE)}, {rounds} rounds of {steps} steps\n")
    print("| | ms a step, median (range) | times as fast |\n|---|---:|---:|")
    for kind, title in KINDS.items():
        median, low, high = (measure(step_ms[kind]) for measure in (statistics.median, min, max))
        print(f"| {title} | {median:.0f} ({low:.0f} to {high:.0f}) | {whole / median:.2f} |")


@contextmanager
def second_process() -> Iterator[None]:
    """Start a second process, and lead it as torchrun's rank 0 would."""
    own, other = two_ranks()
    os.environ.update(own)
    code = "from trainer.learning.ranks import serve; serve('cpu', 0)"
    with subprocess.Popen([sys.executable, "-c", code], env=os.environ | other), ranks.joined("cpu", 0):
        yield


if __name__ == "__main__":
    main()

"""Measure how time and memory grow with the pool: `python -m benchmarks.growth --data data [--sizes N …]`.

Makes pools of random views of Fashion-MNIST's training images, and takes the steps between two trainings on each:
features, neighbour graph, propagation of 100 labels, choice of the next 50 images. The encoder has random weights,
which cost as much as trained ones. Each pool has a process of its own, for its own peak of memory. The recall
is the share of the 15 nearest neighbours that the search finds, over 1,000 images.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.redrawn import load_split
from benchmarks.views import random_views
from trainer.acquisition import uncertain_clusters
from trainer.acquisition.state import PoolState
from trainer.config import ViewConfig
from trainer.learning.beliefs import FeatureSpace
from trainer.learning.device import available_cores, keep_freed_memory, use_all_cores
from trainer.learning.graph import build_graph, propagate_labels
from trainer.learning.pretrain import new_encoder
from trainer.profiles import CPU

DEVICE = torch.device("cpu")
SIZES = (6_000, 60_000, 600_000)
VIEW = ViewConfig(scale=(0.9, 1.1), rotation_deg=8, translate_px=2, tone=0.2)
LABELS, CHOSEN, RECALLED = 100, 50, 1_000
STAGES = ("features", "graph", "propagation", "selection")


def measure(data: Path, size: int) -> dict[str, float]:
    """Take the steps on a pool of so many images; return seconds by stage, the recall and the peak of memory in GB."""
    use_all_cores()
    keep_freed_memory()
    images, labels, _ = load_split(data)
    pool = random_views(images.pool, size, VIEW, torch.Generator().manual_seed(1))
    labels = labels[torch.arange(size) % len(labels)]
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        began_s = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - began_s

    with stage("features"):
        space = FeatureSpace(pool, new_encoder(CPU.encoder, 10, 0, DEVICE), CPU.graph)
        features = space.embed_pool(None)
    with stage("graph"):
        graph = build_graph(features, CPU.graph.neighbours)
    ids = torch.randperm(size, generator=generator)[:LABELS]
    with stage("propagation"):
        beliefs = propagate_labels(graph, ids, labels[ids], 10)
    with stage("selection"):
        labelled = torch.zeros(size, dtype=torch.bool)
        labelled[ids] = True
        paid = torch.full((size,), -1)
        paid[ids] = labels[ids]
        state = PoolState(
            features, graph.neighbours, graph.similarities, beliefs, labelled, 10, paid, 1, pool, lambda: features
        )
        uncertain_clusters.select(state, CHOSEN, generator)
    # Kilobytes on Linux.
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return seconds | {"memory": peak_gb, "recall": _recall(features, graph.neighbours)}


def _recall(features: Tensor, neighbours: Tensor) -> float:
    """Compare with a whole search, without the image itself."""
    asked = torch.arange(0, len(features), max(1, len(features) // RECALLED))[:RECALLED]
    shares = []
    for part in asked.split(50):
        similarity = features[part] @ features.T
        similarity[torch.arange(len(part)), part] = -2
        true = similarity.topk(neighbours.shape[1], dim=1).indices
        shares.append((neighbours[part].unsqueeze(2) == true.unsqueeze(1)).any(2).float().mean(1))
    return float(torch.cat(shares).mean())


def main() -> None:
    """Measure each size in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a prepared folder of Fashion-MNIST")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measure(given.data, given.one)))
        return
    print(f"{available_cores()} cores; seconds\n")
    print(f"| images | {' | '.join(STAGES)} | all | times the row before | memory, GB | recall of 15 |")
    print(f"|{'---:|' * (len(STAGES) + 5)}", flush=True)
    before = None
    for size in given.sizes:
        command = [sys.executable, "-m", "benchmarks.growth", "--data", str(given.data), "--one", str(size)]
        found = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
        total = sum(found[name] for name in STAGES)
        times = "" if before is None else f"{total / before:.1f}"
        cells = [f"{found[name]:.1f}" for name in STAGES]
        print(
            f"| {size:,} | {' | '.join(cells)} | {total:.1f} | {times} | {found['memory']:.2f} | "
            f"{100 * found['recall']:.1f}% |",
            flush=True,
        )
        before = total


if __name__ == "__main__":
    main()

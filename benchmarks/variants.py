"""Compare ways of learning in whole runs: `python -m benchmarks.variants --data DIR …`.

Each variant of the profile runs the trainer's own loop on a development split, once for each seed: it chooses images,
learns, and chooses on. The labels are the split's own and come without a service, so no number of this is a record; the
official data are refused. All variants start from the same pretrained weights and, for the same seed, ask for the same
images until the first network is trained.

    python -m label_service prepare --data data101 --redraw 101
    python -m benchmarks.variants --data data101 --out varied --variants "as it is" "mixup 0.75"

Weights, queries and checkpoints are kept in --out, and the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.redrawn import load_split, redraw_seed_of
from tests.support.memory_oracle import oracle_in_memory
from trainer.acquisition.plugin import load_strategy
from trainer.config import PhaseConfig, Profile
from trainer.images.data import ImageSet
from trainer.learning.device import keep_freed_memory, use_all_cores
from trainer.learning.pretrain import load_encoder, new_encoder, pretrain
from trainer.profiles import profile_named
from trainer.records.files import append_lines
from trainer.records.progress import MetricWriter, StageClock
from trainer.run.active_loop import ActiveLoop, LearnedState
from trainer.run.label_oracle import LabelOracle

CLASSES = 10
DEVICE = torch.device("cpu")
# T-shirt, pullover, coat and shirt: most errors are among them.
HARD = {0: "T-shirt", 2: "pullover", 4: "coat", 6: "shirt"}
_MEASURED_FILE = "measured.jsonl"


def _phases(change: Callable[[PhaseConfig], dict[str, object]]) -> Callable[[Profile], Profile]:
    def changed(profile: Profile) -> Profile:
        rounds = tuple(
            settings.model_copy(
                update={"phases": tuple(phase.model_copy(update=change(phase)) for phase in settings.phases)}
            )
            for settings in profile.rounds
        )
        return profile.model_copy(update={"rounds": rounds})

    return changed


def _in_batches_of(images: int, change: Callable[[Profile], Profile]) -> Callable[[Profile], Profile]:
    def changed(profile: Profile) -> Profile:
        labelled = max(1, profile.finetune.labelled_batch * images // profile.finetune.batch)
        finetune = profile.finetune.model_copy(update={"batch": images, "labelled_batch": labelled})
        return change(profile.model_copy(update={"finetune": finetune}))

    return changed


def _follows_beliefs(phase: PhaseConfig) -> bool:
    return phase.consistency > 0 and phase.trust_beliefs > 0


def _as_it_is(profile: Profile) -> Profile:
    return profile


def _three_trainings(profile: Profile) -> Profile:
    """Train at a quarter and half of the budget and at its end alone, with mixup from a confidence of 0.6 on."""
    mixed = [PhaseConfig(epochs=epochs, consistency=1.0, mixup=0.75, threshold=0.6) for epochs in (2, 4, 6)]
    quarter, half = (min(n for n in profile.budgets if n * parts >= profile.budget) for parts in (4, 2))
    phases = dict(zip((quarter, half, profile.budget), mixed, strict=True))
    rounds = (
        settings.model_copy(update={"phases": (phases[settings.labels],) if settings.labels in phases else ()})
        for settings in profile.rounds
    )
    return profile.model_copy(update={"rounds": tuple(rounds)})


VARIANTS: dict[str, Callable[[Profile], Profile]] = {
    "as it is": _as_it_is,
    **{
        f"mixup {a}": _phases(lambda phase, a=a: {"mixup": a if _follows_beliefs(phase) else 0.0})  # type: ignore[misc]
        for a in (0.4, 0.75, 1.0)
    },
    "mixup 0.75 to the end": _phases(lambda phase: {"mixup": 0.75 if phase.consistency > 0 else 0.0}),
    "mixup 0.75, twice the epochs": _phases(
        lambda phase: {"mixup": 0.75, "epochs": 2 * phase.epochs} if _follows_beliefs(phase) else {}
    ),
    "twice the epochs": _phases(lambda phase: {"epochs": 2 * phase.epochs} if _follows_beliefs(phase) else {}),
    "HCL 0.5": _phases(lambda phase: {"contrast": 0.5 if _follows_beliefs(phase) else 0.0}),
    "HCL 0.2": _phases(lambda phase: {"contrast": 0.2 if _follows_beliefs(phase) else 0.0}),
    "three trainings": _three_trainings,
    "mixup 0.75, HCL 0.5": _phases(lambda phase: {"mixup": 0.75, "contrast": 0.5} if _follows_beliefs(phase) else {}),
}
VARIANTS |= {
    f"{name}, batches of 128": _in_batches_of(128, VARIANTS[name])
    for name in ("as it is", "mixup 0.75", "mixup 0.75, twice the epochs", "three trainings")
}


@dataclass(frozen=True)
class Split:
    """A development split.

    Attributes:
        images: of the pool and held out.
        pool_labels: int64 [N].
        test_labels: int64 [M], of the images that are held out.
        answers: int64 [N], what is answered for an image of the pool: its label, unless some answers are to be wrong.
    """

    images: ImageSet
    pool_labels: Tensor
    test_labels: Tensor
    answers: Tensor


@dataclass(frozen=True)
class Measured:
    """What a variant knows at one number of labels.

    Attributes:
        labels: number of labels.
        pool: percent of the pool's images without a label that are believed rightly.
        held_out: percent of the held-out images that are predicted rightly.
        recall: percent of each hard class's held-out images, in the order of `HARD`.
        minutes: of the loop so far, without pretraining.
    """

    labels: int
    pool: float
    held_out: float
    recall: tuple[float, ...]
    minutes: float


def run_variant(profile: Profile, split: Split, weights: Path, seed: int, identity: str, out: Path) -> list[Measured]:
    """Run a profile's loop to its end, or go on with it; return what it knew at its evaluated points."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / _MEASURED_FILE
    measured = [] if not path.exists() else [Measured(**json.loads(line)) for line in path.read_text().splitlines()]
    if measured and measured[-1].labels == profile.budget:
        return measured
    encoder = new_encoder(profile.encoder, CLASSES, seed, DEVICE)
    load_encoder(encoder, weights, None)
    pool, clock = split.images.pool, StageClock(out)
    with MetricWriter(out) as metrics:
        oracle = oracle_in_memory(split.answers, CLASSES, out)
        loop = ActiveLoop(
            pool, encoder, profile, oracle, load_strategy(profile.strategy),
            seed=seed, identity=identity, out=out, clock=clock, metrics=metrics,
        )  # fmt: skip
        for learned in loop.run({row.labels for row in measured}):
            row = _measure(learned, split, oracle, sum(clock.seconds.values()))
            append_lines(path, [json.dumps(asdict(row))])
            measured.append(row)
            print(f"{out.name}: {row}", file=sys.stderr, flush=True)
    return measured


def _measure(learned: LearnedState, split: Split, oracle: LabelOracle, seconds: float) -> Measured:
    unknown = torch.ones(len(split.pool_labels), dtype=torch.bool)
    unknown[[record.id for record in oracle.records]] = False
    right = learned.model.predict(split.images.test, learned.beliefs).argmax(1) == split.test_labels
    return Measured(
        labels=learned.labels,
        pool=_percent((learned.beliefs.argmax(1) == split.pool_labels)[unknown]),
        held_out=_percent(right),
        recall=tuple(_percent(right[split.test_labels == number]) for number in HARD),
        minutes=seconds / 60,
    )


def _partly_wrong(labels: Tensor, share: float) -> Tensor:
    """Change so large a share of the labels, drawn at random and always the same, each to another class at random."""
    generator = torch.Generator().manual_seed(0)
    changed = labels.clone()
    wrong = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    changed[wrong] = (labels[wrong] + torch.randint(1, CLASSES, wrong.shape, generator=generator)) % CLASSES
    return changed


def _percent(right: Tensor) -> float:
    return 100 * float(right.float().mean())


def _pretrained(profile: Profile, images: ImageSet, out: Path) -> Path:
    """Pretrain, unless it was done before; return the file of weights."""
    identity = profile.pretraining_identity(0, images.fingerprint)
    folder = out / f"pretrained-{identity[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    encoder = new_encoder(profile.encoder, CLASSES, 0, DEVICE)
    with MetricWriter(folder) as metrics:
        return pretrain(images.pool, encoder, profile.pretrain, seed=0, identity=identity, out=folder, metrics=metrics)


def _print_results(results: dict[tuple[int, str], list[Measured]], names: Sequence[str]) -> None:
    """Print every variant's means, and its gains over the first one, paired by seed."""
    seeds = list(dict.fromkeys(seed for seed, _ in results))
    print(f"\nMean of {len(seeds)} seeds; gains over '{names[0]}' with the standard deviation of the pairs.\n")
    hard = ", ".join(HARD.values())
    print(f"| labels | variant | pool | gain | held out | gain | recall: {hard} | minutes |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for moment in range(len(results[seeds[0], names[0]])):
        for name in names:
            rows = [results[seed, name][moment] for seed in seeds]
            base = [results[seed, names[0]][moment] for seed in seeds]
            cells = []
            for key in ("pool", "held_out"):
                gains = [getattr(row, key) - getattr(other, key) for row, other in zip(rows, base, strict=True)]
                spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
                gain = f"{statistics.mean(gains):+.2f} ± {spread:.2f}"
                cells += [f"{statistics.mean(getattr(row, key) for row in rows):.2f}", gain]
            recall = " ".join(
                f"{statistics.mean(values):.0f}" for values in zip(*(row.recall for row in rows), strict=True)
            )
            minutes = statistics.mean(row.minutes for row in rows)
            print(f"| {rows[0].labels} | {name} | {' | '.join(cells)} | {recall} | {minutes:.1f} |", flush=True)


def main() -> int:
    """Run what is not finished yet, and print the table after each seed."""
    parser = argparse.ArgumentParser(prog="benchmarks.variants", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder made by `prepare --redraw`")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["as it is", "mixup 0.75"])
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--budget", type=int, help="default: the profile's")
    parser.add_argument("--counts", type=int, nargs="+", default=[], help="of labels, to measure at before the end")
    parser.add_argument("--pretraining", type=int, metavar="EPOCHS", help="default: the profile's")
    parser.add_argument("--weights", type=Path, help="a run's encoder.pt; default: pretrained here, under seed 0")
    parser.add_argument("--wrong", type=float, default=0.0, help="share of the pool whose labels are answered wrongly")
    parser.add_argument("--cores", type=int, help="default: all; with fewer, two commands can run side by side")
    given = parser.parse_args()
    if redraw_seed_of(given.data) is None:
        print(f"{given.data} is no re-drawn split; make one with `prepare --redraw SEED`.", file=sys.stderr)
        return 2
    use_all_cores()
    if given.cores is not None:
        torch.set_num_threads(given.cores)
    keep_freed_memory()
    images, pool_labels, test_labels = load_split(given.data)
    split = Split(images, pool_labels, test_labels, _partly_wrong(pool_labels, given.wrong))
    profile = profile_named(given.profile)
    profile = profile if given.budget is None else profile.with_budget(given.budget)
    if given.pretraining is not None:
        changes = {"epochs": given.pretraining}
        profile = profile.model_copy(update={"pretrain": profile.pretrain.model_copy(update=changes)})
    weights = given.weights or _pretrained(profile, split.images, given.out)
    weights_sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    results: dict[tuple[int, str], list[Measured]] = {}
    for seed in given.seeds:
        for name in given.variants:
            changed = _measured_at(VARIANTS[name](profile), given.counts)
            facts = [changed.model_dump_json(), weights_sha256, split.images.fingerprint, seed, given.wrong]
            identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
            folder = given.out / f"{name.replace(' ', '-')}-seed{seed}-{identity[:8]}"
            results[seed, name] = run_variant(changed, split, weights, seed, identity, folder)
        _print_results(results, given.variants)
    return 0


def _measured_at(profile: Profile, counts: Sequence[int]) -> Profile:
    rounds = (settings.model_copy(update={"evaluated": settings.labels in counts}) for settings in profile.rounds)
    return profile.model_copy(update={"rounds": tuple(rounds)})


if __name__ == "__main__":
    sys.exit(main())

"""Replay finished runs' queries to compare ways of learning: `python -m benchmarks.replay --data DIR …`.

What to ask is taken from a finished run, so a variant costs only its fine-tuning, and all variants learn from the same
labels. They start from the same pretrained weights and are trained in turns, paired by seed. Where time is short,
`--images` makes the pool smaller (the asked images and random others) and `--widths` the network.

    python -m label_service prepare --data data101 --redraw 101
    python -m benchmarks.replay --data data101 --out replayed \\
        --queries records/2026-11-25_learning-curve/runs/uncertain-clusters-seed4[1-3]/evidence.json

Queries are a run's `queries.jsonl` on the same split, or the evidence of a run on the official pool: the images that
the split holds out are left out, and later queries take their places. Labels are the re-drawn split's own; the official
data are refused. Weights and results are kept in --out, and the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.redrawn import load_split, redraw_seed_of
from trainer.config import GraphConfig, PhaseConfig, Profile
from trainer.images.data import ImageSet
from trainer.learning.beliefs import FeatureSpace, JointModel
from trainer.learning.device import generator_for, keep_freed_memory, use_all_cores
from trainer.learning.encoder import Encoder
from trainer.learning.finetune import FineTuner
from trainer.learning.pretrain import load_encoder, new_encoder, pretrain
from trainer.profiles import on_its_own, profile_named
from trainer.records.progress import MetricWriter

CLASSES = 10
# T-shirt, pullover, coat and shirt: most errors are among them.
HARD = {0: "T-shirt", 2: "pullover", 4: "coat", 6: "shirt"}
DEVICE = torch.device("cpu")


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
    """Train at a quarter and half of the budget and at its end alone, with mixup: 18 epochs in all."""
    mixed = [PhaseConfig(epochs=epochs, consistency=1.0, mixup=0.75) for epochs in (2, 4, 6)]
    quarter, half = (min(n for n in profile.budgets if n * parts >= profile.budget) for parts in (4, 2))
    phases = {quarter: (mixed[0],), half: (mixed[1],), profile.budget: (mixed[2], on_its_own(6))}
    rounds = (settings.model_copy(update={"phases": phases.get(settings.labels, ())}) for settings in profile.rounds)
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
    """A development split, or a part of its pool.

    Attributes:
        pool: uint8 [N, H, W].
        pool_labels: int64 [N].
        test: uint8 [M, H, W], held out.
        test_labels: int64 [M].
    """

    pool: Tensor
    pool_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def part(self, asked: Tensor, images: int, seed: int) -> tuple[Split, Tensor]:
        """Keep the asked images and random others; return the part and the rows of the asked images in it."""
        others = torch.ones(len(self.pool), dtype=torch.bool)
        others[asked] = False
        drawn = torch.randperm(int(others.sum()), generator=generator_for(DEVICE, seed, "part"))
        rows = torch.cat([asked, others.nonzero().flatten()[drawn][: max(0, images - len(asked))]])
        return Split(self.pool[rows], self.pool_labels[rows], self.test, self.test_labels), torch.arange(len(asked))


@dataclass(frozen=True)
class Measured:
    """What a variant knows at one moment.

    Attributes:
        labels: number of labels.
        phase: of the round after these labels, from 1; the last round is measured after each of its phases.
        pool: percent of the pool's images without a label that are believed rightly.
        held_out: percent of the held-out images that are predicted rightly.
        recall: percent of each hard class's held-out images, in the order of `HARD`.
        minutes: of training and graphs so far.
    """

    labels: int
    phase: int
    pool: float
    held_out: float
    recall: tuple[float, ...]
    minutes: float


def replay(
    profile: Profile, split: Split, asked: Tensor, weights: Path, seed: int, counts: Sequence[int], out: Path
) -> Iterator[Measured]:
    """Train through the rounds as a run would, on queries already made; measure at the given numbers of labels."""
    encoder = new_encoder(profile.encoder, CLASSES, seed, DEVICE)
    load_encoder(encoder, weights, None)
    space = _space(profile.graph, split, encoder)
    network, seconds = None, 0.0
    with MetricWriter(out) as metrics:
        tuner = FineTuner(encoder, split.pool, profile.finetune, seed=seed, metrics=metrics)
        model, last = None, profile.rounds[-1]
        for number, settings in enumerate(profile.rounds):
            ids = asked[: settings.labels]
            labels = split.pool_labels[ids]
            for phase_number, phase in enumerate(settings.phases):
                began_s = time.perf_counter()
                model = model or JointModel.build(space, split.pool, network, classes=CLASSES)
                beliefs = model.beliefs(ids, labels, CLASSES)
                tuner.train_phase(phase, ids, labels, beliefs, name=f"round-{number}-{phase_number}")
                network = tuner.teacher
                model = JointModel.build(space, split.pool, network, classes=CLASSES)
                seconds += time.perf_counter() - began_s
                if settings is last and phase is not settings.phases[-1]:
                    yield _measure(model, split, ids, phase_number + 1, seconds)
            if settings.labels in counts:
                model = model or JointModel.build(space, split.pool, network, classes=CLASSES)
                yield _measure(model, split, ids, len(settings.phases), seconds)


def _pretrained(profile: Profile, images: ImageSet, out: Path) -> Path:
    """Pretrain, unless it was done before; return the file of weights."""
    identity = profile.pretraining_identity(0, images.fingerprint)
    folder = out / f"pretrained-{identity[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    encoder = new_encoder(profile.encoder, CLASSES, 0, DEVICE)
    with MetricWriter(folder) as metrics:
        return pretrain(images.pool, encoder, profile.pretrain, seed=0, identity=identity, out=folder, metrics=metrics)


_spaces: dict[tuple[GraphConfig, int], FeatureSpace] = {}


def _space(config: GraphConfig, split: Split, encoder: Encoder) -> FeatureSpace:
    """Return the feature space of a split's pool; variants of the same graph share it."""
    key = (config, id(split))
    if key not in _spaces:
        _spaces.clear()
        _spaces[key] = FeatureSpace(split.pool, encoder, config)
    return _spaces[key]


def _measure(model: JointModel, split: Split, ids: Tensor, phase: int, seconds: float) -> Measured:
    beliefs = model.beliefs(ids, split.pool_labels[ids], CLASSES)
    unknown = torch.ones(len(split.pool), dtype=torch.bool)
    unknown[ids] = False
    right = model.predict(split.test, beliefs).argmax(1) == split.test_labels
    return Measured(
        labels=len(ids),
        phase=phase,
        pool=_percent((beliefs.argmax(1) == split.pool_labels)[unknown]),
        held_out=_percent(right),
        recall=tuple(_percent(right[split.test_labels == number]) for number in HARD),
        minutes=seconds / 60,
    )


def _percent(right: Tensor) -> float:
    return 100 * float(right.float().mean())


def read_queries(path: Path, pool_size: int, redraw_seed: int) -> Tensor:
    """Read the asked rows of the pool, int64 [L], in order: see the module."""
    if path.name != "evidence.json":
        return torch.tensor([json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()])
    evidence = json.loads(path.read_text(encoding="utf-8"))
    order = np.random.default_rng(redraw_seed).permutation(evidence["pool_size"])
    row_of = {int(number): row for row, number in enumerate(order[-pool_size:])}
    asked = [number for entry in map(json.loads, evidence["entries"]) if entry["charged"] for number in entry["ids"]]
    return torch.tensor([row_of[number] for number in dict.fromkeys(asked) if number in row_of])


def _print_results(results: dict[tuple[str, str], list[Measured]], names: Sequence[str]) -> None:
    """Print every variant's means, and its gains over the first one, paired by seed."""
    seeds = list(dict.fromkeys(seed for seed, _ in results))
    whole = [seed for seed in seeds if all((seed, name) in results for name in names)]
    print(f"\nMean of {len(whole)} seeds; gains over '{names[0]}' with the standard deviation of the pairs.\n")
    if not whole:
        return
    hard = ", ".join(HARD.values())
    print(f"| labels | variant | pool | gain | held out | gain | recall: {hard} | minutes |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for moment in range(len(results[whole[0], names[0]])):
        for name in names:
            rows = [results[seed, name][moment] for seed in whole]
            base = [results[seed, names[0]][moment] for seed in whole]
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
            where = f"{rows[0].labels}.{rows[0].phase}"
            print(f"| {where} | {name} | {' | '.join(cells)} | {recall} | {minutes:.1f} |", flush=True)


def main() -> int:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.replay", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder made by `prepare --redraw`")
    parser.add_argument("--weights", type=Path, help="a run's encoder.pt; default: pretrained here, under seed 0")
    parser.add_argument("--queries", type=Path, nargs="+", required=True, help="one file a seed")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["as it is", "mixup 0.75"])
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 150, 200], help="of labels, to measure at")
    parser.add_argument("--rounds", type=int, nargs="+", help="of labels; default: the profile's up to the last count")
    parser.add_argument("--images", type=int, help="of the pool; default: all")
    parser.add_argument("--widths", type=int, nargs=3, help="of the encoder; default: the profile's")
    parser.add_argument("--pretraining", type=int, metavar="EPOCHS", help="default: the profile's")
    parser.add_argument("--batch", type=int, help="unlabelled images a step; default: the profile's")
    parser.add_argument("--longer", type=int, default=1, help="times the profile's epochs: a small pool has few steps")
    parser.add_argument("--held-out", type=int, help="held-out images to predict; default: all")
    given = parser.parse_args()
    redraw_seed = redraw_seed_of(given.data)
    if redraw_seed is None:
        print(f"{given.data} is no re-drawn split; make one with `prepare --redraw SEED`.", file=sys.stderr)
        return 2
    use_all_cores()
    keep_freed_memory()
    images, pool_labels, test_labels = load_split(given.data)
    whole = Split(images.pool, pool_labels, images.test[: given.held_out], test_labels[: given.held_out])
    profile = profile_named(given.profile)
    counts = sorted(given.counts)
    rounds = given.rounds or [labels for labels in profile.budgets if labels < counts[-1]] + [counts[-1]]
    profile = profile.with_rounds(tuple(rounds))
    if given.batch is not None:
        profile = _in_batches_of(given.batch, _as_it_is)(profile)
    profile = _phases(lambda phase: {"epochs": given.longer * phase.epochs})(profile)
    if given.widths is not None:
        encoder = profile.encoder.model_copy(update={"widths": tuple(given.widths)})
        profile = profile.model_copy(update={"encoder": encoder})
    if given.pretraining is not None:
        changes = {"epochs": given.pretraining}
        profile = profile.model_copy(update={"pretrain": profile.pretrain.model_copy(update=changes)})
    weights = given.weights or _pretrained(profile, images, given.out)
    weights_sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    results: dict[tuple[str, str], list[Measured]] = {}
    for seed, path in enumerate(given.queries):
        asked = read_queries(path, len(whole.pool), redraw_seed)[: counts[-1]]
        split = whole
        if given.images is not None:
            split, asked = whole.part(asked, given.images, seed)
        for name in given.variants:
            changed = VARIANTS[name](profile)
            identity = [changed.model_dump_json(), weights_sha256, images.fingerprint, seed, counts, asked.tolist()]
            identity += [given.images, given.held_out, path.read_text(encoding="utf-8")]
            kept = given.out / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12] / "measured.json"
            if not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                measured = []
                for row in replay(changed, split, asked, weights, seed, counts, kept.parent):
                    measured.append(row)
                    print(f"{path.parent.name}, {name}: {row}", file=sys.stderr, flush=True)
                kept.write_text(json.dumps([asdict(row) for row in measured]), encoding="utf-8")
            results[str(path), name] = [Measured(**row) for row in json.loads(kept.read_text(encoding="utf-8"))]
        _print_results(results, given.variants)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`make study`: many runs against real services, one after the other, and what they add up to as a record.

A study has arms (a profile and a query strategy each) and every arm has seeds. Each run is what `make run` does: a
fresh database, real HTTP, verified evidence. Pretrained weights are made once for each seed and used by every arm that
wants the same. A study that is interrupted goes on with the same command; the record is renewed as each run ends.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from scripts import files, processes, records
from scripts import run as make_run
from scripts.errors import RunError
from trainer.ablations import ABLATIONS
from trainer.acquisition import DEFAULT_STRATEGY, STRATEGIES
from trainer.profiles import profile_named


@dataclass(frozen=True)
class Arm:
    """One way to do it, repeated over seeds.

    Attributes:
        name: in tables.
        profile: of the trainer.
        seeds: one run each.
        strategy: of acquisition, None for the profile's.
    """

    name: str
    profile: str
    seeds: tuple[int, ...]
    strategy: str | None = None


@dataclass(frozen=True)
class Study:
    """Arms that are compared.

    Attributes:
        title: of the record.
        arms: the first is what the others are compared with.
    """

    title: str
    arms: tuple[Arm, ...]


def studies(seeds: Sequence[int]) -> dict[str, Study]:
    """Return the studies by name; comparisons take the first three of the seeds."""
    every, three = tuple(seeds), tuple(seeds[:3])
    return {
        "learning-curve": Study(
            "Accuracy by number of labels",
            (
                Arm(DEFAULT_STRATEGY, "curve", every),
                Arm("random", "curve", three, "random"),
            ),
        ),
        "ablations": Study(
            "What each part is worth",
            (Arm("whole", "cpu", three), *(Arm(f"without {part}", f"cpu-without-{part}", three) for part in ABLATIONS)),
        ),
        "strategies": Study(
            "Query strategies on the graph alone",
            (
                Arm(DEFAULT_STRATEGY, "graph", three),
                *(Arm(name, "graph", three, name) for name in STRATEGIES if name != DEFAULT_STRATEGY),
            ),
        ),
    }


@dataclass(frozen=True)
class Place:
    """Where a study works.

    Attributes:
        data: folder of data, None for Fashion-MNIST in its default folder.
        runs: results of its runs, and the weights that they share.
        record: the folder to write.
    """

    data: Path | None
    runs: Path
    record: Path


def carry_out(study: Study, place: Place, programs: make_run.Programs) -> None:
    """Make all runs that are not finished yet, seed by seed, so that an unfinished study is balanced.

    Raises:
        RunError: a run failed; the same command goes on with it.
    """
    plan = [(arm, seed) for seed in dict.fromkeys(s for arm in study.arms for s in arm.seeds) for arm in study.arms]
    plan = [(arm, seed) for arm, seed in plan if seed in arm.seeds]
    for number, (arm, seed) in enumerate(plan, 1):
        out = place.runs / f"{records.slug(arm.name)}-seed{seed}"
        print(f"\n[study] run {number} of {len(plan)}: {arm.name}, seed {seed}", flush=True)
        weights = _weights(arm.profile, seed, place, programs)
        options = ["--profile", arm.profile, "--seed", str(seed), "--out", str(out)]
        options += ["--data", str(place.data)] if place.data is not None else []
        options += ["--strategy", arm.strategy] if arm.strategy is not None else []
        options += ["--pretrained", str(weights)] if weights is not None else []
        code = make_run.main(options, programs)
        if code:
            raise RunError(f"{arm.name}, seed {seed}, did not end well; `make study` goes on with it.", code)
        _record(study, place)


def _weights(profile_name: str, seed: int, place: Place, programs: make_run.Programs) -> Path | None:
    """Have the pretrained weights that a profile and seed need; None where the profile pretrains nothing."""
    profile = profile_named(profile_name)
    if profile.pretrain.epochs == 0:
        return None
    data = place.data or make_run.DEFAULT_DATA
    if not (data / "dataset.json").exists():
        code = processes.run_to_its_end([*programs.service, "prepare", "--data", str(data)], os.environ)
        if code:
            raise RunError("preparing the data failed; the reason stands above.", code)
    folder = _weights_folder(profile_name, seed, place)
    weights = folder / "encoder.pt"
    if not weights.exists():
        print(f"[study] pretraining for seed {seed} in {folder}", flush=True)
        command = [*programs.trainer, "pretrain", "--profile", profile_name, "--seed", str(seed)]
        command += ["--data", str(data / "images"), "--out", str(folder)]
        command += ["--resume"] if folder.is_dir() and any(folder.iterdir()) else []
        code = processes.run_to_its_end(command, os.environ)
        if code:
            raise RunError(f"pretraining for seed {seed} failed; the reason stands above.", code)
    return weights


def _record(study: Study, place: Place) -> None:
    """Renew the record from all runs that are finished."""
    arms = []
    for arm in study.arms:
        finished = []
        for seed in arm.seeds:
            out = place.runs / f"{records.slug(arm.name)}-seed{seed}"
            if (out / "evidence.json").exists() and (out / "trainer" / "result.json").exists():
                finished.append(records.Finished(seed, out, _pretraining_s(arm.profile, seed, place)))
        strategy = arm.strategy or profile_named(arm.profile).strategy
        arms.append(records.ArmOf(arm.name, arm.profile, strategy, tuple(finished)))
    records.write(place.record, study.title, [arm for arm in arms if arm.runs])


def _pretraining_s(profile_name: str, seed: int, place: Place) -> float:
    """Return the seconds that a run's shared weights took, which its own clock does not have."""
    return float(sum(files.read_json(_weights_folder(profile_name, seed, place) / "stages.json").values()))


def _weights_folder(profile_name: str, seed: int, place: Place) -> Path:
    """Name the folder of the weights that a profile and seed need on the place's data."""
    card = files.read_json((place.data or make_run.DEFAULT_DATA) / "dataset.json")
    images = json.dumps(card.get("files"), sort_keys=True)
    key = hashlib.sha256(profile_named(profile_name).pretraining_identity(seed, images).encode()).hexdigest()[:12]
    return place.runs.parent / "weights" / f"seed{seed}-{key}"


def main(arguments: Sequence[str] | None = None, programs: make_run.Programs | None = None) -> int:
    """Carry a study out; every expected error is one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="make study", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("name", choices=sorted(studies((1,))), help="which study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="default: 1 2 3 4 5")
    parser.add_argument("--data", type=Path, help="prepared folder of data; default: Fashion-MNIST")
    parser.add_argument("--runs", type=Path, help="folder of its runs; default: runs/study-NAME")
    parser.add_argument("--record", type=Path, help="folder of its record; default: records/TODAY_NAME")
    given = parser.parse_args(arguments)
    runs = given.runs or Path("runs") / "studies" / given.name
    place = Place(given.data, runs, given.record or _record_folder(runs, given.name))
    processes.interrupt_on_sigterm()
    try:
        carry_out(studies(given.seeds)[given.name], place, programs or make_run.Programs())
    except RunError as error:
        print(f"make study: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nmake study: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    print(f"\nThe record is in {place.record}; `make verify-records` checks it.")
    return 0


def _record_folder(runs: Path, name: str) -> Path:
    """Return records/DATE_NAME, with the date on which the study was begun."""
    runs.mkdir(parents=True, exist_ok=True)
    begun = runs / "begun.txt"
    if not begun.exists():
        files.write_atomically(begun, f"{datetime.now(UTC):%Y-%m-%d}".encode())
    return Path("records") / f"{begun.read_text(encoding='utf-8')}_{name}"


if __name__ == "__main__":
    sys.exit(main())

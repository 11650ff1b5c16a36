"""Runs put into a record, and its table and picture made of what it then has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import files
from scripts.evidence import BUNDLE_FILE, KEY_FILE
from scripts.study import tables
from scripts.study.records import CURVE_FILE, RECORD_FILE, TABLE_FILE, Held, folder_of, read_numbers

# What a record keeps of a run's folder.
KEPT = (BUNDLE_FILE, KEY_FILE, "trainer/result.json", "trainer/config.json")


@dataclass(frozen=True)
class Finished:
    """A finished run, to be put into a record.

    Attributes:
        arm: its name.
        profile: of the trainer.
        strategy: of acquisition.
        seed: of everything random.
        out: its folder.
        pretraining_s: seconds of pretraining that were spent outside it.
        cores: numbers of cores that it was worked at with, ascending; empty where that is not known.
    """

    arm: str
    profile: str
    strategy: str
    seed: int
    out: Path
    pretraining_s: float
    cores: tuple[int, ...]


def add(record: Path, title: str, run: Finished, order: Sequence[str]) -> None:
    """Put a finished run into a record; what the record has already stays in it.

    Args:
        record: its folder, which this makes if need be.
        title: what was measured.
        run: takes the place of a run of the same arm and seed.
        order: the names of all arms; the first is what others are compared with.
    """
    folder = folder_of(record, run.arm, run.seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(run.out / name, folder / Path(name).name)
    entry: dict[str, Any] = {"folder": folder.name, "seed": run.seed, "pretraining_s": round(run.pretraining_s, 1)}
    if run.cores:
        entry["cores"] = list(run.cores)
    _enter(record, title, {"name": run.arm, "profile": run.profile, "strategy": run.strategy}, entry, order)


def take_over(record: Path, title: str, arm: str, held: Held, order: Sequence[str]) -> None:
    """Put a run that another record has into a record, under the name of an arm of its own.

    Args:
        record: its folder, which this makes if need be.
        title: what was measured.
        arm: its name in the record.
        held: the run in the other record.
        order: the names of all arms; the first is what others are compared with.
    """
    folder = folder_of(record, arm, held.entry["seed"])
    shutil.copytree(held.folder, folder, dirs_exist_ok=True)
    _enter(record, title, {**held.arm, "name": arm}, {**held.entry, "folder": folder.name}, order)


def _enter(record: Path, title: str, arm: Mapping[str, Any], entry: Mapping[str, Any], order: Sequence[str]) -> None:
    """Count a run whose files are there. Written last: until then the run is not part of the record."""
    described = files.read_json(record / RECORD_FILE) or {"title": title, "arms": []}
    arms = {one["name"]: one for one in described["arms"]}
    own = arms.setdefault(arm["name"], {**arm, "runs": []})
    own["runs"] = sorted(
        [*(one for one in own["runs"] if one["seed"] != entry["seed"]), entry], key=lambda one: one["seed"]
    )
    described["arms"] = sorted(arms.values(), key=lambda one: order.index(one["name"]))
    files.write_atomically(record / RECORD_FILE, (json.dumps(described, indent=2) + "\n").encode())
    renew(record)


def renew(record: Path) -> None:
    """Make a record's table and picture again.

    Raises:
        RunError: a file is missing or damaged, or two of them contradict each other.
    """
    numbers = read_numbers(record)
    files.write_atomically(record / TABLE_FILE, tables.render(numbers).encode())
    if tables.is_curve(numbers):
        tables.draw(numbers, record / CURVE_FILE)

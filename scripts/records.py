"""Records: the published results, each with the evidence of its runs, and the check of them all.

    records/DATE_NAME/
      record.json               title, arms, seeds, cores, seconds of pretraining
      table.md                  the numbers, made from the evidence
      curve.svg                 where there is a curve
      runs/ARM-seedN/           evidence.json, log-key.txt, result.json (versions, data, times), config.json

`python -m scripts.records` (`make verify-records`) believes none of the numbers: it verifies each run's evidence with
its key, reads labels and accuracies from the signed entries, and makes the table again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import evidence, files, tables
from scripts.errors import RunError
from scripts.run import Programs

RECORD_FILE, TABLE_FILE, CURVE_FILE = "record.json", "table.md", "curve.svg"
KEPT = {"evidence.json": "evidence.json", "log-key.txt": "log-key.txt"}
KEPT_OF_TRAINER = {"result.json": "result.json", "config.json": "config.json"}


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


@dataclass(frozen=True)
class Held:
    """A run that a record has.

    Attributes:
        arm: what the record says of its arm: name, profile, strategy.
        entry: what it says of the run.
        folder: the run's files.
    """

    arm: Mapping[str, Any]
    entry: Mapping[str, Any]
    folder: Path


def slug(name: str) -> str:
    """Make a folder's name of an arm's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def run_name(arm: str, seed: int) -> str:
    """Name a run's folder, in a record and while it is made."""
    return f"{slug(arm)}-seed{seed}"


def folder_of(record: Path, arm: str, seed: int) -> Path:
    """Name the folder of one run in a record."""
    return record / "runs" / run_name(arm, seed)


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
    for source, target in KEPT.items():
        shutil.copyfile(run.out / source, folder / target)
    for source, target in KEPT_OF_TRAINER.items():
        shutil.copyfile(run.out / "trainer" / source, folder / target)
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


def held_runs(record: Path) -> list[Held]:
    """List the runs that a record counts, believing what it says of them; none where there is no record."""
    described = files.read_json(record / RECORD_FILE)
    return [
        Held(
            {key: value for key, value in arm.items() if key != "runs"},
            entry,
            folder_of(record, arm["name"], entry["seed"]),
        )
        for arm in (described or {"arms": []})["arms"]
        for entry in arm["runs"]
    ]


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


def read_numbers(record: Path) -> tables.Numbers:
    """Read a record's numbers out of its runs' signed entries.

    Raises:
        RunError: a file is missing or damaged, or two of them contradict each other.
    """
    described = files.read_json(record / RECORD_FILE)
    try:
        arms = [
            tables.Arm(
                arm["name"],
                tuple(_read_run(folder_of(record, arm["name"], run["seed"]), arm, run) for run in arm["runs"]),
            )
            for arm in described["arms"]
        ]
        numbers = tables.Numbers(described["title"], tuple(arms))
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise RunError(f"{record} is not a complete record ({error!r}).") from error
    for arm in numbers.arms:
        if len({run.seed for run in arm.runs}) != len(arm.runs):
            raise RunError(f"{record} counts one seed of {arm.name} twice.")
    return numbers


def _read_run(folder: Path, arm: Mapping[str, Any], run: Mapping[str, Any]) -> tables.Run:
    """Read one run; its result and its configuration must say what its log says."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said = (config["profile"]["name"], config["profile"]["strategy"], config["seed"], result["seed"])
    if said != (arm["profile"], arm["strategy"], run["seed"], run["seed"]):
        raise RunError(f"{folder} was made with {said[:3]}, not as its record says.")
    bundle = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    entries = [json.loads(entry) for entry in bundle["entries"]]
    points = points_of(entries, result["run_id"], folder)
    claimed = result["points"]
    told = [(one["labels"], one["evaluation"]["correct"], one["evaluation"]["total"]) for one in claimed]
    if told != [(one.labels, one.correct, one.total) for one in points]:
        raise RunError(f"{folder / 'result.json'} claims {told}, and the log has other evaluations.")
    seconds = [sum(one["stage_seconds"].values()) + run["pretraining_s"] for one in claimed]
    estimates = [None if one["estimate"] is None else 100 * one["estimate"] for one in claimed]
    timed = tuple(
        tables.Point(one.labels, one.correct, one.total, took, estimate)
        for one, took, estimate in zip(points, seconds, estimates, strict=True)
    )
    others = {label for entry in entries if entry["run"] != result["run_id"] for label in entry["ids"]}
    test = "the official test set" if result["dataset"]["official"] else f"the test set of {result['dataset']['name']}"
    return tables.Run(run["seed"], timed, len(others), test, tuple(run.get("cores", ())))


def points_of(entries: Sequence[Mapping[str, Any]], run_id: str, folder: Path) -> list[tables.Point]:
    """Return a run's evaluations by the labels that it had been given, from its log's entries.

    Raises:
        RunError: an evaluation was declared for a number of labels that the run never stood at, or a label was given
            after the first evaluation.
    """
    points: list[tables.Point] = []
    stood, spent = {0}, 0
    for entry in entries:
        if entry["run"] != run_id:
            continue
        if entry["op"] == "query" and entry["charged"]:
            if points:
                raise RunError(f"{folder}: entry {entry['seq']} gives labels after an evaluation.")
            spent += entry["charged"]
            stood.add(spent)
        elif entry["op"] == "evaluation" and entry["outcome"] == "evaluated":
            detail = entry["detail"]
            labels = spent if detail["evaluated_budget"] is None else detail["evaluated_budget"]
            if labels not in stood:
                raise RunError(f"{folder}: entry {entry['seq']} evaluates {labels} labels, and the run never had them.")
            points.append(tables.Point(labels, detail["correct"], detail["total"], 0.0))
    if not points:
        raise RunError(f"{folder} has no evaluation in its log.")
    return points


def verify(record: Path, service: Sequence[str]) -> int:
    """Check one record; return how many runs it has.

    Raises:
        RunError: something does not hold; the message says what and where.
    """
    numbers = verify_runs(record, service)
    named = {folder_of(record, arm.name, run.seed).name for arm in numbers.arms for run in arm.runs}
    there = {path.name for path in (record / "runs").iterdir()}
    if there != named:
        raise RunError(
            f"{record} has runs that it does not count, or counts runs that it does not have: {sorted(there ^ named)}."
        )
    if (record / TABLE_FILE).read_text(encoding="utf-8") != tables.render(numbers):
        raise RunError(f"{record / TABLE_FILE} is not what the evidence adds up to.")
    return len(named)


def verify_runs(record: Path, service: Sequence[str]) -> tables.Numbers:
    """Check the evidence of each run that a record counts, and return the numbers.

    Raises:
        RunError: something does not hold; the message says what and where.
    """
    numbers = read_numbers(record)
    for folder in (folder_of(record, arm.name, run.seed) for arm in numbers.arms for run in arm.runs):
        try:
            key = evidence.pinned_key(folder)
        except OSError as error:
            raise RunError(f"{record} is not a complete record ({error!r}).") from error
        evidence.verify_file(service, folder / "evidence.json", key)
    return numbers


def main(arguments: Sequence[str] | None = None, programs: Programs | None = None) -> int:
    """Verify all records; print a line for each; return 1 if one does not hold."""
    parser = argparse.ArgumentParser(prog="make verify-records", description="Verify every published record.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("records"))
    folder = parser.parse_args(arguments).folder
    found = sorted(path.parent for path in folder.glob(f"*/{RECORD_FILE}"))
    if not found:
        print(f"make verify-records: there is no record in {folder}", file=sys.stderr)
        return 1
    failed = 0
    for record in found:
        try:
            print(f"verified  {record}: {verify(record, (programs or Programs()).service)} runs")
        except RunError as error:
            failed += 1
            print(f"FAILED    {record}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

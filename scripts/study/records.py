"""Records: the published results, each with the evidence of its runs.

    records/DATE_NAME/
      record.json               title, arms, seeds, cores, seconds of pretraining
      table.md                  the numbers
      curve.svg                 where there is a curve
      runs/ARM-seedN/           evidence.json, log-key.txt, result.json (versions, data, times), config.json

Labels and accuracies are read from the signed entries of the logs. What no log can show is the trainer's word: the
strategy and the settings behind the budgets, minutes, cores, versions, what was expected, and whose data it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import files
from scripts.errors import RunError
from scripts.evidence import BUNDLE_FILE
from scripts.study import tables
from trainer.records.run_records import arithmetic_in_words

RECORD_FILE, TABLE_FILE, CURVE_FILE = "record.json", "table.md", "curve.svg"


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
    logs = [run.log for arm in numbers.arms for run in arm.runs]
    if len(set(logs)) != len(logs):
        raise RunError(f"{record} counts one log for two runs.")
    return numbers


def _read_run(folder: Path, arm: Mapping[str, Any], run: Mapping[str, Any]) -> tables.Run:
    """Read one run; its result and its configuration must say what its log says."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said = (config["profile"]["name"], config["profile"]["strategy"], config["seed"], result["seed"])
    if said != (arm["profile"], arm["strategy"], run["seed"], run["seed"]):
        raise RunError(f"{folder} was made with {said[:3]}, not as its record says.")
    bundle = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
    entries = [json.loads(entry) for entry in bundle["entries"]]
    own = [entry for entry in entries if entry["run"] == result["run_id"]]
    _refuse_another_opening(own, config, folder)
    points = points_of(own, folder)
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
    others = [entry for entry in entries if entry["run"] != result["run_id"]]
    labels = {label for entry in others for label in entry["ids"]}
    evaluations = sum(entry["op"] == "evaluation" and entry["outcome"] == "evaluated" for entry in others)
    test = "the official test set" if result["dataset"]["official"] else f"the test set of {result['dataset']['name']}"
    return tables.Run(
        seed=run["seed"],
        points=timed,
        log=own[0]["log_id"],
        others=len(labels),
        evaluations_of_others=evaluations,
        test=test,
        cores=tuple(run.get("cores", ())),
        arithmetic=arithmetic_in_words(one.get("arithmetic", "") for one in claimed),
    )


def _refuse_another_opening(own: Sequence[Mapping[str, Any]], config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a log whose run was opened under another name, budget or other points than its configuration has.

    Raises:
        RunError: it was; the message says what the log has.
    """
    opened = next((entry for entry in own if entry["op"] == "run-opened"), None)
    if opened is None:
        raise RunError(f"{folder} has a log in which its run was never opened.")
    # Read as it was written, not as today's Profile: a record outlives the fields of its profile.
    rounds = config["profile"]["rounds"]
    budget = rounds[-1]["labels"]
    points = sorted({one["labels"] for one in rounds if one["evaluated"]} | {budget})
    planned = (f"{config['profile']['name']} seed {config['seed']}", budget, points if points != [budget] else [])
    detail = opened["detail"]
    logged = (detail["name"], opened["budget"], detail["evaluation_budgets"])
    if logged != planned:
        raise RunError(f"{folder} has the log of a run opened as {logged}, and its configuration is of {planned}.")


def points_of(own: Sequence[Mapping[str, Any]], folder: Path) -> list[tables.Point]:
    """Return a run's evaluations by the labels that it had been given, from its entries in the log.

    Raises:
        RunError: an evaluation was declared for a number of labels that the run never stood at, or a second one for
            the same, or a label was given after the first evaluation.
    """
    points: list[tables.Point] = []
    stood, spent = {0}, 0
    for entry in own:
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
            if any(labels == point.labels for point in points):
                raise RunError(f"{folder}: entry {entry['seq']} evaluates {labels} labels a second time.")
            points.append(tables.Point(labels, detail["correct"], detail["total"], 0.0))
    if not points:
        raise RunError(f"{folder} has no evaluation in its log.")
    return points

"""Records: the published results, each with the evidence of its runs.

    records/DATE_NAME/
      record.json               title, arms, seeds, cores, seconds of pretraining
      table.md                  the numbers
      curve.svg                 where there is a curve
      runs/ARM-seedN/           evidence.json, log-key.txt, result.json (versions, data, times), config.json
        predictions.jsonl.gz    the predictions of each evaluation (records before 2026-11-26 have none)
        asked.png               the images asked for, in order, beside them

Labels and accuracies are read from the signed entries of the logs. The rest is not in any log and is only claimed by
the trainer: the strategy and other settings, minutes, cores, versions, the run's own estimates, and the name of the
data set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts import files
from scripts.errors import RunError
from scripts.evidence import BUNDLE_FILE
from scripts.study.gallery import GALLERY_FILE
from scripts.study.predictions import PREDICTIONS_FILE
from scripts.study.public_data import OFFICIAL_FINGERPRINT
from scripts.study.tables import ArmResults, Point, RecordResults, RunResults
from trainer.records.run_records import arithmetic_in_words

RECORD_FILE, TABLE_FILE, CURVE_FILE = "record.json", "table.md", "curve.svg"
# What a run publishes beside its evidence, and what the table calls it.
PUBLISHED = {PREDICTIONS_FILE: "predictions", GALLERY_FILE: "images asked"}


@dataclass(frozen=True)
class RecordedRun:
    """A run that a record has.

    Attributes:
        entry: what `record.json` says of it.
        folder: its files.
    """

    entry: Mapping[str, Any]
    folder: Path


def run_name(arm: str, seed: int) -> str:
    """Name a run's folder, in a record and while it is made."""
    slug = re.sub(r"[^a-z0-9]+", "-", arm.lower()).strip("-")
    return f"{slug}-seed{seed}"


def folder_of(record: Path, arm: str, seed: int) -> Path:
    """Name the folder of one run in a record."""
    return record / "runs" / run_name(arm, seed)


def recorded_runs(record: Path) -> list[RecordedRun]:
    """List the runs in record.json, without verifying them; empty if there is no record."""
    return [
        RecordedRun(entry, folder_of(record, arm["name"], entry["seed"]))
        for arm in files.read_json(record / RECORD_FILE).get("arms", [])
        for entry in arm["runs"]
    ]


def read_results(record: Path) -> RecordResults:
    """Read a record's results out of its runs' signed entries.

    Raises:
        RunError: a file is missing or damaged, or two of them contradict each other.
    """
    content = files.read_json(record / RECORD_FILE)
    try:
        arms = [
            ArmResults(
                arm["name"],
                tuple(read_run(folder_of(record, arm["name"], entry["seed"]), arm, entry) for entry in arm["runs"]),
                arm["profile"],
            )
            for arm in content["arms"]
        ]
        results = RecordResults(content["title"], tuple(arms))
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OSError) as error:
        raise RunError(f"{record} is not a complete record ({error!r}).") from error
    for arm in results.arms:
        if len({run.seed for run in arm.runs}) != len(arm.runs):
            raise RunError(f"{record} counts one seed of {arm.name} twice.")
    logs = [run.log for arm in results.arms for run in arm.runs]
    if len(set(logs)) != len(logs):
        raise RunError(f"{record} counts one log for two runs.")
    return results


def read_run(folder: Path, arm: Mapping[str, Any], entry: Mapping[str, Any]) -> RunResults:
    """Read one run; its result and its configuration must agree with its log.

    Args:
        folder: its files.
        arm: name, profile and strategy of its arm, as in `record.json`.
        entry: what `record.json` says of the run.

    Raises:
        RunError: two of its files contradict each other.
    """
    result, config, bundle = (_read(folder / name) for name in ("result.json", "config.json", BUNDLE_FILE))
    made_with = (config["profile"]["name"], config["profile"]["strategy"], config["seed"], result["seed"])
    if made_with != (arm["profile"], arm["strategy"], entry["seed"], entry["seed"]):
        raise RunError(f"{folder} was made with {made_with[:3]}, not as its record says.")
    entries = [json.loads(text) for text in bundle["entries"]]
    own = [logged for logged in entries if logged["run"] == result["run_id"]]
    others = [logged for logged in entries if logged["run"] != result["run_id"]]
    _refuse_another_opening(own, config, folder)
    evaluations = _evaluations_of(own, folder)
    claims = result["points"]
    claimed = [(claim["labels"], claim["evaluation"]["correct"], claim["evaluation"]["total"]) for claim in claims]
    if claimed != [(point.labels, point.correct, point.total) for point in evaluations]:
        raise RunError(f"{folder / 'result.json'} claims {claimed}, and the log has other evaluations.")
    dataset = result["dataset"]
    if dataset["official"] != (dataset["fingerprint"] == OFFICIAL_FINGERPRINT):
        raise RunError(f"{folder / 'result.json'} is wrong about whether its images are the official ones.")
    return RunResults(
        seed=entry["seed"],
        points=tuple(
            replace(
                point,
                seconds=sum(claim["stage_seconds"].values()) + entry["pretraining_s"],
                estimate=None if claim["estimate"] is None else 100 * claim["estimate"],
            )
            for point, claim in zip(evaluations, claims, strict=True)
        ),
        log=own[0]["log_id"],
        labels_of_others=len({label_id for logged in others for label_id in logged["ids"]}),
        evaluations_of_others=sum(map(_is_evaluation, others)),
        test="the official test set" if dataset["official"] else f"the test set of {dataset['name']}",
        cores=tuple(entry.get("cores", ())),
        arithmetic=arithmetic_in_words(claim.get("arithmetic", "") for claim in claims),
        asked=tuple(dict.fromkeys(label_id for logged in own if logged["charged"] for label_id in logged["ids"])),
        published=tuple(
            (title, f"runs/{folder.name}/{name}") for name, title in PUBLISHED.items() if (folder / name).exists()
        ),
    )


def _read(path: Path) -> Any:  # noqa: ANN401 - what JSON holds
    return json.loads(path.read_text(encoding="utf-8"))


def _is_evaluation(logged: Mapping[str, Any]) -> bool:
    return bool(logged["op"] == "evaluation" and logged["outcome"] == "evaluated")


def _refuse_another_opening(own: Sequence[Mapping[str, Any]], config: Mapping[str, Any], folder: Path) -> None:
    """Compare what the run was opened with, by its log, with its configuration: name, budget, points of the curve.

    Raises:
        RunError: they differ; the message says what the log has.
    """
    opened = next((logged for logged in own if logged["op"] == "run-opened"), None)
    if opened is None:
        raise RunError(f"{folder} has a log in which its run was never opened.")
    # Read as plain JSON, not as today's `Profile`: the fields of profiles may have changed since the run.
    rounds = config["profile"]["rounds"]
    budget = rounds[-1]["labels"]
    points = sorted({step["labels"] for step in rounds if step["evaluated"]} | {budget})
    planned = (f"{config['profile']['name']} seed {config['seed']}", budget, points if points != [budget] else [])
    detail = opened["detail"]
    logged = (detail["name"], opened["budget"], detail["evaluation_budgets"])
    if logged != planned:
        raise RunError(f"{folder} has the log of a run opened as {logged}, and its configuration is of {planned}.")


def _evaluations_of(own: Sequence[Mapping[str, Any]], folder: Path) -> list[Point]:
    """Return a run's evaluations, from its entries in the log; their times are not known here.

    Raises:
        RunError: an evaluation was declared for a number of labels that the run never had, or a second one for the
            same, or a label was given after the first evaluation.
    """
    evaluations: list[Point] = []
    reached, spent = {0}, 0
    for logged in own:
        if logged["op"] == "query" and logged["charged"]:
            if evaluations:
                raise RunError(f"{folder}: entry {logged['seq']} gives labels after an evaluation.")
            spent += logged["charged"]
            reached.add(spent)
        elif _is_evaluation(logged):
            detail = logged["detail"]
            labels = spent if detail["evaluated_budget"] is None else detail["evaluated_budget"]
            if labels not in reached:
                raise RunError(
                    f"{folder}: entry {logged['seq']} evaluates {labels} labels, and the run never had them."
                )
            if any(labels == earlier.labels for earlier in evaluations):
                raise RunError(f"{folder}: entry {logged['seq']} evaluates {labels} labels a second time.")
            sha256 = detail["predictions_sha256"]
            evaluations.append(Point(labels, detail["correct"], detail["total"], 0.0, predictions_sha256=sha256))
    if not evaluations:
        raise RunError(f"{folder} has no evaluation in its log.")
    return evaluations

"""Add runs to a record, and rewrite its table and picture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scripts import counts, files
from scripts.errors import RunError
from scripts.evidence import BUNDLE_FILE, KEY_FILE
from scripts.study import gallery, predictions, tables
from scripts.study.gallery import GALLERY_FILE
from scripts.study.predictions import PREDICTIONS_FILE
from scripts.study.records import CURVE_FILE, RECORD_FILE, TABLE_FILE, RecordedRun, folder_of, read_results, read_run
from scripts.study.studies import Arm, Study
from scripts.study.tables import RunResults
from trainer.images.data import load_images
from trainer.records.files import replace_file

# What a record keeps of a run's folder.
KEPT = (BUNDLE_FILE, KEY_FILE, "trainer/result.json", "trainer/config.json")


def add(
    record: Path,
    study: Study,
    arm: Arm,
    seed: int,
    out: Path,
    images: Path,
    pretraining_s: float,
    cores: tuple[int, ...],
) -> None:
    """Put a finished run into a record, in the place of a run of the same arm and seed; other runs stay.

    Args:
        record: its folder, made if need be.
        study: the record's.
        arm: the run's.
        seed: the run's.
        out: the run's folder.
        images: folder of the images that it learned from.
        pretraining_s: seconds of pretraining that were spent outside the run.
        cores: numbers of cores that it was made on, ascending; empty where not known.

    Raises:
        RunError: two files of the run contradict each other.
    """
    folder = folder_of(record, arm.name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(out / name, folder / Path(name).name)
    entry: dict[str, Any] = {"folder": folder.name, "seed": seed, "pretraining_s": round(pretraining_s, 1)}
    _publish(read_run(folder, _described(arm), entry), out / "trainer", images, folder)
    _enter(record, study, arm, entry | ({"cores": list(cores)} if cores else {}))


def _publish(run: RunResults, trainer: Path, images: Path, folder: Path) -> None:
    """Write a run's predictions, and the images that it asked for with the labels that it was given.

    Raises:
        RunError: the trainer's files are not those of the log.
    """
    predictions.write(trainer, run.points, folder / PREDICTIONS_FILE)
    queried = counts.read_lines(trainer / "queries.jsonl")
    if tuple(line["id"] for line in queried) != run.asked:
        raise RunError(f"{trainer / 'queries.jsonl'} does not have the images that the log has, in their order.")
    pool, names = load_images(images).pool.numpy(), files.read_json(folder / "result.json")["dataset"]["class_names"]
    labels = np.array([line["label"] for line in queried], np.int64)
    (folder / GALLERY_FILE).write_bytes(gallery.draw(pool[list(run.asked)], labels, names))


def take_over(record: Path, study: Study, arm: Arm, run: RecordedRun) -> None:
    """Put a run that another record has into a record, as a run of an arm of this study."""
    folder = folder_of(record, arm.name, run.entry["seed"])
    shutil.copytree(run.folder, folder, dirs_exist_ok=True)
    _enter(record, study, arm, {**run.entry, "folder": folder.name})


def _described(arm: Arm) -> dict[str, str]:
    """Return what `record.json` says of an arm."""
    return {"name": arm.name, "profile": arm.profile, "strategy": arm.full_profile.strategy}


def _enter(record: Path, study: Study, arm: Arm, entry: Mapping[str, Any]) -> None:
    """List a run in record.json. This comes after its files are copied: a run that is not listed does not count."""
    content = files.read_json(record / RECORD_FILE) or {"title": study.title, "arms": []}
    arms = {written["name"]: written for written in content["arms"]}
    own = arms.setdefault(arm.name, {**_described(arm), "runs": []})
    others = [run for run in own["runs"] if run["seed"] != entry["seed"]]
    own["runs"] = sorted([*others, entry], key=lambda run: run["seed"])
    content["arms"] = [arms[known.name] for known in study.arms if known.name in arms]
    replace_file(record / RECORD_FILE, json.dumps(content, indent=2) + "\n")
    renew(record)


def renew(record: Path) -> None:
    """Make a record's table and picture again.

    Raises:
        RunError: a file is missing or damaged, or two of them contradict each other.
    """
    results = read_results(record)
    replace_file(record / TABLE_FILE, tables.render(results))
    if results.is_curve:
        tables.draw(results, record / CURVE_FILE)

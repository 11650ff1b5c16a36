"""Where a study works, and whether a finished run is one that would be made there today."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scripts import files
from scripts import run as make_run
from scripts.errors import RunError
from scripts.study.studies import Arm
from trainer.config import Profile
from trainer.images.data import POOL_FILE, TEST_FILE, fingerprint_of


@dataclass(frozen=True)
class Place:
    """Where a study works.

    Attributes:
        data: prepared folder of data, None for Fashion-MNIST in its default folder.
        runs: results of its runs; the weights that they share lie beside it.
        record: the folder to write, and what says which runs are finished.
        source: another record, whose runs are taken over where they are the same to the last setting; None for none.
    """

    data: Path | None
    runs: Path
    record: Path
    source: Path | None = None


def data_of(place: Place) -> Path:
    """Name the folder of its data."""
    return place.data or make_run.DEFAULT_DATA


def refuse_another_configuration(folder: Path, arm: Arm, place: Place) -> None:
    """Refuse a finished run that today's profile and data would not make again.

    Raises:
        RunError: its `config.json` differs; the message says in what.
    """
    different = differences(folder, arm, place)
    if different:
        raise RunError(
            f"{folder} was made with another configuration than today's (different: {', '.join(different)}): name "
            "another RECORD= and RUNS=, or go on with the version and data that began it.",
            2,
        )


def differences(folder: Path, arm: Arm, place: Place) -> list[str]:
    """Name what a run's `config.json` has otherwise than the arm's run would have today."""
    config = files.read_json(folder / "config.json")
    different = _different_parts(config.get("profile"), arm.whole_profile)
    different += ["data"] if config.get("images") != _images_fingerprint(place) else []
    different += ["target"] if config.get("target") is not None else []
    return different


def _different_parts(then: Mapping[str, Any] | None, now: Profile) -> list[str]:
    """Name the parts of a profile that differ; what it says about itself does not count."""
    try:
        former = Profile.model_validate(then)
    except ValidationError:
        return ["profile"]
    return [name for name in Profile.model_fields if name != "about" and getattr(former, name) != getattr(now, name)]


def _images_fingerprint(place: Place) -> str:
    """Return the fingerprint of the place's images, as a run's configuration has it (`ImageSet`)."""
    cards = files.read_json(data_of(place) / "dataset.json")["files"]
    return fingerprint_of(*(cards[f"images/{name}.gz"]["content_sha256"] for name in (POOL_FILE, TEST_FILE)))


def weights_folder(arm: Arm, seed: int, place: Place) -> Path | None:
    """Name the folder of the weights that a run needs on the place's data; None where nothing is pretrained."""
    profile = arm.whole_profile
    if profile.pretrain.epochs == 0:
        return None
    card = files.read_json(data_of(place) / "dataset.json")
    images = json.dumps(card.get("files"), sort_keys=True)
    key = hashlib.sha256(profile.pretraining_identity(seed, images).encode()).hexdigest()[:12]
    return place.runs.parent / "weights" / f"seed{seed}-{key}"

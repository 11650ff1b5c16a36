"""The folders of a study, and the check that a finished run has the settings and data of today."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scripts import files
from scripts.errors import RunError
from scripts.run import CARD_FILE, DEFAULT_DATA
from scripts.study.studies import Arm
from trainer.config import Profile
from trainer.images.data import POOL_FILE, TEST_FILE, fingerprint_of
from trainer.profiles import fit_to_pool


@dataclass(frozen=True)
class Workspace:
    """The folders of a study.

    Attributes:
        given_data: prepared folder of data, None for Fashion-MNIST in its default folder.
        runs: results of its runs; the weights that they share lie beside it.
        record: the record that it writes, which says what runs are finished.
        source: another record, whose runs are taken over where their settings are the same; None for none.
    """

    given_data: Path | None
    runs: Path
    record: Path
    source: Path | None = None

    @property
    def data(self) -> Path:
        """The folder of data."""
        return self.given_data or DEFAULT_DATA

    def weights_folder(self, arm: Arm, seed: int) -> Path | None:
        """Name the folder of the pretrained weights that a run needs; None where nothing is pretrained."""
        profile = arm.full_profile
        if profile.pretrain.epochs == 0:
            return None
        images = json.dumps(files.read_json(self.data / CARD_FILE).get("files"), sort_keys=True)
        key = hashlib.sha256(profile.pretraining_identity(seed, images).encode()).hexdigest()[:12]
        return self.runs.parent / "weights" / f"seed{seed}-{key}"

    def refuse_another_configuration(self, folder: Path, arm: Arm) -> None:
        """Refuse a finished run that today's profile and data would not make again.

        Raises:
            RunError: its `config.json` differs; the message says in what.
        """
        different = self.differences(folder, arm)
        if different:
            raise RunError(
                f"{folder} was made with another configuration than today's (different: {', '.join(different)}): name "
                "another RECORD= and RUNS=, or go on with the version and data that began it.",
                2,
            )

    def differences(self, folder: Path, arm: Arm) -> list[str]:
        """Name what differs between a run's `config.json` and the configuration of the arm's run today."""
        config = files.read_json(folder / "config.json")
        card = files.read_json(self.data / CARD_FILE)
        is_asked = arm.budget is not None or arm.rounds is not None
        profile = fit_to_pool(arm.full_profile, card["pool_size"], is_asked=is_asked)
        different = _different_parts(config.get("profile"), profile)
        different += ["data"] if config.get("images") != self._images_fingerprint() else []
        different += ["target"] if config.get("target") is not None else []
        return different

    def _images_fingerprint(self) -> str:
        """Return the fingerprint of the images, as a run's configuration has it (`ImageSet`)."""
        cards = files.read_json(self.data / CARD_FILE)["files"]
        # Large files are kept plain.
        paths = (f"images/{name}" for name in (POOL_FILE, TEST_FILE))
        return fingerprint_of(*((cards.get(f"{path}.gz") or cards[path])["content_sha256"] for path in paths))


def _different_parts(saved: Mapping[str, Any] | None, profile: Profile) -> list[str]:
    """Name the parts of a profile that differ from the saved one; its description of itself does not count."""
    try:
        former = Profile.model_validate(saved)
    except ValidationError:
        return ["profile"]
    return [
        name for name in Profile.model_fields if name != "about" and getattr(former, name) != getattr(profile, name)
    ]

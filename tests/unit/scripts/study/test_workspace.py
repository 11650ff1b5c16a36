"""What a finished run must have been made with to count for a study of today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.study.studies import Arm
from scripts.study.workspace import Workspace
from tests.support.datasets import make_idx_dataset
from trainer.images.data import load_images
from trainer.profiles import GRAPH


@pytest.mark.parametrize(("given", "budget"), [(None, 100), (150, 150)])
def test_a_small_pool_lowers_the_profiles_own_budget_as_the_trainer_does(
    tmp_path: Path, given: int | None, budget: int
) -> None:
    """A run over half of 200 images is the run that the study asks for; a budget that the arm has stays."""
    data = make_idx_dataset(tmp_path / "data", pool=200)
    images = load_images(data / "images").fingerprint
    arm = Arm("a", "graph", (1,), budget=given)
    place = Workspace(data, tmp_path / "runs", tmp_path / "record")

    def differences(labels: int) -> list[str]:
        config = {"profile": GRAPH.with_budget(labels).model_dump(mode="json"), "images": images}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return place.differences(tmp_path, arm)

    assert differences(budget) == []
    assert differences(budget + 1) == ["rounds"]

"""What the trainer's container runs: one folder a setting, resumed when cut off, left alone when finished."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts/container_trainer.sh"


def run(folder, **settings):
    """Run the script with a `python` that only prints what it was called with."""
    python = folder / "bin/python"
    python.parent.mkdir(exist_ok=True)
    python.write_text('#!/bin/sh\necho "called: $*${TRAINER_REGISTRATION_TOKEN:+ with $TRAINER_REGISTRATION_TOKEN}"\n')
    python.chmod(0o755)
    environment = {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "TRAINER_SERVICE": "http://label_service:8000",
        "TRAINER_DATA": "/data/images",
        "TRAINER_RESULTS": str(folder / "results"),
    }
    return subprocess.run([SCRIPT], env=environment | settings, capture_output=True, text=True)


def test_each_setting_has_a_folder_of_its_own(tmp_path):
    """Profile, seed and budget name the folder; the trainer reads them, as every option, from the environment."""
    settings = {"TRAINER_PROFILE": "smoke", "TRAINER_SEED": "3", "TRAINER_BUDGET": "40"}
    assert run(tmp_path, **settings).stdout == f"called: -m trainer run --out {tmp_path}/results/smoke-seed3-40\n"


def test_empty_settings_are_the_trainers_defaults(tmp_path):
    """Compose passes settings that are not set as empty strings."""
    called = run(tmp_path, TRAINER_PROFILE="", TRAINER_SEED="", TRAINER_BUDGET="").stdout
    assert called == f"called: -m trainer run --out {tmp_path}/results/auto-seed1\n"


def test_trainer_gets_the_registration_token(tmp_path):
    """The script reads the token out of its file, so that no command line and no compose file holds it."""
    (tmp_path / "token").write_text("secret\n")
    called = run(tmp_path, TRAINER_REGISTRATION_TOKEN_FILE=str(tmp_path / "token")).stdout
    assert called.endswith("/results/auto-seed1 with secret\n")


def test_run_that_was_cut_off_is_resumed(tmp_path):
    """Files of an earlier try mean --resume."""
    (tmp_path / "results/auto-seed1").mkdir(parents=True)
    (tmp_path / "results/auto-seed1/queries.jsonl").write_text("{}\n")
    assert run(tmp_path).stdout.strip().endswith("--resume")


def test_finished_run_is_shown_and_not_repeated(tmp_path):
    """A finished run prints its result and calls nothing."""
    out = tmp_path / "results/auto-seed1"
    out.mkdir(parents=True)
    (out / "report.html").write_text("")
    (out / "result.json").write_text('{"budget": 500}')
    result = run(tmp_path)
    assert result.returncode == 0
    assert '{"budget": 500}' in result.stdout
    assert "called" not in result.stdout


def test_results_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    """A folder that the container's user may not write says whose it should be, and nothing starts."""
    (tmp_path / "results").write_text("a file where the folder should be")
    result = run(tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("The results folder cannot be written by user")
    assert "TRAINER_UID" in result.stderr
    assert "called" not in result.stdout


@pytest.mark.parametrize("name", ["TRAINER_SERVICE", "TRAINER_DATA", "TRAINER_RESULTS"])
def test_script_outside_its_image_says_what_is_missing(tmp_path, name):
    """Started by hand without the image's settings it stops at once instead of writing somewhere odd."""
    result = run(tmp_path, **{name: ""})
    assert result.returncode != 0
    assert f"{name}: is set by the image" in result.stderr

"""A finished run classifies pictures: what it predicted of the test images, from its folder or one exported file."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.support.services import RunningService
from tests.support.trainer_runs import run_to_end, settings_for
from trainer.cli import app
from trainer.images.data import load_images
from trainer.learning.checkpoint import load_checkpoint, save_checkpoint
from trainer.run.evaluate import predictions_path, read_predictions

pytestmark = pytest.mark.usefixtures("tiny_profiles")


@pytest.fixture(scope="module")
def run(shared_service: RunningService, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder, with its test images as PNG files in `pictures`."""
    out = tmp_path_factory.mktemp("predict") / "out"
    run_to_end(settings_for(out, tiny_data, shared_service))
    pictures = out.parent / "pictures"
    pictures.mkdir()
    for number, image in enumerate(load_images(tiny_data / "images").test.numpy()):
        Image.fromarray(image).save(pictures / f"{number:05}.png")
    return out


def call(*words: object) -> tuple[int, str, str]:
    """Run a command; return its exit code, output, and the sentence of its error."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_pictures_of_the_test_images_are_predicted_as_the_run_predicted_them(run: Path, tmp_path: Path) -> None:
    """Each class from its folder and from an exported file is that of predictions.json; probabilities as the run's."""
    code, said, _ = call("export", "--out", run, "--to", tmp_path / "model.labelmeter")
    assert code == 0 and "learned from 18 labels" in said
    names = json.loads((run / "run.json").read_text())["dataset"]["class_names"]
    expected = [names[number] for number in read_predictions(predictions_path(run)).predictions]
    told = np.load(run / "beliefs.npz")["test"].astype(np.float32)
    # As `make run` keeps it.
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "trainer").symlink_to(run)
    for source in (("--out", run), ("--out", tmp_path / "made"), ("--model", tmp_path / "model.labelmeter")):
        code, output, errors = call("predict", *source, run.parent / "pictures", "--device", "cpu")
        assert code == 0, errors
        rows = list(csv.DictReader(output.splitlines()))
        assert [row["class"] for row in rows] == expected
        assert np.allclose([float(row["probability"]) for row in rows], told.max(1), atol=5e-3)


def test_json_has_all_classes_and_goes_to_a_file(run: Path, tmp_path: Path) -> None:
    """One object a picture, whose probabilities sum to one; nothing on standard output."""
    first = run.parent / "pictures" / "00000.png"
    code, output, _ = call("predict", "--out", run, first, "--format", "json", "--to", tmp_path / "p.json")
    assert (code, output) == (0, "")
    (row,) = json.loads((tmp_path / "p.json").read_text())
    assert row["file"] == str(first)
    assert row["probability"] == max(row["probabilities"].values())
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def test_a_picture_of_another_size_is_scaled(run: Path, tmp_path: Path) -> None:
    """A test image four times as large, in colour and as JPEG, is still recognised."""
    with Image.open(run.parent / "pictures" / "00000.png") as picture:
        large = picture.convert("RGB").resize((4 * picture.width, 4 * picture.height))
    large.save(tmp_path / "large.jpg", quality=95)
    (_, small, _), (code, output, _) = (
        call("predict", "--out", run, path) for path in (run.parent / "pictures" / "00000.png", tmp_path / "large.jpg")
    )
    assert code == 0
    assert next(csv.DictReader(output.splitlines()))["class"] == next(csv.DictReader(small.splitlines()))["class"]


def test_a_damaged_picture_is_named_and_the_others_are_classified(run: Path, tmp_path: Path) -> None:
    """Exit code 65, after the rows of the good ones; a name that is no text is escaped."""
    shutil.copy(run.parent / "pictures" / "00000.png", tmp_path / "good.png")
    shutil.copy(run.parent / "pictures" / "00000.png", os.fsencode(tmp_path) + b"/\xff.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    code, output, errors = call("predict", "--out", run, tmp_path)
    assert code == 65 and "bad.png" in errors and errors.count("\n") == 1
    assert [Path(row["file"]).name for row in csv.DictReader(output.splitlines())] == ["good.png", "\\udcff.png"]
    assert call("predict", "--out", run, tmp_path, "--to", tmp_path / "answers.csv")[:2] == (65, "")
    assert (tmp_path / "answers.csv").read_text() == output


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("predict", "{pictures}"), 78, "name either"),
        (("predict", "--out", "{run}", "--model", "x", "{pictures}"), 78, "name either"),
        (("predict", "--out", "{tmp}/nothing", "{pictures}"), 65, "there is no folder"),
        (("predict", "--out", "{tmp}", "{pictures}"), 65, "there is no model at"),
        (("predict", "--out", "{run}", "{tmp}/none.png"), 65, "there is no file"),
        (("predict", "--model", "{pictures}/00000.png", "{pictures}"), 65, "cannot be read"),
        (("predict", "--model", "{run}/encoder.pt", "{pictures}"), 65, "no model that this version reads"),
        (("export", "--out", "{tmp}", "--to", "{tmp}/m"), 65, "there is no model at"),
        (("export", "--out", "{run}", "--to", "{tmp}"), 74, "is a folder"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    words: tuple[str, ...], code: int, sentence: str, run: Path, tmp_path: Path
) -> None:
    """Without a traceback, with the code of the guide."""
    places = {"run": run, "pictures": run.parent / "pictures", "tmp": tmp_path}
    got, output, errors = call(*(word.format(**places) for word in words))
    assert (got, output) == (code, "")
    assert sentence in errors and errors.startswith("error: ") and errors.count("\n") == 1


@pytest.mark.parametrize("part", ["features", "beliefs", "space", "network", "card"])
def test_a_model_whose_parts_do_not_fit_is_refused(part: str, run: Path, tmp_path: Path) -> None:
    """Also one that somebody put together: no part of it is used before all are checked."""
    state = load_checkpoint(run / "model.pt", torch.device("cpu"))
    state[part] = {"card": "{}", "space": {}, "network": {}}.get(part, torch.zeros(3, 3))
    save_checkpoint(tmp_path / "m", state)
    code, _, errors = call("predict", "--model", tmp_path / "m", run.parent / "pictures")
    assert code == 65 and "damaged" in errors and errors.count("\n") == 1

"""`predict` and `export`: use the model of a finished run on other pictures, without the service."""

import csv
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from trainer.errors import DataError, RecordsUnwritable, printable
from trainer.images.pictures import find_pictures
from trainer.learning.device import pick_device, use_all_cores
from trainer.records.files import replace_file
from trainer.run.model_file import Model, load_model


def write_predictions(model: Path, files: Iterable[Path], device: str, to: Path | None, form: str) -> None:
    """Classify pictures, and write a line for each: file, class, probability.

    Args:
        model: file of the model.
        files: pictures, and folders of them.
        device: to compute on.
        to: file to write; None for standard output.
        form: `csv`, or `json` with the probabilities of all classes.

    Raises:
        DataError: a picture cannot be read (the others are classified and written first), or the model cannot.
        RecordsUnwritable: the file cannot be written.
    """
    use_all_cores()
    loaded = load_model(model, pick_device(device))
    refused: list[DataError] = []
    text = _as_json(loaded, files, refused) if form == "json" else _as_csv(loaded, files, refused)
    if to is not None:
        replace_file(to, text)
    else:
        sys.stdout.write(text)
    if refused:
        more = f" (and {len(refused) - 1} more could not be read; the others are classified)" if refused[1:] else ""
        raise DataError(f"{refused[0]}{more}")


def _as_csv(model: Model, files: Iterable[Path], refused: list[DataError]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "class", "probability"))
    for prediction in model.predict_files(find_pictures(files), refused):
        best = max(range(len(prediction.probabilities)), key=prediction.probabilities.__getitem__)
        # A class name comes from the label service, and a file's name from anybody: neither may steer a terminal.
        name = printable(model.card.class_names[best])
        writer.writerow((printable(str(prediction.file)), name, f"{prediction.probabilities[best]:.4f}"))
    return text.getvalue()


def _as_json(model: Model, files: Iterable[Path], refused: list[DataError]) -> str:
    rows = []
    for prediction in model.predict_files(find_pictures(files), refused):
        shares = dict(zip(model.card.class_names, (round(p, 6) for p in prediction.probabilities), strict=True))
        best = max(shares, key=shares.__getitem__)
        rows.append({"file": str(prediction.file), "class": best, "probability": shares[best], "probabilities": shares})
    return json.dumps(rows, indent=1) + "\n"


def export_model(model: Path, to: Path) -> str:
    """Copy a model that can be read to a file of its own, and say what it is.

    Raises:
        DataError: there is no model, or it is damaged.
        RecordsUnwritable: the file cannot be written.
    """
    card = load_model(model, torch.device("cpu")).card
    if to.is_dir():
        raise RecordsUnwritable(f"{to} is a folder; name a file")
    content = model.read_bytes()
    replace_file(to, content)
    size = " x ".join(map(str, card.image_shape))
    return (
        f"{to}: {len(content) / 1e6:.1f} MB, {len(card.class_names)} classes, images of {size}, "
        f"learned from {card.labels} labels by run {card.run_id}"
    )

"""`make verify-records`: check the evidence of every run in every record, and make the numbers again.

Each bundle is verified with its run's key, by a process of its own. Labels and accuracies are read from the signed
entries. Where a run has published its predictions, their hashes are compared with these entries and the accuracies are
counted again with the public test labels. Table and pictures are made again and compared, and so are the numbers that
the README and docs/results.md take from a record. What stays the trainer's word is listed in `records.py`.

    python -m scripts.study.verify_records                    everything in records/
    python -m scripts.study.verify_records records/NAME       that record
    python -m scripts.study.verify_records FOLDER DATA        with images and labels of a prepared folder
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scripts import evidence, files
from scripts.errors import RunError
from scripts.run import Programs
from scripts.study import gallery, predictions, public_data, published, tables
from scripts.study.gallery import GALLERY_FILE
from scripts.study.predictions import PREDICTIONS_FILE
from scripts.study.records import CURVE_FILE, RECORD_FILE, TABLE_FILE, folder_of, read_results, recorded_runs
from trainer.errors import printable

RECORDS = Path("records")


def verify(record: Path, service: Sequence[str], folders: tuple[Path, ...] = public_data.FOLDERS) -> list[str]:
    """Check one record.

    Args:
        record: its folder.
        service: how the label service's command line is started.
        folders: where public images and labels may lie.

    Returns:
        What was verified, then the numbers that the record stands for; lines for people.

    Raises:
        RunError: something does not hold; the message says what and where.
    """
    results = verify_runs(record, service)
    counted = {run.folder.name for run in recorded_runs(record)}
    there = {path.name for path in (record / "runs").iterdir()}
    if there != counted:
        raise RunError(
            f"{record} has runs that it does not count, or counts runs that it does not have: "
            f"{sorted(there ^ counted)}."
        )
    if (record / TABLE_FILE).read_text(encoding="utf-8") != tables.render(results):
        raise RunError(f"{record / TABLE_FILE} is not what the evidence adds up to.")
    verdict = [f"{len(counted)} run{'s' if len(counted) > 1 else ''}", _recount(record, results, folders)]
    if results.is_curve and not _is_drawn(record / CURVE_FILE, results):
        verdict.append("its picture was drawn by another Matplotlib and was not compared")
    pages = published.check(record.resolve().parent.parent, record, results)
    verdict += [f"{' and '.join(pages)} agree"] if pages else []
    return ["; ".join(verdict), *tables.summary(results)]


def verify_runs(record: Path, service: Sequence[str]) -> tables.RecordResults:
    """Check the evidence of each run that a record counts, and return the results. No label is read.

    Raises:
        RunError: something does not hold; the message says what and where.
    """
    results = read_results(record)
    for run in recorded_runs(record):
        try:
            evidence.verify_bundle(service, run.folder)
        except OSError as error:
            raise RunError(f"{record} is not a complete record ({error!r}).") from error
    return results


def _recount(record: Path, results: tables.RecordResults, folders: tuple[Path, ...]) -> str:
    """Check what the runs have published beside their evidence, and say where the accuracies come from.

    Raises:
        RunError: predictions or pictures are not those of the logs, or another number of predictions is right.
    """
    runs = [(folder_of(record, arm.name, run.seed), run) for arm in results.arms for run in arm.runs]
    publishing = [(folder, run) for folder, run in runs if run.published]
    if not publishing:
        return "accuracies by the log; no predictions published"
    unknown = set()
    for folder, run in publishing:
        dataset = files.read_json(folder / "result.json")["dataset"]
        split = public_data.find_split(dataset, folders)
        predictions.recount(folder / PREDICTIONS_FILE, run.points, None if split is None else split.test_labels)
        if split is None:
            unknown.add(dataset["name"])
        else:
            asked = np.array(run.asked)
            shown = split.pool_images[asked], split.pool_labels[asked]
            gallery.compare(folder / GALLERY_FILE, *shown, dataset["class_names"])
    if unknown:
        return (
            "accuracies by the log; published predictions have the signed hashes, but cannot be recounted: "
            f"no folder here has the labels of {', '.join(sorted(unknown))}"
        )
    if len(publishing) < len(runs):
        return (
            f"accuracies of {len(publishing)} runs recounted from their predictions, of the others by the log; "
            "no predictions published"
        )
    return "accuracies recounted from the published predictions and the public labels"


def _is_drawn(picture: Path, results: tables.RecordResults) -> bool:
    """Compare a picture with what the results draw; False where another version of Matplotlib drew it.

    Raises:
        RunError: this version drew it, and it is another picture.
    """
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / CURVE_FILE
        tables.draw(results, drawn)
        expected = drawn.read_text(encoding="utf-8")
    found = picture.read_text(encoding="utf-8")
    if found == expected:
        return True
    if _matplotlib_of(found) in (None, _matplotlib_of(expected)):
        raise RunError(f"{picture} is not what the evidence draws.")
    return False


def _matplotlib_of(picture: str) -> str | None:
    """Return the version of Matplotlib that a picture names."""
    found = re.search(r"<dc:title>(Matplotlib v[^,<]+)", picture)
    return found[1] if found else None


def main(arguments: Sequence[str], programs: Programs | None = None) -> int:
    """Verify a record, or all records of a folder; print what each stands for; return 1 if one does not hold.

    Args:
        arguments: a record or a folder of records, by default `records`; then a folder of data to look in too.
        programs: how the label service is started.
    """
    folder = Path(arguments[0] if arguments else RECORDS)
    folders = (*map(Path, arguments[1:]), *public_data.FOLDERS)
    is_record = (folder / RECORD_FILE).exists()
    found = [folder] if is_record else sorted(path for path in folder.glob("*") if path.is_dir())
    if not found:
        print(f"make verify-records: there is no record in {folder}", file=sys.stderr)
        return 1
    failed = False
    for record in found:
        try:
            verdict, *numbers = verify(record, (programs or Programs()).service, folders)
            lines = [f"verified  {record}: {verdict}", *(f"          {line}" for line in numbers)]
        except Exception as error:  # somebody else's record may be damaged in any way, and the next one is checked too
            failed = True
            is_told = isinstance(error, RunError | OSError)
            what = error if is_told else f"it is damaged ({type(error).__name__}: {error})"
            lines = [f"FAILED    {record}: {what}"]
        # Somebody else's record may be quoted in a line, and is not to steer a terminal.
        print("\n".join(map(printable, lines)), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

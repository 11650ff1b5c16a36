"""`make verify-records`: the evidence of every run in every record, and the numbers made again.

Each bundle is verified with its run's key, by a process of its own; labels and accuracies come out of the signed
entries, and table and picture are made again. What stays the trainer's word: `records.py`.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts import evidence
from scripts.errors import RunError
from scripts.run import Programs
from scripts.study import tables
from scripts.study.records import CURVE_FILE, TABLE_FILE, folder_of, read_numbers


def verify(record: Path, service: Sequence[str]) -> str:
    """Check one record; say what was verified.

    Raises:
        RunError: something does not hold; the message says what and where.
    """
    numbers = verify_runs(record, service)
    named = {folder_of(record, arm.name, run.seed).name for arm in numbers.arms for run in arm.runs}
    there = {path.name for path in (record / "runs").iterdir()}
    if there != named:
        raise RunError(
            f"{record} has runs that it does not count, or counts runs that it does not have: {sorted(there ^ named)}."
        )
    if (record / TABLE_FILE).read_text(encoding="utf-8") != tables.render(numbers):
        raise RunError(f"{record / TABLE_FILE} is not what the evidence adds up to.")
    said = f"{len(named)} runs"
    if tables.is_curve(numbers) and not _is_drawn(record / CURVE_FILE, numbers):
        said += "; its picture was drawn by another Matplotlib and was not compared"
    return said


def _is_drawn(picture: Path, numbers: tables.Numbers) -> bool:
    """Tell whether a picture is what these numbers draw; False where another version of Matplotlib drew it.

    Raises:
        RunError: this version drew it, and it is another picture.
    """
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / CURVE_FILE
        tables.draw(numbers, drawn)
        expected = drawn.read_text(encoding="utf-8")
    found = picture.read_text(encoding="utf-8")
    if found == expected:
        return True
    if _drawn_by(found) in (None, _drawn_by(expected)):
        raise RunError(f"{picture} is not what the evidence draws.")
    return False


def _drawn_by(picture: str) -> str | None:
    found = re.search(r"<dc:title>(Matplotlib v[^,<]+)", picture)
    return found[1] if found else None


def verify_runs(record: Path, service: Sequence[str]) -> tables.Numbers:
    """Check the evidence of each run that a record counts, and return the numbers.

    Raises:
        RunError: something does not hold; the message says what and where.
    """
    numbers = read_numbers(record)
    for folder in (folder_of(record, arm.name, run.seed) for arm in numbers.arms for run in arm.runs):
        try:
            key = evidence.pinned_key(folder)
        except OSError as error:
            raise RunError(f"{record} is not a complete record ({error!r}).") from error
        evidence.verify_file(service, folder / evidence.BUNDLE_FILE, key)
    return numbers


def main(arguments: Sequence[str] | None = None, programs: Programs | None = None) -> int:
    """Verify all records; print a line for each; return 1 if one does not hold."""
    parser = argparse.ArgumentParser(prog="make verify-records", description="Verify every published record.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("records"))
    folder = parser.parse_args(arguments).folder
    found = sorted(path for path in folder.glob("*") if path.is_dir())
    if not found:
        print(f"make verify-records: there is no record in {folder}", file=sys.stderr)
        return 1
    failed = 0
    for record in found:
        try:
            print(f"verified  {record}: {verify(record, (programs or Programs()).service)}")
        except (RunError, OSError) as error:
            failed += 1
            print(f"FAILED    {record}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

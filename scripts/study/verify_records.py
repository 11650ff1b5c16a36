"""`make verify-records`: check the evidence of every run in every record, and make the numbers again.

Each bundle is verified with its run's key, by a process of its own. Labels and accuracies are read from the signed
entries; table and picture are made again and compared. What stays the trainer's word is listed in `records.py`.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts import evidence
from scripts.errors import RunError
from scripts.run import Programs
from scripts.study import tables
from scripts.study.records import CURVE_FILE, TABLE_FILE, read_results, recorded_runs


def verify(record: Path, service: Sequence[str]) -> str:
    """Check one record; return what was verified, for people.

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
    if results.is_curve and not _is_drawn(record / CURVE_FILE, results):
        return f"{len(counted)} runs; its picture was drawn by another Matplotlib and was not compared"
    return f"{len(counted)} runs"


def verify_runs(record: Path, service: Sequence[str]) -> tables.RecordResults:
    """Check the evidence of each run that a record counts, and return the results.

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
    """Verify all records of a folder, by default `records`; print a line for each; return 1 if one does not hold."""
    folder = Path(arguments[0] if arguments else "records")
    found = sorted(path for path in folder.glob("*") if path.is_dir())
    if not found:
        print(f"make verify-records: there is no record in {folder}", file=sys.stderr)
        return 1
    failed = False
    for record in found:
        try:
            print(f"verified  {record}: {verify(record, (programs or Programs()).service)}")
        except (RunError, OSError) as error:
            failed = True
            print(f"FAILED    {record}: {error}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

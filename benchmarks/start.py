"""How long the service takes to start on a long log: `python -m benchmarks.start --entries 200000`.

The log is written straight through the ledger, one label an entry. Each start plays it again in a fresh process of this
machine and ends before the first request; the time of the process, and not the time of Python's own start, is told.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.datasets import make_idx_dataset
from tests.support.load import POOL
from tests.support.long_log import make_long_log

_START = """
import sys, time
from pathlib import Path
from label_service.service import open_service
from label_service.settings import Settings
folder = Path(sys.argv[1])
place = f"sqlite:///{folder}/long/labels.sqlite3"
settings = Settings(data=folder / "data", other_data=True, database_url=place, guest_budget=int(sys.argv[2]))
begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
with open_service(settings):
    print(time.perf_counter() - begun_s, time.process_time() - begun_cpu_s)
"""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=200_000)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure; default: here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        folder = Path(scratch).resolve()
        data = make_idx_dataset(folder / "data", pool=POOL, test=10, classes=10, side=1)
        make_long_log(data, folder, given.entries)
        command = [sys.executable, "-c", _START, str(folder), str(given.entries)]
        times_s = [tuple(map(float, subprocess.check_output(command, text=True).split())) for _ in range(given.starts)]
    print(f"start with {given.entries:,} entries, {given.starts} times\n")
    print("| | median, s | least, s | most, s |\n|---|---:|---:|---:|")
    for name, measured in zip(("by the clock", "of the processor"), zip(*times_s, strict=True), strict=True):
        print(f"| {name} | {statistics.median(measured):.2f} | {min(measured):.2f} | {max(measured):.2f} |")


if __name__ == "__main__":
    main()

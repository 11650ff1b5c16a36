"""How many durable labels a second the service gives, with group commit and without: `python -m benchmarks.throughput`.

The real service as a process, a fresh database on a real disk, and wrk on the same cores asking for labels one by one
over kept connections, each label new to the run: every answer is charged, logged, synced and signed. Both ways are
measured in turns within one run, because a disk's mood changes by the minute. Needs wrk (https://github.com/wg/wrk).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.support.datasets import make_idx_dataset
from tests.support.load import POOL, Load, load
from tests.support.service_process import service


def syncs_per_s(folder: Path, seconds: float = 2.0) -> float:
    """Measure how often the disk takes an appended 4 KiB page for good in a second."""
    with (folder / "sync").open("wb", buffering=0) as file:
        count, end_s = 0, time.monotonic() + seconds
        while time.monotonic() < end_s:
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            count += 1
    return count / seconds


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=10, help="length of each load")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure; default: here")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed; on Debian: apt-get install wrk")
    ways = {"group commit": {}, "one commit a request": {"max_group": 1}}
    measured: dict[str, list[Load]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        data = make_idx_dataset(Path(scratch) / "data", pool=POOL, test=10, classes=10, side=1)
        syncs = syncs_per_s(Path(scratch))
        for turn in range(given.rounds):
            for name, settings in ways.items():
                folder = Path(tempfile.mkdtemp(dir=scratch))
                with service(data, folder, **settings) as client:
                    measured[name].append(load(client, folder, given.clients, given.seconds))
                print(f"turn {turn + 1} of {given.rounds}, {name}: {measured[name][-1]}", file=sys.stderr)
    print(f"{given.clients} clients, {given.rounds} x {given.seconds} s each; fdatasync of 4 KiB: {syncs:,.0f}/s\n")
    print("| | labels/s | p50, ms | p99, ms | commits/s | failed |\n|---|---:|---:|---:|---:|---:|")
    for name, loads in measured.items():
        middle = sorted(loads, key=lambda load: load.labels_per_s)[len(loads) // 2]
        latency = f"{middle.p50_ms:.1f} | {middle.p99_ms:.1f}"
        failed = sum(load.failed for load in loads)
        print(f"| {name} | {middle.labels_per_s:,.0f} | {latency} | {middle.commits_per_s:,.0f} | {failed} |")
    rates = [statistics.median(load.labels_per_s for load in measured[name]) for name in ways]
    print(f"\ngroup commit gives {rates[0] / rates[1]:.1f} times as many labels a second")


if __name__ == "__main__":
    main()

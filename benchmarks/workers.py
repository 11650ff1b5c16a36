"""Durable labels a second with several workers on PostgreSQL, beside SQLite: `python -m benchmarks.workers`.

As `benchmarks.throughput`: real services, wrk on the same cores, each label new to its run. The PostgreSQL server is
Debian's, started for this with its own fsync on, and its files lie on the disk that is measured. All ways take turns
within one run. Needs wrk and PostgreSQL's programs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.throughput import syncs_per_s
from tests.support.datasets import make_idx_dataset
from tests.support.load import POOL, Load, load
from tests.support.postgres import run_postgres, why_not
from tests.support.service_process import service


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=10, help="length of each load")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed; on Debian: apt-get install wrk")
    if (reason := why_not()) is not None:
        raise SystemExit(reason)
    ways = {"SQLite, 1": 1} | {f"PostgreSQL, {workers}": workers for workers in given.workers}
    measured: dict[str, list[Load]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch, run_postgres(given.folder, fsync=True) as server:
        data = make_idx_dataset(Path(scratch) / "data", pool=POOL, test=10, classes=10, side=1)
        syncs = syncs_per_s(Path(scratch))
        with server.connect() as connection:
            shown = {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in ("fsync", "server_version")}
        for turn in range(given.rounds):
            for name, workers in ways.items():
                folder = Path(tempfile.mkdtemp(dir=scratch))
                places: dict[str, object] = {"workers": workers}
                if name.startswith("PostgreSQL"):
                    database = server.create_database()
                    places |= {"database_url": server.url(database), "key_folder": folder / "key"}
                with service(data, folder, **places) as client:
                    measured[name].append(load(client, folder, given.clients, given.seconds))
                print(f"turn {turn + 1} of {given.rounds}, {name}: {measured[name][-1]}", file=sys.stderr)
    print(
        f"{given.clients} clients, {given.rounds} x {given.seconds} s each, {os.cpu_count()} cores; fdatasync of 4 KiB:"
        f" {syncs:,.0f}/s; PostgreSQL {shown['server_version']} with fsync {shown['fsync']}\n"
    )
    print("| database, workers | labels/s (least to most) | p50, ms | p99, ms | failed |\n|---|---:|---:|---:|---:|")
    for name, loads in measured.items():
        rates = [load.labels_per_s for load in loads]
        latency = " | ".join(
            f"{statistics.median(figures):.0f}"
            for figures in ([load.p50_ms for load in loads], [load.p99_ms for load in loads])
        )
        failed = sum(load.failed for load in loads)
        spread = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        print(f"| {name} | {spread} | {latency} | {failed} |")


if __name__ == "__main__":
    main()

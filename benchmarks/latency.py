"""How long one client waits, and how long verifying takes: `python -m benchmarks.latency`.

One client asks label by label over a kept connection, and checks each receipt and opening as the trainer does; then in
batches of 1,000. Last, the bundle of a log of 60,000 entries is verified offline with all its receipts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.datasets import make_idx_dataset
from tests.support.load import POOL
from tests.support.long_log import make_long_log
from tests.support.service_process import service
from trainer.oracle.client import LabelClient
from trainer.oracle.witness import Witness


def quantile(seconds: list[float], share: float) -> float:
    """Return a quantile in milliseconds."""
    return 1000 * sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))]


def timed_queries(client: LabelClient, batches: list[list[int]], name: str) -> list[float]:
    """Ask for batches one after the other; return the seconds of each."""
    seconds = []
    for number, ids in enumerate(batches):
        started_s = time.perf_counter()
        client.query(ids, idempotency_key=f"{name}-{number}")
        seconds.append(time.perf_counter() - started_s)
    return seconds


def timed_syncs(folder: Path, count: int = 200) -> list[float]:
    """Write and sync 16 KiB again and again, which is the least that a durable answer waits; return the seconds."""
    seconds = []
    with (folder / "synced").open("wb", buffering=0) as file:
        for _ in range(count):
            started_s = time.perf_counter()
            file.write(bytes(16 * 1024))
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - started_s)
    return seconds


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure; default: here")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--entries", type=int, default=60_000)
    given = parser.parse_args()
    print("| | median, ms | p99, ms |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        folder = Path(scratch)
        data = make_idx_dataset(folder / "data", pool=POOL, test=10, classes=10, side=1)
        with service(data, folder) as http, LabelClient(str(http.base_url), witness=Witness(folder)) as client:
            client.open_run("latency", POOL)
            singles = timed_queries(client, [[label] for label in range(given.queries)], "one")
            starts = range(given.queries, POOL - 1000, 1000)
            batches = timed_queries(client, [list(range(start, start + 1000)) for start in starts], "batch")
        said = re.findall(r'"POST /v1/labels:query" 200 ([\d.]+)ms', (folder / "service.log").read_text())
        rows = {
            "the disk alone: 16 KiB written and synced": timed_syncs(folder),
            "one label, receipt and opening checked": singles,
            "batch of 1,000, the same": batches,
            "batch of 1,000, in the service alone (its access log)": [float(ms) / 1000 for ms in said[-len(batches) :]],
        }
        for name, seconds in rows.items():
            print(f"| {name} | {1000 * statistics.median(seconds):.1f} | {quantile(seconds, 0.99):.1f} |")
        bundle = make_long_log(data, folder, given.entries)
        key = json.loads(bundle.read_bytes())["key"]
        started_s = time.perf_counter()
        command = [sys.executable, "-m", "label_service", "verify", str(bundle), "--key", key]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        print(f"| offline verify of {given.entries:,} entries | {1000 * (time.perf_counter() - started_s):,.0f} | |")
        print(f"\n{said[0]}: {said[-1]}")


if __name__ == "__main__":
    main()

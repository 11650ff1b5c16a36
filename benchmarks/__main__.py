"""Measure all that is claimed of the ledger and print it as Markdown: `python -m benchmarks > measurements.md`.

Takes about half an hour on two cores; `--quick` takes some minutes and shows the same tables of less.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime

# Title, module, arguments, and the arguments that make it short.
PARTS = (
    ("Throughput", "benchmarks.throughput", [], ["--rounds", "1", "--seconds", "3"]),
    ("Workers on PostgreSQL", "benchmarks.workers", [], ["--rounds", "1", "--seconds", "3"]),
    ("Latency and verification", "benchmarks.latency", [], ["--queries", "100", "--entries", "5000"]),
    ("Start on a long log", "benchmarks.start", [], ["--entries", "5000", "--starts", "2"]),
    ("256 clients for a minute", "tests.campaigns.storm", [], ["--seconds", "5"]),
    ("Races for the last label", "tests.campaigns.race_campaign", [], ["--races", "50"]),
    ("kill -9", "tests.campaigns.crash_campaign", [], ["--rounds", "5"]),
    ("Tamper matrix", "tests.campaigns.tamper_matrix", [], []),
)


def main() -> None:
    """Run every part; exit code 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    made_by = f"python -m benchmarks{' --quick' if quick else ''}"
    print(f"Made by `{made_by}` on {datetime.now(UTC):%Y-%m-%d}. {os.cpu_count()} cores, which the load shares.")
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}.")
    failed = 0
    for title, module, full, short in PARTS:
        print(
            f"\n## {title}\n\n`python -m {module}{' ' + ' '.join(short) if quick and short else ''}`\n",
            flush=True,
        )
        command = [sys.executable, "-m", module, *(short if quick else full)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        # What a terminal would overwrite is progress, not result.
        print(done.stdout.rpartition("\r")[2].partition("\n")[2] if "\r" in done.stdout else done.stdout, flush=True)
        if done.returncode:
            failed += 1
            print(f"FAILED with exit code {done.returncode}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()

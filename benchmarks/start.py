"""How long the service takes to start on a long log: `python -m benchmarks.start --entries 1000000`.

The log is written straight through the ledger, one label an entry. Each start is a fresh process of this machine and
ends before the first request; what the process needs after Python's own start is told. Starts that replay the whole log
and starts from a snapshot take turns.
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
from tests.support.long_log import write_long_log

_START = """
import resource, sys, time
from label_service.service import open_service
from label_service.settings import Settings
settings = Settings.model_validate_json(sys.argv[1])
begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
with open_service(settings):
    took_s, took_cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
    print(took_s, took_cpu_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=200_000)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure; default: here")
    parser.add_argument("--log", type=Path, help="a folder that keeps the log, made if it is missing")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        folder = Path(given.log or scratch).resolve()
        settings = folder / "settings.json"
        if not settings.exists():
            folder.mkdir(exist_ok=True)
            data = make_idx_dataset(folder / "data", pool=POOL, test=10, classes=10, side=1)
            settings.write_text(write_long_log(data, folder, given.entries).model_dump_json())
        command = [sys.executable, "-c", _START, settings.read_text()]
        measured: dict[str, list[list[float]]] = {"a whole replay": [], "from a snapshot": []}
        for _ in range(given.starts):
            for snapshot in (folder / "long-heads").glob("*.snapshot"):
                snapshot.unlink()
            # The first leaves the snapshot that the second starts from.
            for starts in measured.values():
                starts.append([float(figure) for figure in subprocess.check_output(command, text=True).split()])
    print(f"start with {given.entries:,} entries, {given.starts} times each: median (least to most)\n")
    print("| start | by the clock, s | of the processor, s | memory at most, MB |\n|---|---:|---:|---:|")
    for name, starts in measured.items():
        clock, processor, memory = (list(figures) for figures in zip(*starts, strict=True))
        print(f"| {name} | {_spread(clock)} | {_spread(processor)} | {statistics.median(memory):.0f} |")


def _spread(figures: list[float]) -> str:
    return f"{statistics.median(figures):.1f} ({min(figures):.1f} to {max(figures):.1f})"


if __name__ == "__main__":
    main()

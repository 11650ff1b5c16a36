"""How long the service takes to start: `python -m benchmarks.start --entries 1000000 --labels 10000000`.

The log is written straight through the ledger, one label an entry. Each start is a fresh process of this machine and
ends before the first request; what the process needs after Python's own start is told. The first start seeds the
database. Then starts that replay the whole log and hash every label take turns with starts from what the service keeps.
With --postgresql the database is on a server that is started for this, with its own fsync on.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from label_service.settings import Settings
from tests.support.datasets import make_idx_dataset
from tests.support.load import POOL
from tests.support.long_log import long_log_settings, write_long_log
from tests.support.postgres import run_postgres, why_not

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
    parser.add_argument("--labels", type=int, default=POOL, help="size of the pool; default: 60,000")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure; default: here")
    kept_log = parser.add_mutually_exclusive_group()
    kept_log.add_argument("--log", type=Path, help="a folder that keeps the log, made if it is missing")
    kept_log.add_argument("--postgresql", action="store_true", help="in place of SQLite")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch, database(given) as url:
        folder = Path(given.log or scratch).resolve()
        settings = folder / "settings.json"
        measured: dict[str, list[list[float]]] = {}
        if not settings.exists():
            folder.mkdir(exist_ok=True)
            data = make_idx_dataset(folder / "data", pool=given.labels, test=10, classes=10, side=1)
            measured["the first, which seeds"] = [start(long_log_settings(data, folder, given.entries, url))]
            settings.write_text(write_long_log(data, folder, given.entries, url).model_dump_json())
        log = Settings.model_validate_json(settings.read_text())
        for _ in range(given.starts):
            for kept in (*(folder / "long-heads").glob("*.snapshot"), *(folder / "long-heads").glob("*.label-tree")):
                kept.unlink()
            # The first leaves what the second starts from.
            for name in ("a whole replay, every label hashed", "from what is kept"):
                measured.setdefault(name, []).append(start(log))
    where = "PostgreSQL" if given.postgresql else "SQLite"
    print(f"start with {given.entries:,} entries and {given.labels:,} labels, {where}: median (least to most)\n")
    print("| start | by the clock, s | of the processor, s | memory at most, MB |\n|---|---:|---:|---:|")
    for name, starts in measured.items():
        clock, processor, memory = (list(figures) for figures in zip(*starts, strict=True))
        print(f"| {name} | {_spread(clock)} | {_spread(processor)} | {statistics.median(memory):.0f} |")


@contextmanager
def database(given: argparse.Namespace) -> Iterator[str | None]:
    """Give the address of a new database on a server of its own; None for SQLite."""
    if not given.postgresql:
        yield None
        return
    if (reason := why_not()) is not None:
        raise SystemExit(reason)
    with run_postgres(given.folder, fsync=True) as server:
        yield server.url(server.create_database())


def start(settings: Settings) -> list[float]:
    """Start a service in a process of its own; return what it prints."""
    command = [sys.executable, "-c", _START, settings.model_dump_json()]
    return [float(figure) for figure in subprocess.check_output(command, text=True).split()]


def _spread(figures: list[float]) -> str:
    return f"{statistics.median(figures):.1f} ({min(figures):.1f} to {max(figures):.1f})"


if __name__ == "__main__":
    main()

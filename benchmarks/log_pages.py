"""How long a page of a long log takes, whole and filtered: `python -m benchmarks.log_pages --entries 200000`.

The log is written straight through the ledger, one label an entry: the guest asks for the whole pool, then one run
after another. Then small runs are opened over HTTP, which ask, repeat, ask for what is not there, and seal. One client
asks for each page over a kept connection: the call of the API (100 entries) and the page for people (50). A value of a
filter is another one each time where there are many. Beside the time by the clock stands the time of the service's
processor, which a busy machine does not change.

Then one client asks for single labels, and reads the whole log three times: as an export, as the evidence in one stream
and as the evidence in pages. The most memory that the service has taken until then is told after each.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from benchmarks.latency import quantile
from label_service.settings import Settings
from tests.support.datasets import make_idx_dataset
from tests.support.load import POOL
from tests.support.long_log import write_long_log
from tests.support.service_process import run_process

RUNS = 20
Query = dict[str, str | int]
# A prime: steps of this length come to every part of the log.
STEP = 7919


def open_runs(http: httpx.Client) -> list[str]:
    """Make small runs that leave entries of several kinds; return their ids."""
    names = []
    for number in range(RUNS):
        opened = http.post("/v1/runs", json={"name": f"small {number}", "budget": 20}).raise_for_status().json()
        token = {"Authorization": f"Bearer {opened['token']}"}
        outside = opened["dataset"]["pool_size"]
        for label_id in (*range(number, number + 20), number, outside, outside - 1):
            http.get(f"/label/{label_id}", headers=token)
        http.post(f"/v1/runs/{opened['run_id']}:seal", headers=token).raise_for_status()
        names.append(opened["run_id"])
    return names


def cases(runs: list[str], times: list[str], size: int) -> dict[str, Callable[[int], Query]]:
    """Return the query of each row for the n-th request."""
    return {
        "newest page": lambda _: {},
        "a page in the middle": lambda n: {"before": size // 4 + n * STEP % (size // 2)},
        "by run, a pool of entries": lambda _: {"run": "guest"},
        "by run, of 25 entries": lambda n: {"run": runs[n % RUNS]},
        "by run, unknown": lambda _: {"run": "run-unknown"},
        "by id": lambda n: {"label_id": n * STEP % POOL},
        "by id and run": lambda n: {"label_id": n * STEP % POOL, "run": "guest"},
        "by operation, nearly all": lambda _: {"op": "query"},
        "by operation, 20 entries": lambda _: {"op": "run-sealed"},
        "by outcome, nearly all": lambda _: {"outcome": "revealed"},
        "by outcome, 20 entries": lambda _: {"outcome": "unknown-id"},
        "by outcome, none": lambda _: {"outcome": "evaluated"},
        "by run and outcome, none": lambda _: {"run": "guest", "outcome": "unknown-id"},
        "by operation and outcome, 20 entries": lambda _: {"op": "query", "outcome": "label-budget-exhausted"},
        "by run and operation, one entry": lambda n: {"run": runs[n % RUNS], "op": "run-opened"},
        "by time, from the middle on": lambda n: {"since": times[n % len(times)]},
        "by time, up to the middle": lambda n: {"until": times[n % len(times)]},
        "by id and time": lambda n: {"label_id": n * STEP % POOL, "since": times[n % len(times)]},
    }


def timed(http: httpx.Client, path: str, query: Callable[[int], Query], requests: int, **more: str) -> list[float]:
    """Ask for a page so many times, with more parameters than the query's; return the seconds of each."""
    seconds = []
    for number in range(requests):
        asked = query(number) | more
        started_s = time.perf_counter()
        http.get(path, params=asked).raise_for_status()
        seconds.append(time.perf_counter() - started_s)
    return seconds


def timed_labels(http: httpx.Client, requests: int) -> list[float]:
    """Ask for single labels from all parts of the pool; return the seconds of each."""
    opened = http.post("/v1/runs", json={"name": "labels", "budget": requests}).raise_for_status().json()
    token, pool_size = {"Authorization": f"Bearer {opened['token']}"}, opened["dataset"]["pool_size"]
    seconds = []
    for number in range(requests):
        started_s = time.perf_counter()
        http.get(f"/label/{number * STEP % pool_size}", headers=token).raise_for_status()
        seconds.append(time.perf_counter() - started_s)
    return seconds


def read_stream(http: httpx.Client, path: str) -> int:
    """Read an answer without keeping it; return its bytes."""
    with http.stream("GET", path) as answer:
        return sum(len(part) for part in answer.raise_for_status().iter_raw())


def read_pages(http: httpx.Client) -> int:
    """Read the evidence in pages; return its bytes."""
    page = http.get("/v1/log/evidence", params={"limit": 1000}).raise_for_status()
    size, total = int(page.json()["checkpoint"].splitlines()[1]), len(page.content)
    while (after := page.json()["next"]) is not None:
        page = http.get("/v1/log/evidence", params={"size": size, "after": after}).raise_for_status()
        total += len(page.content)
    return total


def memory_mb(pid: int) -> float:
    """Return the most memory that a process has taken so far."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def processor_s(pid: int) -> float:
    """Return the time of the processor that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=200_000)
    parser.add_argument("--requests", type=int, default=100, help="for each row and kind of page; default: 100")
    parser.add_argument("--log", type=Path, help="a folder in which benchmarks.start keeps a log; default: a new one")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure; default: here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        folder = Path(scratch).resolve()
        if given.log is None:
            data = make_idx_dataset(folder / "data", pool=POOL, test=10, classes=10, side=1)
            settings = write_long_log(data, folder, given.entries)
        else:
            settings = Settings.model_validate_json((given.log / "settings.json").read_text())
        # Beside what the log has charged, the small runs need labels of their own.
        limits = {"guest_budget": settings.guest_budget, "tokenless_budget": settings.tokenless_budget + POOL}
        with (
            run_process(settings.data, folder, database_url=settings.database_url, **limits) as (process, url),
            httpx.Client(base_url=url, timeout=30.0) as http,
        ):
            runs = open_runs(http)
            size = int(http.get("/v1/log/checkpoint").text.splitlines()[1])
            middle = http.get("/v1/log/entries", params={"after": size // 2, "limit": 1000}).json()["entries"]
            times = [entry["ts"] for entry in middle]
            # The first page after a start reads the templates.
            first_s = timed(http, "/log", lambda _: {}, 1)[0]
            print(f"first page after the start: {1000 * first_s:.0f} ms\n")
            print(f"{size:,} entries, {given.requests} requests for each row\n")
            print("| | call p50, ms | p99 | processor | page p50, ms | p99 | processor |")
            print("|---|---:|---:|---:|---:|---:|---:|")
            for name, query in cases(runs, times, size).items():
                cells = []
                for path, more in (("/v1/log/entries", {"order": "newest"}), ("/log", {})):
                    begun_s = processor_s(process.pid)
                    seconds = timed(http, path, query, given.requests, **more)
                    of_processor_s = (processor_s(process.pid) - begun_s) / given.requests
                    cells += [quantile(seconds, 0.5), quantile(seconds, 0.99), 1000 * of_processor_s]
                print(f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |", flush=True)
            labels = timed_labels(http, given.requests)
            print(f"\none label: p50 {quantile(labels, 0.5):.1f} ms, p99 {quantile(labels, 0.99):.1f} ms")
            print(f"memory at most, after all that: {memory_mb(process.pid):.0f} MB")
            reads: dict[str, Callable[[], int]] = {
                "the export": lambda: read_stream(http, "/v1/log/export.ndjson"),
                "the evidence in one stream": lambda: read_stream(http, "/v1/log/evidence"),
                "the evidence in pages": lambda: read_pages(http),
            }
            for name, read in reads.items():
                begun_s = time.perf_counter()
                size_mb = read() / 1e6
                took_s = time.perf_counter() - begun_s
                print(f"{name}: {size_mb:.0f} MB in {took_s:.0f} s; memory at most {memory_mb(process.pid):.0f} MB")


if __name__ == "__main__":
    main()

"""How many durable labels a second the service gives, with group commit and without: `python -m benchmarks.throughput`.

The real service as a process, a fresh database on a real disk, and wrk on the same cores asking for labels one by one
over kept connections, each label new to the run: every answer is charged, logged, synced and signed. Both ways are
measured in turns within one run, because a disk's mood changes by the minute. Needs wrk (https://github.com/wg/wrk).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.datasets import make_idx_dataset

POOL = 60_000
# Each wrk thread asks its own ids in order, so that no answer is a replay.
SCRIPT = """
local thread = 0
function setup(t) t:set("number", thread); thread = thread + 1 end
function init(args) count = 0 end
function request()
  count = count + 1
  return wrk.format("GET", "/label/" .. ((count - 1) * THREADS + number))
end
"""
UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True)
class Load:
    """What one load measured.

    Attributes:
        labels_per_s: answers with status 200 a second.
        p50_ms, p99_ms: latency as wrk saw it.
        failed: answers with another status, and socket errors.
        commits_per_s: write transactions of the service a second.
    """

    labels_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int
    commits_per_s: float


def start(data: Path, folder: Path, **settings: object) -> tuple[subprocess.Popen[bytes], str]:
    """Start a service process on the database in a folder, wait until it is ready, and answer where it listens."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LABEL_SERVICE_")}
    environment |= {f"LABEL_SERVICE_{name.upper()}": str(value) for name, value in settings.items()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"sqlite:///{folder / 'service' / 'labels.sqlite3'}"
    command = [sys.executable, "-m", "label_service", "serve", "--data", str(data), "--other-data"]
    command += ["--database-url", url, "--port", str(port)]
    base_url = f"http://127.0.0.1:{port}"
    with (folder / "service.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    with httpx.Client(base_url=base_url, timeout=30.0) as client:
        while not answers(client):
            if process.poll() is not None:
                raise SystemExit(f"the service did not start: {(folder / 'service.log').read_text()[-2000:]}")
            time.sleep(0.02)
    return process, base_url


def stop_at_once(process: subprocess.Popen[bytes]) -> None:
    """Kill a process as a power cut of its own would."""
    process.kill()
    process.wait()


@contextmanager
def service(data: Path, folder: Path, **settings: object) -> Iterator[httpx.Client]:
    """Run a service process and answer a client of it."""
    process, base_url = start(data, folder, **settings)
    try:
        with httpx.Client(base_url=base_url, timeout=30.0) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


def answers(client: httpx.Client) -> bool:
    """Tell whether the service is ready."""
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def open_run(client: httpx.Client) -> dict[str, str]:
    """Open a run that may have every label; return the header that speaks for it."""
    opened = client.post("/v1/runs", json={"name": "load", "budget": POOL}).raise_for_status().json()
    return {"Authorization": f"Bearer {opened['token']}"}


def metric(client: httpx.Client, name: str) -> float:
    """Read one number of /metrics."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def load(client: httpx.Client, folder: Path, clients: int, seconds: int) -> Load:
    """Ask for labels with wrk."""
    threads = 2
    script = folder / "labels.lua"
    script.write_text(SCRIPT.replace("THREADS", str(threads)))
    token = open_run(client)["Authorization"]
    command = ["wrk", "-t", str(threads), "-c", str(clients), "-d", f"{seconds}s", "--latency", "--timeout", "30s"]
    command += ["-s", str(script), "-H", f"Authorization: {token}", str(client.base_url)]
    commits = 'labelmeter_commits_total{result="written"}'
    before, started_s = metric(client, commits), time.monotonic()
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    elapsed_s = time.monotonic() - started_s
    total = int(re.search(r"(\d+) requests in", said)[1])  # type: ignore[index]
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    failed = int(bad[1]) if bad else 0
    latency = {name: float(value) * UNITS_MS[unit] for name, value, unit in re.findall(r"(\d\d)% +([\d.]+)(\w+)", said)}
    return Load(
        labels_per_s=(total - failed) / elapsed_s,
        p50_ms=latency["50"],
        p99_ms=latency["99"],
        failed=failed + (sum(map(int, errors.groups())) if errors else 0),
        commits_per_s=(metric(client, commits) - before) / elapsed_s,
    )


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
        one = sorted(loads, key=lambda each: each.labels_per_s)[len(loads) // 2]
        failed = sum(each.failed for each in loads)
        print(
            f"| {name} | {one.labels_per_s:,.0f} | {one.p50_ms:.1f} | {one.p99_ms:.1f} | {one.commits_per_s:,.0f} "
            f"| {failed} |"
        )
    rates = [statistics.median(one.labels_per_s for one in measured[name]) for name in ways]
    print(f"\ngroup commit gives {rates[0] / rates[1]:.1f} times as many labels a second")


if __name__ == "__main__":
    main()

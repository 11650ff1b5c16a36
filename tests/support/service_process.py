"""A label service as a process of its own, for campaigns and benchmarks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx


def start(
    data: Path, folder: Path, program: Sequence[str] = ("-m", "label_service"), **settings: object
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a service process on the database in a folder, wait until it is ready, and return its base URL.

    Args:
        data: the prepared data.
        folder: of database and messages.
        program: what Python runs as the service.
        settings: of the service.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What campaigns and benchmarks ask for is above what strangers get by default.
    limits = ("tokenless_budget", "tokenless_evaluations", "total_evaluations")
    unlimited = dict.fromkeys((*limits, "uncharged_entries_per_hour", "openings_per_hour"), 10**9)
    given = {"data": data, "other_data": True, "port": port} | unlimited | settings
    given.setdefault("database_url", f"sqlite:///{folder / 'service' / 'labels.sqlite3'}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LABEL_SERVICE_")}
    environment |= {f"LABEL_SERVICE_{name.upper()}": str(value) for name, value in given.items()}
    command = [sys.executable, *program, "serve"]
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
    """Kill a process without a chance to clean up."""
    process.kill()
    process.wait()


@contextmanager
def run_process(data: Path, folder: Path, **settings: object) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a service process until the block ends, and yield it with its base URL; SIGTERM stops it."""
    process, base_url = start(data, folder, **settings)
    try:
        yield process, base_url
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def service(data: Path, folder: Path, **settings: object) -> Iterator[httpx.Client]:
    """Run a service process and yield a client of it."""
    with run_process(data, folder, **settings) as (_, url), httpx.Client(base_url=url, timeout=30.0) as client:
        yield client


def answers(client: httpx.Client) -> bool:
    """Return whether the service is ready."""
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False

"""Ask a running service for labels as fast as wrk can (https://github.com/wg/wrk), and read what it measured."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

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


def metric(client: httpx.Client, name: str) -> float:
    """Read one number of /metrics."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def load(client: httpx.Client, folder: Path, clients: int, seconds: int) -> Load:
    """Ask for labels with wrk."""
    threads = 2
    script = folder / "labels.lua"
    script.write_text(SCRIPT.replace("THREADS", str(threads)))
    # A run that may have every label.
    opened = client.post("/v1/runs", json={"name": "load", "budget": POOL}).raise_for_status().json()
    command = ["wrk", "-t", str(threads), "-c", str(clients), "-d", f"{seconds}s", "--latency", "--timeout", "30s"]
    command += ["-s", str(script), "-H", f"Authorization: Bearer {opened['token']}", str(client.base_url)]
    commits = 'labelmeter_commits_total{result="written"}'
    before, started_s = metric(client, commits), time.monotonic()
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    elapsed_s = time.monotonic() - started_s
    total = int(re.search(r"(\d+) requests in", output)[1])  # type: ignore[index]
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    failed = int(bad[1]) if bad else 0
    latency = {
        name: float(value) * UNITS_MS[unit] for name, value, unit in re.findall(r"(\d\d)% +([\d.]+)(\w+)", output)
    }
    return Load(
        labels_per_s=(total - failed) / elapsed_s,
        p50_ms=latency["50"],
        p99_ms=latency["99"],
        failed=failed + (sum(map(int, errors.groups())) if errors else 0),
        commits_per_s=(metric(client, commits) - before) / elapsed_s,
    )

"""Let 256 clients ask at once for a minute: `python -m tests.campaigns.storm`.

No client may see a locked database or a server error other than 503. The campaign needs the program wrk.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import Counter
from pathlib import Path

from tests.support.datasets import make_idx_dataset
from tests.support.load import POOL, load
from tests.support.service_process import service


def main() -> None:
    """Run and print a table; exit with 1 if a lock or another server error was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to use; default: the current folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        data = make_idx_dataset(Path(scratch) / "data", pool=POOL, test=10, classes=10, side=1)
        with service(data, Path(scratch)) as client:
            measured = load(client, Path(scratch), given.clients, given.seconds)
            counted = re.findall(
                r'^labelmeter_requests_total\{.*status="(\d+)"\} (\S+)$', client.get("/metrics").text, re.M
            )
        locked = (Path(scratch) / "service.log").read_text().count("locked")
    statuses: Counter[str] = Counter()
    for status, count in counted:
        statuses[status] += int(float(count))
    others = sum(count for status, count in statuses.items() if status.startswith("5") and status != "503")
    print(
        "| clients | seconds | labels/s | p50, ms | p99, ms | 200 | 404 | 503 | other 5xx | `locked` in the messages |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    seen = f"{measured.labels_per_s:,.0f} | {measured.p50_ms:.0f} | {measured.p99_ms:.0f}"
    print(
        f"| {given.clients} | {given.seconds} | {seen} "
        f"| {statuses['200']:,} | {statuses['404']:,} | {statuses['503']:,} | {others} | {locked} |"
    )
    raise SystemExit(bool(others or locked))


if __name__ == "__main__":
    main()

"""`make results`: the tables of docs/results.md and the published curve of the trainer's reports, from the records.

A table stands between `<!-- table N of records/NAME -->` and `<!-- end -->`. It is the Nth table of that record's
`table.md`, which `make verify-records` recomputes from the signed logs.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

from scripts.study.records import read_results

PAGE = Path("docs/results.md")
# The record whose curve the reports show, and the profiles that train like its runs.
CURVE_RECORD = Path("records/2026-11-25_learning-curve")
CURVE_OF = ("cpu", "curve")
CURVE = Path("trainer/run/published.json")
BLOCK = re.compile(r"(<!-- table (\d) of (records/\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables_of(record: Path) -> list[str]:
    """Return the tables of a record's page, as Markdown."""
    return re.findall(r"(?:^\|.*\n)+", (record / "table.md").read_text(encoding="utf-8"), re.MULTILINE)


def fill(page: str, root: Path) -> str:
    """Return a page with each of its tables written anew from the records below a folder."""
    # Without the blank lines Markdown reads a table as part of the comment.
    return BLOCK.sub(lambda block: f"{block[1]}\n{tables_of(root / block[3])[int(block[2]) - 1]}\n{block[4]}", page)


def published_curve(record: Path) -> str:
    """Return what the trainer's reports show of a record: for each profile, labels, mean and deviation (shares)."""
    default = read_results(record).arms[0]
    points = []
    labels = sorted({point.labels for run in default.runs for point in run.points})
    for count in labels:
        shares = [percent / 100 for percent in default.percent_at(count).values()]
        points.append([count, round(statistics.mean(shares), 6), round(statistics.stdev(shares), 6)])
    return json.dumps(dict.fromkeys(CURVE_OF, points)) + "\n"


if __name__ == "__main__":
    CURVE.write_text(published_curve(CURVE_RECORD), encoding="utf-8")
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), Path()), encoding="utf-8")

"""`make results`: the tables of docs/results.md, written from the records.

A table stands between `<!-- table N of records/NAME -->` and `<!-- end -->`. It is the Nth table of that record's
`table.md`, which `make verify-records` recomputes from the signed logs.
"""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path("docs/results.md")
BLOCK = re.compile(r"(<!-- table (\d) of (records/\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables_of(record: Path) -> list[str]:
    """Return the tables of a record's page, as Markdown."""
    return re.findall(r"(?:^\|.*\n)+", (record / "table.md").read_text(encoding="utf-8"), re.MULTILINE)


def fill(page: str, root: Path) -> str:
    """Return a page with each of its tables written anew from the records below a folder."""
    # Without the blank lines Markdown reads a table as part of the comment.
    return BLOCK.sub(lambda block: f"{block[1]}\n{tables_of(root / block[3])[int(block[2]) - 1]}\n{block[4]}", page)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), Path()), encoding="utf-8")

"""Tests of the documentation: its commands and sessions are run, its numbers compared with the records."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "records/*.md", "records/*/*.md")
    for path in ROOT.glob(pattern)
)


def read(page):
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def section(page, title):
    """Return the text of one section of a page."""
    found = read(page).partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert found, f"{page} has no section {title}"
    return found


def rows(page, title):
    """Return the cells of the first table in a section, without its head."""
    table = re.search(r"(?:^\|.*\n)+", section(page, title), re.MULTILINE)[0]
    lines = [line.strip().strip("|").split(" | ") for line in table.splitlines()[2:]]
    return [[cell.strip() for cell in line] for line in lines]


def console_blocks(text):
    """Return the console blocks of a page or section; a list item's block is indented."""
    return [
        re.sub(rf"^{indent}", "", block, flags=re.MULTILINE)
        for indent, block in re.findall(r"^( *)```console\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    ]


def commands(text):
    """Return the commands of all console blocks, without their prompts."""
    return re.findall(r"^\$ (.+)$", "\n".join(console_blocks(text)), re.MULTILINE)

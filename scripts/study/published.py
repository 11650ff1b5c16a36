"""The numbers that the README and docs/results.md take from a record, compared with the record.

In the README these are the rows of tables that link to the record; for the record of the first such row the headline
and the sentence that repeats it; and for a record that a `[seed N, X%, M min, ...]` links to, the closing table of a
run. A mean may be called "above" a number where the lower end of its 95% interval is above it, and nowhere else. In
docs/results.md they are the tables of the record, and every number with two decimals in their sections.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from scripts import counts
from scripts.errors import RunError
from scripts.results_page import BLOCK, PAGE, tables_of
from scripts.study import tables
from scripts.study.records import folder_of
from scripts.study.tables import ArmResults, Point, RecordResults
from trainer.records.run_records import read_result

README = Path("README.md")
ROW = re.compile(r"^\|.*\]\((records/[^/)]+)/.*$", re.MULTILINE)
# Labels and how they were chosen; mean ± standard deviation; minutes and the profile that they were measured with.
CELLS = re.compile(
    r"\| \W*([\d,]+) (chosen|random)\W* \| \W*([\d.]+ ± [\d.]+)\W* \| "
    r"([\d]+)(?: to (\d+))? min, two CPU cores, profile `(\w+)` \| .*\b(\d+) seeds"
)
HEADLINE = re.compile(r"\*\*(A mean of|Above|More than) ([\d.]+)% on Fashion-MNIST from ([\d,]+) of its 60,000 labels")
SENTENCE = re.compile(r"It reaches ([\d.]+)% on the official test set .*? the mean of (\w+) runs")
SEED = re.compile(r"\[(seed (\d+), [^\]]*)\]\((records/[^/)]+)/")
CLOSING = re.compile(r"^ *test accuracy, by the log +(.*)$", re.MULTILINE)
ACCURACY = re.compile(r"\d+(?:\.\d+)?(?=\s?%| ±|\*\*)")
NUMBER = re.compile(r"\b\d\d\.\d\d\b")
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def check(root: Path, record: Path, results: RecordResults) -> list[str]:
    """Compare the pages of a repository with one record.

    Args:
        root: folder of the README.
        record: the record's folder, below it.
        results: the record's.

    Returns:
        The names of the pages that have numbers of the record.

    Raises:
        RunError: a page has another number than the record; the message says which.
    """
    name = f"records/{record.resolve().name}"
    checks = {README: _check_readme, PAGE: _check_results_page}
    there = {page: (root / page).read_text(encoding="utf-8") for page in checks if (root / page).exists()}
    return [str(page) for page, text in there.items() if checks[page](text, name, record, results)]


def _check_readme(text: str, name: str, record: Path, results: RecordResults) -> bool:
    rows = [(row[0], row[1] == name) for row in ROW.finditer(text)]
    own = [row for row, is_own in rows if is_own]
    for row in own:
        _check_row(row, results)
    if rows and rows[0][1]:
        _check_headline(text, own[0], results)
        _refuse_other_numbers(text)
    seeds = [(words, int(seed)) for words, seed, cited in SEED.findall(re.sub(r"\s+", " ", text)) if cited == name]
    for words, seed in seeds:
        _check_run(text, words, seed, record, results)
    return bool(own or seeds)


def _check_row(row: str, results: RecordResults) -> None:
    """Compare a row of the README's table with the arm that it is of."""
    cells = CELLS.match(row)
    if cells is None:
        raise RunError(f"{README} has a row that cannot be compared with its record: {row}")
    labels, how, accuracy, shortest, longest, profile, seeds = cells.groups()
    arm = _arm(results, how)
    points = arm.points_at(int(labels.replace(",", "")))
    minutes = [_minutes(point) for point in sorted(points.values(), key=lambda point: point.seconds)]
    _compare(f"{labels} {how}", f"{accuracy} ({seeds})", tables.mean_and_sd([p.percent for p in points.values()]))
    _compare(f"minutes for {labels} {how}", (shortest, longest or shortest), (minutes[0], minutes[-1]))
    _compare(f"profile of the minutes for {labels} {how}", profile, arm.profile)


def _check_headline(text: str, row: str, results: RecordResults) -> None:
    """Compare headline and first sentence with the arm of the table's first row."""
    cells, headline = CELLS.match(row), HEADLINE.search(text)
    sentence = SENTENCE.search(re.sub(r"\s+", " ", text))
    if cells is None or headline is None or sentence is None:
        raise RunError(f"{README} has no headline, or no sentence, that can be compared with its first row.")
    percents = list(_arm(results, cells[2]).percent_at(int(cells[1].replace(",", ""))).values())
    words, number, labels = headline.groups()
    _compare("labels in the headline", labels, cells[1])
    decimals = len(number.partition(".")[2])
    if words == "A mean of":
        _compare("mean in the headline", number, f"{statistics.mean(percents):.{decimals}f}")
    elif tables.interval(percents)[0] <= float(number):
        raise RunError(f"{README} says {words.lower()} {number}%, and the 95% interval of the mean begins below it.")
    _compare("mean in the first sentence", sentence[1], f"{statistics.mean(percents):.2f}")
    runs = WORDS[len(percents)] if len(percents) < len(WORDS) else str(len(percents))
    _compare("runs in the first sentence", sentence[2], runs)


def _refuse_other_numbers(text: str) -> None:
    """Refuse accuracies that no check above compares with a record; rows that link to a source on the web may have any.

    Raises:
        RunError: the README has such a number.
    """
    text = text.replace("95% interval", "interval")
    plain = re.sub(r"\s+", " ", text)
    compared = [pattern.search(plain) for pattern in (HEADLINE, SENTENCE)] + [CLOSING.search(text)]
    checked = [*(found[0] for found in compared if found), *(words for words, *_ in SEED.findall(plain))]
    known = {number for part in checked for number in ACCURACY.findall(part)}
    for line in text.splitlines():
        if ROW.match(line) or (line.startswith("|") and "](http" in line):
            continue
        for number in ACCURACY.findall(line):
            if number not in known:
                raise RunError(f"{README} has the accuracy {number}, which stands in no record that it names.")


def _check_run(text: str, words: str, seed: int, record: Path, results: RecordResults) -> None:
    """Compare what the README says of a single run with it, and its closing table."""
    arm = results.arms[0]
    run = next((run for run in arm.runs if run.seed == seed), None)
    if run is None:
        raise RunError(f"{README} names seed {seed} of {record}, which has no such run.")
    last = run.points[-1]
    recorded = f"seed {seed}, {last.percent:.2f}%, {_minutes(last)} min, profile `{arm.profile}`"
    _compare("a run", words, recorded)
    result = read_result(folder_of(record, arm.name, seed))
    assert result is not None, "read_results has read it"
    closing = CLOSING.search(text)
    _compare("closing table", closing and closing[1].strip(), counts.format_accuracy(result.evaluation))


def _check_results_page(text: str, name: str, record: Path, results: RecordResults) -> bool:
    own = False
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        blocks = list(BLOCK.finditer(section))
        for block in (block for block in blocks if block[3] == name):
            own = True
            table = tables_of(record)[int(block[2]) - 1]
            _compare(f"table {block[2]} of {name}", block[0], f"{block[1]}\n{table}\n{block[4]}", PAGE)
        if {block[3] for block in blocks} == {name}:
            known = _numbers(results)
            for number in NUMBER.findall(BLOCK.sub("", section)):
                if number not in known:
                    raise RunError(f"{PAGE} has the number {number} beside a table of {name}, which does not have it.")
    return own


def _numbers(results: RecordResults) -> set[str]:
    """Return all accuracies, means and ends of intervals of a record, with two decimals."""
    values: list[float] = []
    for arm in results.arms:
        for labels in results.labels:
            percents = list(arm.percent_at(labels).values())
            values += [*percents, statistics.mean(percents)] if percents else []
            values += tables.interval(percents) if len(percents) > 1 else ()
    return {f"{value:.2f}" for value in values}


def _arm(results: RecordResults, how: str) -> ArmResults:
    """Return the arm of chosen or of random labels."""
    named = [arm for arm in results.arms if arm.name == "random"]
    if how == "random" and not named:
        raise RunError(f"{README} has a row of random labels, and its record has none.")
    return named[0] if how == "random" else results.arms[0]


def _minutes(point: Point) -> str:
    return f"{point.seconds / 60:.0f}"


def _compare(what: str, shown: object, recorded: object, page: Path = README) -> None:
    if shown != recorded:
        raise RunError(f"{page} does not say what the record says: {what}: {_plain(shown)}, not {_plain(recorded)}.")


def _plain(value: object) -> str:
    return " to ".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else f"{value}"

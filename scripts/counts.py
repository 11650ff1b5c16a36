"""The independent count of a run's labels, and the table a run ends with.

The numbers of the log are counted here from its exported entries, not taken from a program's summary: trainer and
service cannot agree on a wrong number between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.errors import RunError
from trainer.records.progress import duration

# The entries that gave labels away (docs/service.md): a query whose labels were revealed, now or before.
QUERY = "query"
REVEALING = ("revealed", "replayed")
# What the check needs of the trainer's result.
RESULT_KEYS = (
    "run_id",
    "seed",
    "profile",
    "budget",
    "evaluation",
    "stage_seconds",
    "queries_counted_by_trainer",
    "queries_in_log",
    "distinct_labels_in_log",
    "distinct_labels_revealed_to_anybody",
)


@dataclass(frozen=True)
class LogCounts:
    """What one run, and everybody else, got out of a query log.

    Attributes:
        queries: labels charged to the run.
        labels: distinct ids whose label the run was given.
        elsewhere: distinct ids whose label anybody else was given.
    """

    queries: int
    labels: frozenset[int]
    elsewhere: frozenset[int]

    @property
    def anybody(self) -> int:
        """Distinct labels that the log revealed to anybody."""
        return len(self.labels | self.elsewhere)


def count_log(entries: Iterable[Mapping[str, Any]], run_id: str) -> LogCounts:
    """Count the reveals in a query log for one run and for the rest.

    Args:
        entries: the log's entries, in order.
        run_id: the run to count for.
    """
    queries = 0
    labels: set[int] = set()
    elsewhere: set[int] = set()
    for entry in entries:
        if entry["op"] != QUERY or entry["outcome"] not in REVEALING:
            continue
        if entry["run"] == run_id:
            queries += entry["charged"]
            labels.update(entry["ids"])
        else:
            elsewhere.update(entry["ids"])
    return LogCounts(queries, frozenset(labels), frozenset(elsewhere))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file with one a line.

    Raises:
        RunError: the file is missing or a line is no JSON object.
    """
    try:
        objects = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read as one JSON object a line ({error}), so nothing can be counted."
        ) from error
    if not all(isinstance(found, dict) for found in objects):
        raise RunError(f"{path} has a line that is no JSON object, so nothing can be counted.")
    return objects


def read_result(path: Path) -> dict[str, Any]:
    """Return what the check needs of the trainer's `result.json`.

    Raises:
        RunError: it is missing, damaged or lacks a number that the check needs.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return {key: result[key] for key in RESULT_KEYS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is not the result of a finished run ({error!r}), so it cannot be checked.") from error


def find_disagreements(result: Mapping[str, Any], queried: Iterable[Mapping[str, Any]], log: LogCounts) -> list[str]:
    """Compare the trainer's count with the log's.

    Args:
        result: the trainer's `result.json`.
        queried: the lines of its `queries.jsonl`, one for each queried image.
        log: what the exported log says.

    Returns:
        One sentence for each pair of numbers that differ; none if all agree.
    """
    ids = [line["id"] for line in queried]
    pairs = [
        ("queries counted by the trainer", result["queries_counted_by_trainer"], "charged in the log", log.queries),
        ("queries in the trainer's result", result["queries_in_log"], "charged in the log", log.queries),
        ("distinct labels in the trainer's result", result["distinct_labels_in_log"], "in the log", len(log.labels)),
        (
            "labels revealed to anybody in the trainer's result",
            result["distinct_labels_revealed_to_anybody"],
            "in the log",
            log.anybody,
        ),
        ("lines in queries.jsonl", len(ids), "queries charged in the log", log.queries),
        ("distinct ids in queries.jsonl", len(set(ids)), "distinct labels in the log", len(log.labels)),
    ]
    found = [f"{left:,} {name}, but {right:,} {where}" for name, left, where, right in pairs if left != right]
    unmatched = set(ids) ^ log.labels
    if unmatched and len(set(ids)) == len(log.labels):
        found.append(f"id {min(unmatched)} is in only one of queries.jsonl and the log")
    return found


def format_table(rows: Iterable[tuple[str, str]]) -> str:
    """Return rows of name and value as aligned plain text."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def format_accuracy(evaluation: Mapping[str, Any] | None) -> str:
    """Return accuracy, interval and counts of an evaluation by the service, or that there was none."""
    if evaluation is None:
        return "not evaluated"
    low, high = (100 * bound for bound in evaluation["ci95"])
    return (
        f"{100 * evaluation['accuracy']:.2f}%  (95% interval {low:.2f}% to {high:.2f}%; "
        f"{evaluation['correct']:,} of {evaluation['total']:,})"
    )


def table_rows(
    result: Mapping[str, Any], log: LogCounts, dataset: str, evidence: str, out: Path
) -> list[tuple[str, str]]:
    """Return the closing table of a run: counts of both sides, accuracy, times, places."""
    stages = result["stage_seconds"]
    return [
        ("data set", dataset),
        ("profile, seed, budget", f"{result['profile']}, {result['seed']}, {result['budget']}"),
        ("queries counted by the trainer", f"{result['queries_counted_by_trainer']:,}"),
        ("queries of the run, by the log", f"{log.queries:,}"),
        ("distinct labels of the run, by the log", f"{len(log.labels):,}"),
        ("labels revealed to anybody else", f"{len(log.elsewhere):,}"),
        ("test accuracy", format_accuracy(result["evaluation"])),
        ("wall time of the trainer", duration(sum(stages.values()))),
        *((f"  {name}", duration(seconds)) for name, seconds in stages.items()),
        ("report", str(out / "trainer" / "report.html")),
        ("query log", str(out / "query-log.ndjson")),
        ("evidence", evidence),
    ]

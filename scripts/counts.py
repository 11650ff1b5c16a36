"""The independent count of a run's labels, and how its numbers are written.

The numbers of the log are counted here from its entries, not taken from a program's summary: trainer and service cannot
agree on a wrong number between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.errors import RunError
from trainer.records.run_records import EvaluationResult, QueryRecord, RunResult

# The entries that gave labels away (docs/service.md): a query whose labels were revealed, now or before.
QUERY = "query"
REVEALING = ("revealed", "replayed")


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
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path} cannot be read as one JSON object a line ({error}), so nothing can be counted."
        ) from error
    if not all(isinstance(found, dict) for found in objects):
        raise RunError(f"{path} has a line that is no JSON object, so nothing can be counted.")
    return objects


def find_disagreements(result: RunResult, queried: Sequence[QueryRecord], log: LogCounts) -> list[str]:
    """Compare the trainer's count with the log's.

    Args:
        result: the trainer's `result.json`.
        queried: its `queries.jsonl`, one record for each queried image.
        log: what the log's entries say.

    Returns:
        One sentence for each pair of numbers that differ; none if all agree.
    """
    ids = {record.id for record in queried}
    revealed = result.distinct_labels_revealed_to_anybody
    pairs = [
        ("queries counted by the trainer in result.json", result.queries_counted_by_trainer, "charged", log.queries),
        ("queries of the log in result.json", result.queries_in_log, "charged", log.queries),
        ("distinct labels in result.json", result.distinct_labels_in_log, "distinct labels", len(log.labels)),
        ("labels revealed to anybody in result.json", revealed, "revealed to anybody", log.anybody),
        ("lines in queries.jsonl", len(queried), "charged", log.queries),
        ("charged labels in queries.jsonl", sum(record.charged for record in queried), "charged", log.queries),
        ("distinct ids in queries.jsonl", len(ids), "distinct labels", len(log.labels)),
    ]
    found = [f"{left:,} {name}, but {right:,} {what} in the log" for name, left, what, right in pairs if left != right]
    unmatched = ids ^ log.labels
    if unmatched and len(ids) == len(log.labels):
        found.append(f"id {min(unmatched)} is in only one of queries.jsonl and the log")
    return found


def format_table(rows: Iterable[tuple[str, str]]) -> str:
    """Return rows of name and value as aligned plain text."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def format_accuracy(evaluation: EvaluationResult) -> str:
    """Return accuracy, interval and counts of an evaluation by the service."""
    low, high = (100 * bound for bound in evaluation.ci95)
    return (
        f"{100 * evaluation.accuracy:.2f}%  (95% interval {low:.2f}% to {high:.2f}%; "
        f"{evaluation.correct:,} of {evaluation.total:,})"
    )

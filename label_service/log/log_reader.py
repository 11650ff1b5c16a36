"""Reading the log over read-only connections that never see an open transaction, and describing what it adds up to.

Runs and counts are those of the account of the signed entries. Entries come from the database, and none is answered
that this service has not written. Nothing here reads a table of labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, Field, computed_field
from sqlalchemy import Engine, Row, Select, false, func, select

from label_service.errors import LogChanged
from label_service.log.account import Account, RunAccount
from label_service.log.entry_mac import EntryMac
from label_service.log.evidence import EarlierHead
from label_service.store import tables

EXPORT_PAGE = 1000
# No run and no operation has this character in its name, and PostgreSQL accepts no text that contains it.
_NUL = "\x00"


class Evaluation(BaseModel, frozen=True):
    """One evaluation that a run has made."""

    evaluation: int = Field(description="Number of this evaluation within the run, from 1.")
    budget: int | None = Field(description="The point of the learning curve that it was for.")
    correct: int
    total: int

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated properties
    @property
    def accuracy(self) -> float:
        """Share of the test predictions that are right."""
        return self.correct / self.total


class RunInfo(BaseModel, frozen=True):
    """The state of a run, as anybody may see it."""

    run_id: str
    name: str
    budget: int
    queries: int = Field(description="Labels charged to the run so far.")
    remaining: int = Field(description="Labels left of the run's budget.")
    evaluation_budgets: tuple[int, ...]
    evaluations_allowed: int
    evaluations_used: int
    evaluations: tuple[Evaluation, ...]
    querying_closed: bool
    opened_at: str
    sealed_at: str | None


class RunCounts(BaseModel, frozen=True):
    """What the log says of one run."""

    run_id: str
    queries: int = Field(description="Labels charged, summed over the log's entries.")
    distinct_labels: int = Field(description="Distinct labels revealed; equal to `queries`.")
    replays: int = Field(description="Entries that charged nothing because the run had the labels already.")
    refusals: int = Field(description="Entries that refused something.")
    evaluations: int
    entries: int


class Summary(BaseModel, frozen=True):
    """The log, counted: each run, and the labels that anybody has seen."""

    log_id: str
    runs: tuple[RunCounts, ...]
    queries: int
    distinct_labels_revealed_to_anybody: int
    evaluations: int
    entries: int


class LogReader:
    """Reads the entries; each method sees one consistent state."""

    def __init__(self, engine: Engine, mac: EntryMac | None = None) -> None:
        """Name the database.

        Args:
            engine: the reading one.
            mac: authenticates the entries; None answers them as they stand, without the key.
        """
        self._engine, self._mac = engine, mac

    def page(
        self, after: int, limit: int, run: str | None = None, label_id: int | None = None, op: str | None = None
    ) -> tuple[list[bytes], int | None]:
        """Return up to `limit` entries numbered above `after`, and the number to continue after (None: no more).

        Only entries of this run, about this label and of this kind; None accepts every value of a field.

        Raises:
            LogChanged: somebody else has written or changed an entry, or removed one from between the others. Which
                entries belong to a run, a label or a kind is the word of the tables.
        """
        with self._engine.connect() as connection:
            rows = connection.execute(_query(after, run, label_id, op).limit(limit + 1)).all()
        page = rows[:limit]
        self._require(page, after + 1 if (run, label_id, op) == (None, None, None) else None)
        return [row.entry for row in page], page[-1].seq if len(rows) > limit else None

    def between(self, first: int, end: int) -> list[bytes]:
        """Return the exact bytes of the entries numbered from `first` to `end` - 1, in order.

        Raises:
            LogChanged: they are not all there as this service has written them.
        """
        with self._engine.connect() as connection:
            rows = connection.execute(_query(first - 1).limit(end - first)).all()
        self._require(rows, first)
        if self._mac is not None and len(rows) != max(0, end - first):
            raise LogChanged(f"Entries from {first + len(rows)} on are missing: the database was changed.")
        return [row.entry for row in rows]

    def export(self) -> Iterator[bytes]:
        """Yield all entries that there are now, one a line, in pages.

        One long transaction would keep SQLite from truncating its journal.
        """
        size = self.size()
        for first in range(0, size, EXPORT_PAGE):
            yield b"".join(entry + b"\n" for entry in self.between(first, min(first + EXPORT_PAGE, size)))

    def heads(self, first: int, end: int) -> list[EarlierHead]:
        """Return the heads whose last entry is numbered from `first` to `end` - 1, in order."""
        heads = tables.heads.c
        wanted = select(heads.size, heads.signature).where(heads.size > first, heads.size <= end).order_by(heads.size)
        with self._engine.connect() as connection:
            return [EarlierHead(size=row.size, signature=row.signature) for row in connection.execute(wanted)]

    def latest(self, count: int) -> list[dict[str, Any]]:
        """Return the latest entries, newest first, as parsed JSON.

        Raises:
            LogChanged: somebody else has written or changed one.
        """
        newest = select(tables.entries).order_by(tables.entries.c.seq.desc()).limit(count)
        with self._engine.connect() as connection:
            rows = connection.execute(newest).all()
        self._require(rows)
        return [json.loads(row.entry) for row in rows]

    def opening(self, run_id: str) -> Row[Any] | None:
        """Return the row of the entry that opened a run, or None if there is no such run."""
        entries = tables.entries
        opened = select(entries).where(entries.c.run_id == run_id, entries.c.op == "run-opened")
        with self._engine.connect() as connection:
            return connection.execute(opened.order_by(entries.c.seq).limit(1)).one_or_none()

    def size(self) -> int:
        """Return the number of entries. It follows from the number of the last one, because numbers have no gap."""
        with self._engine.connect() as connection:
            last = connection.execute(select(func.max(tables.entries.c.seq))).scalar_one()
        return 0 if last is None else last + 1

    def _require(self, rows: Sequence[Row[Any]], first: int | None = None) -> None:
        """Make sure that this service has written the rows, and if `first` is given, that they follow it in order."""
        if self._mac is None:
            return
        for row in rows:
            self._mac.require(row)
        numbers = [row.seq for row in rows]
        if first is not None and numbers != list(range(first, first + len(rows))):
            raise LogChanged(f"Entries from {first} on are not all there: the database was changed.")


def _query(after: int, run: str | None = None, label_id: int | None = None, op: str | None = None) -> Select[Any]:
    entries = tables.entries.c
    query = select(tables.entries).where(entries.seq > after).order_by(entries.seq)
    for column, text in ((entries.run_id, run), (entries.op, op)):
        if text is not None:
            query = query.where(column == text if _NUL not in text else false())
    if label_id is not None:
        asked = select(tables.entry_ids.c.seq).where(tables.entry_ids.c.label_id == label_id)
        query = query.where(entries.seq.in_(asked))
    return query


def summarise(account: Account) -> Summary:
    """Return the counts of a log. They come from its entries, so an edit of another table cannot change them."""
    runs = [
        RunCounts(
            run_id=run_id,
            queries=run.queries,
            distinct_labels=len(run.labels),
            replays=run.replays,
            refusals=run.refusals,
            evaluations=run.evaluations,
            entries=run.entries,
        )
        for run_id, run in sorted(account.runs.items())
    ]
    return Summary(
        log_id=account.log_id,
        runs=tuple(runs),
        queries=account.queries,
        distinct_labels_revealed_to_anybody=len(account.labels),
        evaluations=account.evaluations,
        entries=account.entries,
    )


def describe_run(run_id: str, run: RunAccount) -> RunInfo:
    """Return the state of a run by the log. Its row in the database, which others may change, is not asked."""
    queries, results = run.queries, list(run.results)
    return RunInfo(
        run_id=run_id,
        name=str(run.name),
        budget=run.budget,
        queries=queries,
        remaining=max(0, run.budget - queries),
        evaluation_budgets=run.evaluation_budgets,
        evaluations_allowed=run.evaluations_allowed,
        evaluations_used=len(results),
        evaluations=tuple(
            Evaluation(
                evaluation=result["evaluation"],
                budget=result["evaluated_budget"],
                correct=result["correct"],
                total=result["total"],
            )
            for result in results
        ),
        querying_closed=bool(results) or run.sealed,
        opened_at=run.opened_at,
        sealed_at=run.sealed_at,
    )

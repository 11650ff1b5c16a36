"""Reading the log over read-only connections that never see an open transaction, and describing what it adds up to.

Runs and counts are those of the account of the signed entries. Entries come from the database, and none is answered
that this service has not written. Nothing here reads a table of labels.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, computed_field
from sqlalchemy import Connection, Engine, Row, Select, bindparam, false, func, select

from label_service.errors import LogChanged
from label_service.log.account import Account, RunAccount
from label_service.log.entry_mac import EntryMac
from label_service.log.evidence import EarlierHead
from label_service.store import tables

EXPORT_PAGE = 1000
# Built once: a search by time asks it up to twenty times.
_ENTRY = select(tables.entries.c.entry).where(tables.entries.c.seq == bindparam("seq"))
# No run and no operation has this character in its name, and PostgreSQL accepts no text that contains it.
_NUL = "\x00"
# The columns of an exported table. `ids` are separated by spaces; `detail` is JSON.
CSV_COLUMNS = ("seq", "ts", "run", "op", "outcome", "ids", "charged", "spent", "budget", "request_id", "detail")


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


@dataclass(frozen=True)
class EntryFilter:
    """Which entries of the log are wanted; None accepts every value.

    Attributes:
        run: id of the run that asked.
        label_id: an id that the entry asks for, inside the data set.
        op: the operation.
        outcome: what came of it.
        since: not older than this time, as entries write it.
        until: older than this time.
    """

    run: str | None = None
    label_id: int | None = None
    op: str | None = None
    outcome: str | None = None
    since: str | None = None
    until: str | None = None


EVERYTHING = EntryFilter()


class LogReader:
    """Reads the entries; each method sees one consistent state."""

    def __init__(self, engine: Engine, mac: EntryMac | None = None) -> None:
        """Name the database.

        Args:
            engine: the reading one.
            mac: authenticates the entries; None answers them as they stand, without the key.
        """
        self._engine, self._mac = engine, mac

    def find(
        self,
        wanted: EntryFilter,
        limit: int,
        after: int = -1,
        before: int | None = None,
        *,
        newest_first: bool = False,
    ) -> list[Row[Any]]:
        """Return up to `limit` rows of wanted entries numbered above `after` and below `before`, in order.

        Args:
            wanted: the filter.
            limit: most rows.
            after: only larger numbers.
            before: only smaller numbers; None for no bound.
            newest_first: in falling order of their numbers.

        Raises:
            LogChanged: somebody else has written or changed an entry, or removed one from between the others. Which
                entries belong to a run, a label, a kind or an outcome is the word of the tables.
        """
        with self._engine.connect() as connection:
            first, end = _bounds(connection, wanted, after + 1, before)
            column = tables.entries.c.seq
            order = column.desc() if newest_first else column
            numbers = _numbers(wanted, first, end, limit, newest_first)
            found = select(tables.entries).where(column.in_(numbers)).order_by(order)
            rows = list(connection.execute(found))
        if wanted != EVERYTHING:
            self._require(rows)
        elif newest_first:
            self._require(rows[::-1], max(first, end - len(rows)))
        else:
            self._require(rows, first)
        return rows

    def spending(self, run_id: str, count: int) -> list[Row[Any]]:
        """Return the rows of up to `count` + 1 entries that charged a run, evenly spaced, the last one among them."""
        entries = tables.entries.c
        charged = select(
            entries.seq,
            func.row_number().over(order_by=entries.seq).label("place"),
            func.count().over().label("total"),
        ).where(entries.run_id == run_id, entries.outcome == "revealed")
        numbered = charged.subquery().c
        step = 1 + (numbered.total - 1) // count
        spaced = select(numbered.seq).where((numbered.total - numbered.place) % step == 0)
        with self._engine.connect() as connection:
            found = select(tables.entries).where(entries.seq.in_(spaced)).order_by(entries.seq)
            rows = list(connection.execute(found))
        self._require(rows)
        return rows

    def outcomes(self, run_id: str) -> dict[str, int]:
        """Return how many entries of a run have each outcome."""
        entries = tables.entries.c
        counted = select(entries.outcome, func.count()).where(entries.run_id == run_id).group_by(entries.outcome)
        with self._engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(counted)}

    def between(self, first: int, end: int) -> list[bytes]:
        """Return the exact bytes of the entries numbered from `first` to `end` - 1, in order.

        Raises:
            LogChanged: they are not all there as this service has written them.
        """
        with self._engine.connect() as connection:
            numbers = tables.entries.c.seq
            wanted = select(tables.entries).where(numbers >= first, numbers < end).order_by(numbers)
            rows = connection.execute(wanted).all()
        self._require(rows, first)
        if self._mac is not None and len(rows) != max(0, end - first):
            raise LogChanged(f"Entries from {first + len(rows)} on are missing: the database was changed.")
        return [row.entry for row in rows]

    def export(self, wanted: EntryFilter = EVERYTHING) -> Iterator[bytes]:
        """Yield the wanted entries that there are now, one a line, in pages.

        One long transaction would keep SQLite from truncating its journal.
        """
        for rows in self._pages(wanted):
            yield b"".join(row.entry + b"\n" for row in rows)

    def export_csv(self, wanted: EntryFilter = EVERYTHING) -> Iterator[str]:
        """Yield the same entries as a table of `CSV_COLUMNS`, in pages."""
        yield ",".join(CSV_COLUMNS) + "\r\n"
        for rows in self._pages(wanted):
            lines = io.StringIO()
            table = csv.writer(lines)
            for row in rows:
                entry = json.loads(row.entry)
                entry["ids"] = " ".join(map(str, entry["ids"]))
                entry["detail"] = json.dumps(entry["detail"], separators=(",", ":")) if "detail" in entry else ""
                table.writerow([entry[column] for column in CSV_COLUMNS])
            yield lines.getvalue()

    def _pages(self, wanted: EntryFilter) -> Iterator[list[Row[Any]]]:
        size, after = self.size(), -1
        while rows := self.find(wanted, EXPORT_PAGE, after, size):
            yield rows
            after = rows[-1].seq

    def heads(self, first: int, end: int) -> list[EarlierHead]:
        """Return the heads whose last entry is numbered from `first` to `end` - 1, in order."""
        heads = tables.heads.c
        wanted = select(heads.size, heads.signature).where(heads.size > first, heads.size <= end).order_by(heads.size)
        with self._engine.connect() as connection:
            return [EarlierHead(size=row.size, signature=row.signature) for row in connection.execute(wanted)]

    def opening(self, run_id: str) -> Row[Any] | None:
        """Return the row of the entry that opened a run, or None if there is no such run."""
        entries = tables.entries
        opened = select(entries).where(entries.c.run_id == run_id, entries.c.op == "run-opened")
        with self._engine.connect() as connection:
            return connection.execute(opened.order_by(entries.c.seq).limit(1)).one_or_none()

    def row(self, seq: int) -> Row[Any] | None:
        """Return the row of an entry, or None if it is not there."""
        with self._engine.connect() as connection:
            return connection.execute(select(tables.entries).where(tables.entries.c.seq == seq)).one_or_none()

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


def _bounds(connection: Connection, wanted: EntryFilter, first: int, end: int | None) -> tuple[int, int]:
    """Return the first number and the end of the numbers that can be wanted. Times in the log never go back."""
    last = connection.execute(select(func.max(tables.entries.c.seq))).scalar_one()
    size = 0 if last is None else last + 1
    end = size if end is None else min(end, size)
    if wanted.since is not None:
        first = max(first, _first_at(connection, wanted.since, size))
    if wanted.until is not None:
        end = min(end, _first_at(connection, wanted.until, size))
    return first, end


def _first_at(connection: Connection, time: str, size: int) -> int:
    """Return the number of the first entry that is not older than a time; `size` if all are."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        entry = connection.execute(_ENTRY, {"seq": middle}).scalar_one()
        low, high = (middle + 1, high) if json.loads(entry)["ts"] < time else (low, middle)
    return low


def _numbers(wanted: EntryFilter, first: int, end: int, limit: int, newest_first: bool) -> Select[tuple[int]]:
    """Return the query for the numbers of wanted entries.

    It reads one index in the order of the numbers, and stops at the limit. `coalesce` hides the other filters from the
    database, which might choose an index that finds many entries, or must be sorted. An id, and an operation other than
    a query, are rare; run and outcome have an index together; nearly all entries are queries.
    """
    entries, ids = tables.entries.c, tables.entry_ids.c
    rare = wanted.op is not None and wanted.op != "query"
    if wanted.label_id is None:
        query, number = select(entries.seq), entries.seq
    else:
        query = select(ids.seq).join(tables.entries, entries.seq == ids.seq).where(ids.label_id == wanted.label_id)
        number = ids.seq
    indexed = wanted.label_id is None
    for column, text, shown in (
        (entries.op, wanted.op, indexed and rare),
        (entries.run_id, wanted.run, indexed and not rare),
        (entries.outcome, wanted.outcome, indexed and not rare),
    ):
        if text is not None:
            query = query.where(
                (column if shown else func.coalesce(column, "")) == text if _NUL not in text else false()
            )
    query = query.where(number >= first, number < end)
    return query.order_by(number.desc() if newest_first else number).limit(limit)


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

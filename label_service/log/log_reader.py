"""Reading the log, its summary and the runs, over read-only connections that never see an open transaction.

Nothing here reads a table of labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from pydantic import BaseModel, Field, computed_field
from sqlalchemy import Connection, Engine, Row, Select, Table, false, func, select

from label_service.log.entries import DONE
from label_service.log.evidence import EarlierHead
from label_service.store import tables

EXPORT_PAGE = 1000
GUEST_RUN = "guest"
# No run and no operation has this character in its name, and PostgreSQL accepts no text that contains it.
_NUL = "\x00"
_EVALUATIONS = select(tables.evaluations).order_by(tables.evaluations.c.run_id, tables.evaluations.c.number)


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
    distinct_labels: int = Field(
        description="Distinct labels revealed, counted from the reveals; equal to `queries` or something is wrong."
    )
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


class ShownRun(BaseModel, frozen=True):
    """A run on the overview page."""

    run: RunInfo
    replays: int
    refusals: int


class Overview(BaseModel, frozen=True):
    """The totals of the log, and its newest runs."""

    entries: int
    distinct_labels: int
    runs: tuple[ShownRun, ...]
    hidden_runs: int


class LogReader:
    """Reads the log and the runs; each method sees one consistent state."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(
        self, after: int, limit: int, run: str | None = None, label_id: int | None = None, op: str | None = None
    ) -> tuple[list[bytes], int | None]:
        """Return up to `limit` entries numbered above `after`, and the number to continue after (None: no more).

        Only entries of this run, about this label and of this kind; None accepts every value of a field.
        """
        with self._engine.connect() as connection:
            rows = connection.execute(_query(after, run, label_id, op).limit(limit + 1)).all()
        page = rows[:limit]
        return [row.entry for row in page], page[-1].seq if len(rows) > limit else None

    def export(self, size: int | None = None) -> Iterator[bytes]:
        """Yield the exact bytes of the first `size` entries, in order; None means all that there are now."""
        for page in self.pages(size):
            yield from page

    def pages(self, size: int | None = None) -> Iterator[list[bytes]]:
        """Yield what `export` does, many entries at a time.

        The entries are read page by page, because one long transaction would keep SQLite from truncating its journal.
        """
        with self._engine.connect() as connection:
            last = connection.execute(select(func.max(tables.entries.c.seq))).scalar_one() if size is None else size - 1
        after = -1
        while last is not None and after < last:
            with self._engine.connect() as connection:
                rows = connection.execute(_query(after).limit(min(EXPORT_PAGE, last - after))).all()
            yield [row.entry for row in rows]
            after = rows[-1].seq

    def heads(self, size: int) -> list[EarlierHead]:
        """Return the heads that were signed over fewer than `size` entries, in order."""
        heads = tables.heads.c
        earlier = select(heads.size, heads.signature).where(heads.size < size).order_by(heads.size)
        with self._engine.connect() as connection:
            return [EarlierHead(size=row.size, signature=row.signature) for row in connection.execute(earlier)]

    def latest(self, count: int) -> list[dict[str, Any]]:
        """Return the latest entries, newest first, as parsed JSON."""
        newest = select(tables.entries.c.entry).order_by(tables.entries.c.seq.desc()).limit(count)
        with self._engine.connect() as connection:
            return [json.loads(entry) for entry in connection.execute(newest).scalars()]

    def overview(self, shown: int) -> Overview:
        """Return the totals of the log and the newest `shown` runs, counted; the guest run is always shown."""
        runs, entries = tables.runs.c, tables.entries.c
        newest = select(runs.run_id).where(runs.run_id != GUEST_RUN).order_by(runs.opened_at.desc(), runs.run_id.desc())
        with self._engine.connect() as connection:
            chosen = [GUEST_RUN, *connection.execute(newest.limit(shown - 1)).scalars()]
            rows = connection.execute(
                select(tables.runs).where(runs.run_id.in_(chosen)).order_by(runs.opened_at, runs.run_id)
            ).all()
            made = connection.execute(_EVALUATIONS.where(tables.evaluations.c.run_id.in_(chosen))).all()
            counted = connection.execute(
                select(entries.run_id, entries.outcome, func.count())
                .where(entries.run_id.in_(chosen))
                .group_by(entries.run_id, entries.outcome)
            ).all()
            number = connection.execute(select(func.count()).select_from(tables.runs)).scalar_one()
            labels = connection.execute(select(func.count(tables.reveals.c.label_id.distinct()))).scalar_one()
            last = connection.execute(select(func.max(entries.seq))).scalar_one()
        by_run: dict[str, dict[str, int]] = {}
        for run_id, outcome, count in counted:
            by_run.setdefault(run_id, {})[outcome] = count
        evaluations: dict[str, list[Row[Any]]] = {}
        for evaluation in made:
            evaluations.setdefault(evaluation.run_id, []).append(evaluation)
        return Overview(
            entries=0 if last is None else last + 1,
            distinct_labels=labels,
            hidden_runs=number - len(rows),
            runs=tuple(
                ShownRun(
                    run=describe_run(row, evaluations.get(row.run_id, ())),
                    replays=by_run.get(row.run_id, {}).get("replayed", 0),
                    refusals=sum(count for outcome, count in by_run.get(row.run_id, {}).items() if outcome not in DONE),
                )
                for row in rows
            ),
        )

    def summary(self) -> Summary:
        """Count the log."""
        entries = tables.entries.c
        # Every run has an entry: its opening.
        by_run = select(
            entries.run_id,
            func.sum(entries.charged).label("queries"),
            func.count().filter(entries.outcome == "replayed").label("replays"),
            func.count().filter(entries.outcome.not_in(DONE)).label("refusals"),
            func.count().label("entries"),
        ).group_by(entries.run_id)
        with self._engine.connect() as connection:
            counts = sorted(connection.execute(by_run).mappings(), key=itemgetter("run_id"))
            labels, evaluations = (_rows_by_run(connection, table) for table in (tables.reveals, tables.evaluations))
            union = connection.execute(select(func.count(tables.reveals.c.label_id.distinct()))).scalar_one()
            log_id = connection.execute(select(tables.dataset.c.log_id)).scalar_one()
        runs = [
            RunCounts(
                **row, distinct_labels=labels.get(row["run_id"], 0), evaluations=evaluations.get(row["run_id"], 0)
            )
            for row in counts
        ]
        return Summary(
            log_id=log_id,
            runs=tuple(runs),
            queries=sum(run.queries for run in runs),
            distinct_labels_revealed_to_anybody=union,
            evaluations=sum(run.evaluations for run in runs),
            entries=sum(run.entries for run in runs),
        )

    def runs(self) -> list[RunInfo]:
        """Return the state of every run, oldest first."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(tables.runs).order_by(tables.runs.c.opened_at, tables.runs.c.run_id)).all()
            made: dict[str, list[Row[Any]]] = {}
            for evaluation in connection.execute(_EVALUATIONS):
                made.setdefault(evaluation.run_id, []).append(evaluation)
        return [describe_run(row, made.get(row.run_id, ())) for row in rows]

    def run(self, run_id: str) -> RunInfo | None:
        """Return the state of one run, or None if there is no such run."""
        if _NUL in run_id:
            return None
        with self._engine.connect() as connection:
            row = connection.execute(select(tables.runs).where(tables.runs.c.run_id == run_id)).one_or_none()
            made = connection.execute(_EVALUATIONS.where(tables.evaluations.c.run_id == run_id)).all()
        return None if row is None else describe_run(row, made)

    def token_hash(self, run_id: str) -> str | None:
        """Return the stored hash of a run's token; None if the run is unknown or has no token."""
        with self._engine.connect() as connection:
            return connection.execute(
                select(tables.runs.c.token_sha256).where(tables.runs.c.run_id == run_id)
            ).scalar_one_or_none()

    def size(self) -> int:
        """Return the number of entries. It follows from the number of the last one, because numbers have no gap."""
        with self._engine.connect() as connection:
            last = connection.execute(select(func.max(tables.entries.c.seq))).scalar_one()
        return 0 if last is None else last + 1


def _query(
    after: int, run: str | None = None, label_id: int | None = None, op: str | None = None
) -> Select[tuple[int, bytes]]:
    entries = tables.entries.c
    query = select(entries.seq, entries.entry).where(entries.seq > after).order_by(entries.seq)
    for column, text in ((entries.run_id, run), (entries.op, op)):
        if text is not None:
            query = query.where(column == text if _NUL not in text else false())
    if label_id is not None:
        asked = select(tables.entry_ids.c.seq).where(tables.entry_ids.c.label_id == label_id)
        query = query.where(entries.seq.in_(asked))
    return query


def _rows_by_run(connection: Connection, table: Table) -> dict[str, int]:
    rows = connection.execute(select(table.c.run_id, func.count()).group_by(table.c.run_id))
    return {row[0]: row[1] for row in rows}


def describe_run(row: Row[Any], made: Sequence[Row[Any]] = ()) -> RunInfo:
    """Return the state of a run from its row and the rows of its evaluations."""
    shared = ("run_id", "name", "budget", "evaluations_allowed", "opened_at", "sealed_at")
    return RunInfo(
        **{column: row._mapping[column] for column in shared},
        queries=row.spent,
        remaining=max(0, row.budget - row.spent),
        evaluation_budgets=json.loads(row.evaluation_budgets),
        evaluations_used=len(made),
        evaluations=tuple(
            Evaluation(evaluation=row.number, budget=row.budget, correct=row.correct, total=row.total) for row in made
        ),
        querying_closed=bool(made) or row.sealed_at is not None,
    )

"""What the requests of one transaction have done so far, written together at its end.

A group commit answers many requests with one transaction. Its cost is the number of statements, so this class collects
entries, revealed labels and charges and writes each kind with one statement. Code that needs another statement takes
`connection`, which first writes what is collected, so that no statement reads an old state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Engine, and_, bindparam, exists, func, insert, select, update

from label_service.ledger.limits import GUEST, RunState
from label_service.store import tables

# Built once: building a statement takes longer than running it.
_LAST = select(func.max(tables.entries.c.seq))
_RUN = select(
    tables.runs, exists().where(tables.evaluations.c.run_id == tables.runs.c.run_id).label("evaluated")
).where(tables.runs.c.run_id == bindparam("run"))
# The guest is no run that somebody opened.
_TOKENLESS = and_(tables.runs.c.opened_with.is_(None), tables.runs.c.run_id != GUEST)
_SPENT = select(func.coalesce(func.sum(tables.runs.c.spent), 0))
_TOKENLESS_SPENT = _SPENT.where(_TOKENLESS)
_EVALUATIONS = select(func.count()).select_from(tables.evaluations)
_TOKENLESS_EVALUATIONS = _EVALUATIONS.join(tables.runs).where(_TOKENLESS)
_EVALUATED_AT = (
    select(tables.evaluations.c.budget)
    .where(tables.evaluations.c.run_id == bindparam("run"))
    .order_by(tables.evaluations.c.number)
)
_pool = tables.pool_labels.c
_WITH_REVEAL = select(_pool.id, _pool.label, tables.reveals.c.seq).select_from(
    tables.pool_labels.outerjoin(
        tables.reveals,
        and_(tables.reveals.c.label_id == _pool.id, tables.reveals.c.run_id == bindparam("run")),
    )
)
_LABEL = _WITH_REVEAL.where(_pool.id == bindparam("id"))
_LABELS = _WITH_REVEAL.where(_pool.id.in_(bindparam("ids", expanding=True)))
_INSERT_ENTRY = insert(tables.entries)
_INSERT_ID = insert(tables.entry_ids)
_INSERT_REVEAL = insert(tables.reveals)
_CHARGE = (
    update(tables.runs)
    .where(tables.runs.c.run_id == bindparam("run"))
    .values(spent=tables.runs.c.spent + bindparam("charged"))
)


class UnitOfWork:
    """One transaction of the writer (M. Fowler, "Patterns of Enterprise Application Architecture", 2002)."""

    def __init__(self, connection: Connection) -> None:
        """Begin.

        Args:
            connection: inside a transaction that keeps all other connections from writing.
        """
        self._connection = connection
        self._last_seq: int | None = None
        self._runs: dict[str, RunState] = {}
        self._entries: list[dict[str, Any]] = []
        self._entry_ids: list[dict[str, int]] = []
        self._revealed: dict[tuple[str, int], int] = {}
        self._charged: dict[str, int] = {}
        self._spent: dict[bool, int] = {}

    @classmethod
    @contextmanager
    def begin(cls, engine: Engine) -> Iterator[UnitOfWork]:
        """Begin a transaction. The end of the block writes what was collected and commits; an error undoes it all."""
        with engine.begin() as connection:
            unit = cls(connection)
            yield unit
            unit.flush()

    @property
    def connection(self) -> Connection:
        """The connection, for any other statement. Taking it writes what is collected and forgets what was read."""
        self.flush()
        return self._connection

    def flush(self) -> None:
        """Write what is collected, and forget what was read."""
        if self._entries:
            self._connection.execute(_INSERT_ENTRY, self._entries)
        if self._entry_ids:
            self._connection.execute(_INSERT_ID, self._entry_ids)
        if self._revealed:
            rows = [{"run_id": run, "label_id": label, "seq": seq} for (run, label), seq in self._revealed.items()]
            self._connection.execute(_INSERT_REVEAL, rows)
        if self._charged:
            charges = [{"run": run, "charged": charged} for run, charged in self._charged.items()]
            self._connection.execute(_CHARGE, charges)
        self._last_seq, self._runs = None, {}
        self._entries, self._entry_ids, self._revealed, self._charged = [], [], {}, {}
        self._spent = {}

    def run(self, run_id: str) -> RunState:
        """Return a run as it stands now; the caller has made sure that it exists."""
        if run_id not in self._runs:
            self._runs[run_id] = self._load_run(run_id)
        return self._runs[run_id]

    def spent(self, *, tokenless: bool) -> int:
        """Return the labels charged to all runs so far, or to those that were opened without a token."""
        if tokenless not in self._spent:
            stored = self._connection.execute(_TOKENLESS_SPENT if tokenless else _SPENT).scalar_one()
            charged = (self._charged[run_id] for run_id in self._charged if not tokenless or self.is_tokenless(run_id))
            self._spent[tokenless] = stored + sum(charged)
        return self._spent[tokenless]

    def evaluations(self, *, tokenless: bool) -> int:
        """Return the evaluations of all runs so far, or of those that were opened without a token."""
        return int(self.connection.execute(_TOKENLESS_EVALUATIONS if tokenless else _EVALUATIONS).scalar_one())

    def is_tokenless(self, run_id: str) -> bool:
        """Return whether somebody opened the run without a token."""
        return run_id != GUEST and self.run(run_id).opened_with is None

    def labels(self, run_id: str, ids: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
        """Return the label of each id, and for ids that the run has already, the entry that charged each of them."""
        if len(ids) == 1:
            rows = self._connection.execute(_LABEL, {"run": run_id, "id": ids[0]}).all()
        else:
            rows = self._connection.execute(_LABELS, {"run": run_id, "ids": list(ids)}).all()
        revealed_by: dict[int, int] = {}
        for label_id, _, stored in rows:
            seq = self._revealed.get((run_id, label_id), stored)
            if seq is not None:
                revealed_by[label_id] = seq
        return {label_id: label for label_id, label, _ in rows}, revealed_by

    def next_seq(self) -> int:
        """Return the number of the next entry."""
        if self._last_seq is None:
            last = self._connection.execute(_LAST).scalar_one()
            self._last_seq = -1 if last is None else last
        return self._last_seq + 1

    def append(self, row: dict[str, Any], label_ids: Sequence[int]) -> None:
        """Collect an entry, whose number must be `next_seq`; `label_service.ledger.append` calls this.

        Args:
            row: of the table `entries`.
            label_ids: ids that it asks for, inside the data set.
        """
        seq = self._last_seq = row["seq"]
        self._entries.append(row)
        self._entry_ids += [{"label_id": label_id, "seq": seq} for label_id in label_ids]

    def reveal(self, run_id: str, label_ids: Sequence[int], seq: int) -> None:
        """Charge a run for labels that it does not have yet; the entry `seq` has been appended."""
        run = self.run(run_id)
        self._runs[run_id] = replace(run, spent=run.spent + len(label_ids))
        self._charged[run_id] = self._charged.get(run_id, 0) + len(label_ids)
        for tokenless in self._spent:
            self._spent[tokenless] += len(label_ids) if not tokenless or self.is_tokenless(run_id) else 0
        self._revealed |= {(run_id, label_id): seq for label_id in label_ids}

    def _load_run(self, run_id: str) -> RunState:
        row = self._connection.execute(_RUN, {"run": run_id}).one()
        # Most runs that ask have not been evaluated, so most need no second statement.
        evaluated = self._connection.execute(_EVALUATED_AT, {"run": run_id}).scalars() if row.evaluated else ()
        return RunState(
            run_id=run_id,
            budget=row.budget,
            spent=row.spent,
            evaluation_budgets=tuple(json.loads(row.evaluation_budgets)),
            evaluations_allowed=row.evaluations_allowed,
            evaluated_at=tuple(evaluated),
            sealed=row.sealed_at is not None,
            opened_with=row.opened_with,
        )

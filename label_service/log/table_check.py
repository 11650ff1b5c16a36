"""The comparison of the tables with the log at the start: what the entries do not say, no other table may say.

The tables `runs`, `reveals`, `evaluations`, `entry_ids` and `idempotency_keys` repeat the log, so that it can be asked
fast. Their rows are read in the order of their entries and compared one entry at a time, so that a long log needs no
more memory than a short one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Row, Table, select

from label_service.errors import LogChanged
from label_service.log.account import Account
from label_service.log.entries import canonical_json
from label_service.store import tables

# Rows that are held in memory of each table.
ROWS_AT_ONCE = 1000
BY_SEQ = (tables.reveals, tables.entry_ids, tables.evaluations, tables.idempotency_keys)


class TableCheck:
    """Compares the tables with entries whose MACs hold. The caller goes through the log; it reads the tables."""

    def __init__(self, connection: Connection, account: Account) -> None:
        """Begin to read.

        Args:
            connection: inside the transaction that reads the entries.
            account: of the entries compared so far.
        """
        self._connection, self._account = connection, account
        self._rows = {table.name: _RowsBySeq(connection, table) for table in BY_SEQ}
        self._openings: dict[str, tuple[str, str | None]] = {}
        self._pool_size = connection.execute(select(tables.dataset.c.pool_size)).scalar_one()

    def compare(self, row: Row[Any], entry: dict[str, Any], revealed: set[int]) -> None:
        """Compare the rows of the next entry.

        Args:
            row: of the table `entries`.
            entry: its parsed entry.
            revealed: ids of the labels that it reveals to its run for the first time.

        Raises:
            LogChanged: a table says something else; the sentence names it.
        """
        seq, run, op = row.seq, entry["run"], entry["op"]
        if (row.run_id, row.op, row.outcome, row.charged) != (run, op, entry["outcome"], entry["charged"]):
            raise _changed("entries", seq)
        self._require("reveals", seq, {(run, label_id, seq) for label_id in revealed})
        asked = {(label_id, seq) for label_id in entry["ids"] if 0 <= label_id < self._pool_size}
        self._require("entry_ids", seq, asked)
        made = set()
        if entry["outcome"] == "evaluated":
            detail = entry["detail"]
            made = {(run, detail["evaluation"], detail["evaluated_budget"], detail["correct"], detail["total"], seq)}
        self._require("evaluations", seq, made)
        if op == "run-opened":
            self._openings[run] = (entry["detail"]["name"], row.bound_sha256)
        keys = self._rows["idempotency_keys"].take(seq)
        bound = {hash_key(stored.run_id, stored.key, stored.request_sha256) for stored in keys}
        expected = {row.bound_sha256} if row.bound_sha256 is not None and op != "run-opened" else set()
        if bound != expected or len(keys) != len(expected):
            raise _changed("idempotency_keys", seq)

    def finish(self) -> None:
        """Compare what remains after the last entry: the rows that belong to none, and the runs.

        Raises:
            LogChanged: a table says something else; the sentence names it.
        """
        for name, rows in self._rows.items():
            if rows.left():
                raise _changed(name, None)
        stored = self._connection.execute(select(tables.runs)).all()
        if {run.run_id for run in stored} != set(self._account.runs):
            raise _changed("runs", None)
        for run in stored:
            account = self._account.runs[run.run_id]
            if (
                (run.name, run.token_sha256) != self._openings[run.run_id]
                or (run.budget, run.spent) != (account.budget, account.queries)
                or run.evaluation_budgets != json.dumps(list(account.evaluation_budgets))
                or run.evaluations_allowed != account.evaluations_allowed
                or run.opened_with != account.opened_with
                or (run.sealed_at is not None) != account.sealed
            ):
                raise _changed("runs", None)

    def close(self) -> None:
        """Stop reading the tables."""
        for rows in self._rows.values():
            rows.close()

    def _require(self, name: str, seq: int, expected: set[tuple[Any, ...]]) -> None:
        rows = self._rows[name].take(seq)
        if len(rows) != len(expected) or set(map(tuple, rows)) != expected:
            raise _changed(name, seq)


class _RowsBySeq:
    """The rows of a table, in the order of the entries they belong to."""

    def __init__(self, connection: Connection, table: Table) -> None:
        ordered = select(table).order_by(table.c.seq)
        self._result = connection.execute(ordered, execution_options={"yield_per": ROWS_AT_ONCE})
        self._rows: Iterator[Row[Any]] = iter(self._result)
        self._next = next(self._rows, None)

    def take(self, seq: int) -> list[Row[Any]]:
        """Return the rows of an entry. Rows of an earlier entry, which nobody took, stay and show as left."""
        taken = []
        while self._next is not None and self._next.seq == seq:
            taken.append(self._next)
            self._next = next(self._rows, None)
        return taken

    def close(self) -> None:
        """Stop reading."""
        self._result.close()

    def left(self) -> bool:
        """Return whether there are rows that nobody took."""
        return self._next is not None


def hash_key(run_id: str, key: str, request_sha256: str) -> str:
    """Return what an entry binds of an Idempotency-Key that it answers; see `idempotency`."""
    return hashlib.sha256(canonical_json([run_id, key, request_sha256])).hexdigest()


def _changed(table: str, seq: int | None) -> LogChanged:
    where = "" if seq is None else f" at entry {seq}"
    return LogChanged(f"The table {table} does not say what the log says{where}: the database was changed.")

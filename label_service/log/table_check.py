"""The comparison of the tables with the log at the start: what the entries do not say, no other table may say.

The tables `runs`, `reveals`, `evaluations`, `entry_ids` and `idempotency_keys` repeat the log, so that it can be asked
fast. Their rows are read in the order of their entries and compared one entry at a time, so that a long log needs no
more memory than a short one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
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
        # By position: this is done for every entry of the log.
        values: Sequence[Any] = row
        seq, bound, run, op = values[0], values[3], entry["run"], entry["op"]
        if values[4:] != (run, op, entry["outcome"], entry["charged"]):
            raise _changed("entries", seq)
        self._require("reveals", seq, [(run, label_id, seq) for label_id in revealed])
        asked = [(label_id, seq) for label_id in entry["ids"] if 0 <= label_id < self._pool_size]
        self._require("entry_ids", seq, asked)
        made: list[tuple[Any, ...]] = []
        if entry["outcome"] == "evaluated":
            detail = entry["detail"]
            made = [(run, detail["evaluation"], detail["evaluated_budget"], detail["correct"], detail["total"], seq)]
        self._require("evaluations", seq, made)
        if op == "run-opened":
            self._openings[run] = (entry["detail"]["name"], bound)
            bound = None
        keys = self._rows["idempotency_keys"].take(seq)
        if [hash_key(stored.run_id, stored.key, stored.request_sha256) for stored in keys] != (
            [bound] if bound else []
        ):
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

    def _require(self, name: str, seq: int, expected: list[tuple[Any, ...]]) -> None:
        rows = self._rows[name].take(seq)
        # Most entries have one row or none, which need no sets.
        if len(rows) != len(expected) or (rows != expected and set(map(tuple, rows)) != set(expected)):
            raise _changed(name, seq)


class _RowsBySeq:
    """The rows of a table, in the order of the entries they belong to."""

    def __init__(self, connection: Connection, table: Table) -> None:
        ordered = select(table).order_by(table.c.seq)
        self._result = connection.execute(ordered, execution_options={"yield_per": ROWS_AT_ONCE})
        self._seq_at = list(table.c).index(table.c.seq)
        self._rows: list[Row[Any]] = []
        self._at = 0
        self._next_seq: object = None
        self._step()

    def take(self, seq: int) -> list[Row[Any]]:
        """Return the rows of an entry. Rows of an earlier entry, which nobody took, stay and show as left."""
        taken = []
        while self._next_seq == seq and self.left():
            taken.append(self._rows[self._at])
            self._at += 1
            self._step()
        return taken

    def close(self) -> None:
        """Stop reading."""
        self._result.close()

    def left(self) -> bool:
        """Return whether there are rows that nobody took."""
        return bool(self._rows)

    def _step(self) -> None:
        """Read more rows if all were taken, and look at the next."""
        if self._at == len(self._rows):
            self._rows, self._at = list(self._result.fetchmany(ROWS_AT_ONCE)), 0
        self._next_seq = self._rows[self._at][self._seq_at] if self._rows else None


def hash_key(run_id: str, key: str, request_sha256: str) -> str:
    """Return what an entry binds of an Idempotency-Key that it answers; see `idempotency`."""
    return hashlib.sha256(canonical_json([run_id, key, request_sha256])).hexdigest()


def _changed(table: str, seq: int | None) -> LogChanged:
    where = "" if seq is None else f" at entry {seq}"
    return LogChanged(f"The table {table} does not say what the log says{where}: the database was changed.")

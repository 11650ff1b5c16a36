"""The comparison of the tables with the log at the start: what the entries do not say, no other table may say.

The tables `runs`, `reveals`, `evaluations`, `entry_ids` and `idempotency_keys` repeat the log, so that it can be asked
fast. Their rows are read in the order of their entries and compared with what some entries say together, so that a long
log needs no more memory than a short one.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Table, select

from label_service.errors import LogChanged
from label_service.log.account import Account
from label_service.log.entries import canonical_json
from label_service.store import tables

# Rows that are held in memory of each table; an entry that has more is compared alone.
ROWS_AT_ONCE = 1000
BY_SEQ = (tables.reveals, tables.entry_ids, tables.evaluations, tables.idempotency_keys)


class TableCheck:
    """Compares the tables with entries whose MACs hold. The caller goes through the log; it reads the tables."""

    def __init__(self, connection: Connection, account: Account) -> None:
        """Begin to read.

        Args:
            connection: inside the transaction that reads the entries.
            account: of the entries added so far.
        """
        self._connection, self._account = connection, account
        self._rows = {table.name: _RowsBySeq(connection, table) for table in BY_SEQ}
        # What the tables must say of the entries added since the last comparison.
        self._reveals: list[tuple[Any, ...]] = []
        self._entry_ids: list[tuple[Any, ...]] = []
        self._evaluations: list[tuple[Any, ...]] = []
        self._keys: list[tuple[Any, ...]] = []
        self._added = 0
        self._openings: dict[str, tuple[str, str | None]] = {}
        self._pool_size = connection.execute(select(tables.dataset.c.pool_size)).scalar_one()

    def add(self, row: Sequence[Any], entry: dict[str, Any], revealed: set[int]) -> None:
        """Take in the next entry, and compare the tables if enough entries are together.

        Args:
            row: of the table `entries`.
            entry: its parsed entry.
            revealed: ids of the labels that it reveals to its run for the first time.

        Raises:
            LogChanged: a table says something else; the sentence names it.
        """
        # By position: this is done for every entry of the log.
        seq, _, _, bound, *repeated = row
        run, op, ids = entry["run"], entry["op"], entry["ids"]
        if repeated != [run, op, entry["outcome"], entry["charged"]]:
            raise _changed("entries", seq)
        self._reveals += [(run, label_id, seq) for label_id in revealed]
        self._entry_ids += [(label_id, seq) for label_id in ids if 0 <= label_id < self._pool_size]
        if entry["outcome"] == "evaluated":
            detail = entry["detail"]
            self._evaluations.append(
                (run, detail["evaluation"], detail["evaluated_budget"], detail["correct"], detail["total"], seq)
            )
        if op == "run-opened":
            self._openings[run] = (entry["detail"]["name"], bound)
        elif bound and op != "token-created":  # that binds the hash of a token, which no table repeats
            self._keys.append((bound, seq))
        self._added += 1 + len(ids)
        if self._added >= ROWS_AT_ONCE:
            self._compare(seq)

    def _compare(self, seq: float) -> None:
        """Compare the rows of the entries up to a number with what the entries added since the last comparison say."""
        try:
            keys = [(hash_key(*columns), number) for *columns, number in self._rows["idempotency_keys"].take(seq)]
        except TypeError:
            raise _changed("idempotency_keys", None) from None
        for name, stored, said in (
            ("reveals", self._rows["reveals"].take(seq), self._reveals),
            ("entry_ids", self._rows["entry_ids"].take(seq), self._entry_ids),
            ("evaluations", self._rows["evaluations"].take(seq), self._evaluations),
            ("idempotency_keys", keys, self._keys),
        ):
            # The rows of one entry come in any order.
            if stored != said and (len(stored) != len(said) or set(stored) != set(said)):
                raise _changed(name, min((row[-1] for row in set(stored) ^ set(said)), default=None))
            said.clear()
        self._added = 0

    def finish(self) -> None:
        """Compare what remains after the last entry: the rows that belong to none, and the runs.

        Raises:
            LogChanged: a table says something else; the sentence names it.
        """
        # Rows of entries that are not there are found here, too.
        self._compare(float("inf"))
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


class _RowsBySeq:
    """The rows of a table, in the order of the entries they belong to; the entry's number is the last column."""

    def __init__(self, connection: Connection, table: Table) -> None:
        self._name = table.name
        ordered = select(table).order_by(table.c.seq)
        self._result = connection.execute(ordered, execution_options={"yield_per": ROWS_AT_ONCE})
        self._rows = self._fetch()

    def take(self, seq: float) -> list[tuple[Any, ...]]:
        """Return the rows of the entries up to a number that were not taken yet."""
        taken: list[tuple[Any, ...]] = []
        while self._rows and self._rows[-1][-1] <= seq:
            taken += self._rows
            self._rows = self._fetch()
        until = bisect_right(self._rows, seq, key=itemgetter(-1))
        taken += self._rows[:until]
        del self._rows[:until]
        return taken

    def close(self) -> None:
        """Stop reading."""
        self._result.close()

    def _fetch(self) -> list[tuple[Any, ...]]:
        # Tuples, because comparing SQLAlchemy's rows takes ten times as long.
        rows = [tuple(row) for row in self._result.fetchmany(ROWS_AT_ONCE)]
        # SQLite keeps a value of any type in any column.
        if not all(type(row[-1]) is int for row in rows):
            raise _changed(self._name, None)
        return rows


def hash_key(run_id: str, key: str, request_sha256: str) -> str:
    """Return what an entry binds of an Idempotency-Key that it answers; see `idempotency`."""
    return hashlib.sha256(canonical_json([run_id, key, request_sha256])).hexdigest()


def _changed(table: str, seq: int | None) -> LogChanged:
    where = "" if seq is None else f" at entry {seq}"
    return LogChanged(f"The table {table} does not say what the log says{where}: the database was changed.")

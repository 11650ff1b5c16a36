"""The comparison of the tables with the log at the start: what the entries do not say, no other table may say.

The tables `runs`, `reveals`, `evaluations`, `entry_ids` and `idempotency_keys` repeat the log, so that it can be asked
fast. Their rows are read in the order of their entries and compared with what some entries say together, so that a long
log needs no more memory than a short one.

What was compared goes into one hash for each table. A snapshot keeps these hashes, so that the next start can compare
the rows up to there without parsing an entry.
"""

from __future__ import annotations

import hashlib
import json
import marshal
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Table, select

from label_service.errors import LogChanged
from label_service.log.account import Account
from label_service.log.entries import canonical_sha256
from label_service.store import tables

# Rows that are held in memory of each table; an entry that has more is compared alone.
ROWS_AT_ONCE = 1000
BY_SEQ = (tables.reveals, tables.entry_ids, tables.evaluations, tables.idempotency_keys)

Rows = list[tuple[Any, ...]]

# The version of the form in which rows are hashed, ten times faster than as text.
_MARSHAL = 2
_LIST_HEAD_BYTES = 5


class Said:
    """What the entries say of the tables.

    Attributes:
        pool_size: ids from it on stand in no table.
        rows: by table, what it must say of the entries added since the last `settle`, in the order of `_RowsBySeq`. Of
            `entries` these are all columns but the entry; of a key the hash that its entry binds.
    """

    def __init__(self, pool_size: int) -> None:
        """Begin before the first entry."""
        self.pool_size = pool_size
        self.rows: dict[str, Rows] = {name: [] for name in ("entries", *(table.name for table in BY_SEQ))}
        self._hashes = {name: hashlib.sha256() for name in self.rows}

    def add(self, row: Sequence[Any], entry: dict[str, Any], revealed: set[int]) -> None:
        """Take in the next entry.

        Args:
            row: of the table `entries`; its MAC holds.
            entry: its parsed entry.
            revealed: ids of the labels that it reveals to its run for the first time.
        """
        # By position: this is done for every entry of the log.
        seq, _, mac, bound = row[:4]
        run, op, rows = entry["run"], entry["op"], self.rows
        rows["entries"].append((seq, mac, bound, run, op, entry["outcome"], entry["charged"]))
        rows["reveals"] += [(run, label_id, seq) for label_id in sorted(revealed)]
        rows["entry_ids"] += [(label_id, seq) for label_id in sorted(entry["ids"]) if 0 <= label_id < self.pool_size]
        if entry["outcome"] == "evaluated":
            detail = entry["detail"]
            rows["evaluations"].append(
                (run, detail["evaluation"], detail["evaluated_budget"], detail["correct"], detail["total"], seq)
            )
        # An opening binds the hash of its run's token, and the making of a token its own; no key is bound by these.
        if bound and op not in ("run-opened", "token-created"):
            rows["idempotency_keys"].append((bound, seq))

    def settle(self) -> None:
        """Hash the rows, and forget them."""
        for name, rows in self.rows.items():
            self.hash(name, rows)
            rows.clear()

    def hash(self, name: str, rows: Rows) -> None:
        """Hash the next rows of a table.

        Raises:
            LogChanged: a value is of a type that no table has.
        """
        try:
            # In this version each value is written with its type and length, and none refers to another. Without the
            # list's own head the bytes are the same however the rows are parted.
            self._hashes[name].update(marshal.dumps(rows, _MARSHAL)[_LIST_HEAD_BYTES:])
        except ValueError:
            raise _changed(name, None) from None

    def digests(self) -> dict[str, str]:
        """Return the hash of each table up to the last `settle`, hexadecimal."""
        return {name: hashed.hexdigest() for name, hashed in self._hashes.items()}


class TableCheck:
    """Compares the tables with entries whose MACs hold. The caller goes through the log; it reads the tables.

    Attributes:
        said: what the entries say of the tables.
        labels: by run, the ids of the labels in the rows that were taken over.
    """

    def __init__(self, connection: Connection) -> None:
        """Begin to read, inside the transaction that reads the entries."""
        self._connection = connection
        self.said = Said(connection.execute(select(tables.dataset.c.pool_size)).scalar_one())
        self.labels: dict[str, set[int]] = defaultdict(set)
        self._rows = {table.name: _RowsBySeq(connection, table) for table in BY_SEQ}
        # The hash of the token of each run.
        self._openings: dict[str, str | None] = {}
        self._added = 0

    def add(self, row: Sequence[Any], entry: dict[str, Any], revealed: set[int]) -> None:
        """Take in the next entry, and compare the tables if enough entries are together; see `Said.add`.

        Raises:
            LogChanged: a table says something else; the sentence names it.
        """
        seq, _, _, bound, *repeated = row
        run, op = entry["run"], entry["op"]
        if repeated != [run, op, entry["outcome"], entry["charged"]]:
            raise _changed("entries", seq)
        if op == "run-opened":
            self._openings[run] = bound
        self.said.add(row, entry, revealed)
        self._added += 1 + len(entry["ids"])
        if self._added >= ROWS_AT_ONCE:
            self._compare(seq)

    def take_over(self, rows: Sequence[Sequence[Any]], last: int) -> None:
        """Hash the next entries as they stand, and what the tables say of them. The caller compares the hashes.

        Args:
            rows: of the table `entries`.
            last: number that the last of them should have.

        Raises:
            LogChanged: a table has a value that this service does not write.
        """
        self.said.hash("entries", [(row[0], *row[2:]) for row in rows])
        self._openings.update({row[4]: row[3] for row in rows if row[5] == "run-opened"})
        for name, stored in self._take(last).items():
            self.said.hash(name, stored)
            if name == "reveals":
                for run, label_id, _ in stored:
                    self.labels[run].add(label_id)

    def _take(self, seq: float) -> dict[str, Rows]:
        """Return what the tables say of the entries up to a number that were not taken yet."""
        taken = {name: rows.take(seq) for name, rows in self._rows.items()}
        try:
            keys = [(hash_key(*columns), number) for *columns, number in taken["idempotency_keys"]]
        except TypeError:
            raise _changed("idempotency_keys", None) from None
        return {**taken, "idempotency_keys": keys}

    def _compare(self, seq: float) -> None:
        """Compare the rows of the entries up to a number with what the entries added since the last comparison say."""
        for name, stored in self._take(seq).items():
            said = self.said.rows[name]
            if stored != said:
                raise _changed(name, min((row[-1] for row in set(stored) ^ set(said)), default=None))
        self.said.settle()
        self._added = 0

    def finish(self, account: Account) -> None:
        """Compare what remains after the last entry: the rows that belong to none, and the runs.

        Args:
            account: of all entries.

        Raises:
            LogChanged: a table says something else; the sentence names it.
        """
        # Rows of entries that are not there are found here, too.
        self._compare(float("inf"))
        stored = self._connection.execute(select(tables.runs)).all()
        if {row.run_id for row in stored} != set(account.runs):
            raise _changed("runs", None)
        for row in stored:
            run = account.runs[row.run_id]
            if (
                (row.name, row.token_sha256) != (run.name, self._openings[row.run_id])
                or (row.budget, row.spent) != (run.budget, run.queries)
                or row.evaluation_budgets != json.dumps(list(run.evaluation_budgets))
                or row.evaluations_allowed != run.evaluations_allowed
                or row.opened_with != run.opened_with
                or (row.sealed_at is not None) != run.sealed
            ):
                raise _changed("runs", None)

    def close(self) -> None:
        """Stop reading the tables."""
        for rows in self._rows.values():
            rows.close()


class _RowsBySeq:
    """The rows of a table, in the order of the entries they belong to; the entry's number is the last column.

    Rows of one entry are in the order of their labels; tables without labels have one row for an entry.
    """

    def __init__(self, connection: Connection, table: Table) -> None:
        self._name = table.name
        ordered = select(table).order_by(table.c.seq, *(column for column in table.c if column.name == "label_id"))
        self._result = connection.execute(ordered, execution_options={"yield_per": ROWS_AT_ONCE})
        # None before the first row is read.
        self._rows: Rows | None = None

    def take(self, seq: float) -> Rows:
        """Return the rows of the entries up to a number that were not taken yet.

        Raises:
            LogChanged: the number of an entry is none.
        """
        taken: Rows = []
        self._rows = self._fetch() if self._rows is None else self._rows
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

    def _fetch(self) -> Rows:
        # Tuples, because comparing SQLAlchemy's rows takes ten times as long.
        rows = [tuple(row) for row in self._result.fetchmany(ROWS_AT_ONCE)]
        # SQLite keeps a value of any type in any column.
        if not all(type(row[-1]) is int for row in rows):
            raise _changed(self._name, None)
        return rows


def hash_key(run_id: str, key: str, request_sha256: str) -> str:
    """Return what an entry binds of an Idempotency-Key that it answers; see `idempotency`."""
    return canonical_sha256([run_id, key, request_sha256])


def _changed(table: str, seq: int | None) -> LogChanged:
    where = "" if seq is None else f" at entry {seq}"
    return LogChanged(f"The table {table} does not say what the log says{where}: the database was changed.")

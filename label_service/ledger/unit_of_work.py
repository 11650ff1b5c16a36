"""What the requests of one transaction have done so far, written together at its end.

A group commit answers many requests with one transaction. Its cost is the number of statements, so this class collects
entries, revealed labels and charges and writes each kind with one statement. Code that needs another statement takes
`connection`, which first writes what is collected, so that no statement reads an old state.

What it reads of a run is compared with the account of the signed log, because others may be able to write to the
database. A row that says something else than the log ends the transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, bindparam, exists, func, insert, select, update

from label_service.errors import LabelServiceError, LogChanged
from label_service.ledger.limits import RunState
from label_service.log.account import TokenAccount, add_to_token
from label_service.log.signed_log import SignedLog
from label_service.store import tables

# Built once: building a statement takes longer than running it.
_LAST = select(func.max(tables.entries.c.seq))
_RUN = select(
    tables.runs, exists().where(tables.evaluations.c.run_id == tables.runs.c.run_id).label("evaluated")
).where(tables.runs.c.run_id == bindparam("run"))
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
_keys = tables.idempotency_keys
_KEY = (
    select(tables.entries, _keys.c.request_sha256)
    .join(tables.entries, tables.entries.c.seq == _keys.c.seq)
    .where(_keys.c.run_id == bindparam("run"), _keys.c.key == bindparam("sent_key"))
)
# SQLite takes 32,766 parameters to a statement.
_READ_AT_ONCE = 1000
_INSERT_KEY = insert(_keys)
_INSERT_ENTRY = insert(tables.entries)
_INSERT_ID = insert(tables.entry_ids)
_INSERT_REVEAL = insert(tables.reveals)
_CHARGE = (
    update(tables.runs)
    .where(tables.runs.c.run_id == bindparam("run"))
    .values(spent=tables.runs.c.spent + bindparam("charged"))
)


class OutcomeUnknown(LabelServiceError):  # noqa: N818 - says what happened, as its siblings do
    """Raised when a transaction may be in the log and could not be finished, so nothing of it may be answered."""


@dataclass
class Used:
    """What a transaction has charged and evaluated so far, written or not; no entry of it is in the log's account."""

    spent: int = 0
    evaluations: int = 0
    tokenless_spent: int = 0
    tokenless_evaluations: int = 0

    def add(self, charged: int, evaluated: bool, tokenless: bool) -> None:
        """Add what an entry charges, and whether it evaluates, to a run that was opened without a token or not."""
        self.spent += charged
        self.evaluations += evaluated
        self.tokenless_spent += charged if tokenless else 0
        self.tokenless_evaluations += evaluated and tokenless


class UnitOfWork:
    """One transaction of the writer (M. Fowler, "Patterns of Enterprise Application Architecture", 2002)."""

    def __init__(self, connection: Connection, log: SignedLog) -> None:
        """Begin.

        Args:
            connection: inside a transaction that keeps all other connections from writing.
            log: has taken in every entry that is committed.
        """
        self._connection = connection
        self.log = log
        self.used = Used()
        self._revealed_now: set[tuple[str, int]] = set()
        # Time of the newest entry.
        self.newest_time = log.account.newest_time
        # Runs whose rows were compared with the log. What this transaction writes to them comes after that.
        self._compared: set[str] = set()
        # Tokens as this transaction leaves them; the log's account has them as they were before.
        self._tokens: dict[str, TokenAccount] = {}
        self._last_seq: int | None = None
        self._runs: dict[str, RunState] = {}
        self._entries: list[dict[str, Any]] = []
        self._entry_ids: list[dict[str, int]] = []
        self._revealed: dict[tuple[str, int], int] = {}
        self._charged: dict[str, int] = {}
        self._keys: dict[tuple[str, str], dict[str, Any]] = {}
        # Ids that requests of a run are going to ask for, not read yet; and what was read of them.
        self._expected: dict[str, list[int]] = {}
        self._read: dict[str, dict[int, Row[Any, Any, Any]]] = {}

    @classmethod
    @contextmanager
    def begin(cls, engine: Engine, log: SignedLog) -> Iterator[UnitOfWork]:
        """Begin a transaction. The end of the block writes what was collected, commits, and signs; an error undoes it.

        Raises:
            LogChanged: the database does not hold what was signed, or somebody else has written to it.
            OSError: the head could not be remembered, so nothing is committed.
            OutcomeUnknown: the commit, or what follows it, has failed.
        """
        finished = False
        try:
            with engine.begin() as connection:
                log.catch_up(connection)
                unit = cls(connection, log)
                yield unit
                unit.flush()
                log.store_head(connection)
                new = log.new_entries(connection)
                finished = True
            # One signature for the whole transaction: after the commit, before the first answer.
            log.grow(new)
        except Exception as error:
            if finished:
                raise OutcomeUnknown(str(error)) from error
            raise

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
        if self._keys:
            self._connection.execute(_INSERT_KEY, list(self._keys.values()))
        self._last_seq, self._runs, self._read = None, {}, {}
        self._entries, self._entry_ids, self._revealed, self._charged, self._keys = [], [], {}, {}, {}

    def run(self, run_id: str) -> RunState:
        """Return a run as it stands now; the caller has made sure that it exists.

        Raises:
            LogChanged: the database says something else of the run than the log.
        """
        if run_id not in self._runs:
            run = self._runs[run_id] = self._load_run(run_id)
            if run_id not in self._compared:
                self._compare(run)
                self._compared.add(run_id)
        return self._runs[run_id]

    def token(self, name: str) -> TokenAccount | None:
        """Return a team's token as it stands now, None if there is none of this name."""
        if name not in self._tokens and name in self.log.account.tokens:
            self._tokens[name] = replace(self.log.account.tokens[name])
        return self._tokens.get(name)

    def expect(self, run_id: str, label_ids: Sequence[int]) -> None:
        """Say what a request of this transaction is going to ask for, so that it is read together with that of others.

        Args:
            run_id: the run that asks; no run may have this id.
            label_ids: inside the data set.
        """
        self._expected.setdefault(run_id, []).extend(label_ids)

    def labels(self, run_id: str, ids: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
        """Return the label of each id, and for ids that the run has already, the entry that charged each of them.

        Raises:
            LogChanged: by the log, the run has not the labels that it has by the table.
        """
        account = self.log.account.runs.get(run_id)
        charged = account.labels if account is not None else set()
        rows = self._rows(run_id, ids)
        revealed_by: dict[int, int] = {}
        for label_id, _, stored in rows:
            seq = self._revealed.get((run_id, label_id), stored)
            if (seq is not None) != (label_id in charged or (run_id, label_id) in self._revealed_now):
                raise LogChanged(f"The reveals of run {run_id} are not those of the log: the database was changed.")
            if seq is not None:
                revealed_by[label_id] = seq
        return {label_id: label for label_id, label, _ in rows}, revealed_by

    def _rows(self, run_id: str, ids: Sequence[int]) -> Sequence[Row[Any, Any, Any]]:
        expected, read = self._expected.pop(run_id, []), self._read.setdefault(run_id, {})
        for start in range(0, len(expected) if len(expected) > 1 else 0, _READ_AT_ONCE):
            part = {"run": run_id, "ids": expected[start : start + _READ_AT_ONCE]}
            read.update((row[0], row) for row in self._connection.execute(_LABELS, part))
        if read.keys() >= set(ids):
            return [read[label_id] for label_id in ids]
        if len(ids) == 1:
            return self._connection.execute(_LABEL, {"run": run_id, "id": ids[0]}).all()
        return self._connection.execute(_LABELS, {"run": run_id, "ids": list(ids)}).all()

    def key_row(self, run_id: str, key: str) -> Row[Any] | None:
        """Return the entry that first answered an Idempotency-Key and the hash of its request; None for a fresh key."""
        if (run_id, key) in self._keys:
            self.flush()
        return self._connection.execute(_KEY, {"run": run_id, "sent_key": key}).one_or_none()

    def keep_key(self, run_id: str, key: str | None, request_sha256: str, seq: int) -> None:
        """Bind an Idempotency-Key, if one was sent, to the entry that answered it."""
        if key is not None:
            row = {"run_id": run_id, "key": key, "request_sha256": request_sha256, "seq": seq}
            self._keys[run_id, key] = row

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
        if row["op"] == "run-opened":
            self._compared.add(row["run_id"])
        evaluated = row["outcome"] == "evaluated"
        if row["charged"] or evaluated:
            run = self.run(row["run_id"])
            self.used.add(row["charged"], evaluated, run.is_tokenless)
            if run.opened_with is not None and self.token(run.opened_with) is not None:
                add_to_token(self._tokens, row, run.opened_with)
        elif row["op"] in ("run-opened", "token-created", "token-revoked"):
            self._add_to_token(row)
        self._entry_ids += [{"label_id": label_id, "seq": seq} for label_id in label_ids]

    def _add_to_token(self, row: dict[str, Any]) -> None:
        entry = json.loads(row["entry"])
        detail = entry["detail"]
        name = detail.get("opened_with") if row["op"] == "run-opened" else detail["token"]
        if name is not None and (self.token(name) is not None or row["op"] == "token-created"):
            add_to_token(self._tokens, entry, name)

    def reveal(self, run_id: str, label_ids: Sequence[int], seq: int) -> None:
        """Charge a run for labels that it does not have yet; the entry `seq` has been appended."""
        run = self.run(run_id)
        self._runs[run_id] = replace(run, spent=run.spent + len(label_ids))
        self._charged[run_id] = self._charged.get(run_id, 0) + len(label_ids)
        self._revealed |= {(run_id, label_id): seq for label_id in label_ids}
        self._revealed_now.update((run_id, label_id) for label_id in label_ids)

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

    def _compare(self, run: RunState) -> None:
        account = self.log.account.runs.get(run.run_id)
        said = account and RunState(
            run_id=run.run_id,
            budget=account.budget,
            spent=account.queries,
            evaluation_budgets=account.evaluation_budgets,
            evaluations_allowed=account.evaluations_allowed,
            evaluated_at=tuple(account.evaluated_at),
            sealed=account.sealed,
            opened_with=account.opened_with,
        )
        if run != said:
            raise LogChanged(f"Run {run.run_id} is not as the log says: the database was changed.")

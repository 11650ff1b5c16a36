"""The unit of work: what a transaction has collected counts in it, and is written before any other statement reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, func, select

from label_service.errors import Problem
from label_service.ledger import ledger, runs
from label_service.ledger.append import Rules
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log.signed_log import SignedLog
from label_service.service import begin_log
from label_service.settings import Settings
from label_service.store import tables
from label_service.store.backends import find_database
from tests.support.datasets import make_idx_dataset

ASKED = 20


@dataclass
class Log:
    """A seeded log of 40 labels."""

    engine: Engine
    rules: Rules
    signed: SignedLog

    def begin(self) -> AbstractContextManager[UnitOfWork]:
        """Begin a transaction."""
        return UnitOfWork.begin(self.engine, self.signed)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """A fresh log."""
    data = make_idx_dataset(tmp_path / "data", pool=40, test=5)
    settings = Settings(data=data, other_data=True, database_url=f"sqlite:///{tmp_path / 'labels.sqlite3'}")
    database = find_database(settings)
    engine = database.open_writing_engine()
    _, rules, signed = begin_log(engine, settings, database)
    yield Log(engine, rules, signed)
    engine.dispose()


def open_run(log: Log, budget: int) -> ledger.Request:
    """Open a run in a transaction of its own."""
    with log.begin() as unit:
        return ledger.Request(runs.open_run(unit, log.rules, "r", name="x", budget=budget).run_id, "r")


def rows(engine: Engine, table: str) -> int:
    """Count the rows of a table."""
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(tables.metadata.tables[table])).scalar_one()


def test_a_label_asked_twice_in_one_transaction_is_charged_once(log: Log) -> None:
    """The second request sees what the first one has been charged, though nothing is written yet."""
    request = open_run(log, 5)
    with log.begin() as unit:
        first = ledger.reveal(unit, log.rules, request, [1, 2])
        second = ledger.reveal(unit, log.rules, request, [2, 3])
    assert isinstance(first, ledger.Revealed) and isinstance(second, ledger.Revealed)
    assert [item.charged for item in second.labels] == [False, True]
    assert (first.queries, second.queries) == (2, 3)
    assert rows(log.engine, "reveals") == 3
    with log.begin() as unit:
        assert unit.run(request.run_id).spent == 3


def test_runs_of_one_transaction_do_not_pay_for_each_other(log: Log) -> None:
    """The same label is charged to each run that asks for it."""
    first, second = open_run(log, 5), open_run(log, 5)
    with log.begin() as unit:
        answers = [ledger.reveal(unit, log.rules, request, [7]) for request in (first, second, first)]
    assert [isinstance(answer, ledger.Revealed) and answer.charged for answer in answers] == [1, 1, 0]
    with log.begin() as unit:
        assert [unit.run(request.run_id).spent for request in (first, second)] == [1, 1]


def test_a_budget_ends_inside_a_transaction(log: Log) -> None:
    """The label past the budget is refused, and the refusal is an entry."""
    request = open_run(log, 2)
    before = rows(log.engine, "entries")
    with log.begin() as unit:
        answers = [ledger.reveal(unit, log.rules, request, [label_id]) for label_id in range(3)]
    assert [isinstance(answer, Problem) for answer in answers] == [False, False, True]
    assert (rows(log.engine, "entries") - before, rows(log.engine, "reveals")) == (3, 2)


def test_what_goes_past_the_unit_sees_everything(log: Log) -> None:
    """The connection is handed out only after all that was collected is written, and counting goes on after it."""
    request = open_run(log, 5)
    with log.begin() as unit:
        ledger.reveal(unit, log.rules, request, [1])
        written = unit.connection.execute(select(func.count()).select_from(tables.reveals)).scalar_one()
        again = ledger.reveal(unit, log.rules, request, [1, 2])
    assert written == 1
    assert isinstance(again, ledger.Revealed) and (again.charged, again.queries) == (1, 2)


def test_an_error_undoes_all_of_it(log: Log) -> None:
    """Nothing that was collected is written, and the next entry takes the number of the lost one."""
    request = open_run(log, 5)
    before = rows(log.engine, "entries")

    def fail_after_a_reveal() -> None:
        with log.begin() as unit:
            ledger.reveal(unit, log.rules, request, [1])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_a_reveal()
    assert (rows(log.engine, "entries"), rows(log.engine, "reveals")) == (before, 0)
    with log.begin() as unit:
        answer = ledger.reveal(unit, log.rules, request, [1])
    assert isinstance(answer, ledger.Revealed) and answer.entry.seq == before


def test_reveals_are_written_together(log: Log) -> None:
    """What a group commit is for: the number of writes does not grow with the number of requests."""
    request = open_run(log, ASKED)
    writes: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(("INSERT", "UPDATE")):
            writes.append(statement)

    event.listen(log.engine, "before_cursor_execute", count)
    with log.begin() as unit:
        for label_id in range(ASKED):
            assert isinstance(ledger.reveal(unit, log.rules, request, [label_id]), ledger.Revealed)
    # Entries, ids, reveals, charges, and the head before.
    assert len(writes) == 5, writes


def test_labels_that_a_transaction_expects_are_read_together(log: Log) -> None:
    """One statement for each run, however many requests; each still sees what the ones before it were charged."""
    first, second = open_run(log, ASKED), open_run(log, ASKED)
    reads: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "pool_labels" in statement:
            reads.append(statement)

    event.listen(log.engine, "before_cursor_execute", count)
    asked = [(request, label_id) for label_id in (1, 2, 3, 2) for request in (first, second)]
    with log.begin() as unit:
        for request, label_id in asked:
            unit.expect(request.run_id, [label_id])
        answers = [ledger.reveal(unit, log.rules, request, [label_id]) for request, label_id in asked]
        # What was read before something was written is not used after it.
        assert unit.connection.execute(select(func.count()).select_from(tables.reveals)).scalar_one() == 6
        assert unit.labels(first.run_id, [1])[1].keys() == {1}
    assert [isinstance(answer, ledger.Revealed) and answer.charged for answer in answers] == [1, 1, 1, 1, 1, 1, 0, 0]
    assert len(reads) == 3, reads

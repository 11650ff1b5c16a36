"""The unit of work: what a transaction has collected counts in it, and is written before any other statement reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, func, select

from label_service.errors import Problem
from label_service.ledger import ledger, runs
from label_service.ledger.append import Rules
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.service import begin_log
from label_service.settings import Settings
from label_service.store import tables
from label_service.store.sqlite import open_writing_engine
from tests.support.datasets import make_idx_dataset

ASKED = 20


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An empty database."""
    engine = open_writing_engine(tmp_path / "labels.sqlite3", 0.1)
    yield engine
    engine.dispose()


@pytest.fixture
def rules(engine: Engine, tmp_path: Path) -> Rules:
    """The rules of a seeded log of 40 labels."""
    data = make_idx_dataset(tmp_path / "data", pool=40, test=5)
    _, rules = begin_log(engine, Settings(data=data, other_data=True))
    return rules


def open_run(engine: Engine, rules: Rules, budget: int) -> ledger.Request:
    """Open a run in a transaction of its own."""
    with UnitOfWork.begin(engine) as unit:
        return ledger.Request(runs.open_run(unit, rules, "r", name="x", budget=budget).run_id, "r")


def rows(engine: Engine, table: str) -> int:
    """Count the rows of a table."""
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(tables.metadata.tables[table])).scalar_one()


def test_a_label_asked_twice_in_one_transaction_is_charged_once(engine: Engine, rules: Rules) -> None:
    """The second request sees what the first one has been charged, though nothing is written yet."""
    request = open_run(engine, rules, 5)
    with UnitOfWork.begin(engine) as unit:
        first = ledger.reveal(unit, rules, request, [1, 2])
        second = ledger.reveal(unit, rules, request, [2, 3])
    assert isinstance(first, ledger.Revealed) and isinstance(second, ledger.Revealed)
    assert [item.charged for item in second.labels] == [False, True]
    assert (first.queries, second.queries) == (2, 3)
    assert rows(engine, "reveals") == 3
    with UnitOfWork.begin(engine) as unit:
        assert unit.run(request.run_id).spent == 3


def test_runs_of_one_transaction_do_not_pay_for_each_other(engine: Engine, rules: Rules) -> None:
    """The same label is charged to each run that asks for it."""
    first, second = open_run(engine, rules, 5), open_run(engine, rules, 5)
    with UnitOfWork.begin(engine) as unit:
        answers = [ledger.reveal(unit, rules, request, [7]) for request in (first, second, first)]
    assert [isinstance(answer, ledger.Revealed) and answer.charged for answer in answers] == [1, 1, 0]
    with UnitOfWork.begin(engine) as unit:
        assert [unit.run(request.run_id).spent for request in (first, second)] == [1, 1]


def test_a_budget_ends_inside_a_transaction(engine: Engine, rules: Rules) -> None:
    """The label past the budget is refused, and the refusal is an entry."""
    request = open_run(engine, rules, 2)
    before = rows(engine, "entries")
    with UnitOfWork.begin(engine) as unit:
        answers = [ledger.reveal(unit, rules, request, [label_id]) for label_id in range(3)]
    assert [isinstance(answer, Problem) for answer in answers] == [False, False, True]
    assert (rows(engine, "entries") - before, rows(engine, "reveals")) == (3, 2)


def test_what_goes_past_the_unit_sees_everything(engine: Engine, rules: Rules) -> None:
    """The connection is handed out only after all that was collected is written, and counting goes on after it."""
    request = open_run(engine, rules, 5)
    with UnitOfWork.begin(engine) as unit:
        ledger.reveal(unit, rules, request, [1])
        written = unit.connection.execute(select(func.count()).select_from(tables.reveals)).scalar_one()
        again = ledger.reveal(unit, rules, request, [1, 2])
    assert written == 1
    assert isinstance(again, ledger.Revealed) and (again.charged, again.queries) == (1, 2)


def test_an_error_undoes_all_of_it(engine: Engine, rules: Rules) -> None:
    """Nothing that was collected is written, and the next entry takes the number of the lost one."""
    request = open_run(engine, rules, 5)
    before = rows(engine, "entries")

    def fail_after_a_reveal() -> None:
        with UnitOfWork.begin(engine) as unit:
            ledger.reveal(unit, rules, request, [1])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_a_reveal()
    assert (rows(engine, "entries"), rows(engine, "reveals")) == (before, 0)
    with UnitOfWork.begin(engine) as unit:
        answer = ledger.reveal(unit, rules, request, [1])
    assert isinstance(answer, ledger.Revealed) and answer.entry.seq == before


def test_reveals_are_written_together(engine: Engine, rules: Rules) -> None:
    """What a group commit is for: the number of writes does not grow with the number of requests."""
    request = open_run(engine, rules, ASKED)
    writes: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(("INSERT", "UPDATE")):
            writes.append(statement)

    event.listen(engine, "before_cursor_execute", count)
    with UnitOfWork.begin(engine) as unit:
        for label_id in range(ASKED):
            assert isinstance(ledger.reveal(unit, rules, request, [label_id]), ledger.Revealed)
    assert len(writes) == 4, writes

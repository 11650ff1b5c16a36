"""The schema on both databases: the database itself refuses to forget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, insert, select, text
from sqlalchemy.exc import IntegrityError

from label_service.ledger import ledger, runs
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.service import begin_log
from label_service.settings import Settings
from label_service.store import tables
from label_service.store.backends import find_database
from tests.support.services import POSTGRESQL

pytestmark = pytest.mark.every_database

MUTABLE = {"runs", "heartbeat"}
WRITE_ONCE = tuple(tables.metadata.tables.keys() - MUTABLE)
REASONS = "are written once|are never removed|count only grows|must be the next number|is complete"
ATTACKS = (
    "DELETE FROM runs",
    "UPDATE runs SET spent = spent - 1 WHERE run_id <> 'guest'",
    "UPDATE runs SET budget = budget + 1 WHERE run_id <> 'guest'",
    "UPDATE runs SET spent = budget + 1",
    "UPDATE runs SET token_sha256 = 'x'",
    "UPDATE runs SET token_sha256 = NULL WHERE run_id <> 'guest'",
    "UPDATE runs SET evaluations_allowed = 9",
    "UPDATE runs SET name = 'y'",
    "INSERT INTO pool_labels VALUES (9999, 0)",
    "INSERT INTO test_labels VALUES (9999, 0)",
    *(
        f"INSERT INTO entries SELECT {seq}, entry, mac, bound_sha256, run_id, op, outcome, charged FROM entries "
        "WHERE seq = 1"
        for seq in ("seq + 5", "seq")
    ),
    "INSERT INTO dataset SELECT * FROM dataset WHERE true ON CONFLICT (singleton) DO UPDATE SET name = 'z'",
)


@pytest.fixture
def settings(service_settings: Callable[..., Settings]) -> Settings:
    """The settings of one worker on an empty database."""
    return service_settings(workers=1)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """The writing engine of the empty database."""
    engine = find_database(settings).open_writing_engine()
    yield engine
    engine.dispose()


def refused(engine: Engine, statement: str) -> None:
    """Require that a trigger refuses a statement (a foreign key would say something else)."""
    with pytest.raises(IntegrityError, match=REASONS), engine.begin() as connection:
        connection.execute(text(statement))


def snapshot(connection: Connection) -> dict[str, list[Any]]:
    """Return all rows of every table."""
    return {
        name: sorted(map(tuple, connection.execute(text(f"SELECT * FROM {name}")).all()))
        for name in tables.metadata.tables
    }


def require_append_only(engine: Engine) -> None:
    """Try every way to change rows, and find all of them as they were."""
    with engine.begin() as connection:
        before = snapshot(connection)
    assert all(before.values()), "the test needs rows to attack"
    for name in WRITE_ONCE:
        for column in tables.metadata.tables[name].columns:
            refused(engine, f"UPDATE {name} SET {column.name} = {column.name}")
        refused(engine, f"DELETE FROM {name}")
        if engine.dialect.name == POSTGRESQL:
            # CASCADE, or the keys that point here would refuse it before the trigger does.
            refused(engine, f"TRUNCATE {name} CASCADE")
        else:
            refused(engine, f"INSERT OR REPLACE INTO {name} SELECT * FROM {name}")
    for attack in ATTACKS:
        refused(engine, attack)
    if engine.dialect.name == POSTGRESQL:
        refused(engine, "TRUNCATE runs CASCADE")
    else:
        refused(engine, "REPLACE INTO runs SELECT * FROM runs")
    with engine.begin() as connection:
        assert snapshot(connection) == before


def test_rows_counts_terms_and_sequence_cannot_be_bent(engine: Engine, settings: Settings) -> None:
    """Rows are written once, a run only goes forward, the log has no gap, labels are complete, a seal holds."""
    _, rules, log = begin_log(engine, settings, find_database(settings))
    with UnitOfWork.begin(engine, log) as unit:
        opened = runs.open_run(unit, rules, "r", name="x", budget=5, key="opened once")
        assert isinstance(opened, runs.Opened)
        ledger.reveal(unit, rules, ledger.Request(opened.run_id, "r", key="k"), [1, 2])
        ledger.evaluate(unit, rules, ledger.Request(opened.run_id, "r"), [0] * 50, None)
        unit.connection.execute(insert(tables.heads).values(size=1, signature="x"))
    require_append_only(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE runs SET sealed_at = 'now' WHERE run_id <> 'guest'"))
        connection.execute(text("UPDATE runs SET budget = budget + 1 WHERE run_id = 'guest'"))
    refused(engine, "UPDATE runs SET sealed_at = NULL WHERE run_id <> 'guest'")
    refused(engine, "UPDATE runs SET sealed_at = 'later' WHERE run_id <> 'guest'")


def test_bytes_come_back_as_bytes(engine: Engine, settings: Settings) -> None:
    """Both drivers answer a column of bytes as `bytes`, which is what is hashed."""
    begin_log(engine, settings, find_database(settings))
    with engine.begin() as connection:
        entry = connection.execute(select(tables.entries.c.entry)).scalar_one()
    assert type(entry) is bytes and entry.startswith(b'{"budget":100')

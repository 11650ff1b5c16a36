"""The schema on both databases: nothing forgets, and a database of the first version comes up with its data whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, insert, select, text
from sqlalchemy.exc import IntegrityError

from label_service.data.seed import LabelFiles, read_label_files, seed
from label_service.ledger import ledger, runs
from label_service.ledger.append import Rules
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log.answer_key import open_answer_key
from label_service.log.entries import canonical_json
from label_service.settings import Settings
from label_service.store import tables
from label_service.store.backends import find_database
from label_service.store.sqlite import migrate
from tests.support.services import POSTGRESQL, run_service

pytestmark = pytest.mark.every_database

WRITE_ONCE = (
    "dataset", "pool_labels", "test_labels", "entries", "entry_ids", "reveals", "evaluations", "idempotency_keys",
)  # fmt: skip
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
    "INSERT INTO entries SELECT seq + 5, entry, run_id, op, outcome, charged FROM entries WHERE seq = 1",
    "INSERT INTO entries SELECT seq, entry, run_id, op, outcome, charged FROM entries WHERE seq = 1",
    "INSERT INTO dataset SELECT * FROM dataset WHERE true ON CONFLICT (singleton) DO UPDATE SET name = 'z'",
)


@pytest.fixture
def engine(service_settings: Callable[..., Settings]) -> Iterator[Engine]:
    """The writing engine of an empty database."""
    engine = find_database(service_settings(workers=1)).open_writing_engine()
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def files(tiny_data: Path) -> LabelFiles:
    """The label files of the tiny data set."""
    return read_label_files(tiny_data, True)


def refused(engine: Engine, statement: str) -> None:
    """Require that a trigger refuses a statement (a foreign key would say something else)."""
    with pytest.raises(IntegrityError, match=REASONS), engine.begin() as connection:
        connection.execute(text(statement))


def snapshot(connection: Connection, names: tuple[str, ...]) -> dict[str, list[Any]]:
    """Return all rows of some tables."""
    return {name: sorted(map(tuple, connection.execute(text(f"SELECT * FROM {name}")).all())) for name in names}


def require_append_only(engine: Engine, names: tuple[str, ...]) -> None:
    """Try every way to change rows, and find all of them as they were."""
    with engine.begin() as connection:
        before = snapshot(connection, (*names, "runs"))
    assert all(before.values()), "the test needs rows to attack"
    for name in names:
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
        assert snapshot(connection, (*names, "runs")) == before


def test_migrations_make_exactly_the_tables_of_the_code(engine: Engine) -> None:
    """No difference between `tables.py` and the migrated database, and migrating twice changes nothing."""
    migrate(engine)
    migrate(engine)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []


def test_rows_counts_terms_and_sequence_cannot_be_bent(engine: Engine, files: LabelFiles) -> None:
    """Rows are written once, a run only goes forward, the log has no gap, labels are complete, a seal holds."""
    migrate(engine)
    with UnitOfWork.begin(engine) as unit:
        info = seed(unit.connection, files)
        rules = Rules(info.log_id, open_answer_key(unit.connection), info.pool_size)
        runs.set_guest_budget(unit, rules, 5)
        opened = runs.open_run(unit, rules, "r", name="x", budget=5)
        ledger.reveal(unit, rules, ledger.Request(opened.run_id, "r", key="k"), [1, 2])
        ledger.evaluate(unit, rules, ledger.Request(opened.run_id, "r"), [0] * 50, None)
        unit.connection.execute(insert(tables.heads).values(size=1, signature="x"))
    require_append_only(engine, (*WRITE_ONCE, "answer_key", "heads"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE runs SET sealed_at = 'now' WHERE run_id <> 'guest'"))
        connection.execute(text("UPDATE runs SET budget = budget + 1 WHERE run_id = 'guest'"))
    refused(engine, "UPDATE runs SET sealed_at = NULL WHERE run_id <> 'guest'")
    refused(engine, "UPDATE runs SET sealed_at = 'later' WHERE run_id <> 'guest'")


def fill_first_schema(connection: Connection, files: LabelFiles) -> None:
    """Write what a service of the first version left: the guest, and a run with a label, an accuracy and a key."""
    log_id = seed(connection, files).log_id
    run = {"evaluation_budgets": "[]", "opened_at": "2026-01-01T00:00:00.000000Z", "budget": 9}
    connection.execute(insert(tables.runs).values(run_id="guest", name="guest", evaluations_allowed=0, **run))
    connection.execute(
        insert(tables.runs).values(run_id="run-1", name="n", token_sha256="t", evaluations_allowed=1, **run)
    )
    opened = {"evaluation_budgets": [], "evaluations_allowed": 0}
    evaluated = {
        "evaluation": 1, "evaluated_budget": None, "correct": 3, "total": 50, "predictions_sha256": "0" * 64,
    }  # fmt: skip
    written: list[tuple[str, str, str, list[int], int, int, dict[str, Any]]] = [
        ("guest", "run-opened", "opened", [], 0, 0, {"name": "guest", **opened}),
        ("run-1", "run-opened", "opened", [], 0, 0, {"name": "n", **opened, "evaluations_allowed": 1}),
        ("run-1", "query", "revealed", [7], 1, 1, {}),
        ("run-1", "evaluation", "evaluated", [], 0, 1, evaluated),
    ]
    for seq, (run_id, op, outcome, ids, charged, spent, detail) in enumerate(written):
        document = {
            "v": 1, "seq": seq, "ts": "2026-01-01T00:00:00.000000Z", "log_id": log_id, "run": run_id, "op": op,
            "ids": ids, "outcome": outcome, "charged": charged, "spent": spent, "budget": 9, "request_id": "r",
        }  # fmt: skip
        entry = canonical_json(document | ({"detail": detail} if detail else {}))
        connection.execute(
            insert(tables.entries).values(seq=seq, entry=entry, run_id=run_id, op=op, outcome=outcome, charged=charged)
        )
    connection.execute(insert(tables.entry_ids).values(label_id=7, seq=2))
    connection.execute(insert(tables.reveals).values(run_id="run-1", label_id=7, seq=2))
    connection.execute(text("UPDATE runs SET spent = 1 WHERE run_id = 'run-1'"))
    connection.execute(insert(tables.evaluations).values(run_id="run-1", number=1, correct=3, total=50, seq=3))
    connection.execute(insert(tables.idempotency_keys).values(run_id="run-1", key="k", request_sha256="x", seq=2))


def test_a_database_of_the_first_version_comes_up_with_data_and_triggers(
    engine: Engine, files: LabelFiles, service_settings: Callable[..., Settings]
) -> None:
    """From 0001 with rows in every table to today: each row as it was, every trigger there, and it can be served."""
    migrate(engine, "0001")
    with engine.begin() as connection:
        fill_first_schema(connection, files)
        before = snapshot(connection, (*WRITE_ONCE, "runs"))
    migrate(engine)
    with engine.begin() as connection:
        assert snapshot(connection, (*WRITE_ONCE, "runs")) == before
    require_append_only(engine, WRITE_ONCE)
    kept = [row[1] for row in before["entries"]]
    engine.dispose()
    settings = service_settings(guest_budget=9, workers=1)
    if engine.dialect.name == POSTGRESQL:
        # Entries without a key: this version never wrote such a log there, and will not guess whose it is.
        return
    with run_service(settings) as running:
        exported = running.client.get("/v1/log/export.ndjson").content.splitlines()
        assert exported == kept
        assert running.client.get("/v1/runs/run-1").json()["queries"] == 1
        assert running.client.get("/label/7").json()["charged"] is True


def test_bytes_come_back_as_bytes(engine: Engine, files: LabelFiles) -> None:
    """Both drivers answer a column of bytes as `bytes`, which is what is hashed."""
    migrate(engine)
    with engine.begin() as connection:
        fill_first_schema(connection, files)
        entry = connection.execute(select(tables.entries.c.entry).where(tables.entries.c.seq == 0)).scalar_one()
    assert type(entry) is bytes and entry.startswith(b'{"budget":9')

"""The start on a log that is compared in several parts: every row is compared, wherever it stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from label_service.errors import DatabaseRefused
from label_service.ledger import ledger
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log import signed_log, table_check
from label_service.log.answer_key import AnswerKey
from label_service.rotation import rotate_key
from label_service.service import begin_log, open_service
from label_service.settings import Settings
from label_service.store import backends
from label_service.store.backends import find_database
from tests.support.tamper import tamper

pytestmark = pytest.mark.every_database

Make = Callable[..., Settings]
ROWS_AT_ONCE, ENTRIES = 10, 25


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a short log have several parts."""
    for module in (signed_log, table_check):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", ROWS_AT_ONCE)


def make_log(settings: Settings) -> None:
    """Write entries of the guest that ask for 20 labels, each under a key, and one that asks for all of them."""
    database = find_database(settings)
    engine = database.open_writing_engine()
    _, rules, log = begin_log(engine, settings, database)
    with UnitOfWork.begin(engine, log) as unit:
        for number in range(ENTRIES - 2):
            ledger.reveal(unit, rules, ledger.Request("guest", "r", f"k{number}"), [number % 20])
        ledger.reveal(unit, rules, ledger.Request("guest", "r"), list(range(199, -1, -1)))
    engine.dispose()


def start(settings: Settings) -> None:
    """Open the service on its database and close it."""
    with open_service(settings):
        pass


def test_a_log_of_several_parts_starts_again(service_settings: Make) -> None:
    """Rows are compared in parts; each start adds nothing."""
    settings = service_settings(guest_budget=200, workers=1)
    make_log(settings)
    for _ in range(2):
        with open_service(settings) as service:
            assert service.log.head.size == service.log.account.entries == ENTRIES


def test_many_labels_are_hashed_without_holding_the_writers_lock(
    service_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first start, and the replacement of the key, hash all labels: longer than a server bears a silent writer."""
    monkeypatch.setattr(backends, "HUNG_WRITER_TIMEOUT_MS", 300)
    make_subtrees = AnswerKey._make_subtrees

    def make_slowly(key: AnswerKey) -> Iterator[bytes]:
        time.sleep(1)
        return make_subtrees(key)

    monkeypatch.setattr(AnswerKey, "_make_subtrees", make_slowly)
    settings = service_settings()
    start(settings)
    assert rotate_key(settings).new_key
    start(settings)


LAST = ENTRIES - 1


@pytest.mark.parametrize(
    ("table", "seq", "statement"),
    [
        ("entry_ids", 1, "DELETE FROM entry_ids WHERE seq = 1"),
        ("entry_ids", 9, "UPDATE entry_ids SET seq = 9 WHERE seq = 10"),
        ("entry_ids", 11, "UPDATE entry_ids SET label_id = 3 WHERE seq = 11"),
        ("entry_ids", LAST, f"DELETE FROM entry_ids WHERE seq = {LAST} AND label_id = 7"),
        ("entry_ids", 99, "INSERT INTO entry_ids VALUES (1, 99)"),
        ("entry_ids", -1, "INSERT INTO entry_ids VALUES (1, -1)"),
        ("reveals", 7, "UPDATE reveals SET seq = 22 WHERE seq = 7"),
        ("idempotency_keys", 15, "DELETE FROM idempotency_keys WHERE seq = 15"),
        ("entries", 20, "UPDATE entries SET charged = 0 WHERE seq = 20"),
    ],
)  # fmt: skip
def test_one_changed_row_of_many_refuses_the_start(
    service_settings: Make, table: str, seq: int, statement: str
) -> None:
    """The sentence names the table and the entry."""
    settings = service_settings(guest_budget=200, workers=1)
    make_log(settings)
    tamper(settings.database_url, statement)
    with pytest.raises(DatabaseRefused, match=f"The table {table} does not say what the log says at entry {seq}:"):
        start(settings)


@pytest.mark.parametrize(
    ("table", "statement"),
    [
        ("entry_ids", "UPDATE entry_ids SET seq = 'x' WHERE seq = 11"),
        ("entry_ids", "UPDATE entry_ids SET seq = x'00' WHERE seq = 11"),
        ("reveals", "UPDATE reveals SET label_id = 'x' WHERE seq = 7"),
        ("idempotency_keys", "UPDATE idempotency_keys SET key = x'00' WHERE seq = 7"),
    ],
)
def test_a_value_of_another_type_refuses_the_start(
    service_settings: Make, database_kind: str, table: str, statement: str
) -> None:
    """SQLite keeps a value of any type in any column."""
    if database_kind != "sqlite":
        pytest.skip("PostgreSQL refuses values of another type")
    settings = service_settings(guest_budget=200, workers=1)
    make_log(settings)
    tamper(settings.database_url, statement)
    with pytest.raises(DatabaseRefused, match=f"The table {table} does not say what the log says"):
        start(settings)

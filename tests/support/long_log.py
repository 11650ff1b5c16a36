"""A long log, written straight through the ledger."""

from __future__ import annotations

from pathlib import Path

from label_service.ledger import ledger
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.service import begin_log, open_service
from label_service.settings import Settings
from label_service.store.backends import find_database
from tests.support.load import POOL


def make_long_log(data: Path, folder: Path, entries: int) -> Path:
    """Write a log of single reveals straight through the ledger, and return its bundle.

    All of it lies inside `folder`: heads are remembered beside the database's own folder, so that is one level down.
    """
    database = folder / "long" / "labels.sqlite3"
    database.parent.mkdir()
    place = f"sqlite:///{database}"
    # Entries past the pool are repeats, whose limit would cut the log short.
    settings = Settings(
        data=data, other_data=True, database_url=place, guest_budget=entries, uncharged_entries_per_hour=entries
    )
    found = find_database(settings)
    engine = found.open_writing_engine()
    _, rules, log = begin_log(engine, settings, found)
    with UnitOfWork.begin(engine, log) as unit:
        for number in range(entries - 1):
            ledger.reveal(unit, rules, ledger.Request("guest", f"req-{number}"), [number % POOL])
    engine.dispose()
    with open_service(settings) as opened:
        assert opened.log.head.size == entries, f"the log has {opened.log.head.size} entries and not {entries}"
        bundle = folder / "evidence.json"
        bundle.write_text("".join(opened.evidence()))
    return bundle

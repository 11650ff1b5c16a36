"""A long log, written straight through the ledger."""

from __future__ import annotations

from pathlib import Path

from label_service.ledger import runs
from label_service.ledger.append import append
from label_service.ledger.limits import GUEST
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.service import begin_log, open_service
from label_service.settings import Settings
from label_service.store.backends import find_database
from tests.support.load import POOL

_AT_ONCE = 20_000


def long_log_settings(data: Path, folder: Path, entries: int, database_url: str | None = None) -> Settings:
    """Return the settings of the service of a long log, on SQLite unless another database is given.

    All files of the service lie inside `folder`: heads are remembered beside the key's folder, so that is one level
    down.
    """
    return Settings(
        data=data,
        other_data=True,
        database_url=database_url or f"sqlite:///{folder / 'long' / 'labels.sqlite3'}",
        key_folder=folder / "long",
        guest_budget=POOL,
        tokenless_budget=entries,
        openings_per_hour=max(1, entries),
    )


def write_long_log(data: Path, folder: Path, entries: int, database_url: str | None = None) -> Settings:
    """Write a log of single reveals straight through the ledger, and return the settings of its service.

    The guest asks for 60,000 labels, then one run after another does.
    """
    settings = long_log_settings(data, folder, entries, database_url)
    (folder / "long").mkdir(exist_ok=True)
    found = find_database(settings)
    engine = found.open_writing_engine()
    _, rules, log = begin_log(engine, settings, found)
    run_id, size = GUEST, log.head.size
    while size < entries:
        with UnitOfWork.begin(engine, log) as unit:
            for number in range(size, min(size + _AT_ONCE, entries)):
                if number % POOL == 0:
                    opened = runs.open_run(unit, rules, "opening", name=f"run {number // POOL}", budget=POOL)
                    assert isinstance(opened, runs.Opened), opened
                    run_id = opened.run_id
                else:
                    # What a query does, without looking its label up.
                    run, ids = unit.run(run_id), [number % POOL]
                    entry = append(unit, rules, run, f"req-{number}", "query", "revealed", ids=ids, charged=1)
                    unit.reveal(run_id, ids, entry.seq)
        size = log.head.size
    found.finish(engine)
    engine.dispose()
    return settings


def make_long_log(data: Path, folder: Path, entries: int) -> Path:
    """Write a long log and return its bundle."""
    with open_service(write_long_log(data, folder, entries)) as opened:
        assert opened.log.head.size == entries, f"the log has {opened.log.head.size} entries and not {entries}"
        bundle = folder / "evidence.json"
        bundle.write_text("".join(opened.evidence()))
    return bundle

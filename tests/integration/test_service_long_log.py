"""A long log with many runs: pages for people and the export stay fast."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from label_service.ledger import ledger, runs
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.service import begin_log
from label_service.settings import Settings
from label_service.store.backends import find_database
from tests.support.services import run_service

RUNS, ENTRIES = 6_000, 60_000


def test_pages_and_export_of_a_long_log_are_fast(service_settings: Callable[..., Settings], tmp_path: Path) -> None:
    """6,000 runs and 60,000 entries: the overview takes a fraction of a second, the export a second."""
    settings = service_settings(guest_budget=200, workers=1, openings_per_hour=RUNS, uncharged_entries_per_hour=ENTRIES)
    database = find_database(settings)
    engine = database.open_writing_engine()
    _, rules, log = begin_log(engine, settings, database)
    with UnitOfWork.begin(engine, log) as unit:
        for number in range(RUNS):
            opened = runs.open_run(unit, rules, "r", name=f"run {number}", budget=200)
        assert isinstance(opened, runs.Opened)
        for number in range(ENTRIES - RUNS - 1):
            ledger.reveal(unit, rules, ledger.Request(opened.run_id, "r"), [number % 200])
    engine.dispose()
    with run_service(settings) as running:
        page = running.client.get("/").text
        assert f"<dd>{ENTRIES:,}<small>signed entries" in page
        assert "<dd>200<small>distinct labels" in page
        assert f"Page 1 of {-(-(RUNS + 1) // 25)}" in page
        assert f">run {RUNS - 1}<" in page and f">run {RUNS - 25}<" in page and f">run {RUNS - 26}<" not in page
        begun_s = time.monotonic()
        assert running.client.get("/").status_code == 200
        shown_s = time.monotonic()
        assert running.client.get("/v1/log/export.ndjson").text.count("\n") == ENTRIES
        exported_s = time.monotonic()
        assert len(running.client.get("/v1/runs").json()["runs"]) == RUNS + 1
        listed_s = time.monotonic()
    print(f"{shown_s - begun_s:.3f} {exported_s - shown_s:.3f} {listed_s - exported_s:.3f}")
    # Several times what a busy machine of two cores takes, and less than it took before.
    assert shown_s - begun_s < 0.7
    assert exported_s - shown_s < 3

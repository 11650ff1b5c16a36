"""Short versions of the campaigns in `tests/campaigns`: each still runs and still finds nothing wrong."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.campaigns.crash_campaign import Tally, campaign, check
from tests.campaigns.race_campaign import campaign as race_campaign
from tests.support.long_log import make_long_log
from tests.support.services import RunningService


def test_nothing_acknowledged_is_lost_when_the_service_is_killed(tmp_path: Path) -> None:
    """Four kills under eight clients: every receipt is still in the log, no label without entry, none charged twice."""
    tally, entries, receipts = campaign(tmp_path, rounds=4, clients=8, seed=1, show_progress=False)
    assert (tally.lost, tally.unlogged, tally.doubled, tally.unexpected) == (0, 0, 0, [])
    assert 0 < receipts == len(tally.answers) < entries
    assert len(tally.restarts_s) == 5


def test_the_crash_check_finds_what_it_looks_for(running: RunningService) -> None:
    """The twin: an answer whose entry is another, and a label without entry, are counted."""
    run_id, token = running.open_run()
    answer = running.client.post("/v1/labels:query", json={"ids": [1, 2]}, headers=token).json()
    tally = Tally(answers=[answer])
    check(running.client, tally)
    assert (tally.lost, tally.unlogged, tally.doubled) == (0, 0, 0)
    tally.answers = [
        answer | {"receipt": answer["receipt"] | {"entry": answer["receipt"]["entry"] + " "}},
        answer | {"labels": [{"id": 3}]},
    ]
    check(running.client, tally)
    assert (tally.lost, tally.unlogged, tally.doubled) == (1, 1, 0)
    assert run_id == answer["run_id"]


@pytest.mark.every_database
def test_races_for_the_last_label_charge_exactly_the_budget(running: RunningService) -> None:
    """Ten races of 32 clients."""
    pool = running.service.dataset.pool_size
    assert asyncio.run(race_campaign(running.base_url, races=10, clients=32, seed=0, pool=pool)) == []


def test_a_measurement_leaves_nothing_beside_its_scratch_folder(tiny_data: Path, tmp_path: Path) -> None:
    """Not even the heads that the service remembers outside its database's folder."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    bundle = json.loads(make_long_log(tiny_data, scratch, 5).read_bytes())
    assert len(bundle["entries"]) == 5
    assert list(tmp_path.iterdir()) == [scratch]

"""The evidence over HTTP: in parts of bounded size, at one head while the log grows, and beside the seal."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from label_service.log.entries import canonical_json
from label_service.log.evidence import Evidence
from label_service.log.verify import verify
from tests.support.services import RunningService
from tests.support.tiny_trainer import TINY, use_one_thread
from tests.support.trainer_runs import run_to_end, settings_for
from trainer.oracle import transport
from trainer.profiles import PROFILES
from trainer.run import pipeline

# As long as ids may be: 1,000 of them are 32 kB of a request's body.
LONGEST_IDS = [10**30 - number for number in range(1000)]


def flood(running: RunningService, batches: int) -> None:
    """Ask as the guest for a thousand ids that no image has, again and again: refused, and each time an entry."""
    for _ in range(batches):
        answer = running.client.post("/v1/labels:query", json={"ids": LONGEST_IDS})
        assert answer.json()["code"] == "unknown-id"


def pages(running: RunningService, limit: int, **query: Any) -> dict[str, Any]:
    """Put the pages of the evidence together, asking a label between one page and the next."""
    whole: dict[str, Any] = {}
    after: int | None = -1
    while after is not None:
        given = {"after": after, "limit": limit, **query}
        page = running.client.get("/v1/log/evidence", params=given).raise_for_status().json()
        after = page.pop("next")
        if not whole:
            whole = page
            query["size"] = int(page["checkpoint"].split("\n")[1])
        else:
            assert {"entries", "heads"} == {name for name in page if page[name] != whole[name]}
            whole["entries"] += page["entries"]
            whole["heads"] += page["heads"]
        assert len(page["entries"]) <= limit and len(page["heads"]) <= limit
        running.client.get(f"/label/{len(whole['entries'])}")
    return whole


@pytest.mark.every_database
@pytest.mark.parametrize("limit", [1, 4, 1000])
def test_pages_are_the_evidence_of_one_head(running: RunningService, limit: int) -> None:
    """The log grows meanwhile; what was asked for at one size is put together and verified at that size."""
    for label_id in range(100, 109):
        running.client.get(f"/label/{label_id}").raise_for_status()
    whole = running.client.get("/v1/log/evidence").json()
    together = pages(running, limit)
    assert together == whole and list(whole) == list(Evidence.model_fields)
    verdict = verify(Evidence.model_validate(together), running.service.log.verifier)
    assert (verdict.entries, verdict.signed_pool_size, len(whole["heads"])) == (10, True, 9)
    size = int(running.client.get("/v1/log/checkpoint").text.split("\n")[1])
    assert size > 10
    at_once = running.client.get("/v1/log/evidence", params={"size": 10}).json()
    assert at_once.pop("next") is None and at_once == whole
    later = {"size": size + 1, "limit": 5}
    assert running.client.get("/v1/log/evidence", params=later).json()["code"] == "not-signed"


def test_whole_evidence_comes_in_parts(running: RunningService) -> None:
    """No part grows with the log, so the service needs no memory for it."""
    flood(running, 1)
    for label_id in range(90):
        running.client.get(f"/label/{label_id}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("label_service.service.EXPORT_PAGE", 10)
        parts = list(running.service.evidence())
    assert len(parts) > 20 and max(map(len, parts)) < 10_000
    whole = Evidence.model_validate_json("".join(parts))
    assert whole == Evidence.model_validate(running.client.get("/v1/log/evidence").json())
    assert len(whole.entries) == 92 and len(whole.heads) == 91
    lines = running.client.get("/v1/log/export.ndjson").text.splitlines()
    assert lines == whole.entries


def test_refusal_logs_count_and_hash_of_its_ids(running: RunningService) -> None:
    """However many ids are refused, the entry is short, and whoever knows the ids can check that they are meant."""
    flood(running, 1)
    entry = running.entries()[-1]
    digest = sha256(canonical_json(LONGEST_IDS)).hexdigest()
    assert (entry["outcome"], entry["ids"]) == ("unknown-id", [])
    assert entry["detail"] == {"asked": 1000, "asked_sha256": digest}
    assert len(canonical_json(entry)) < 700
    # No label was revealed, so no search for a label finds the refusal.
    running.client.post("/v1/labels:query", json={"ids": list(range(101))})
    assert running.entries()[-1]["outcome"] == "label-budget-exhausted"
    assert running.entries(label_id=7) == []
    page = running.client.get("/").text
    assert "1,000 refused" in page and "101 refused" in page
    verify(Evidence.model_validate_json("".join(running.service.evidence())), running.service.log.verifier)


def test_seal_does_not_grow_with_the_log(running: RunningService) -> None:
    """Its answer is the run's state and a receipt, whatever others have logged."""
    sizes = []
    for batches in (0, 100):
        flood(running, batches)
        run_id, token = running.open_run()
        answer = running.client.post(f"/v1/runs/{run_id}:seal", headers=token)
        assert "evidence" not in answer.json() and answer.json()["receipt"]["index"] == len(running.entries()) - 1
        sizes.append(len(answer.content))
    assert sizes[1] - sizes[0] < 1000


def test_flooded_log_stops_no_trainer(
    running: RunningService, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log beyond what the trainer reads at once: what others log costs a run nothing."""
    monkeypatch.setitem(PROFILES, "tiny", TINY)
    monkeypatch.setattr(pipeline, "use_all_cores", use_one_thread)
    # The limit is 64 MiB; a smaller one needs a smaller flood.
    monkeypatch.setattr(transport, "_LONGEST_BODY_BYTES", 50_000)
    flood(running, 150)
    assert len(running.client.get("/v1/log/evidence").content) > 50_000
    result = run_to_end(settings_for(tmp_path / "out", tiny_data, running))
    assert result.queries_in_log == TINY.budget
    kept = (tmp_path / "out" / "receipts.jsonl").read_text().splitlines()
    assert len(kept[-1]) < 5000 and json.loads(kept[-1])["call"] == "seal"

"""The log, the pages and the metrics over HTTP: every request is on record, and no label is."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from label_service.cli import app
from label_service.errors import all_problems
from label_service.log.entries import canonical_json
from label_service.settings import Settings
from tests.support.datasets import make_idx_dataset
from tests.support.services import RunningService, run_service, wait_until

pytestmark = pytest.mark.every_database

ENTRY_FIELDS = {
    "v", "seq", "ts", "log_id", "run", "op", "ids", "outcome", "charged", "spent", "budget", "request_id",
    "label_commitment",
}  # fmt: skip


def access_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines of the access log about labels."""
    lines = [record.getMessage() for record in caplog.records if record.name == "label_service.access"]
    # The line of an earlier request may come late.
    return [line for line in lines if "GET /label/" in line]


def test_entries_page_by_cursor_without_gap_or_repeat(running: RunningService) -> None:
    """Following `next` gives every entry once, in order, and ends."""
    for label_id in range(11):
        running.client.get(f"/label/{label_id}")
    seen: list[int] = []
    after: int | None = -1
    while after is not None:
        page = running.client.get("/v1/log/entries", params={"after": after, "limit": 5}).json()
        seen += [entry["seq"] for entry in page["entries"]]
        after = page["next"]
    assert seen == list(range(12))


def test_entries_can_be_filtered_by_run_label_and_op(running: RunningService) -> None:
    """Who asked for this label, and what did this run do: one call each."""
    run_id, token = running.open_run()
    running.client.post("/v1/labels:query", json={"ids": [3, 4]}, headers=token)
    running.client.get("/label/4")
    assert [entry["run"] for entry in running.entries(label_id=4)] == [run_id, "guest"]
    assert [entry["op"] for entry in running.entries(run=run_id)] == ["run-opened", "query"]
    assert [entry["run"] for entry in running.entries(op="query", run="guest")] == ["guest"]
    assert running.entries(label_id=5) == running.entries(label_id=10**20) == running.entries(run="nobody") == []
    # PostgreSQL cannot hold text with a zero byte, so the service must not pass it on.
    assert running.entries(run="a\x00b") == running.entries(op="\x00") == []
    assert running.client.get("/v1/runs/a%00b").json()["code"] == "unknown-run"


@pytest.mark.parametrize("query", ["after=x", "limit=0", "limit=1001", "after=-2", "label_id=1.5", "after=" + "9" * 40])
def test_bad_log_queries_are_422(shared_service: RunningService, query: str) -> None:
    """A cursor or limit out of range is a client's mistake, never a fault."""
    assert shared_service.client.get(f"/v1/log/entries?{query}").status_code == 422


def test_export_is_the_exact_stored_bytes_one_entry_a_line(running: RunningService) -> None:
    """Each line is canonical JSON with exactly the documented fields, numbered without gaps, in one log."""
    _, token = running.open_run()
    running.client.post("/v1/labels:query", json={"ids": [3, 3, 4]}, headers=token)
    answer = running.client.get("/v1/log/export.ndjson")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = answer.content.split(b"\n")
    assert lines.pop() == b""
    entries = [json.loads(line) for line in lines]
    assert [canonical_json(entry) for entry in entries] == lines
    assert [entry["seq"] for entry in entries] == list(range(3))
    assert len({entry["log_id"] for entry in entries}) == 1
    for entry in entries:
        assert set(entry) - {"detail"} == ENTRY_FIELDS
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", entry["ts"])
    assert entries == running.entries()


def test_summary_counts_runs_and_the_union_of_labels(running: RunningService) -> None:
    """Two runs that ask for overlapping labels: each run's count, and beside it the union."""
    first, token = running.open_run()
    second, other = running.open_run(budget=2)
    running.client.post("/v1/labels:query", json={"ids": [1, 2, 3]}, headers=token)
    running.client.post("/v1/labels:query", json={"ids": [1, 2, 3]}, headers=token)
    running.client.post("/v1/labels:query", json={"ids": [3, 4]}, headers=other)
    running.client.get("/label/5", headers=other)
    summary = running.client.get("/v1/log/summary").json()
    runs = {run.pop("run_id"): run for run in summary["runs"]}
    assert runs[first] == {
        "queries": 3, "distinct_labels": 3, "replays": 1, "refusals": 0, "evaluations": 0, "entries": 3,
    }  # fmt: skip
    assert (runs[second]["queries"], runs[second]["refusals"]) == (2, 1)
    assert (summary["queries"], summary["distinct_labels_revealed_to_anybody"], summary["entries"]) == (5, 4, 7)


def test_no_label_is_in_log_pages_metrics_or_errors(tmp_path: Path, service_settings: Callable[..., Settings]) -> None:
    """Class names that occur nowhere else are found only in the answers that reveal them, never in any record."""
    data = make_idx_dataset(tmp_path / "data", classes=3)
    for card in (data / "dataset.json", data / "labels" / "dataset.json"):
        text = card.read_text()
        for number, secret in enumerate(("zebrafinch", "quokkatail", "axolotlfin")):
            text = text.replace(f"bar {number}", secret)
        card.write_text(text)
    with run_service(service_settings(data=data)) as running:
        run_id, token = running.open_run(budget=60)
        revealed = running.client.post("/v1/labels:query", json={"ids": list(range(60))}, headers=token)
        running.client.post(f"/v1/runs/{run_id}/evaluations", json={"predictions": [0] * 50}, headers=token)
        records = [
            running.client.get("/v1/log/export.ndjson").text,
            running.client.get("/v1/log/summary").text,
            running.client.get("/v1/runs").text,
            running.client.get("/metrics").text,
            running.client.get("/label/61", headers=token).text,
        ]
        assert "zebrafinch" in revealed.text  # so the names would be found
        for record in records:
            assert not any(secret in record for secret in ("zebrafinch", "quokkatail", "axolotlfin"))
        for entry in running.entries():
            assert set(entry.get("detail", {})) <= {
                "name", "evaluation_budgets", "evaluations_allowed", "test_commitment", "pool_size",
                "asked", "asked_sha256",
                "evaluation", "evaluated_budget", "correct", "total", "predictions_sha256",
            }  # fmt: skip
        # The page names the classes once, in the list of all classes, whatever was revealed.
        assert running.client.get("/").text.count("zebrafinch") == 1


HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7*7 }}", "'; DROP TABLE runs; --"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_run_names_are_text_on_the_page(shared_service: RunningService, name: str) -> None:
    """Whatever a run is called, the page shows it as text and the log keeps it exactly."""
    opened = shared_service.client.post("/v1/runs", json={"name": name, "budget": 1})
    assert opened.status_code == 201
    page = shared_service.client.get("/")
    assert page.status_code == 200
    written = html.escape(name).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    run_page = shared_service.client.get(f"/runs/{opened.json()['run_id']}")
    for shown in (page, run_page):
        assert shown.status_code == 200
        assert written in shown.text
        assert name not in shown.text or name == written
        # The only scripts and pictures are the page's own files, and nothing else may run.
        assert re.findall(r"<script[^>]*>", shown.text) == ['<script type="module" src="/static/live.js">']
        assert re.findall(r"<img[^>]*>", shown.text) == ['<img src="/static/icon.svg" alt="">']
        policy = dict(part.strip().split(" ", 1) for part in shown.headers["content-security-policy"].split(";"))
        assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
    assert shared_service.entries(run=opened.json()["run_id"])[0]["detail"]["name"] == name


def test_error_page_has_an_anchor_for_every_code(shared_service: RunningService) -> None:
    """The `type` of each problem leads to the line that explains it."""
    page = shared_service.client.get("/errors").text
    for problem in all_problems():
        assert f'id="{problem.code}"' in page
    unknown = shared_service.client.get("/nope").json()
    assert unknown["type"] == "/errors#not-found"


def test_unknown_paths_and_methods_are_problem_documents(shared_service: RunningService) -> None:
    """404 and 405 have the same form as every other error; 405 names what is allowed."""
    for method, path, status in (("GET", "/nope", 404), ("GET", "/label/1/", 404), ("DELETE", "/label/1", 405)):
        answer = shared_service.client.request(method, path)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert {"type", "title", "status", "detail", "code", "request_id"} <= set(answer.json())
    assert "GET" in shared_service.client.delete("/label/1").headers["allow"]


def test_head_request_reveals_and_charges_nothing(shared_service: RunningService) -> None:
    """A HEAD is refused, so that a link checker costs no label."""
    before = shared_service.client.get("/v1/runs/guest").json()["queries"]
    assert shared_service.client.head("/label/9").status_code == 405
    assert shared_service.client.get("/v1/runs/guest").json()["queries"] == before


def test_openapi_describes_every_route_with_its_errors(shared_service: RunningService) -> None:
    """Each operation documents its problems as `application/problem+json` with an example of each code."""
    document = shared_service.client.get("/openapi.json").json()
    known = {problem.code for problem in all_problems()}
    seen = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    content = response["content"]["application/problem+json"]
                    assert content["examples"], (path, method, status)
                    seen |= set(content["examples"])
    # FastAPI answers these two to calls that no operation describes.
    assert seen == known - {"not-found", "method-not-allowed"}
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert document["components"]["schemas"]["LabelQuery"]["examples"]


def test_metrics_count_what_happened(start_service: Callable[..., RunningService]) -> None:
    """Charges, replays, errors and commits are counted, by each worker; routes are named by template, not by id."""
    running = start_service(workers=1)
    running.client.get("/label/1")
    running.client.get("/label/1")
    running.client.get("/label/xyz")
    wait_until(lambda: 'status="422"} 1.0' in running.client.get("/metrics").text)
    text = running.client.get("/metrics").text
    for line in (
        "labelmeter_labels_charged_total 1.0",
        "labelmeter_labels_replayed_total 1.0",
        'labelmeter_problems_total{code="invalid-request"} 1.0',
        'labelmeter_commits_total{result="written"} 2.0',
        'labelmeter_requests_total{method="GET",route="/label/{label_id}",status="200"} 2.0',
        'labelmeter_request_seconds_count{method="GET",route="/label/{label_id}",status_class="2xx"} 2.0',
        'labelmeter_request_seconds_count{method="GET",route="/label/{label_id}",status_class="4xx"} 1.0',
        "labelmeter_log_entries 3.0",
    ):
        assert line in text
    assert "xyz" not in text


def test_access_log_has_one_line_a_request_and_no_token(
    running: RunningService, caplog: pytest.LogCaptureFixture
) -> None:
    """Each request leaves a line with path, status and run; tokens, queries and line breaks do not reach it."""
    run_id, token = running.open_run()
    caplog.clear()
    with caplog.at_level("INFO", logger="label_service.access"):
        running.client.get("/v1/log/entries?run=secret", headers=token)
        running.client.get("/label/1", headers=token)
        running.client.get("/label/%0a%0dforged")
        # The service writes the line after the answer has left, so the client may be faster.
        wait_until(lambda: len(access_lines(caplog)) == 2)
    lines = access_lines(caplog)
    assert '"GET /label/1" 200' in lines[0] and f"run={run_id} " in lines[0]
    assert '"GET /v1/log/entries" 200' in caplog.text
    assert token["Authorization"].partition(".")[2] not in caplog.text and "secret" not in caplog.text
    assert all("\n" not in line for line in lines)


def test_request_id_of_the_client_is_kept_if_it_is_harmless(shared_service: RunningService) -> None:
    """A client can find its own request in the log; anything odd is replaced."""
    kept = shared_service.client.get("/label/1", headers={"X-Request-Id": "mine-1"})
    assert kept.headers["x-request-id"] == "mine-1"
    assert shared_service.entries()[-1]["request_id"] == "mine-1"
    replaced = shared_service.client.get("/healthz", headers={"X-Request-Id": "a" * 65})
    assert replaced.headers["x-request-id"].startswith("req-")


def test_health_and_readiness_answer(shared_service: RunningService) -> None:
    """Both answer 200 while the service works."""
    assert shared_service.client.get("/healthz").json() == {"status": "ok"}
    assert shared_service.client.get("/readyz").json() == {"status": "ok"}


def test_sequential_queries_take_milliseconds(shared_service: RunningService) -> None:
    """On a kept connection no query waits for a delayed acknowledgement (40 ms): the median is well below."""
    _, token = shared_service.open_run(budget=100)
    with httpx.Client(base_url=shared_service.base_url, headers=token) as client:
        seconds = sorted(client.get(f"/label/{label_id}").elapsed.total_seconds() for label_id in range(40))
    assert seconds[20] < 0.035


def test_a_clock_set_back_is_marked_and_never_makes_an_entry_older(
    start_service: Callable[..., RunningService], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The entry has the time of the one before it and says what the clock said; `verify` names it."""
    running = start_service(workers=1)
    running.client.get("/label/1")
    early = "2020-01-01T00:00:00.000000Z"
    with monkeypatch.context() as clock:
        clock.setattr("label_service.ledger.append.now", lambda: early)
        for label_id in (2, 2, 999):
            running.client.get(f"/label/{label_id}")
    running.client.get("/label/3")
    entries = running.entries()
    times = [entry["ts"] for entry in entries]
    assert times == sorted(times) and times[0] > early
    assert [entry.get("detail", {}).get("clock") for entry in entries[1:]] == [None, early, early, early, None]
    bundle = tmp_path / "evidence.json"
    bundle.write_text(running.client.get("/v1/log/evidence").text)
    key = running.client.get("/v1/log/key").json()["key"]
    done = CliRunner().invoke(app, ["verify", str(bundle), "--key", key])
    assert done.exit_code == 0 and "clock went back at entry 2 and 2 later entries" in done.output

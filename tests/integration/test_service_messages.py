"""What a real service process writes to stderr: the chosen format, and never a label or a token."""

import json

import httpx
import pytest

from tests.support import service_process
from tests.support.datasets import make_idx_dataset

SECRETS = ("zebrafinch", "quokkatail", "axolotlfin")
ACCESS_FIELDS = {"time", "level", "logger", "client", "method", "path", "status", "duration_ms", "run", "request_id"}


def use(folder, **settings):
    """Start a service, ask it well and badly, stop it; return its messages and what must not be in them."""
    data = make_idx_dataset(folder / "data", classes=len(SECRETS))
    for card in (data / "dataset.json", data / "labels" / "dataset.json"):
        text = card.read_text()
        for number, secret in enumerate(SECRETS):
            text = text.replace(f"bar {number}", secret)
        card.write_text(text)
    settings |= {"registration_token": "let-me-in-please"}
    with service_process.service(data, folder, **settings) as client:
        admit = {"Authorization": "Bearer let-me-in-please"}
        opened = client.post("/v1/runs", json={"name": "x", "budget": 60, "evaluation_budgets": [60]}, headers=admit)
        token = opened.json()["token"]
        run = {"Authorization": f"Bearer {token}"}
        revealed = client.post("/v1/labels:query", json={"ids": list(range(60))}, headers=run)
        assert all(secret in revealed.text for secret in SECRETS)  # so they would be found
        client.get("/label/1?token=stolen-token")
        client.get("/label/1", headers={"Authorization": "Bearer wrong-token"})
        client.get("/a%0Ab%1B[2J")
        client.post("/v1/labels:query", content=b"{not json", headers=run)
        client.post(f"/v1/runs/{opened.json()['run_id']}:seal", headers=run)
    return (folder / "service.log").read_text(), (*SECRETS, token, "let-me-in", "stolen-token", "wrong-token")


def test_json_messages_are_one_object_a_line_and_hold_no_secret(tmp_path):
    """From the first line to the last; each request is on a line of its own, in fields."""
    text, secrets = use(tmp_path, log_format="json")
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger"} <= set(line) for line in lines)
    asked = [line for line in lines if line["logger"] == "label_service.access"]
    assert all(set(line) == ACCESS_FIELDS for line in asked)
    statuses = [(line["method"], line["path"], line["status"]) for line in asked if line["path"] != "/readyz"]
    assert statuses[:2] == [("POST", "/v1/runs", 201), ("POST", "/v1/labels:query", 200)]
    assert ("GET", "/a%0Ab%1B[2J", 404) in statuses and len(statuses) == 7
    assert any("Label service on http://" in line.get("message", "") for line in lines)
    assert not any(secret in text for secret in secrets)


def test_text_messages_hold_no_secret_either(tmp_path):
    """The default: the same facts as text."""
    text, secrets = use(tmp_path)
    assert '"POST /v1/labels:query" 200 ' in text
    with pytest.raises(json.JSONDecodeError):
        json.loads(text.splitlines()[-1])
    assert not any(secret in text for secret in secrets)


def test_methods_that_no_route_takes_are_one_series(start_service):
    """A series lives as long as the service, so a client cannot choose how many there are."""
    running = start_service(workers=1)
    for method in ("PROPFIND", "MKCOL", "LOCK", "REPORT"):
        httpx.request(method, running.base_url + "/healthz")
    text = running.client.get("/metrics").text
    series = [line for line in text.splitlines() if line.startswith("labelmeter_request_seconds_count")]
    assert len(series) == 1
    assert 'method="(other)"' in series[0] and series[0].endswith(" 4.0")

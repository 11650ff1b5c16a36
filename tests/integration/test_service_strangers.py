"""What a stranger gets of a service with default settings, and what the operator's registration token gives."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from label_service.cli import app
from label_service.errors import RegistrationTokenRefused
from label_service.ledger.tokens import read_registration_token
from label_service.settings import Settings
from label_service.web.callers import is_own_name
from tests.support.services import RunningService, run_service

PREDICTIONS = {"predictions": [0] * 50}


def evaluate_until_refused(running: RunningService, most: int, **headers: str) -> int:
    """Open runs of 16 evaluations, use them all, and return how many accuracies were answered, at most `most`."""
    points = list(range(16))
    for answered in range(most):
        if answered % 16 == 0:
            body = {"name": "x", "budget": 15, "evaluation_budgets": points}
            opened = running.client.post("/v1/runs", json=body, headers=headers).json()
        answer = running.client.post(
            f"/v1/runs/{opened['run_id']}/evaluations",
            json={**PREDICTIONS, "budget": answered % 16},
            headers={"Authorization": f"Bearer {opened['token']}"},
        )
        if answer.status_code != 200:
            assert answer.json()["code"] == "evaluations-exhausted"
            return answered
    return most


def test_a_stranger_gets_few_accuracies(running: RunningService) -> None:
    """Runs opened without a token have 32 evaluations together, however many there are, so test labels stay secret."""
    assert evaluate_until_refused(running, 100) == 32


def test_a_token_does_not_leak_all_test_labels(service_settings: Callable[..., Settings]) -> None:
    """Even who may open runs gets 256 accuracies, unless the operator grants more."""
    with run_service(service_settings(registration_token="secret")) as running:
        assert evaluate_until_refused(running, 300, Authorization="Bearer secret") == 256


def test_a_stranger_gets_few_labels(start_service: Callable[..., RunningService]) -> None:
    """Runs opened without a token share one budget: none may ask for more, and together they get no more."""
    assert Settings().tokenless_budget == 5000
    running = start_service(tokenless_budget=50, default_run_budget=1000)
    post = running.client.post
    assert post("/v1/runs", json={"name": "x", "budget": 200}).json()["code"] == "run-budget-too-large"
    assert post("/v1/runs", json={"name": "x"}).json()["budget"] == 50
    _, first = running.open_run(budget=50)
    _, second = running.open_run(budget=50)
    assert post("/v1/labels:query", json={"ids": list(range(30))}, headers=first).status_code == 200
    refused = post("/v1/labels:query", json={"ids": list(range(21))}, headers=second)
    assert refused.json()["code"] == "total-budget-exhausted"
    assert post("/v1/labels:query", json={"ids": list(range(20))}, headers=second).status_code == 200
    assert post("/v1/labels:query", json={"ids": [100]}, headers=first).status_code == 403
    # The guest has a budget of its own.
    assert running.client.get("/label/5").status_code == 200


def test_a_run_opened_with_the_token_is_not_a_strangers(service_settings: Callable[..., Settings]) -> None:
    """It gets what it asks for, and its opening says in the log that the token opened it."""
    settings = service_settings(registration_token="secret", tokenless_budget=5, tokenless_evaluations=0)
    with run_service(settings) as running:
        body = {"name": "mine", "budget": 200}
        headers = {"Authorization": "Bearer secret"}
        opened = running.client.post("/v1/runs", json=body, headers=headers).json()
        token = {"Authorization": f"Bearer {opened['token']}"}
        asked = running.client.post("/v1/labels:query", json={"ids": list(range(200))}, headers=token)
        assert asked.status_code == 200
        path = f"/v1/runs/{opened['run_id']}/evaluations"
        assert running.client.post(path, json=PREDICTIONS, headers=token).status_code == 200
        assert running.entries(op="run-opened")[1]["detail"]["opened_with"] == "registration"


def test_the_service_makes_the_file_of_its_token(service_settings: Callable[..., Settings], tmp_path: Path) -> None:
    """A missing file is made with a fresh token, kept at the next start, and readable by owner and group alone."""
    file = tmp_path / "token"
    for _ in range(2):
        with run_service(service_settings(registration_token_file=file)) as running:
            kept = file.read_text()
            url = f"{running.base_url}/v1/runs"
            assert httpx.post(url, json={"name": "x"}).json()["code"] == "registration-closed"
            headers = {"Authorization": f"Bearer {kept.strip()}"}
            assert httpx.post(url, json={"name": "x"}, headers=headers).status_code == 201
    assert stat.S_IMODE(file.stat().st_mode) & ~0o640 == 0
    assert len(kept) > 40


def test_a_token_set_twice_or_an_empty_file_is_refused(
    service_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """One sentence each, before the service answers anybody."""
    (tmp_path / "empty").touch()
    with pytest.raises(RegistrationTokenRefused, match="is empty"):
        read_registration_token(tmp_path / "empty")
    with pytest.raises(RegistrationTokenRefused, match="cannot be read"):
        read_registration_token(tmp_path / "missing" / "token")
    twice = service_settings(registration_token="a", registration_token_file=tmp_path / "token")
    with pytest.raises(RegistrationTokenRefused, match="set twice"), run_service(twice):
        pass


@pytest.mark.parametrize(
    ("host", "listens_on", "allowed", "own"),
    [
        ("localhost:8000", "127.0.0.1", "", True),
        ("LOCALHOST", "127.0.0.1", "", True),
        ("127.0.0.1:8000", "127.0.0.1", "", True),
        ("[::1]:8000", "127.0.0.1", "", True),
        ("label_service:8000", "0.0.0.0", "label_service, labels.example", True),
        ("labels.example", "0.0.0.0", "label_service, labels.example", True),
        ("10.1.2.3:8000", "0.0.0.0", "", True),
        ("10.1.2.3:8000", "127.0.0.1", "", False),
        ("evil.example:8000", "0.0.0.0", "", False),
        ("localhost.evil.example", "127.0.0.1", "", False),
        ("", "127.0.0.1", "", False),
        ("[::1", "127.0.0.1", "", True),
        ("127.0.0.1.evil.example", "0.0.0.0", "", False),
    ],
)
def test_own_names(host: str, listens_on: str, allowed: str, own: bool) -> None:
    """localhost, the service's addresses and what the operator allows; no foreign name."""
    assert is_own_name(host, listens_on, allowed) is own


def test_only_the_services_own_names_are_answered(running: RunningService) -> None:
    """A page under a foreign name that leads to the service's address reads nothing and charges nobody."""
    for path in ("/label/1", "/v1/runs", "/", "/healthz"):
        answer = running.client.get(path, headers={"Host": "evil.example"})
        assert (answer.status_code, answer.json()["code"]) == (421, "host-not-allowed")
    assert [entry["op"] for entry in running.entries()] == ["run-opened"]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_sites_page_charges_nobody(running: RunningService, site: str) -> None:
    """A browser says whose page made it ask; the address bar and the service's own page still work."""
    headers = {"Sec-Fetch-Site": site}
    for answer in (
        running.client.get("/label/1", headers=headers),
        running.client.post("/v1/labels:query", json={"ids": [1]}, headers=headers),
        running.client.post("/v1/runs", json={"name": "x"}, headers=headers),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "cross-site")
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert len(running.entries()) == 1
    for own in ("none", "same-origin"):
        assert running.client.get("/label/1", headers={"Sec-Fetch-Site": own}).status_code == 200


def test_unknown_query_parameters_are_errors(running: RunningService) -> None:
    """A misspelt filter must not look like an answer; nor may one be given twice."""
    for path in ("/v1/log/entries?rum=guest", "/v1/log/entries?limit=1&limit=2", "/label/1?x", "/v1/runs?page=2"):
        answer = running.client.get(path)
        assert (path, answer.status_code, answer.json()["code"]) == (path, 422, "invalid-request")
    assert running.client.get("/v1/log/entries?run=guest&limit=1").status_code == 200


@pytest.mark.parametrize("name", ["\u202egnp.tset", "a\u2066b", "a\u200fb", "a\u2028b"])
def test_names_that_mislead_are_refused(shared_service: RunningService, name: str) -> None:
    """Characters that turn the direction of text, or break its line."""
    answer = shared_service.client.post("/v1/runs", json={"name": name})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")


def test_unknown_variable_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt limit must not start a service without it."""
    monkeypatch.setenv("LABEL_SERVICE_GEUST_BUDGET", "0")
    result = CliRunner().invoke(app, ["serve", "--port", "0"])
    assert result.exit_code == 1
    assert "The service has no setting LABEL_SERVICE_GEUST_BUDGET" in result.output


def test_opening_a_run_can_be_repeated(running: RunningService) -> None:
    """Who lost the answer repeats the opening and gets the same run and token, until the run is used."""
    headers = {"Idempotency-Key": "open-0123456789abcdef"}
    body = {"name": "mine", "budget": 5}
    first, again = (running.client.post("/v1/runs", json=body, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["token"] == again.json()["token"]
    assert first.json()["run_id"] == again.json()["run_id"]
    assert first.json()["receipt"]["entry"] == again.json()["receipt"]["entry"]
    assert len(running.entries(op="run-opened")) == 2  # the guest's is the other
    other = running.client.post("/v1/runs", json={**body, "budget": 6}, headers=headers)
    assert other.json()["code"] == "idempotency-key-reused"
    short = running.client.post("/v1/runs", json=body, headers={"Idempotency-Key": "1"})
    assert short.json()["code"] == "invalid-request"
    token = {"Authorization": f"Bearer {again.json()['token']}"}
    assert running.client.post("/v1/labels:query", json={"ids": [1]}, headers=token).status_code == 200
    used = running.client.post("/v1/runs", json=body, headers=headers)
    assert used.json()["code"] == "idempotency-key-reused"

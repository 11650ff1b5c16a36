"""Teams' tokens: what they grant, how they end, and that nobody but the operator makes or changes one."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, insert, select
from typer.testing import CliRunner

from label_service.cli import app
from label_service.ledger.tokens import OPERATOR_FILE, token_hash
from label_service.log.entries import canonical_json
from label_service.log.evidence import Evidence
from label_service.log.verify import verify
from label_service.settings import Settings
from label_service.store import tables
from tests.support.services import RunningService, run_service, wait_until

pytestmark = pytest.mark.every_database

Make = Callable[..., Settings]
EVALUATION = {"predictions": [0] * 50}


def bearer(token: str) -> dict[str, str]:
    """Return the header that sends a token."""
    return {"Authorization": f"Bearer {token}"}


def operator(folder: Path) -> dict[str, str]:
    """Return the operator's header, from the file beside the key."""
    return bearer((folder / OPERATOR_FILE).read_text().strip())


def make_token(running: RunningService, folder: Path, **terms: Any) -> str:
    """Make a team's token and return it."""
    body = {"name": "vision", "budget": 10, **terms}
    answer = running.client.post("/v1/tokens", json=body, headers=operator(folder))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


def open_run(running: RunningService, token: str, budget: int = 10, **more: Any) -> dict[str, str]:
    """Open a run with a team's token and return the run's header."""
    body = {"name": "x", "budget": budget, **more}
    answer = running.client.post("/v1/runs", json=body, headers=bearer(token))
    assert answer.status_code == 201, answer.text
    return {**bearer(answer.json()["token"]), "X-Run": answer.json()["run_id"]}


def code(answer: Any) -> str:
    """Return the code of a refusal, the status of any other answer."""
    return str(answer.json().get("code", answer.status_code))


def ask(running: RunningService, run: dict[str, str], *ids: int) -> str:
    """Ask for labels and return the status or the code of the refusal."""
    return code(running.client.post("/v1/labels:query", json={"ids": list(ids)}, headers=run))


def evaluate(running: RunningService, run: dict[str, str]) -> str:
    """Ask for a test accuracy."""
    return code(running.client.post(f"/v1/runs/{run['X-Run']}/evaluations", json=EVALUATION, headers=run))


def audited(running: RunningService) -> Any:
    """Verify the whole log."""
    evidence = Evidence.model_validate_json(running.client.get("/v1/log/evidence").content)
    return verify(evidence, running.service.log.verifier)


def test_a_team_gets_its_budget_however_many_runs_ask_at_once(service_settings: Make, tmp_path: Path) -> None:
    """Ten runs of ten labels under a token of 25: 25 labels leave, and the rest is refused in one sentence."""
    with run_service(service_settings(registration_token="closed")) as running:
        token = make_token(running, tmp_path, budget=25, evaluations=1)
        runs = [open_run(running, token) for _ in range(10)]
        with ThreadPoolExecutor(8) as pool:
            questions = [(run, label_id) for label_id in range(10) for run in runs]
            said = list(pool.map(lambda question: ask(running, *question), questions))
        assert said.count("200") == 25
        assert set(said) == {"200", "total-budget-exhausted"}
        assert sorted(evaluate(running, run) for run in runs[:3]) == ["200", *["evaluations-exhausted"] * 2]
        listed = running.client.get("/v1/tokens", headers=operator(tmp_path)).json()["tokens"]
        assert [(one["queries"], one["evaluations_used"], one["runs"], one["state"]) for one in listed] == [
            (25, 1, 10, "valid")
        ]
        assert sum(run.queries for run in audited(running).runs.values()) == 25
        too_large = running.client.post("/v1/runs", json={"name": "x", "budget": 26}, headers=bearer(token))
        assert code(too_large) == "run-budget-too-large"


def test_a_revoked_token_gives_nothing_new(service_settings: Make, tmp_path: Path) -> None:
    """Neither runs, labels nor accuracies; labels that were paid for stay free, also after a restart."""
    settings = service_settings()
    with run_service(settings) as running:
        token = make_token(running, tmp_path)
        run = open_run(running, token)
        assert ask(running, run, 1) == "200"
        for _ in range(2):
            revoked = running.client.post("/v1/tokens/vision:revoke", headers=operator(tmp_path))
            assert revoked.json()["state"] == "revoked"
        assert len(running.entries(op="token-revoked")) == 1
    with run_service(settings) as running:
        opening = running.client.post("/v1/runs", json={"name": "x"}, headers=bearer(token))
        assert code(opening) == "token-ended"
        assert ask(running, run, 2) == "token-ended"
        assert evaluate(running, run) == "token-ended"
        assert ask(running, run, 1) == "200"
        again = running.client.post("/v1/tokens", json={"name": "vision", "budget": 9}, headers=operator(tmp_path))
        assert code(again) == "token-name-taken"
        audited(running)


def test_an_expired_token_gives_nothing_new(service_settings: Make, tmp_path: Path) -> None:
    """From its end on."""
    with run_service(service_settings()) as running:
        end = datetime.now(UTC) + timedelta(seconds=2)
        token = make_token(running, tmp_path, expires=end.isoformat())
        run = open_run(running, token)
        assert ask(running, run, 1) == "200"
        wait_until(lambda: datetime.now(UTC) > end)
        assert ask(running, run, 2) == "token-ended"
        assert code(running.client.post("/v1/runs", json={"name": "x"}, headers=bearer(token))) == "token-ended"
        assert ask(running, run, 1) == "200"
        audited(running)


@pytest.mark.parametrize(
    ("expires", "status"),
    [
        ("2999-01-31T01:00:00+01:00", 201),
        ("2999-01-31", 201),
        ("0001-01-01T00:00:00+14:00", 422),
        ("soon", 422),
        (32472144000, 422),
    ],
)
def test_the_end_of_a_token_is_a_time(service_settings: Make, tmp_path: Path, expires: object, status: int) -> None:
    """It is kept in UTC; a number, or a time before all others, is none."""
    with run_service(service_settings()) as running:
        body = {"name": "vision", "budget": 5, "expires": expires}
        made = running.client.post("/v1/tokens", json=body, headers=operator(tmp_path))
        assert made.status_code == status, made.text
        if status == 201:
            assert made.json()["expires"] == "2999-01-31T00:00:00.000000Z"


def test_only_the_operator_makes_and_revokes_tokens_and_closes_runs(service_settings: Make, tmp_path: Path) -> None:
    """A stranger, a team and a run are refused; the credential is its owner's alone; a forged token opens nothing."""
    with run_service(service_settings(registration_token="secret")) as running:
        token = make_token(running, tmp_path)
        assert stat.S_IMODE((tmp_path / OPERATOR_FILE).stat().st_mode) == 0o600
        run = open_run(running, token)
        for headers in ({}, bearer("secret"), bearer(token), run):
            calls = [
                running.client.post("/v1/tokens", json={"name": "mine", "budget": 9}, headers=headers),
                running.client.get("/v1/tokens", headers=headers),
                running.client.post("/v1/tokens/vision:revoke", headers=headers),
                running.client.post(f"/v1/runs/{run['X-Run']}:close", headers=headers),
            ]
            assert [code(answer) for answer in calls] == ["operator-only"] * 4
        for forged in ("team.vision.x", "team.other.x", "team", token + "x"):
            assert code(running.client.post("/v1/runs", json={"name": "x"}, headers=bearer(forged))) == "invalid-token"
        assert ask(running, bearer(token), 1) == "invalid-token"
        assert token not in running.client.get("/v1/log/export.ndjson").text


def test_a_closed_run_gets_410(service_settings: Make, tmp_path: Path) -> None:
    """The log says that the operator closed it; closing it again, or sealing it, changes nothing."""
    with run_service(service_settings()) as running:
        run_id, token = running.open_run()
        assert ask(running, token, 1) == "200"
        for _ in range(2):
            closed = running.client.post(f"/v1/runs/{run_id}:close", headers=operator(tmp_path))
            assert closed.status_code == 200 and closed.json()["sealed_at"]
        assert ask(running, token, 2) == "run-sealed"
        assert running.client.post(f"/v1/runs/{run_id}:seal", headers=token).status_code == 200
        assert [entry["detail"] for entry in running.entries(op="run-sealed")] == [{"sealed_by": "operator"}]
        unknown = running.client.post("/v1/runs/run-x:close", headers=operator(tmp_path))
        assert code(unknown) == "unknown-run"


@pytest.mark.parametrize("change", ["minted", "enlarged", "restored"])
def test_who_writes_the_database_makes_enlarges_and_restores_no_token(
    service_settings: Make, tmp_path: Path, change: str
) -> None:
    """A token is an entry of the log. One that somebody inserts has no MAC; one that somebody edits is not believed."""
    settings = service_settings()
    with run_service(settings) as running:
        token = make_token(running, tmp_path, budget=3)
        run = open_run(running, token, 3)
        ask(running, run, 1)
        entries = tables.entries
        engine = create_engine(settings.database_url)
        with engine.begin() as connection:
            rows = connection.execute(select(entries).order_by(entries.c.seq)).all()
            made = next(row for row in rows if row.op == "token-created")
            document = json.loads(made.entry)
            if change == "minted":
                document["detail"] |= {"token": "thief"}
            elif change == "enlarged":
                document["detail"] |= {"token_budget": 200}
            else:
                document |= {"op": "token-created", "detail": {**document["detail"], "expires": None}}
            document |= {"seq": len(rows), "ts": json.loads(rows[-1].entry)["ts"]}
            values = {**made._mapping, "seq": len(rows), "entry": canonical_json(document)}
            values["bound_sha256"] = token_hash("team.thief.stolen")
            connection.execute(insert(entries).values(values))
        engine.dispose()
        stolen = bearer("team.thief.stolen")
        assert running.client.post("/v1/runs", json={"name": "x"}, headers=stolen).status_code in (401, 503)
        assert ask(running, run, 2) == "log-not-writable"
    assert "thief" not in running.service.log.account.tokens


def test_the_command_line_makes_and_revokes_tokens_and_closes_a_run(service_settings: Make, tmp_path: Path) -> None:
    """The token alone on standard output, the rest in sentences; a refusal is one sentence and exit code 1."""
    settings = service_settings()
    with run_service(settings) as running:
        place = ["--database-url", settings.database_url, "--key-folder", str(tmp_path), "--url", running.base_url]

        def call(*words: str) -> Any:
            return CliRunner().invoke(app, [*words, *place])

        made = call("token", "create", "vision", "--budget", "7", "--expires", "2999-01-31")
        assert made.exit_code == 0, made.output
        run = open_run(running, made.stdout.strip(), 5)
        ask(running, run, 1, 2)
        listed = call("token", "list").stdout.splitlines()
        assert listed[1].split() == ["vision", "2/7", "0/-", "1", "2999-01-31T00:00:00.000000Z", "valid"]
        assert call("token", "revoke", "vision").exit_code == 0
        assert call("run", "close", run["X-Run"]).exit_code == 0
        assert ask(running, run, 3) == "run-sealed"
        again = call("token", "create", "vision", "--budget", "7")
        assert again.exit_code == 1 and "was given to a token before" in again.output
        assert "Traceback" not in again.output
    gone = call("token", "list")
    assert gone.exit_code == 1 and "does not answer" in gone.output
    wrong = CliRunner().invoke(app, ["token", "list", *place[:-1], "http://localhost:port"])
    assert wrong.exit_code == 1 and "does not answer (nonnumeric port: 'port')" in wrong.output


def test_repeats_and_refusals_fill_the_log_only_so_fast(service_settings: Make) -> None:
    """A run's, the guest's, and those of all runs opened without a token; 429 with Retry-After, and no entry."""
    with run_service(service_settings(uncharged_entries_per_hour=5, registration_token="secret", workers=1)) as running:
        opened = running.client.post("/v1/runs", json={"name": "x", "budget": 5}, headers=bearer("secret"))
        for headers in ({}, bearer(opened.json()["token"])):
            assert ask(running, headers, 1) == "200"
            said = [ask(running, headers, label_id) for label_id in (1, 999, 1, 999, 1, 999, 1)]
            assert said == ["200", "unknown-id", "200", "unknown-id", "200", "too-many-requests", "too-many-requests"]
            refused = running.client.get("/label/1", headers=headers)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "720")
            assert ask(running, headers, 2) == "200"  # what is charged is not held back
        assert len(running.entries()) == 2 + 2 * 7


def test_a_stranger_opens_only_so_many_runs(service_settings: Make) -> None:
    """By default 120 an hour, and opening another does not buy more repeats."""
    assert (Settings().openings_per_hour, Settings().uncharged_entries_per_hour) == (120, 1200)
    with run_service(service_settings(openings_per_hour=3, uncharged_entries_per_hour=4, workers=1)) as running:
        runs = [running.open_run(2)[1] for _ in range(3)]
        refused = running.client.post("/v1/runs", json={"name": "x", "budget": 2})
        assert (code(refused), refused.headers["Retry-After"]) == ("too-many-requests", "1200")
        said = [ask(running, run, 999) for run in runs for _ in range(2)]
        assert said == ["unknown-id"] * 4 + ["too-many-requests"] * 2


def test_who_repeats_a_whole_run_in_batches_never_meets_the_limit(service_settings: Make) -> None:
    """All labels by default settings, charged in small batches, then repeated in them and one by one, five times."""
    with run_service(service_settings(registration_token="secret", workers=1)) as running:
        opened = running.client.post("/v1/runs", json={"name": "x", "budget": 200}, headers=bearer("secret"))
        run = bearer(opened.json()["token"])
        batches = [range(start, start + 5) for start in range(0, 200, 5)]
        said = {ask(running, run, *batch) for _ in range(6) for batch in batches}
        said |= {ask(running, run, label_id) for _ in range(5) for label_id in range(200)}
        assert said == {"200"}

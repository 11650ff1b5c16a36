"""Whoever can write to the database but has no key gets nothing signed, nothing believed, no false label served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, func, insert, select

from label_service.errors import DatabaseRefused
from label_service.ledger.tokens import token_hash
from label_service.log.answer_key import open_answer_key
from label_service.log.authenticated_file import AuthenticatedFile
from label_service.log.entries import canonical_json
from label_service.service import open_service
from label_service.settings import Settings
from label_service.store import tables
from label_service.store.backends import find_database, heads_path
from tests.support.services import RunningService, run_service
from tests.support.tamper import tamper

pytestmark = pytest.mark.every_database

Make = Callable[..., Settings]


def insert_forged_evaluation(url: str) -> None:
    """Append an entry that follows every rule, with all triggers on, as another client of the database would."""
    engine = create_engine(url)
    entries = tables.entries
    with engine.begin() as connection:
        runs_opened = select(entries).where(entries.c.op == "run-opened", entries.c.run_id != "guest")
        opening = json.loads(connection.execute(runs_opened).first().entry)  # type: ignore[union-attr]
        last = connection.execute(select(entries).order_by(entries.c.seq.desc()).limit(1)).one()
        newest = json.loads(last.entry)
        spent = connection.execute(
            select(func.sum(entries.c.charged)).where(entries.c.run_id == opening["run"])
        ).scalar_one()
        detail = {"evaluation": 1, "evaluated_budget": None, "correct": 49, "total": 50, "predictions_sha256": "0" * 64}
        forged = {
            **opening, "seq": last.seq + 1, "ts": newest["ts"], "op": "evaluation", "outcome": "evaluated",
            "spent": spent, "detail": detail,
        }  # fmt: skip
        row = {
            "seq": last.seq + 1, "entry": canonical_json(forged), "mac": last.mac, "bound_sha256": None,
            "run_id": opening["run"], "op": "evaluation", "outcome": "evaluated", "charged": 0,
        }  # fmt: skip
        connection.execute(insert(entries).values(row))
        connection.execute(
            insert(tables.evaluations).values(
                run_id=opening["run"], number=1, budget=None, correct=49, total=50, seq=last.seq + 1
            )
        )
    engine.dispose()


def refused(answer: Any) -> bool:
    """Return whether an answer says that the log cannot be written, and gives no label."""
    return answer.status_code == 503 and answer.json()["code"] == "log-not-writable" and "label" not in answer.json()


def start_again(settings: Settings) -> None:
    """Open the service on its database and close it."""
    with open_service(settings):
        pass


@pytest.mark.usefixtures("snapshot")
def test_an_entry_that_somebody_inserts_is_never_signed(service_settings: Make) -> None:
    """The row follows every rule and no trigger is removed; the service stops answering and does not start again."""
    settings = service_settings()
    with run_service(settings) as running:
        _, token = running.open_run()
        running.client.get("/label/1", headers=token)
        insert_forged_evaluation(settings.database_url)
        for label_id in (1, 2):
            assert refused(running.client.get(f"/label/{label_id}", headers=token))
        assert running.service.log.head.size <= 3
    with pytest.raises(DatabaseRefused, match="Entry 3 was not written by this service"):
        start_again(settings)


def use(running: RunningService) -> tuple[str, dict[str, str]]:
    """Let a run be charged for three labels, under keys, and be evaluated; let the guest ask for two."""
    run_id, token = running.open_run(evaluation_budgets=[3, 5])
    for label_id in range(3):
        running.client.get(f"/label/{label_id}", headers={**token, "Idempotency-Key": f"k{label_id}"})
    evaluation = {"predictions": [0] * 50, "budget": 3}
    headers = {**token, "Idempotency-Key": "e"}
    assert running.client.post(f"/v1/runs/{run_id}/evaluations", json=evaluation, headers=headers).status_code == 200
    for label_id in (3, 4):
        running.client.get(f"/label/{label_id}")
    return run_id, token


NOT_GUEST = "run_id <> 'guest'"


@pytest.mark.usefixtures("snapshot")
@pytest.mark.parametrize(
    ("table", "statement"),
    [
        ("reveals", "INSERT INTO reveals SELECT 'guest', id, 1 FROM pool_labels WHERE id > 50"),
        ("reveals", "DELETE FROM reveals WHERE label_id = 1"),
        ("reveals", "UPDATE reveals SET seq = 3 WHERE label_id = 0"),
        ("evaluations", "DELETE FROM evaluations"),
        ("evaluations", "UPDATE evaluations SET correct = total"),
        ("evaluations", f"INSERT INTO evaluations SELECT run_id, 2, 5, 50, 50, 5 FROM runs WHERE {NOT_GUEST}"),
        ("entries", "UPDATE entries SET charged = 0"),
        ("entries", "UPDATE entries SET run_id = 'guest'"),
        ("entry_ids", "DELETE FROM entry_ids WHERE label_id = 2"),
        ("entry_ids", "INSERT INTO entry_ids VALUES (150, 2)"),
        ("idempotency_keys", "DELETE FROM idempotency_keys WHERE key = 'k1'"),
        ("idempotency_keys", "UPDATE idempotency_keys SET key = 'other' WHERE key = 'e'"),
        ("idempotency_keys", "UPDATE idempotency_keys SET request_sha256 = 'x' WHERE key = 'e'"),
        ("runs", f"UPDATE runs SET spent = 0 WHERE {NOT_GUEST}"),
        ("runs", f"UPDATE runs SET budget = 200 WHERE {NOT_GUEST}"),
        ("runs", f"UPDATE runs SET token_sha256 = 'x' WHERE {NOT_GUEST}"),
        ("runs", f"UPDATE runs SET evaluations_allowed = 9 WHERE {NOT_GUEST}"),
        ("runs", "UPDATE runs SET sealed_at = 'now' WHERE run_id = 'guest'"),
        ("runs", "INSERT INTO runs SELECT 'run-x', name, token_sha256, budget, evaluation_budgets, "
         f"evaluations_allowed, opened_with, 0, opened_at, NULL FROM runs WHERE {NOT_GUEST}"),
    ],
)  # fmt: skip
def test_a_table_that_says_something_else_than_the_log_refuses_the_start(
    service_settings: Make, table: str, statement: str
) -> None:
    """The log is played again at the start, and the sentence names the table."""
    settings = service_settings(workers=1)
    with run_service(settings) as running:
        use(running)
    tamper(settings.database_url, statement)
    with pytest.raises(DatabaseRefused, match=f"The table {table} does not say what the log says"):
        start_again(settings)


def test_an_untouched_database_starts_again_and_goes_on(
    service_settings: Make, snapshot: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything that the tests above change is accepted as the service wrote it, from the snapshot if there is one."""
    caplog.set_level("INFO")
    settings = service_settings(workers=1)
    with run_service(settings) as running:
        run_id, token = use(running)
        before = running.client.get("/v1/log/summary").json()
        account = running.service.log.account
    with run_service(settings) as running:
        assert running.client.get("/v1/log/summary").json() == before
        assert running.service.log.account == account
        size = {"no snapshot": 0, "an older snapshot": 3, "the newest snapshot": before["entries"]}[snapshot]
        assert (f"compared {size} entries with the snapshot" in caplog.text) == (size > 0)
        again = running.client.get("/label/1", headers={**token, "Idempotency-Key": "k1"}).json()
        assert (again["charged"], again["queries"]) == (True, 2)
        evaluation = {"predictions": [1] * 50, "budget": 5}
        answer = running.client.post(f"/v1/runs/{run_id}/evaluations", json=evaluation, headers=token)
        assert answer.json()["evaluation"] == 2


def test_labels_inserted_as_revealed_are_not_free(running: RunningService) -> None:
    """A label that the table says a run has, and the log does not, is neither answered nor charged."""
    running.client.get("/label/1")
    url = running.service.settings.database_url
    tamper(url, "INSERT INTO reveals SELECT 'guest', id, 1 FROM pool_labels WHERE id > 50")
    assert refused(running.client.get("/label/51"))
    assert refused(running.client.post("/v1/labels:query", json={"ids": list(range(51, 151))}))
    assert running.client.get("/label/2").json()["queries"] == 2


def test_a_deleted_evaluation_is_not_made_again(running: RunningService) -> None:
    """The account in memory says that the run has used it."""
    run_id, token = running.open_run()
    call, body = f"/v1/runs/{run_id}/evaluations", {"predictions": [0] * 50}
    assert running.client.post(call, json=body, headers=token).status_code == 200
    tamper(running.service.settings.database_url, "DELETE FROM evaluations")
    assert refused(running.client.post(call, json=body, headers=token))
    assert refused(running.client.get("/label/1", headers=token))


@pytest.mark.parametrize("change", ["spent = 0", "budget = 200", "evaluations_allowed = 9"])
def test_a_run_whose_row_was_changed_gets_nothing(running: RunningService, change: str) -> None:
    """Its terms and its count are compared with the log in each transaction; other runs go on."""
    _, token = running.open_run()
    running.client.get("/label/1", headers=token)
    tamper(running.service.settings.database_url, f"UPDATE runs SET {change} WHERE {NOT_GUEST}")
    assert refused(running.client.get("/label/2", headers=token))
    assert running.client.get("/label/2").json()["queries"] == 1


def test_the_summary_is_that_of_the_log(running: RunningService) -> None:
    """`charged = 0` in the table does not make the charges go away."""
    for label_id in range(4):
        running.client.get(f"/label/{label_id}")
    before = running.client.get("/v1/log/summary").json()
    tamper(running.service.settings.database_url, "UPDATE entries SET charged = 0", "DELETE FROM reveals")
    assert running.client.get("/v1/log/summary").json() == before
    assert before["queries"] == before["distinct_labels_revealed_to_anybody"] == 4


def test_a_token_that_somebody_writes_into_the_table_opens_nothing(start_service: Any) -> None:
    """The opening's entry binds the token's hash; a run that the log does not know has none."""
    running = start_service(workers=1)
    run_id, _ = running.open_run()
    _, other = running.open_run()
    stolen = other["Authorization"].removeprefix("Bearer ").partition(".")[2]
    url = running.service.settings.database_url
    for target in (run_id, "run-x"):
        token = f"{target}.{stolen}"
        tamper(
            url,
            f"UPDATE runs SET token_sha256 = '{token_hash(token)}' WHERE run_id = '{target}'",
            *(
                [f"INSERT INTO runs SELECT 'run-x', name, '{token_hash(token)}', budget, evaluation_budgets, "
                 f"evaluations_allowed, opened_with, 0, opened_at, NULL FROM runs WHERE run_id = '{run_id}'"]
                if target == "run-x" else []
            ),
        )  # fmt: skip
        answer = running.client.get("/label/1", headers={"Authorization": f"Bearer {token}"})
        assert answer.json()["code"] == "invalid-token"


def test_a_key_that_is_lost_is_not_made_anew(service_settings: Make, tmp_path: Any) -> None:
    """A new key could neither check the entries nor continue what clients have pinned; none is written."""
    settings = service_settings()
    with run_service(settings) as running:
        running.client.get("/label/1")
    (key,) = tmp_path.glob("*.key")
    key.unlink()
    for _ in range(2):
        with pytest.raises(DatabaseRefused, match="its signing key is not at"):
            start_again(settings)
        assert not key.exists()


@pytest.mark.usefixtures("snapshot")
def test_labels_changed_together_with_their_commitment_are_refused(service_settings: Make) -> None:
    """The row of the answer key is made anew over false labels; the log's entries still name the true root."""
    settings = service_settings(workers=1)
    with run_service(settings) as running:
        running.client.get("/label/1")
    tamper(settings.database_url, "UPDATE pool_labels SET label = 0", "DELETE FROM answer_key")
    engine = create_engine(settings.database_url)
    with engine.begin() as connection:
        assert open_answer_key(connection).commit(connection)
    engine.dispose()
    with pytest.raises(DatabaseRefused, match="The labels in the database are not those that were committed to"):
        start_again(settings)


def keep_false_tree(settings: Settings, file: Path) -> None:
    """Keep the tree over the labels that are there now, as who has another key would."""
    engine = create_engine(settings.database_url)
    with engine.begin() as connection:
        key = open_answer_key(connection)
    engine.dispose()
    key.keep(AuthenticatedFile(file, b"of another key", ""))


@pytest.mark.parametrize("statement", ["UPDATE pool_labels SET label = 1 - label WHERE id IN ({0}, {1})", "SAME"])
@pytest.mark.parametrize("kept", ["as it was", "removed", "cut short", "of the false labels"])
def test_labels_are_those_of_the_log_whatever_is_kept_of_their_tree(
    service_settings: Make, statement: str, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The kept tree makes a start faster and decides nothing: false labels are refused, the true ones accepted."""
    caplog.set_level("INFO")
    settings = service_settings(workers=1)
    with run_service(settings) as running:
        labels = {label_id: running.client.get(f"/label/{label_id}").json()["label"] for label_id in range(20)}
        log_id = running.service.dataset.log_id
    file = heads_path(settings, find_database(settings), log_id).with_suffix(".label-tree")
    written = file.read_bytes()
    if statement != "SAME":
        zero, one = (next(label_id for label_id in labels if labels[label_id] == label) for label in (0, 1))
        tamper(settings.database_url, statement.format(zero, one), "DELETE FROM answer_key")
    if kept == "removed":
        file.unlink()
    elif kept == "cut short":
        file.write_bytes(written[:-1])
    elif kept == "of the false labels":
        keep_false_tree(settings, file)
    caplog.clear()
    if statement == "SAME":
        start_again(settings)
        assert file.read_bytes() == written
    else:
        with pytest.raises(DatabaseRefused, match="The labels in the database are not those that were committed to"):
            start_again(settings)
    foreign = "was not written with this log's key, so every label is hashed"
    assert (foreign in caplog.text) == (kept in ("cut short", "of the false labels"))


NAMES = """UPDATE dataset SET class_names = '["c", "b", "a"]'"""


@pytest.mark.usefixtures("snapshot")
@pytest.mark.parametrize("statement", ["UPDATE test_labels SET label = 0", "DELETE FROM test_labels", NAMES])
def test_test_labels_and_class_names_are_those_of_the_log(service_settings: Make, statement: str) -> None:
    """A changed database is neither evaluated against nor started on; nothing of it is charged."""
    settings = service_settings(workers=1)
    with run_service(settings) as running:
        run_id, token = running.open_run()
        (opening,) = running.entries(run=run_id)
        assert len(opening["detail"]["test_commitment"]) == 44
        tamper(settings.database_url, statement)
        call = f"/v1/runs/{run_id}/evaluations"
        assert refused(running.client.post(call, json={"predictions": [0] * 50}, headers=token))
        assert running.client.get(f"/v1/runs/{run_id}").json()["evaluations_used"] == 0
    with pytest.raises(DatabaseRefused, match="test labels or the names of the classes"):
        start_again(settings)


def test_runs_are_answered_from_the_log(running: RunningService) -> None:
    """What somebody writes into the tables of a running service shows in no list, no state of a run and on no page."""
    run_id, _ = use(running)
    before = running.client.get("/v1/runs").json()
    state = running.client.get(f"/v1/runs/{run_id}").json()
    assert (state["queries"], state["evaluations_used"], state in before["runs"]) == (3, 1, True)
    tamper(
        running.service.settings.database_url,
        f"UPDATE runs SET spent = 0, name = 'forged', budget = 99, sealed_at = 'never' WHERE {NOT_GUEST}",
        "UPDATE evaluations SET correct = total",
        f"INSERT INTO runs SELECT 'run-x', name, token_sha256, budget, evaluation_budgets, evaluations_allowed, "
        f"opened_with, 0, opened_at, NULL FROM runs WHERE {NOT_GUEST}",
    )
    assert running.client.get("/v1/runs").json() == before
    assert running.client.get(f"/v1/runs/{run_id}").json() == state
    assert running.client.get("/v1/runs/run-x").json()["code"] == "unknown-run"
    page = running.client.get("/").text
    assert run_id in page and "forged" not in page and "run-x" not in page


@pytest.mark.parametrize(
    "statement",
    ["UPDATE entries SET entry = swap(entry, 'query', 'quary')", "DELETE FROM entries WHERE seq = 2"],
)
def test_an_entry_that_was_changed_or_removed_is_not_answered(running: RunningService, statement: str) -> None:
    """Pages, export and evidence answer what this service has written, or an error."""
    use(running)
    tamper(running.service.settings.database_url, statement)
    calls = ["/v1/log/entries", "/v1/log/evidence?limit=5"]
    for call in [*calls, "/"] if statement.startswith("UPDATE") else calls:
        answer = running.client.get(call)
        # A worker that has not taken in the entry yet finds it as its writer does.
        assert answer.status_code == 503, call
        assert answer.json()["code"] in ("log-not-readable", "log-not-writable"), call
    with pytest.raises(httpx.HTTPError):
        running.client.get("/v1/log/export.ndjson")
    # Entries that hold are still answered.
    assert len(running.client.get("/v1/log/entries", params={"limit": 1}).json()["entries"]) == 1

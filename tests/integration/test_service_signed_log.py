"""Every answer carries a receipt that holds, heads grow from one another, and a changed database is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from label_service.errors import DatabaseRefused
from label_service.log.entries import canonical_json
from label_service.log.merkle import MerkleTree, VerificationError, leaf_hash, verify_consistency, verify_inclusion
from label_service.log.signed_note import SigningKey, Verifier
from label_service.log.tree_head import TreeHead, head_text
from label_service.service import open_service
from label_service.settings import Settings
from tests.support.services import POSTGRESQL, RunningService, run_service
from tests.support.tamper import take_backup, tamper

pytestmark = pytest.mark.every_database

Make = Callable[..., Settings]


def verifier_of(running: RunningService) -> Verifier:
    """Pin the service's key."""
    return Verifier.from_vkey(running.client.get("/v1/log/key").json()["key"])


def head_of(running: RunningService) -> TreeHead:
    """Read the newest signed head."""
    return TreeHead.open(running.client.get("/v1/log/checkpoint").text, verifier_of(running))


def decoded(hashes: list[str]) -> list[bytes]:
    """Decode the hashes of a proof."""
    return [base64.b64decode(text) for text in hashes]


def known(size: int) -> dict[str, str]:
    """The header of a client that knows a head of this size."""
    return {"Log-Known-Size": str(size)}


def require_growth(running: RunningService, older: TreeHead, newer: TreeHead) -> None:
    """Verify the service's proof that one head grew from another."""
    query = {"first": older.size, "second": newer.size}
    answer = running.client.get("/v1/log/proof/consistency", params=query).json()
    verify_consistency(older.size, newer.size, older.root, newer.root, decoded(answer["proof"]))


def check_receipt(running: RunningService, receipt: dict[str, Any]) -> dict[str, Any]:
    """Verify a receipt as an outsider would and return its entry."""
    head = TreeHead.open(receipt["checkpoint"], verifier_of(running))
    leaf, proof = leaf_hash(receipt["entry"].encode()), decoded(receipt["inclusion_proof"])
    verify_inclusion(leaf, receipt["index"], head.size, proof, head.root)
    entry: dict[str, Any] = json.loads(receipt["entry"])
    assert entry["seq"] == receipt["index"]
    return entry


def test_every_answer_has_a_receipt_of_its_own_entry(running: RunningService) -> None:
    """A label, a batch, a replay, an opening and an evaluation: each is on the record as it was answered."""
    opened = running.client.post("/v1/runs", json={"name": "r", "budget": 9}).json()
    token = {"Authorization": f"Bearer {opened['token']}"}
    assert check_receipt(running, opened["receipt"])["op"] == "run-opened"
    for asked, call in [
        ([4], lambda: running.client.get("/label/4", headers=token)),
        ([4, 5, 6], lambda: running.client.post("/v1/labels:query", json={"ids": [4, 5, 6]}, headers=token)),
        ([5], lambda: running.client.get("/label/5", headers=token)),
    ]:
        answer = call().json()
        entry = check_receipt(running, answer["receipt"])
        assert (entry["run"], entry["ids"], entry["spent"]) == (opened["run_id"], asked, answer["queries"])
    call = f"/v1/runs/{opened['run_id']}/evaluations"
    evaluated = running.client.post(call, json={"predictions": [0] * 50}, headers=token).json()
    assert check_receipt(running, evaluated["receipt"])["detail"]["correct"] == evaluated["correct"]


def test_receipts_of_many_clients_at_once_hold_and_their_heads_are_one_history(running: RunningService) -> None:
    """Group commit: requests that share a transaction share a head, and all heads grow from one another."""

    def ask(label_id: int) -> dict[str, Any]:
        receipt: dict[str, Any] = running.client.get(f"/label/{label_id}").json()["receipt"]
        return receipt

    with ThreadPoolExecutor(16) as pool:
        receipts = list(pool.map(ask, range(64)))
    assert sorted(check_receipt(running, receipt)["ids"][0] for receipt in receipts) == list(range(64))
    verifier = verifier_of(running)
    heads = sorted({TreeHead.open(receipt["checkpoint"], verifier) for receipt in receipts}, key=lambda head: head.size)
    assert len({head.size for head in heads}) == len(heads)
    for older, newer in pairwise(heads):
        require_growth(running, older, newer)


def test_an_answer_proves_that_the_log_grew_from_the_head_that_the_client_knows(running: RunningService) -> None:
    """Each answer with a receipt has the proof in a header; a log shorter than the client says has none."""
    run_id, token = running.open_run(evaluation_budgets=[2])
    head = head_of(running)
    for path, body in [
        ("/v1/labels:query", {"ids": [4, 5]}),
        ("/v1/labels:query", {"ids": [4]}),
        (f"/v1/runs/{run_id}/evaluations", {"predictions": [0] * 50, "budget": 2}),
        ("/v1/runs", {"name": "other"}),
        (f"/v1/runs/{run_id}:seal", None),
        ("/label/7", None),
    ]:
        running.client.get("/label/1")
        is_label = path.startswith("/label/")
        answer = running.client.request(
            "GET" if is_label else "POST", path, json=body, headers=({} if is_label else token) | known(head.size)
        )
        newer = TreeHead.open(answer.json()["receipt"]["checkpoint"], verifier_of(running))
        proof = decoded(answer.headers["log-consistency"].split(", "))
        verify_consistency(head.size, newer.size, head.root, newer.root, proof)
        assert newer.size > head.size
        head = newer
    assert "log-consistency" not in running.client.get("/label/2", headers=known(head.size + 99)).headers
    assert "log-consistency" not in running.client.get("/label/2").headers


@pytest.mark.parametrize("size", ["0", "-1", "1.0", "x", "", "9" * 16, "1, 1"])
def test_a_known_size_that_is_none_is_refused_before_anything_is_charged(running: RunningService, size: str) -> None:
    """The sentence names the header."""
    before = head_of(running)
    answer = running.client.get("/label/3", headers={"Log-Known-Size": size})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
    assert "Log-Known-Size" in answer.json()["detail"]
    assert head_of(running) == before


def test_any_entry_is_proved_at_any_signed_size(running: RunningService) -> None:
    """The proofs that the service answers hold against its own export."""
    for label_id in range(6):
        running.client.get(f"/label/{label_id}")
    leaves = [leaf_hash(entry) for entry in running.client.get("/v1/log/export.ndjson").content.splitlines()]
    tree = MerkleTree(leaves)
    for size in range(1, len(leaves) + 1):
        for index in range(size):
            answer = running.client.get("/v1/log/proof/inclusion", params={"index": index, "size": size}).json()
            assert base64.b64decode(answer["root"]) == tree.root(size)
            verify_inclusion(leaves[index], index, size, decoded(answer["proof"]), tree.root(size))


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("inclusion?index=0&size=999", 404, "not-signed"),
        ("inclusion?index=1&size=1", 404, "not-signed"),
        ("inclusion?index=-1&size=1", 422, "invalid-request"),
        ("inclusion?size=1", 422, "invalid-request"),
        ("consistency?first=1&second=999", 404, "not-signed"),
        ("consistency?first=2&second=1", 404, "not-signed"),
        ("consistency?first=0&second=1", 422, "invalid-request"),
    ],
)
def test_a_proof_that_does_not_exist_is_refused(
    shared_service: RunningService, path: str, status: int, code: str
) -> None:
    """One clear sentence, and nothing is logged."""
    answer = shared_service.client.get(f"/v1/log/proof/{path}")
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_the_key_is_made_once_and_is_its_owner_s(service_settings: Make, tmp_path: Path) -> None:
    """A restart goes on under the same key, and its head grows from the one before."""
    settings = service_settings()
    with run_service(settings) as running:
        running.client.get("/label/1")
        key, before = verifier_of(running), head_of(running)
    with run_service(settings) as running:
        running.client.get("/label/2")
        assert verifier_of(running) == key
        require_growth(running, before, head_of(running))
    (file,) = tmp_path.glob("*.key")
    assert file.stat().st_mode & 0o777 == 0o600


def restart(settings: Settings) -> None:
    """Open the service again and close it."""
    with open_service(settings):
        pass


CHANGED = "are not those that were signed"
OLDER = "older than the log it continues"
CHANGE_LABEL_5 = "UPDATE pool_labels SET label = (label + 1) - 3 * ((label + 1) / 3) WHERE id = 5"


@pytest.mark.usefixtures("snapshot")
@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE entries SET entry = swap(entry, 'guest', 'other') WHERE seq = 0", CHANGED),
        ("UPDATE entries SET entry = swap(entry, 'revealed', 'replayed') WHERE seq = 2", CHANGED),
        ("UPDATE entries SET entry = swap(entry, '1', '2') WHERE seq = 4", CHANGED),
        (CHANGE_LABEL_5, "not those that were committed to"),
        ("DELETE FROM entries WHERE seq = (SELECT max(seq) FROM entries)", OLDER),
        ("DELETE FROM entries WHERE seq > 1", OLDER),
        ("DELETE FROM entries WHERE seq = 2", OLDER),
        ("UPDATE entries SET entry = CAST(entry AS TEXT) WHERE seq = 1", CHANGED),
        (
            "UPDATE entries SET seq = 9 - seq WHERE seq IN (1, 2); UPDATE entries SET seq = seq - 6 WHERE seq > 6",
            CHANGED,
        ),
    ],
)
def test_a_database_changed_while_the_service_was_down_is_refused(
    service_settings: Make, database_kind: str, statement: str, sentence: str
) -> None:
    """Edit, cut, delete and reorder, at the first, a middle and the last entry; and a label."""
    if database_kind == POSTGRESQL and "AS TEXT" in statement:
        pytest.skip("a column of bytes holds nothing but bytes on PostgreSQL")
    settings = service_settings()
    with run_service(settings) as running:
        for label_id in range(4):
            running.client.get(f"/label/{label_id}")
    tamper(settings.database_url, *statement.split(";"))
    with pytest.raises(DatabaseRefused, match=sentence):
        restart(settings)


@pytest.mark.usefixtures("snapshot")
def test_an_old_backup_put_back_is_refused(
    service_settings: Make, database_kind: str, request: pytest.FixtureRequest
) -> None:
    """Key and database are older; the remembered head lies elsewhere and is newer."""
    server = request.getfixturevalue("postgres_server") if database_kind == POSTGRESQL else None
    settings = service_settings()
    with run_service(settings) as running:
        running.client.get("/label/1")
    put_back = take_backup(settings, server)
    with run_service(settings) as running:
        running.client.get("/label/2")
    put_back()
    with pytest.raises(DatabaseRefused, match=OLDER):
        restart(settings)


@pytest.mark.usefixtures("snapshot")
def test_another_key_is_refused(service_settings: Make, tmp_path: Path) -> None:
    """A key of the same name cannot continue the log, and a key of another log is refused by its name."""
    settings = service_settings()
    with run_service(settings) as running:
        name = verifier_of(running).name
    (key,) = tmp_path.glob("*.key")
    for swapped, sentence in [(name, "put back the log's key"), ("other/log", "they must belong")]:
        key.unlink()
        SigningKey.generate(swapped).save(key)
        with pytest.raises(DatabaseRefused, match=sentence):
            restart(settings)
    key.write_text("nonsense")
    with pytest.raises(DatabaseRefused, match="cannot be used"):
        restart(settings)


def test_an_entry_changed_while_the_service_runs_stops_it(start_service: Any) -> None:
    """The signed entry before the new one must be what was signed, or nothing is written and nothing leaves."""
    # One worker, because only a worker whose write has failed compares all signed entries next time.
    running = start_service(workers=1)
    running.client.get("/label/1")
    url = running.service.settings.database_url
    last = "seq = (SELECT max(seq) FROM entries)"
    tamper(url, f"UPDATE entries SET entry = swap(entry, 'guest', 'other') WHERE {last}")
    count = running.service.reader.size()
    answer = running.client.get("/label/2")
    assert (answer.status_code, answer.json()["code"]) == (503, "log-not-writable")
    assert "label" not in answer.json() and running.service.reader.size() == count
    # After a failure all signed entries are compared, so mending the last one alone is not enough.
    tamper(
        url,
        f"UPDATE entries SET entry = swap(entry, 'other', 'guest') WHERE {last}",
        "UPDATE entries SET entry = swap(entry, 'guest', 'other') WHERE seq = 0",
    )
    assert running.client.get("/label/2").status_code == 503
    tamper(url, "UPDATE entries SET entry = swap(entry, 'other', 'guest') WHERE seq = 0")
    assert running.client.get("/label/2").status_code == 200


def test_a_head_that_cannot_be_remembered_charges_nothing(start_service: Any, tmp_path: Path) -> None:
    """Space for the head is taken before the commit; once there is space again, the label is charged and answered."""
    running = start_service(heads_folder=tmp_path / "heads", workers=1)
    running.client.get("/label/1")
    (file,) = (tmp_path / "heads").glob("*.heads")
    kept = file.read_text()
    file.unlink()
    file.mkdir()
    refused = running.client.get("/label/2")
    assert (refused.status_code, refused.json()["code"]) == (503, "log-not-writable")
    assert "nothing was revealed or charged" in refused.json()["detail"] and len(running.entries()) == 2
    file.rmdir()
    file.write_text(kept)
    answer = running.client.get("/label/2").json()
    assert (answer["charged"], answer["queries"]) == (True, 2)


def test_a_head_lost_after_the_commit_says_that_labels_may_be_charged(
    start_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry stays and no label leaves; a repeat is answered and charged no more."""
    running = start_service(workers=1)
    heads = running.service.log._heads

    def fail(_note: str) -> None:
        raise OSError("an I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(heads, "remember", fail)
        refused = running.client.get("/label/2")
    assert refused.status_code == 503 and "labels may have been charged" in refused.json()["detail"]
    answer = running.client.get("/label/2").json()
    assert (answer["charged"], answer["queries"]) == (False, 1)
    assert check_receipt(running, answer["receipt"])["outcome"] == "replayed"


def opened_under(answer: dict[str, Any], label: dict[str, Any], pool_size: int) -> None:
    """Check a label's opening against the commitment in the entry of its answer."""
    commitment = base64.b64decode(json.loads(answer["receipt"]["entry"])["label_commitment"])
    opened = canonical_json({"id": label["id"], "label": label["label"], "salt": label["opening"]["salt"]})
    verify_inclusion(leaf_hash(opened), label["id"], pool_size, decoded(label["opening"]["proof"]), commitment)


def test_every_label_opens_a_commitment_made_before_the_first_query(running: RunningService) -> None:
    """Single labels, batches and replays; the root is the one that the log's first entry already has."""
    _, token = running.open_run()
    single = running.client.get("/label/199", headers=token).json()
    opened_under(single, single, 200)
    for _ in range(2):
        batch = running.client.post("/v1/labels:query", json={"ids": [0, 199, 7]}, headers=token).json()
        for label in batch["labels"]:
            opened_under(batch, label, 200)
    assert len({entry["label_commitment"] for entry in running.entries()}) == 1
    lie = single | {"label": (single["label"] + 1) % 3}
    with pytest.raises(VerificationError):
        opened_under(single, lie, 200)


def test_a_label_changed_under_the_service_is_neither_charged_nor_answered(running: RunningService) -> None:
    """Queries for it get 503; other labels are still answered."""
    _, token = running.open_run()
    tamper(running.service.settings.database_url, CHANGE_LABEL_5)
    answer = running.client.get("/label/5", headers=token)
    assert answer.status_code == 503 and "label" not in answer.json()
    assert running.client.get("/label/6", headers=token).json()["queries"] == 1


def test_the_evidence_names_a_head_for_every_commit(service_settings: Any) -> None:
    """Sizes ascend by one under a sequential client, every signature holds, and a restart loses none."""
    settings = service_settings()
    for _ in range(2):
        with run_service(settings) as running:
            _, token = running.open_run()
            for label_id in range(3):
                running.client.get(f"/label/{label_id}", headers=token)
            evidence = running.client.get("/v1/log/evidence").json()
    assert len(evidence["entries"]) == 9
    tree = MerkleTree(leaf_hash(entry.encode()) for entry in evidence["entries"])
    assert [head["size"] for head in evidence["heads"]] == list(range(1, tree.size))
    verifier = Verifier.from_vkey(evidence["key"])
    for head in evidence["heads"]:
        text = head_text(verifier.name, head["size"], tree.root(head["size"]))
        assert verifier.has_signed(text, base64.b64decode(head["signature"]))

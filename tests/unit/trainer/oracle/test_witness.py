"""The witness against an honest signed log, and against every way in which a log could lie."""

from __future__ import annotations

import json
import stat
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from label_service.log.answer_key import AnswerKey
from label_service.log.signed_note import SigningKey
from tests.support.fake_label_service import CLASS_NAMES, TOKEN, Fault, Handler, answer_json, edit
from tests.support.signing_label_service import GUEST, ORIGIN, SigningLabelService
from trainer.errors import ConfigError, DataError, LogNotProved, RecordsUnwritable, ResumeError
from trainer.oracle import LabelClient
from trainer.oracle import witness as witness_module
from trainer.oracle.exchange import RECEIPTS_FILE, REFUSED_FILE
from trainer.oracle.witness import WITNESS_FILE, Witness

QUERY, EVALUATIONS, SEAL, KEY = "/v1/labels:query", "/v1/runs/r1/evaluations", "/v1/runs/r1:seal", "/v1/log/key"
CONSISTENCY = "/v1/log/proof/consistency"
STRANGER = SigningKey(ORIGIN, bytes(32))


@pytest.fixture
def service() -> Iterator[SigningLabelService]:
    """A signing service that listens."""
    with SigningLabelService() as running:
        yield running


def client_of(service: SigningLabelService, out: Path, log_key: str | None = None, **more: Any) -> LabelClient:
    """A client as the pipeline makes it: witnessed, receipts kept."""
    witness = Witness(out, log_key)
    return LabelClient(service.url, patience_s=2.0, receipts_path=out / RECEIPTS_FILE, witness=witness, **more)


@pytest.fixture
def client(service: SigningLabelService, tmp_path: Path) -> Iterator[LabelClient]:
    """A client that has opened a run of 20 labels and asked two of them."""
    with client_of(service, tmp_path) as made:
        made.open_run("test", 20, evaluation_budgets=[2])
        made.query([5, 3], idempotency_key="first")
        yield made


def state_of(out: Path) -> dict[str, Any]:
    """Read the witness's file."""
    state: dict[str, Any] = json.loads((out / WITNESS_FILE).read_text())
    return state


def size_of(out: Path) -> int:
    """Return the size of the newest head."""
    return int(state_of(out)["checkpoint"].split("\n")[1])


def test_a_whole_run_is_proved(service: SigningLabelService, client: LabelClient, tmp_path: Path) -> None:
    """Opening, queries, repeats, an evaluation and its repeat, the seal; strangers ask in between."""
    service.log.append(**GUEST)
    assert [label.label for label in client.query([7, 8], idempotency_key="b").labels] == [1, 2]
    assert client.query([5, 3], idempotency_key="first").replayed
    assert client.query([3, 7], idempotency_key="known-already").replayed
    service.log.append(**GUEST)
    for _ in range(2):
        client.evaluate("r1", [0] * 10, budget=2, idempotency_key="e")
    client.seal("r1")
    assert size_of(tmp_path) == len(service.log.entries) == 11
    kept = [json.loads(line) for line in (tmp_path / RECEIPTS_FILE).read_text().splitlines()]
    calls = ["run-opened", "query", "query", "query", "query", "evaluation", "evaluation", "seal"]
    assert [line["call"] for line in kept] == calls
    assert not (tmp_path / REFUSED_FILE).exists()


def test_key_and_opening_are_on_the_disk_before_the_first_query(service: SigningLabelService, tmp_path: Path) -> None:
    """What the run is held to: key, budget, answer key and its size."""
    with client_of(service, tmp_path) as client:
        client.open_run("test", 20)
    state = state_of(tmp_path)
    assert state["key"] == service.log.signer.verifier.vkey
    commitment = service.log.answer_key.commitment
    assert state["run"] == {"run_id": "r1", "budget": 20, "label_commitment": commitment, "pool_size": 50}


def test_a_restarted_run_goes_on_from_the_head_on_the_disk(
    service: SigningLabelService, client: LabelClient, tmp_path: Path
) -> None:
    """A new process asks its last question again and goes on, though the log has grown meanwhile."""
    service.log.append(**GUEST)
    with client_of(service, tmp_path, token=TOKEN) as again:
        assert again.query([5, 3], idempotency_key="first").replayed
        again.query([9], idempotency_key="second")
        again.evaluate("r1", [0] * 10, idempotency_key="e")
    with client_of(service, tmp_path, token=TOKEN) as later:
        later.evaluate("r1", [0] * 10, idempotency_key="e")
        later.seal("r1")
    assert size_of(tmp_path) == len(service.log.entries)


def test_head_is_on_the_disk_before_the_answer_is_seen(
    service: SigningLabelService, client: LabelClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that cannot be kept stops the answer; asked again under the same key it costs nothing."""
    before = (tmp_path / WITNESS_FILE).read_bytes()

    def full(*_: object, **__: object) -> None:
        raise RecordsUnwritable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(witness_module, "replace_file", full)
        with pytest.raises(RecordsUnwritable):
            client.query([9], idempotency_key="second")
    assert (tmp_path / WITNESS_FILE).read_bytes() == before
    assert client.query([9], idempotency_key="second").replayed
    assert service.charged_ids == [5, 3, 9]


def tell_another_label(answer: dict[str, Any]) -> None:
    """Exchange a label and leave its opening."""
    first = answer["labels"][0]
    first["label"] = (first["label"] + 1) % 3
    first["label_name"] = CLASS_NAMES[first["label"]]


def exchange_openings(answer: dict[str, Any]) -> None:
    """Open another image's label."""
    first, second = answer["labels"]
    first["opening"], second["opening"] = second["opening"], first["opening"]


def change_receipt(**changes: object) -> Callable[[dict[str, Any]], None]:
    """Change fields of the receipt."""
    return lambda answer: answer["receipt"].update(changes)


def change_opening(**changes: object) -> Callable[[dict[str, Any]], None]:
    """Change fields of the first label's opening."""
    return lambda answer: answer["labels"][0]["opening"].update(changes)


def space_out(answer: dict[str, Any]) -> None:
    """Write the entry in another form."""
    answer["receipt"]["entry"] = answer["receipt"]["entry"].replace(",", ", ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tell_another_label, "entry 3 .* image 8 is not the one committed to before the first query"),
        (exchange_openings, "entry 3 .* is not the one committed to before the first query"),
        (change_opening(salt="0" * 64), "is not the one committed to"),
        (change_opening(salt="0" * 63), "the opening of image 8 is not of the form"),
        (change_opening(proof=[]), "is not the one committed to"),
        (change_opening(proof=["AA=="]), "is not the one committed to.*32 bytes"),
        (lambda answer: answer["labels"][1].pop("opening"), "the label of image 9 came without its opening"),
        (lambda answer: answer.pop("receipt"), "the entry after number 2 .* its receipt is missing"),
        (change_receipt(index=2), "entry 2 .* leaf 2 is not in the tree"),
        (change_receipt(index=-1), "its receipt is not of the form"),
        (change_receipt(index="3"), "its receipt is not of the form"),
        (change_receipt(inclusion_proof=[]), "entry 3 .* too few hashes"),
        (change_receipt(inclusion_proof=["x"]), "entry 3 .* not base64"),
        (change_receipt(checkpoint=""), "entry 3 .* not a signed note"),
        (space_out, "entry 3 .* is not in the tree"),
        (lambda answer: answer["receipt"].update(entry=answer["receipt"]["entry"] + "\u00e9"), "it is not ASCII"),
        (lambda answer: answer.update(remaining=17), "16 labels are left of the budget, and the answer says 17"),
        (lambda answer: answer.update(queries=3), "charges 2 labels of 4 in all, and the answer 2 of 3"),
        (lambda answer: answer.update(replayed=True), "says query revealed, and the answer was query replayed"),
    ],
)
def test_answer_that_its_receipt_does_not_prove_is_refused(
    service: SigningLabelService, client: LabelClient, tmp_path: Path, change: Callable[..., None], message: str
) -> None:
    """One sentence with the entry's number; the answer is kept as evidence, and the head stays where it was."""
    before = [(tmp_path / name).read_bytes() for name in (WITNESS_FILE, RECEIPTS_FILE)]
    service.fail(QUERY, edit(change))
    with pytest.raises(LogNotProved, match=message) as caught:
        client.query([9, 8], idempotency_key="second")
    assert str(tmp_path / REFUSED_FILE) in str(caught.value) and "\n" not in str(caught.value)
    assert [(tmp_path / name).read_bytes() for name in (WITNESS_FILE, RECEIPTS_FILE)] == before
    (kept,) = [json.loads(line) for line in (tmp_path / REFUSED_FILE).read_text().splitlines()]
    assert (kept["call"], kept["request"]["ids"]) == ("query", [9, 8])
    assert kept["reason"] in str(caught.value) and len(kept["answer"]["labels"]) == 2
    assert stat.S_IMODE((tmp_path / REFUSED_FILE).stat().st_mode) == 0o600


def forge(**changes: object) -> Callable[[SigningLabelService], None]:
    """Sign entries that say something else."""

    def lie(service: SigningLabelService) -> None:
        service.log.forge = lambda entry: entry.update(changes)

    return lie


def use_another_answer_key(service: SigningLabelService) -> None:
    """Answer other labels than were committed to, and open those."""
    service.log.answer_key = AnswerKey(b"s" * 32, array("i", [0] * 50))


def commit_anew(service: SigningLabelService) -> None:
    """The same, with entries that commit to them."""
    use_another_answer_key(service)
    service.log.commitment = service.log.answer_key.commitment


def fork(service: SigningLabelService) -> None:
    """Go on from another history of the same length."""
    service.log.entries[1] = service.log.entries[1].replace(b'"budget":20', b'"budget":21')


def shrink(service: SigningLabelService) -> None:
    """Put an old state back."""
    del service.log.entries[1:]


def shrink_by_one(service: SigningLabelService) -> None:
    """Forget the last entry, so that the next one takes its place."""
    del service.log.entries[2:]


def sign_with_another_key(service: SigningLabelService) -> None:
    """Sign under the same name with another key."""
    service.log.signer = STRANGER


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (use_another_answer_key, "entry 3 .* image 8 is not the one committed to before the first query"),
        (commit_anew, "entry 3 .* commits to another answer key than the run's opening"),
        (fork, "entry 3 .* the log of 4 entries does not begin with the log of 3"),
        (shrink, "entry 1 .* the log has shrunk from 3 entries to 2"),
        (shrink_by_one, "entry 2 .* there are two trees of 3 leaves"),
        (sign_with_another_key, "entry 3 .* not signed by the log's pinned key"),
        (forge(run="r2"), "entry 3 .* it is of run r2, and r1 asked"),
        (forge(op="evaluation"), "entry 3 .* says evaluation revealed, and the answer was query revealed"),
        (forge(outcome="label-budget-exhausted"), "says query label-budget-exhausted"),
        (forge(ids=[8, 9]), "it names other ids, or in another order"),
        (forge(ids=[9]), "it names other ids"),
        (forge(charged=1), "it charges 1 labels of 4 in all, and the answer 2 of 4"),
        (forge(spent=5), "it charges 2 labels of 5 in all, and the answer 2 of 4"),
        (forge(budget=21), "says a budget of 21, and the run was opened with 20"),
        (forge(seq=7), "it is numbered 7, and its receipt proves number 3"),
        (forge(v=1), "it is not of the form this trainer reads \\(v:"),
        (forge(label_commitment=""), "commits to another answer key"),
        (forge(charged=True), "it is not of the form this trainer reads \\(charged:"),
    ],
)
def test_lie_that_the_service_has_signed_is_refused(
    service: SigningLabelService, client: LabelClient, tmp_path: Path, lie: Callable[..., None], message: str
) -> None:
    """Even with the signing key the service can neither undo what was witnessed nor log another question."""
    before = (tmp_path / WITNESS_FILE).read_bytes()
    lie(service)
    with pytest.raises(LogNotProved, match=message):
        client.query([9, 8], idempotency_key="second")
    assert (tmp_path / WITNESS_FILE).read_bytes() == before


def test_receipt_of_an_earlier_entry_proves_nothing_new(
    service: SigningLabelService, client: LabelClient, tmp_path: Path
) -> None:
    """An old entry under a new head is older than the question."""
    client.query([5, 3], idempotency_key="first")
    service.fail(QUERY, edit(lambda answer: answer.update(receipt=service.log.receipt(3))))
    with pytest.raises(LogNotProved, match=r"entry 3 .* it is older than the question"):
        client.query([5, 3], idempotency_key="first")
    old = json.loads((tmp_path / RECEIPTS_FILE).read_text().splitlines()[1])["answer"]["receipt"]
    service.fail(QUERY, edit(lambda answer: answer.update(receipt=old)))
    with pytest.raises(LogNotProved, match="the log has shrunk from 4 entries to 3"):
        client.query([5, 3], idempotency_key="first")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            answer_json(404, {"code": "not-signed", "detail": "No such proof."}),
            "no proof that the log has grown",
        ),
        (answer_json(200, {"proof": []}), "entry 4 .* has no hashes|does not begin|too few hashes"),
        (answer_json(200, {"proof": ["x"]}), "not base64"),
    ],
)
def test_growth_without_a_proof_is_refused(client: LabelClient, service: Any, answer: Any, message: str) -> None:
    """No proof, an empty one, nonsense."""
    service.log.append(**GUEST)
    service.fail(CONSISTENCY, answer)
    with pytest.raises(LogNotProved, match=message):
        client.query([9], idempotency_key="second")


def answer_with_growth(change: Callable[[list[str]], object] = list) -> Fault:
    """Answer properly, with the proof that the log grew from the head that the client knows, but for a change."""

    def fault(handler: Handler) -> None:
        status, document = handler.fake.respond(handler)
        log = handler.fake.log  # type: ignore[attr-defined]  # the fake of this module signs
        proof = log.consistency(int(handler.headers["log-known-size"]), len(log.entries))["proof"]
        change(proof)
        handler.answer(status, document, log_consistency=", ".join(proof))

    return fault


def test_growth_that_an_answer_proves_is_not_asked_for(client: LabelClient, service: Any, tmp_path: Path) -> None:
    """The proof in the header is checked as the one asked for is, and spares the request."""
    asked = len(service.paths(CONSISTENCY))
    service.log.append(**GUEST)
    for path in (QUERY, EVALUATIONS, SEAL):
        service.fail(path, answer_with_growth())
    client.query([9], idempotency_key="second")
    client.evaluate("r1", [0] * 10, budget=2, idempotency_key="e")
    client.seal("r1")
    assert len(service.paths(CONSISTENCY)) == asked
    assert size_of(tmp_path) == len(service.log.entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (list[str].clear, "does not have 32 bytes"),
        (list[str].pop, "entry 4 .* too few hashes"),
        (list[str].reverse, "entry 4 .* does not begin"),
        (lambda proof: proof.append(proof[0]), "too many hashes"),
        (lambda proof: proof.append("x"), "not base64"),
    ],
)
def test_growth_that_an_answer_proves_wrongly_is_refused(
    client: LabelClient, service: Any, tmp_path: Path, change: Any, message: str
) -> None:
    """The log grew, and the header's proof is empty, cut, turned round, too long or nonsense."""
    service.log.append(**GUEST)
    service.fail(QUERY, answer_with_growth(change))
    with pytest.raises(LogNotProved, match=message):
        client.query([9], idempotency_key="second")
    assert size_of(tmp_path) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spent": 1}, "counts 1 queries, and the answer 2"),
        ({"charged": 1}, "charges 1 labels for an answer that was given before"),
        ({"ids": [3, 5]}, "other ids, or in another order"),
    ],
)
def test_lie_about_a_repeat_is_refused(
    service: SigningLabelService, client: LabelClient, changes: dict[str, Any], message: str
) -> None:
    """A repeat has the old counts, and its entry must fit them."""
    forge(**changes)(service)
    with pytest.raises(LogNotProved, match=message):
        client.query([5, 3], idempotency_key="first")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detail": {"correct": 8}}, "it has another result"),
        ({"detail": {}}, "it has another result"),
        ({"outcome": "replayed"}, "says evaluation replayed, and the answer was evaluation evaluated"),
        ({"charged": 1}, "it charges labels for an evaluation"),
        ({"run": "r2"}, "it is of run r2"),
    ],
)
def test_lie_about_an_evaluation_is_refused(
    service: SigningLabelService, client: LabelClient, changes: dict[str, Any], message: str
) -> None:
    """Correct, total, predictions and budget are those of the entry."""
    forge(**changes)(service)
    with pytest.raises(LogNotProved, match=message):
        client.evaluate("r1", [0] * 10, budget=2, idempotency_key="e")


def test_repeated_evaluation_with_another_result_is_refused(service: SigningLabelService, client: LabelClient) -> None:
    """The entry of a repeat has the first result again."""
    client.evaluate("r1", [0] * 10, idempotency_key="e")
    service.fail(EVALUATIONS, edit(lambda answer: answer.update(correct=10, accuracy=1.0)))
    with pytest.raises(LogNotProved, match="it has another result"):
        client.evaluate("r1", [0] * 10, idempotency_key="e")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda answer: answer.pop("receipt"), "the entry after number 2 .* its receipt is missing"),
        (change_receipt(checkpoint="x"), "not a signed note"),
        (change_receipt(inclusion_proof=[]), "too few hashes"),
        (space_out, "entry 3 .* is not in the tree"),
    ],
)
def test_seal_that_its_receipt_does_not_prove_is_refused(
    service: SigningLabelService, client: LabelClient, change: Callable[..., None], message: str
) -> None:
    """Missing, not signed, cut or edited."""
    service.fail(SEAL, edit(change))
    with pytest.raises(LogNotProved, match=message):
        client.seal("r1")


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (fork, "the log of 4 entries does not begin with the log of 3"),
        (shrink, "the log has shrunk from 3 entries to 2"),
        (forge(charged=1), "charges labels for the end of the run"),
        (forge(spent=3), "it counts 3 labels charged to the run before, and 2 were witnessed"),
        (forge(spent=1), "it counts 1 labels charged to the run before, and 2 were witnessed"),
        (forge(op="query"), "says query sealed, and the answer was run-sealed sealed"),
        (forge(run="r2"), "it is of run r2"),
        (forge(label_commitment="x"), "another answer key"),
    ],
)
def test_seal_of_another_history_is_refused(
    service: SigningLabelService, client: LabelClient, lie: Callable[..., None], message: str
) -> None:
    """Signed by the right key, and still another history."""
    lie(service)
    with pytest.raises(LogNotProved, match=message):
        client.seal("r1")


@pytest.mark.parametrize("question", ["query", "evaluation", "seal"])
def test_labels_charged_behind_the_trainer_are_found(
    service: SigningLabelService, client: LabelClient, question: str
) -> None:
    """Each entry counts on from the one before, so a charge in between shows whatever comes next."""
    service.charged_ids.append(40)
    with pytest.raises(LogNotProved, match="it counts 3 labels charged to the run before, and 2 were witnessed"):
        if question == "query":
            client.query([9], idempotency_key="second")
        elif question == "evaluation":
            client.evaluate("r1", [0] * 10, idempotency_key="e")
        else:
            client.seal("r1")


def test_run_can_be_sealed_again(service: SigningLabelService, client: LabelClient) -> None:
    """After a crash the first seal comes back, which is older than the newest head."""
    client.seal("r1")
    first = service.log.receipt(3)
    service.log.append(**GUEST)
    service.fail(SEAL, edit(lambda answer: answer.update(receipt=first | service.log.receipt(3))))
    client.seal("r1")


def test_file_of_a_former_version_goes_on(service: SigningLabelService, client: LabelClient, tmp_path: Path) -> None:
    """Without the count it takes up the next entry's."""
    state = state_of(tmp_path)
    del state["spent"]
    (tmp_path / WITNESS_FILE).write_text(json.dumps(state))
    with client_of(service, tmp_path, token=TOKEN) as again:
        again.query([9], idempotency_key="second")
    assert state_of(tmp_path)["spent"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "r2"}, "it opens the run r2, and the answer says r1"),
        ({"budget": 21}, "it gives the run 21 labels, and 20 were asked for"),
        ({"spent": 1}, "charges labels to a run that has asked for none"),
        ({"detail": {"name": "other", "evaluation_budgets": []}}, "under another name or with other evaluations"),
        ({"op": "query"}, "says query, and a run was opened"),
        ({"label_commitment": "AA=="}, "32 bytes"),
    ],
)
def test_opening_that_is_not_as_asked_is_refused(
    service: SigningLabelService, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """No run is begun on it, and its token is in no file."""
    forge(**changes)(service)
    with client_of(service, tmp_path) as client:
        with pytest.raises(LogNotProved, match=message):
            client.open_run("test", 20)
        with pytest.raises(ResumeError, match="does not hold the opening of this run"):
            client.query([1], idempotency_key="a")
    assert TOKEN not in "".join(path.read_text() for path in tmp_path.iterdir())
    assert service.charged_ids == []


def test_another_key_is_refused_before_a_label_is_charged(
    service: SigningLabelService, client: LabelClient, tmp_path: Path
) -> None:
    """A resumed run asks for the key first."""
    service.log.signer = STRANGER
    charged = list(service.charged_ids)
    with (
        client_of(service, tmp_path, token=TOKEN) as again,
        pytest.raises(LogNotProved, match=r"log key .* is refused: it is not the one pinned before"),
    ):
        again.query([9], idempotency_key="second")
    assert service.charged_ids == charged


def test_key_from_elsewhere_is_believed_instead_of_the_first_one_seen(
    service: SigningLabelService, tmp_path: Path
) -> None:
    """`--log-key` of another log opens no run; the right one does; later another one is refused."""
    with (
        client_of(service, tmp_path, STRANGER.verifier.vkey) as client,
        pytest.raises(LogNotProved, match="this is another log"),
    ):
        client.open_run("test", 20)
    assert service.paths("/v1/runs") == []
    with client_of(service, tmp_path, service.log.signer.verifier.vkey + "\n") as client:
        client.open_run("test", 20)
    with pytest.raises(ResumeError, match="has pinned another log key"):
        Witness(tmp_path, STRANGER.verifier.vkey)
    with pytest.raises(ConfigError, match="--log-key is not a log's key"):
        Witness(tmp_path, "nonsense")


def test_served_key_that_is_none_is_refused(service: SigningLabelService, tmp_path: Path) -> None:
    """A service that cannot say its key opens no run."""
    service.fail(KEY, answer_json(200, {"key": "nonsense"}))
    with client_of(service, tmp_path) as client, pytest.raises(LogNotProved, match="NAME"):
        client.open_run("test", 20)


def test_second_opening_must_commit_to_the_same_answer_key(service: SigningLabelService, tmp_path: Path) -> None:
    """A run whose token was lost in a crash is followed by another, not by another answer key."""
    with client_of(service, tmp_path) as client:
        client.open_run("test", 20)
    with client_of(service, tmp_path) as client:
        client.open_run("test", 20)
        commit_anew(service)
        with pytest.raises(LogNotProved, match="another answer key than the run opened before"):
            client.open_run("test", 20)


@pytest.mark.parametrize("content", [b"{", b'{"key": "x"}', b"\xff", b'{"key": "KEY", "checkpoint": "edited"}'])
def test_damaged_file_is_named(service: SigningLabelService, tmp_path: Path, content: bytes) -> None:
    """What was witnessed is not guessed at."""
    vkey = service.log.signer.verifier.vkey.encode()
    (tmp_path / WITNESS_FILE).write_bytes(content.replace(b"KEY", vkey))
    with pytest.raises(DataError, match=WITNESS_FILE):
        Witness(tmp_path)


def test_a_run_goes_on_over_a_replaced_key(service: SigningLabelService, client: LabelClient, tmp_path: Path) -> None:
    """While it runs, and resumed with the old key, the new one or none; the file has the pinned key and the chain."""
    old = service.log.signer.verifier.vkey
    service.log.rotate()
    assert [label.id for label in client.query([7, 8], idempotency_key="b").labels] == [7, 8]
    service.log.rotate()
    client.query([20], idempotency_key="c")
    for number, log_key in enumerate((old, None, service.log.signer.verifier.vkey)):
        with client_of(service, tmp_path, log_key, token=TOKEN) as again:
            again.query([10 + number], idempotency_key=f"later-{number}")
    state = state_of(tmp_path)
    assert (state["key"], state["rotations"]) == (old, service.log.rotations)
    with client_of(service, tmp_path, token=TOKEN) as last:
        last.evaluate("r1", [0] * 10, budget=2, idempotency_key="e")
        last.seal("r1")
    assert not (tmp_path / REFUSED_FILE).exists()


def test_a_new_run_follows_the_key_that_was_given(service: SigningLabelService, tmp_path: Path) -> None:
    """Keys before a pinned one are not its word, so they are not looked at."""
    old = service.log.signer.verifier.vkey
    service.log.rotate()
    middle = service.log.signer.verifier.vkey
    service.log.rotate()
    for name, log_key, count in (("a", old, 2), ("b", middle, 1), ("c", None, 0)):
        (tmp_path / name).mkdir()
        with client_of(service, tmp_path / name, log_key) as client:
            client.open_run("test", 20)
        assert len(state_of(tmp_path / name)["rotations"]) == count


@pytest.mark.parametrize("told", ["by a stranger", "not at all", "of another key", "as malformed"])
def test_a_key_that_the_old_one_has_not_signed_is_refused(
    service: SigningLabelService, client: LabelClient, tmp_path: Path, told: str
) -> None:
    """Nothing is learned from an answer under it, and what was witnessed stays."""
    before = (tmp_path / WITNESS_FILE).read_bytes()
    service.log.rotate(old=STRANGER)
    if told == "not at all":
        service.log.rotations.clear()
    elif told == "of another key":
        service.log.rotations[0]["old_key"] = STRANGER.verifier.vkey
    elif told == "as malformed":
        service.log.rotations[0]["statement"] = "x"
    with pytest.raises(LogNotProved, match="is refused"):
        client.query([7], idempotency_key="b")
    assert (tmp_path / WITNESS_FILE).read_bytes() == before
    assert (tmp_path / REFUSED_FILE).exists()


def test_the_old_key_signs_no_head_over_its_replacement(
    service: SigningLabelService, client: LabelClient, tmp_path: Path
) -> None:
    """Who stole it can go on with no history in which it was replaced."""
    old = service.log.signer
    service.log.rotate()
    client.query([7], idempotency_key="b")
    service.log.signer = old
    with pytest.raises(LogNotProved, match="signed by a key that was replaced at entry 3"):
        client.query([8], idempotency_key="c")

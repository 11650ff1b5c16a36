"""What a receipt must prove and say: pure checks of one answer against its question. Nothing is remembered here.

A receipt holds the exact text of a log entry, its number, an inclusion proof, and the signed head that the proof leads
to. The entry must say what was asked and answered; each revealed label must open the commitment to the answer key,
whose leaf is the canonical JSON of id, label and salt. A refusal is a `LogProofError`, a clause about "it", the entry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import Field, JsonValue, ValidationError

from trainer.oracle.answers import Answer, Count, Evaluation, OpenedRun, QueryAnswer, RevealedLabel
from trainer.oracle.log_proofs import Checkpoint, LogKey, LogProofError, decode_hash, leaf_hash, verify_inclusion

_SALT = r"^[0-9a-f]{64}$"

A = TypeVar("A", bound=Answer)


class Receipt(Answer):
    """The proof of one entry, as the service answers it."""

    entry: str
    index: Count
    inclusion_proof: list[str]
    checkpoint: str


class LabelOpening(Answer):
    """What opens the commitment to one label: its leaf's salt and its inclusion proof."""

    salt: Annotated[str, Field(pattern=_SALT)]
    proof: list[str]


class Entry(Answer):
    """An entry of the log, of the one version that binds the answer key."""

    v: Literal[2]
    seq: Count
    run: str
    op: str
    ids: list[int]
    outcome: str
    charged: Count
    spent: Count
    budget: Count
    label_commitment: str
    detail: dict[str, JsonValue] = Field(default_factory=dict)


@dataclass(frozen=True)
class ProvedEntry:
    """An entry that is in the log, the head under which that was proved, and the hashes that proved it."""

    entry: Entry
    head: Checkpoint
    proof: tuple[bytes, ...]


@dataclass(frozen=True)
class WitnessedRun:
    """What the opening of a run fixed, before any query.

    Attributes:
        run_id: The run.
        budget: Labels it may be charged.
        label_commitment: Root of the answer key, base64.
        pool_size: Leaves of the answer key.
    """

    run_id: str
    budget: int
    label_commitment: str
    pool_size: int


def index_of(receipt: object) -> int | None:
    """Return the entry number that a receipt names, None where it names none."""
    index = receipt.get("index") if isinstance(receipt, dict) else None
    return index if type(index) is int else None


def prove(receipt: JsonValue, key: LogKey) -> ProvedEntry:
    """Check that a receipt's entry is in a log that the key has signed."""
    if receipt is None:
        raise LogProofError("its receipt is missing")
    given = read(Receipt, receipt, "its receipt")
    head = Checkpoint.open(given.checkpoint, key)
    proof = tuple(decode_hash(one) for one in given.inclusion_proof)
    verify_inclusion(leaf_hash(bytes_of(given.entry)), given.index, head.size, proof, head.root)
    entry = read_entry(given.entry)
    require(entry.seq == given.index, f"it is numbered {entry.seq}, and its receipt proves number {given.index}")
    return ProvedEntry(entry, head, proof)


def check_opening(
    entry: Entry, answer: OpenedRun, name: str, budget: int, evaluation_budgets: Sequence[int]
) -> WitnessedRun:
    """Check that an entry opens the run that was answered, as it was asked for."""
    require((entry.op, entry.outcome) == ("run-opened", "opened"), f"it says {entry.op}, and a run was opened")
    require(entry.run == answer.run_id, f"it opens the run {entry.run}, and the answer says {answer.run_id}")
    require(entry.budget == budget, f"it gives the run {entry.budget} labels, and {budget} were asked for")
    require((entry.charged, entry.spent) == (0, 0), "it charges labels to a run that has asked for none")
    said = entry.detail.get("name"), entry.detail.get("evaluation_budgets")
    require(said == (name, list(evaluation_budgets)), "it opens the run under another name or with other evaluations")
    decode_hash(entry.label_commitment)
    return WitnessedRun(entry.run, budget, entry.label_commitment, answer.dataset.pool_size)


def check_query(entry: Entry, run: WitnessedRun, asked: Sequence[int], answer: QueryAnswer) -> None:
    """Check that an entry logs a query as it was asked and answered, and that each label is the one committed to.

    A repeat is answered with the counts of the first answer, whose entry came before; its own entry charges nothing and
    counts what the run has spent by now.
    """
    _check_run(entry, run, "query", "replayed" if answer.replayed else "revealed")
    require(entry.ids == list(asked), "it names other ids, or in another order, than were asked for")
    require(answer.run_id == run.run_id, f"the answer is of run {answer.run_id}, and {run.run_id} asked")
    if answer.replayed:
        require(entry.charged == 0, f"it charges {entry.charged} labels for an answer that was given before")
        require(answer.queries <= entry.spent, f"it counts {entry.spent} queries, and the answer {answer.queries}")
    else:
        said, told = (entry.charged, entry.spent), (answer.charged, answer.queries)
        require(said == told, f"it charges {said[0]} labels of {said[1]} in all, and the answer {told[0]} of {told[1]}")
    left = max(0, run.budget - answer.queries)
    require(answer.remaining == left, f"{left} labels are left of the budget, and the answer says {answer.remaining}")
    check_labels(answer.labels, run)


def check_labels(labels: Iterable[RevealedLabel], run: WitnessedRun) -> None:
    """Check that each label opens the commitment that was made before the first query."""
    root = decode_hash(run.label_commitment)
    for label in labels:
        if label.opening is None:
            raise LogProofError(f"the label of image {label.id} came without its opening")
        opening = read(LabelOpening, label.opening, f"the opening of image {label.id}")
        leaf = _canonical({"id": label.id, "label": label.label, "salt": opening.salt})
        try:
            proof = [decode_hash(one) for one in opening.proof]
            verify_inclusion(leaf_hash(leaf), label.id, run.pool_size, proof, root)
        except LogProofError as error:
            raise LogProofError(
                f"the label of image {label.id} is not the one committed to before the first query: {error}"
            ) from error


def check_evaluation(
    entry: Entry, run: WitnessedRun, predictions: Sequence[int], budget: int | None, answer: Evaluation
) -> None:
    """Check that an entry logs an evaluation as it was asked and answered.

    The entry of a repeat does not tell the result again: `check_evidence` finds it in the first one.
    """
    _check_run(entry, run, "evaluation", "replayed" if answer.replayed else "evaluated")
    require((entry.ids, entry.charged) == ([], 0), "it charges labels for an evaluation")
    if not answer.replayed:
        require(
            tells_evaluation(entry, predictions, budget, answer),
            "it says another result, other predictions or another budget than the evaluation's",
        )


def _check_run(entry: Entry, run: WitnessedRun, op: str, outcome: str) -> None:
    """Check what every entry of a run says, and that it binds the answer key of the run's opening."""
    require(entry.run == run.run_id, f"it is of run {entry.run}, and {run.run_id} asked")
    said = f"it says {entry.op} {entry.outcome}, and the answer was {op} {outcome}"
    require((entry.op, entry.outcome) == (op, outcome), said)
    require(entry.budget == run.budget, f"it says a budget of {entry.budget}, and the run was opened with {run.budget}")
    require(entry.label_commitment == run.label_commitment, "it commits to another answer key than the run's opening")


def tells_evaluation(entry: Entry, predictions: Sequence[int], budget: int | None, answer: Evaluation) -> bool:
    """Tell whether an entry says the result of an evaluation, of these very predictions."""
    told = {
        "correct": answer.correct,
        "total": answer.total,
        "evaluated_budget": budget,
        "predictions_sha256": hashlib.sha256(_canonical(list(predictions))).hexdigest(),
    }
    return entry.outcome == "evaluated" and told.items() <= entry.detail.items()


def read_entry(text: str) -> Entry:
    """Read an entry that is written in the one way there is, so that nobody can read it otherwise."""
    try:
        canonical = _canonical(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise LogProofError("it is not JSON") from error
    require(canonical == bytes_of(text), "it is not written in canonical form")
    return read(Entry, json.loads(text), "it")


def read(model: type[A], value: JsonValue, name: str) -> A:
    """Read a part of an answer as its model; `name` is what the sentence calls it."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise LogProofError(f"{name} is not of the form this trainer reads ({place}: {first['msg']})") from None


def _canonical(value: JsonValue) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def bytes_of(text: str) -> bytes:
    """Return the bytes of an entry, which are ASCII."""
    try:
        return text.encode("ascii")
    except UnicodeEncodeError as error:
        raise LogProofError("it is not ASCII") from error


def require(holds: bool, otherwise: str) -> None:
    """Refuse what does not hold, with the clause that says so."""
    if not holds:
        raise LogProofError(otherwise)

"""What a receipt must prove: pure checks of log entries against questions and answers. Nothing is remembered here.

A receipt holds the exact text of a log entry, its number, an inclusion proof, and the signed tree head that the proof
leads to. The entry must agree with the question and the answer. Each revealed label must open the commitment to the
answer key, whose leaf is the canonical JSON of id, label and salt. A failed check raises `LogProofError`. Its message
is completed by the witness ("entry 7 of the log is refused: it ..."), so "it" is the entry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import FailFast, Field, JsonValue, ValidationError

from trainer.errors import first_mistake
from trainer.oracle.answers import A, Answer, Count, Evaluation, OpenedRun, QueryAnswer, RevealedLabel
from trainer.oracle.log_keys import LogKeys
from trainer.oracle.log_proofs import (
    LogProofError,
    TreeHead,
    decode_hash,
    leaf_hash,
    verify_inclusion,
)

_SALT = r"^[0-9a-f]{64}$"


class Receipt(Answer):
    """The proof of one entry."""

    entry: str
    index: Count
    inclusion_proof: Annotated[list[str], FailFast()]
    checkpoint: str


class LabelOpening(Answer):
    """What opens the commitment to one label: its leaf's salt and its inclusion proof."""

    salt: Annotated[str, Field(pattern=_SALT)]
    proof: Annotated[list[str], FailFast()]


class Entry(Answer):
    """An entry of the log, in the one version that names the commitment to the answer key."""

    v: Literal[2]
    seq: Count
    run: str
    op: str
    ids: Annotated[list[int], FailFast()]
    outcome: str
    charged: Count
    spent: Count
    budget: Count
    label_commitment: str
    detail: dict[str, JsonValue] = Field(default_factory=dict)


@dataclass(frozen=True)
class RunTerms:
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
    """Return the entry number in a receipt that may be malformed, None where there is none."""
    index = receipt.get("index") if isinstance(receipt, dict) else None
    return index if type(index) is int else None


def prove(receipt: JsonValue, keys: LogKeys) -> tuple[Entry, TreeHead]:
    """Check that a receipt's entry is in a log that its keys have signed; return the entry and the tree head."""
    if receipt is None:
        raise LogProofError("its receipt is missing")
    given = _read(Receipt, receipt, "its receipt")
    head = keys.open(given.checkpoint)
    proof = [decode_hash(sibling) for sibling in given.inclusion_proof]
    verify_inclusion(leaf_hash(_bytes_of(given.entry)), given.index, head.size, proof, head.root)
    entry = _read_entry(given.entry)
    require(entry.seq == given.index, f"it is numbered {entry.seq}, and its receipt proves number {given.index}")
    return entry, head


def check_opening_entry(
    entry: Entry, answer: OpenedRun, name: str, budget: int, evaluation_budgets: Sequence[int]
) -> RunTerms:
    """Check that an entry opens the run of the answer, as requested; return its terms."""
    require((entry.op, entry.outcome) == ("run-opened", "opened"), f"it says {entry.op}, and a run was opened")
    require(entry.run == answer.run_id, f"it opens the run {entry.run}, and the answer says {answer.run_id}")
    require(entry.budget == budget, f"it gives the run {entry.budget} labels, and {budget} were asked for")
    require((entry.charged, entry.spent) == (0, 0), "it charges labels to a run that has asked for none")
    logged = entry.detail.get("name"), entry.detail.get("evaluation_budgets")
    require(logged == (name, list(evaluation_budgets)), "it opens the run under another name or with other evaluations")
    decode_hash(entry.label_commitment)
    pool_size = answer.dataset.pool_size
    logged_size = entry.detail.get("pool_size", pool_size)
    require(logged_size == pool_size, f"it says a pool of {logged_size} labels, and the answer says {pool_size}")
    return RunTerms(entry.run, budget, entry.label_commitment, pool_size)


def check_query_entry(
    entry: Entry, run: RunTerms, asked: Sequence[int], answer: QueryAnswer, spent_before: int | None
) -> None:
    """Check that an entry logs a query and its answer, and that each label is the one committed to.

    A repeated query gets the counts of its first answer. The entry of the repeat charges nothing and counts the labels
    spent by now.

    Args:
        entry: The entry.
        run: What the opening of the run fixed.
        asked: The ids of the query.
        answer: Its answer.
        spent_before: Labels charged to the run by its newest witnessed entry; None where that is not known.
    """
    _check_run(entry, run, "query", "replayed" if answer.replayed else "revealed")
    require(entry.ids == list(asked), "it names other ids, or in another order, than were asked for")
    require(answer.run_id == run.run_id, f"the answer is of run {answer.run_id}, and {run.run_id} asked")
    if answer.replayed:
        require(entry.charged == 0, f"it charges {entry.charged} labels for an answer that was given before")
        require(answer.queries <= entry.spent, f"it counts {entry.spent} queries, and the answer {answer.queries}")
    else:
        require(
            (entry.charged, entry.spent) == (answer.charged, answer.queries),
            f"it charges {entry.charged} labels of {entry.spent} in all, and the answer {answer.charged} of "
            f"{answer.queries}",
        )
    # The first answer of a repeated query may have been lost, and with it the labels that it charged.
    lost = answer.charged if answer.replayed and answer.queries == entry.spent else 0
    _check_spent(entry, spent_before, lost)
    left = max(0, run.budget - answer.queries)
    require(answer.remaining == left, f"{left} labels are left of the budget, and the answer says {answer.remaining}")
    _check_labels(answer.labels, run)


def _check_labels(labels: Iterable[RevealedLabel], run: RunTerms) -> None:
    """Check that each label opens the commitment that was made before the first query."""
    root = decode_hash(run.label_commitment)
    for label in labels:
        if label.opening is None:
            raise LogProofError(f"the label of image {label.id} came without its opening")
        opening = _read(LabelOpening, label.opening, f"the opening of image {label.id}")
        leaf = _canonical({"id": label.id, "label": label.label, "salt": opening.salt})
        try:
            proof = [decode_hash(sibling) for sibling in opening.proof]
            verify_inclusion(leaf_hash(leaf), label.id, run.pool_size, proof, root)
        except LogProofError as error:
            raise LogProofError(
                f"the label of image {label.id} is not the one committed to before the first query: {error}"
            ) from error


def evaluation_detail(predictions: Sequence[int], budget: int | None, answer: Evaluation) -> dict[str, JsonValue]:
    """Return the detail of an evaluation's log entry: its result, budget and predictions."""
    return {
        "correct": answer.correct,
        "total": answer.total,
        "evaluated_budget": budget,
        "predictions_sha256": hashlib.sha256(_canonical(list(predictions))).hexdigest(),
    }


def check_evaluation_entry(
    entry: Entry, run: RunTerms, detail: Mapping[str, JsonValue], spent_before: int | None, *, replayed: bool
) -> None:
    """Check that an entry logs an evaluation and its answer. The entry of a repeat has the first result again."""
    _check_run(entry, run, "evaluation", "replayed" if replayed else "evaluated")
    require((entry.ids, entry.charged) == ([], 0), "it charges labels for an evaluation")
    _check_spent(entry, spent_before)
    require(
        detail.items() <= entry.detail.items(),
        "it has another result, other predictions or another budget of evaluation",
    )


def check_seal_entry(entry: Entry, run: RunTerms, spent_before: int | None) -> None:
    """Check that an entry ends the run, and that no label was charged to it which was not witnessed."""
    _check_run(entry, run, "run-sealed", "sealed")
    require((entry.ids, entry.charged) == ([], 0), "it charges labels for the end of the run")
    _check_spent(entry, spent_before)


def require(holds: bool, otherwise: str) -> None:
    """Raise `LogProofError` with a clause unless a condition holds."""
    if not holds:
        raise LogProofError(otherwise)


def require_growth(former: TreeHead, head: TreeHead) -> None:
    """Refuse a log that has become shorter."""
    require(head.size >= former.size, f"the log has shrunk from {former.size} entries to {head.size}")


def _check_run(entry: Entry, run: RunTerms, op: str, outcome: str) -> None:
    """Check the run, operation, outcome, budget and commitment of an entry."""
    require(entry.run == run.run_id, f"it is of run {entry.run}, and {run.run_id} asked")
    require(
        (entry.op, entry.outcome) == (op, outcome),
        f"it says {entry.op} {entry.outcome}, and the answer was {op} {outcome}",
    )
    require(entry.budget == run.budget, f"it says a budget of {entry.budget}, and the run was opened with {run.budget}")
    require(entry.label_commitment == run.label_commitment, "it commits to another answer key than the run's opening")


def _check_spent(entry: Entry, spent_before: int | None, lost: int = 0) -> None:
    """Check that the count of the run goes on from its newest witnessed entry, so that no entry in between is hidden.

    Args:
        entry: The entry.
        spent_before: Labels charged to the run by its newest witnessed entry; None where that is not known.
        lost: Labels that an answer charged which never arrived.
    """
    started = entry.spent - entry.charged
    require(
        spent_before is None or started in (spent_before, spent_before + lost),
        f"it counts {started} labels charged to the run before, and {spent_before} were witnessed",
    )


def _read_entry(text: str) -> Entry:
    """Read an entry, which must be in canonical form, so that its text has one reading only."""
    try:
        value: JsonValue = json.loads(text)
        canonical = _canonical(value)
    except (ValueError, RecursionError) as error:
        raise LogProofError("it is not JSON") from error
    require(canonical == _bytes_of(text), "it is not written in canonical form")
    return _read(Entry, value, "it")


def _read(model: type[A], value: JsonValue, name: str) -> A:
    """Read a part of an answer as its model; `name` is its name in the message."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise LogProofError(f"{name} is not of the form this trainer reads ({first_mistake(error)})") from None


def _canonical(value: JsonValue) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def _bytes_of(text: str) -> bytes:
    """Return the bytes of an entry, which are ASCII."""
    try:
        return text.encode("ascii")
    except UnicodeEncodeError as error:
        raise LogProofError("it is not ASCII") from error

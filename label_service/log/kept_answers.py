"""The answers that a client kept, compared with the log: what each says must be what its entry says.

A receipt proves an entry. It says nothing for an answer that tells something else than the entry, so every field that
follows from the log is compared. `docs/verifying.md` lists the fields that are not.
"""

import json
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from label_service.log.account import Account, RunAccount
from label_service.log.evidence import LabelOpening, OpenedLabel, Receipt, label_leaf
from label_service.log.merkle import VerificationError, leaf_hash, verify_inclusion
from label_service.log.signed_note import decode_base64


class KeptLabel(OpenedLabel):
    """One label of an answer."""

    model_config = ConfigDict(strict=True, extra="allow")

    charged: bool


class KeptAnswer(BaseModel):
    """An answer with a receipt. The fields that this model does not name are compared by `check_answer`."""

    model_config = ConfigDict(strict=True, extra="allow")

    receipt: Receipt
    labels: list[KeptLabel] | None = None
    # An answer about a single label has these fields in place of `labels`; `charged` is then a yes or no.
    id: int | None = None
    label: int | None = None
    opening: LabelOpening | None = None
    charged: bool | int | None = None

    @property
    def opened_labels(self) -> list[KeptLabel]:
        """Every label of the answer."""
        if self.labels is not None or self.id is None or self.label is None or self.opening is None:
            return self.labels or []
        return [KeptLabel(id=self.id, label=self.label, opening=self.opening, charged=self.charged is True)]


def parse_json(data: bytes | str) -> Any:  # noqa: ANN401 - any JSON value
    """Parse JSON that has one reading only: no name twice in an object, no NaN.

    Raises:
        ValueError: it is something else, or nested too deeply.
    """
    try:
        return json.loads(data, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_receipts(path: Path) -> list[KeptAnswer]:
    """Read the answers in a trainer's receipts.jsonl.

    Raises:
        VerificationError: the file cannot be read or is empty, or one of its lines is not an answer with a receipt.
    """
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise VerificationError(f"{path} cannot be read ({getattr(error, 'strerror', 'not text')})") from error
    if lines == [""]:
        raise VerificationError(f"{path} holds no receipt")
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            kept.append(KeptAnswer.model_validate(parse_json(line)["answer"]))
        except (ValidationError, ValueError, KeyError, TypeError) as error:
            raise VerificationError(f"line {number} of {path} is not an answer of the service") from error
    return kept


Charges = Mapping[int, frozenset[int]]


def find_charges(entries: Iterable[bytes], runs: Container[str]) -> dict[str, Charges]:
    """Find the ids that each entry charged to its run, by the count of labels charged to the run by then.

    Args:
        entries: of an audited log.
        runs: the ids of the runs to look at.
    """
    charges: dict[str, dict[int, frozenset[int]]] = {}
    revealed: dict[str, set[int]] = {}
    for data in entries:
        if b'"outcome":"revealed"' in data and (entry := json.loads(data))["run"] in runs:
            known = revealed.setdefault(entry["run"], set())
            charges.setdefault(entry["run"], {})[entry["spent"]] = frozenset(entry["ids"]) - known
            known.update(entry["ids"])
    return dict(charges)


def check_answer(
    answer: KeptAnswer, entry: Mapping[str, Any], account: Account, charges: Charges, pool_size: int
) -> set[int]:
    """Compare an answer with its entry, and open the commitment for its labels.

    Args:
        answer: the answer.
        entry: its entry, which is in the audited log.
        account: what the log adds up to.
        charges: of the entry's run.
        pool_size: leaves of the answer key.

    Returns:
        The ids of its labels.

    Raises:
        VerificationError: the answer says something else than the log.
    """
    run = account.runs[entry["run"]]
    if entry["op"] == "query":
        _check_query(answer, entry, charges)
        _check_labels(answer, account.label_commitment, pool_size)
    elif answer.opened_labels:
        raise VerificationError(f"entry {entry['seq']}: its answer has labels, and it reveals none")
    said = answer.model_extra or {}
    for name, value in _expected(entry, run, said).items():
        if name not in said or not _is_same(said[name], value):
            raise VerificationError(f"entry {entry['seq']}: its answer has another {name} than the log")
    dataset = said.get("dataset")
    if entry["op"] == "run-opened" and not (
        isinstance(dataset, dict) and _is_same(dataset.get("pool_size"), pool_size)
    ):
        raise VerificationError(f"entry {entry['seq']}: its answer has another pool size than the bundle")
    return {label.id for label in answer.opened_labels}


def _check_query(answer: KeptAnswer, entry: Mapping[str, Any], charges: Charges) -> None:
    """Check that the labels of an answer are those its entry names and charges for."""
    labels, seq = answer.opened_labels, entry["seq"]
    if entry["outcome"] not in ("revealed", "replayed") or not labels:
        raise VerificationError(f"entry {seq}: its answer has no labels with their openings")
    if [label.id for label in labels] != entry["ids"]:
        raise VerificationError(f"entry {seq}: the labels of its answer are not those it was charged for")
    marked = frozenset(label.id for label in labels if label.charged)
    # A repeated request marks what its first answer charged, and gets the count of that.
    queries = (answer.model_extra or {}).get("queries")
    charged = marked
    if marked or entry["charged"]:
        charged = charges.get(queries, frozenset()) if type(queries) is int else frozenset()
    told: object = len(marked) if answer.labels is not None else bool(marked)
    if marked != charged or not _is_same(answer.charged, told):
        raise VerificationError(f"entry {seq}: its answer has another charged than the log")


def _expected(entry: Mapping[str, Any], run: RunAccount, said: Mapping[str, Any]) -> dict[str, object]:
    """Return what the answer of an entry must say by the log, by field."""
    spent, budget, op, outcome = entry["spent"], entry["budget"], entry["op"], entry["outcome"]
    expected: dict[str, object] = {"run_id": entry["run"]}
    if op == "query":
        queries = said.get("queries")
        # A repeated request gets the counts of its first answer.
        if outcome == "replayed" and type(queries) is int and 0 <= queries <= spent:
            spent = queries
        return expected | {
            "queries": spent, "remaining": max(0, budget - spent), "replayed": outcome == "replayed",
        }  # fmt: skip
    allowed = {"evaluations_allowed": run.evaluations_allowed}
    if op == "evaluation":
        # The entries of former versions repeat an evaluation without its result.
        result = _result_of(entry) or next(
            (made for made in run.results if _is_same(said.get("evaluation"), made["evaluation"])), None
        )
        used = None if result is None else result["evaluation"]
        told = {"evaluations_used": used, "replayed": outcome == "replayed"}
        return expected | allowed | told | _told_of(result or {})
    sealed = op == "run-sealed"
    results = run.results if sealed else []
    return expected | allowed | {
        "name": run.name, "budget": budget, "queries": spent, "remaining": max(0, budget - spent),
        "evaluation_budgets": list(run.evaluation_budgets), "evaluations_used": len(results),
        "evaluations": [_told_of(result) for result in results], "querying_closed": sealed,
    }  # fmt: skip


def _result_of(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the result that the entry of an evaluation has; a refused one has none, but may have a clock set back."""
    detail: Mapping[str, Any] = entry.get("detail") or {}
    return detail if "evaluation" in detail else None


def _told_of(result: Mapping[str, Any]) -> dict[str, object]:
    """Return what an answer tells of an evaluation."""
    correct, total = result.get("correct"), result.get("total")
    accuracy = correct / total if correct is not None and total else None
    return {
        "evaluation": result.get("evaluation"), "budget": result.get("evaluated_budget"), "correct": correct,
        "total": total, "accuracy": accuracy,
    }  # fmt: skip


def _is_same(said: object, value: object) -> bool:
    """Return whether two JSON values are the same; 1 is not true, and 1.0 is 1 where a fraction is expected."""
    if isinstance(value, float):
        return type(said) in (int, float) and said == value
    if isinstance(value, dict):
        return isinstance(said, dict) and said.keys() == value.keys() and all(
            _is_same(said[name], value[name]) for name in value
        )  # fmt: skip
    if isinstance(value, list):
        return (
            isinstance(said, list)
            and len(said) == len(value)
            and all(_is_same(one_said, one_value) for one_said, one_value in zip(said, value, strict=True))
        )
    return type(said) is type(value) and said == value


def _check_labels(answer: KeptAnswer, commitment: str | None, pool_size: int) -> None:
    """Check that each label of an answer is the one committed to.

    Raises:
        VerificationError: it is not.
    """
    seq = answer.receipt.index
    if commitment is None:
        raise VerificationError(f"entry {seq}: its labels come with proofs, but the log commits to no labels")
    answer_root = decode_base64(commitment, "the commitment to the answer key")
    for label in answer.opened_labels:
        leaf = leaf_hash(label_leaf(label.id, label.label, label.opening.salt))
        try:
            proof = [decode_base64(text, "a hash of the opening") for text in label.opening.proof]
            verify_inclusion(leaf, label.id, pool_size, proof, answer_root)
        except VerificationError as error:
            raise VerificationError(f"entry {seq}: label {label.id} is not the one committed to ({error})") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return members


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")

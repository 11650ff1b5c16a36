"""Offline verification of an evidence bundle: no database, no network, no label.

From the bundle and the pinned key alone: the head is signed by that key, the entries have its root, and each entry
follows from those before it under the rules of the log. With the receipts that a client kept: the history is the one
the client was shown, so that a fork, a restored backup or a cut tail is found even if whoever made it holds the key.
"""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from label_service.checkpoint import Checkpoint, Verifier
from label_service.entries import DONE, ENTRY_VERSION, canonical_json
from label_service.merkle import MerkleTree, VerificationError, leaf_hash, verify_inclusion
from label_service.schemas import Evidence, Receipt
from label_service.signed_log import ORIGIN_PREFIX

_FIELDS = frozenset(
    ("v", "seq", "ts", "log_id", "run", "op", "ids", "outcome", "charged", "spent", "budget", "request_id")
)
# What each kind of entry may say was done, and the count that its detail must have.
_OUTCOMES = {
    "run-opened": ("opened",),
    "run-sealed": ("sealed",),
    "budget-changed": ("changed",),
    "query": ("revealed", "replayed"),
    "evaluation": ("evaluated", "replayed"),
}
_DETAIL = {"opened": "evaluations_allowed", "changed": "previous_budget", "evaluated": "evaluation"}


@dataclass
class RunAccount:
    """What the entries of one run add up to."""

    budget: int
    evaluations_allowed: int
    labels: set[int] = field(default_factory=set)
    queries: int = 0
    replays: int = 0
    refusals: int = 0
    evaluations: int = 0
    sealed: bool = False


@dataclass(frozen=True)
class Verdict:
    """What was verified.

    Attributes:
        entries: in the log.
        runs: the account of each.
        receipts: checked, none if none were given.
        origin: identity of the log.
    """

    entries: int
    runs: dict[str, RunAccount]
    receipts: int
    origin: str

    @property
    def labels(self) -> set[int]:
        """Every label that the log revealed to anybody."""
        return set().union(*(run.labels for run in self.runs.values()))


def verify(evidence: Evidence, key: Verifier, receipts: Iterable[Receipt] = ()) -> Verdict:
    """Verify a bundle.

    Args:
        evidence: the bundle.
        key: pinned, not taken from the bundle.
        receipts: that a client kept.

    Raises:
        VerificationError: the first thing that does not hold, with the number of its entry where there is one.
    """
    if evidence.key != key.vkey:
        raise VerificationError(f"the bundle names the key {evidence.key}, and {key.vkey} is pinned")
    head = Checkpoint.open(evidence.checkpoint, key)
    entries = [_bytes(text, seq) for seq, text in enumerate(evidence.entries)]
    # First what the receipts say: they name the entry, where the root alone can only say that there is one.
    tree = MerkleTree(leaf_hash(entry) for entry in entries)
    checked = _check_receipts(list(receipts), entries, tree, key)
    runs = _account(entries, key.name.removeprefix(ORIGIN_PREFIX))
    if head.size != tree.size:
        raise VerificationError(f"the bundle has {tree.size} entries, and its head was signed over {head.size}")
    if head.root != tree.root():
        raise VerificationError("the entries are not those that the head was signed over: their roots differ")
    return Verdict(len(entries), runs, checked, head.origin)


def read_bundle(path: Path) -> Evidence:
    """Read a bundle.

    Raises:
        VerificationError: the file cannot be read or is no bundle.
    """
    try:
        return Evidence.model_validate_json(path.read_bytes())
    except OSError as error:
        raise VerificationError(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise VerificationError(f"{path} is not an evidence bundle") from error


def read_receipts(path: Path) -> list[Receipt]:
    """Read the receipts of a trainer's receipts.jsonl; answers without one are passed over.

    Raises:
        VerificationError: the file cannot be read, or a line of it is not an answer kept.
    """
    receipts = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VerificationError(f"{path} cannot be read ({getattr(error, 'strerror', 'not text')})") from error
    for number, line in enumerate(lines, 1):
        try:
            receipt = json.loads(line)["answer"].get("receipt")
            if receipt is not None:
                receipts.append(Receipt.model_validate(receipt))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VerificationError(f"line {number} of {path} is not an answer of the service") from error
    return receipts


def _check_receipts(receipts: Sequence[Receipt], entries: Sequence[bytes], tree: MerkleTree, key: Verifier) -> int:
    """Compare what a client was shown with the bundle: its entries, then the heads they were shown under."""
    heads = {receipt.checkpoint: Checkpoint.open(receipt.checkpoint, key) for receipt in receipts}
    for receipt in sorted(receipts, key=lambda one: one.index):
        if receipt.index < tree.size and entries[receipt.index] != receipt.entry.encode():
            raise VerificationError(f"entry {receipt.index}: it is not the one that the receipt was given for")
    same = 0
    for head in sorted(heads.values(), key=lambda one: one.size):
        if head.size > tree.size:
            raise VerificationError(
                f"entry {tree.size}: it is missing; a receipt's head was signed over {head.size} entries, and the "
                f"bundle has {tree.size}: its end was cut or an older state put back"
            )
        if tree.root(head.size) != head.root:
            raise VerificationError(
                f"entry {same}, or one of those up to {head.size - 1}: it is not what it was when a receipt's head was "
                "signed, so an entry was changed or the log was forked"
            )
        same = head.size
    for receipt in receipts:
        _check_inclusion(receipt, heads[receipt.checkpoint])
    return len(receipts)


def _check_inclusion(receipt: Receipt, head: Checkpoint) -> None:
    try:
        proof = [base64.b64decode(one, validate=True) for one in receipt.inclusion_proof]
    except ValueError as error:
        raise VerificationError(f"entry {receipt.index}: its receipt's proof is not base64") from error
    verify_inclusion(leaf_hash(receipt.entry.encode()), receipt.index, head.size, proof, head.root)


def _account(entries: Sequence[bytes], log_id: str) -> dict[str, RunAccount]:
    """Play the entries through the rules of the log."""
    runs: dict[str, RunAccount] = {}
    for seq, data in enumerate(entries):
        entry = _parsed(data, seq)
        _require(entry["log_id"] == log_id, seq, "it is of another log")
        try:
            _play(runs, entry)
        except _RuleBroken as broken:
            raise VerificationError(f"entry {seq}: {broken}") from broken
    return runs


class _RuleBroken(Exception):  # noqa: N818 - what happened, as the package's other errors
    """An entry does not follow from those before it."""


def _play(runs: dict[str, RunAccount], entry: dict[str, Any]) -> None:
    name, op, outcome, detail = entry["run"], entry["op"], entry["outcome"], entry.get("detail", {})
    if op == "run-opened":
        _rule(name not in runs, f"run {name} is opened a second time")
        runs[name] = RunAccount(entry["budget"], detail["evaluations_allowed"])
    run = runs.get(name)
    _rule(run is not None, f"run {name} was never opened")
    assert run is not None
    if op == "budget-changed":
        _rule(detail["previous_budget"] == run.budget, "the budget it changes is not the run's")
        run.budget = entry["budget"]
    _rule(entry["budget"] == run.budget, f"it says a budget of {entry['budget']}, and the run's is {run.budget}")
    new = set(entry["ids"]) - run.labels if op == "query" and outcome in ("revealed", "replayed") else set()
    _rule(entry["charged"] == len(new), f"it charges {entry['charged']}, and {len(new)} of its ids are new to the run")
    _rule(outcome != "revealed" or bool(new), "it reveals nothing new")
    _rule(not new or not (run.sealed or run.evaluations), "it reveals new labels to a run that had ended querying")
    run.labels |= new
    run.queries += len(new)
    _rule(entry["spent"] == run.queries, f"it says {entry['spent']} spent, and the entries make {run.queries}")
    _rule(not new or run.queries <= run.budget, "it reveals more than the run's budget")
    if outcome == "evaluated":
        run.evaluations += 1
        _rule(run.evaluations <= run.evaluations_allowed, "the run had no evaluation left")
        _rule(detail["evaluation"] == run.evaluations, "its evaluation has the wrong number")
    _rule(op != "run-sealed" or not run.sealed, "the run was sealed before")
    run.sealed |= op == "run-sealed"
    run.replays += outcome == "replayed"
    run.refusals += outcome not in DONE


def _rule(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _RuleBroken(otherwise)


def _bytes(text: str, seq: int) -> bytes:
    _require(text.isascii(), seq, "it is not ASCII")
    return text.encode("ascii")


def _parsed(data: bytes, seq: int) -> dict[str, Any]:
    """Parse an entry and check that it is written in the one way there is, with every field of the right kind."""
    try:
        entry = json.loads(data)
        canonical = canonical_json(entry)
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"entry {seq}: it is not JSON") from error
    _require(isinstance(entry, dict) and set(entry) - {"detail"} == _FIELDS, seq, "it has not the fields of an entry")
    _require(canonical == data, seq, "it is not written in canonical form")
    texts = ("ts", "log_id", "run", "op", "outcome", "request_id")
    counts = ("v", "seq", "charged", "spent", "budget")
    _require(all(isinstance(entry[name], str) for name in texts), seq, "a field that must be text is not")
    _require(all(_is_count(entry[name]) for name in counts), seq, "a field that must be a count is not")
    ids = entry["ids"]
    _require(isinstance(ids, list) and all(type(one) is int for one in ids), seq, "its ids are not integers")
    _require(len(set(ids)) == len(ids), seq, "it names an id twice")
    _require(entry["v"] == ENTRY_VERSION, seq, f"it is of version {entry['v']}, and this tool knows {ENTRY_VERSION}")
    _require(entry["seq"] == seq, seq, f"it is numbered {entry['seq']}")
    _require(entry["op"] in _OUTCOMES, seq, f"it is of an unknown kind, {entry['op']}")
    # A refusal's outcome is the code of an error; only queries and evaluations are refused on the record.
    refused = entry["outcome"] not in DONE and entry["op"] in ("query", "evaluation")
    _require(refused or entry["outcome"] in _OUTCOMES[entry["op"]], seq, "its kind and outcome do not match")
    detail, needed = entry.get("detail", {}), _DETAIL.get(entry["outcome"])
    _require(isinstance(detail, dict), seq, "its detail is no object")
    _require(needed is None or _is_count(detail.get(needed)), seq, f"its detail lacks {needed}")
    return dict(entry)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _require(holds: bool, seq: int, otherwise: str) -> None:
    if not holds:
        raise VerificationError(f"entry {seq}: {otherwise}")

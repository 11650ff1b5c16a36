"""Offline verification of an evidence bundle: no database, no network.

From the bundle and the pinned key alone: the head is signed by that key, the entries have its root, and each entry
follows from those before it under the rules of the log. With the receipts that a client kept: the history is the one
the client was shown, so that a fork, a restored backup or a cut tail is found even if whoever made it holds the key;
and the labels that the client was told are those committed to before its first query.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from label_service.account import RunAccount, play
from label_service.answer_key import leaf
from label_service.checkpoint import Checkpoint, Verifier
from label_service.merkle import MerkleTree, VerificationError, leaf_hash, verify_inclusion
from label_service.schemas import Evidence, KeptAnswer, Receipt
from label_service.signed_log import ORIGIN_PREFIX


@dataclass(frozen=True)
class Verdict:
    """What was verified.

    Attributes:
        entries: in the log.
        runs: the account of each.
        receipts: checked, none if none were given.
        openings: labels checked against the commitment.
        uncommitted: entries from before the service committed to the answer key.
        origin: identity of the log.
    """

    entries: int
    runs: dict[str, RunAccount]
    receipts: int
    openings: int
    uncommitted: int
    origin: str

    @property
    def labels(self) -> set[int]:
        """Every label that the log revealed to anybody."""
        return set().union(*(run.labels for run in self.runs.values()))


def verify(evidence: Evidence, key: Verifier, kept: Iterable[KeptAnswer] = ()) -> Verdict:
    """Verify a bundle.

    Args:
        evidence: the bundle.
        key: pinned, not taken from the bundle.
        kept: answers of the service that a client kept.

    Raises:
        VerificationError: the first thing that does not hold, with the number of its entry where there is one.
    """
    if evidence.key != key.vkey:
        raise VerificationError(f"the bundle names the key {evidence.key}, and {key.vkey} is pinned")
    head = Checkpoint.open(evidence.checkpoint, key)
    entries = [_bytes(text, seq) for seq, text in enumerate(evidence.entries)]
    tree = MerkleTree(leaf_hash(entry) for entry in entries)
    answers = list(kept)
    # First what the receipts say: they name the entry, where the root alone can only say that there is one.
    _check_receipts([answer.receipt for answer in answers], entries, tree, key)
    account = play(entries, key.name.removeprefix(ORIGIN_PREFIX))
    if head.size > tree.size:
        raise VerificationError(
            f"entry {tree.size}: it is missing; the bundle has {tree.size} entries, and its head was signed over "
            f"{head.size}"
        )
    if head.size < tree.size:
        raise VerificationError(f"entry {head.size}: it was added; the bundle's head was signed over {head.size}")
    if head.root != tree.root():
        raise VerificationError(_first_changed(evidence, tree, key))
    openings = sum(_check_labels(answer, account.label_commitment, evidence.pool_size) for answer in answers)
    return Verdict(len(entries), account.runs, len(answers), openings, account.uncommitted, head.origin)


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


def read_receipts(path: Path) -> list[KeptAnswer]:
    """Read the answers of a trainer's receipts.jsonl; those without a receipt are passed over.

    Raises:
        VerificationError: the file cannot be read, or a line of it is not an answer kept.
    """
    kept = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VerificationError(f"{path} cannot be read ({getattr(error, 'strerror', 'not text')})") from error
    for number, line in enumerate(lines, 1):
        try:
            answer = json.loads(line)["answer"]
            if answer.get("receipt") is not None:
                kept.append(KeptAnswer.model_validate(answer))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VerificationError(f"line {number} of {path} is not an answer of the service") from error
    return kept


def _check_receipts(receipts: Sequence[Receipt], entries: Sequence[bytes], tree: MerkleTree, key: Verifier) -> None:
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
                f"{_one_of(same, head.size)}: it is not what it was when a receipt's head was signed, so an entry was "
                "changed or the log was forked"
            )
        same = head.size
    for receipt in receipts:
        _check_inclusion(receipt, heads[receipt.checkpoint])


def _check_inclusion(receipt: Receipt, head: Checkpoint) -> None:
    proof = _proof(receipt.inclusion_proof, f"entry {receipt.index}: its receipt's proof")
    verify_inclusion(leaf_hash(receipt.entry.encode()), receipt.index, head.size, proof, head.root)


def _check_labels(answer: KeptAnswer, commitment: str | None, pool_size: int) -> int:
    """Check the labels of an answer against its entry and the answer key; return how many there were."""
    labels, seq = answer.told, answer.receipt.index
    if not labels:
        return 0
    if sorted(label.id for label in labels) != sorted(json.loads(answer.receipt.entry)["ids"]):
        raise VerificationError(f"entry {seq}: the labels of its answer are not those it was charged for")
    if commitment is None:
        raise VerificationError(f"entry {seq}: its answer opens a commitment, and no entry binds one")
    (answer_root,) = _proof([commitment], "the commitment to the answer key")
    for label in labels:
        opened = leaf_hash(leaf(label.id, label.label, label.opening.salt))
        proof = _proof(label.opening.proof, f"entry {seq}: the opening of label {label.id}")
        try:
            verify_inclusion(opened, label.id, pool_size, proof, answer_root)
        except VerificationError as error:
            raise VerificationError(f"entry {seq}: label {label.id} is not the one committed to ({error})") from error
    return len(labels)


def _first_changed(evidence: Evidence, tree: MerkleTree, key: Verifier) -> str:
    """Say which entry was changed after it was signed: the heads of earlier commits part those before it from it."""
    same, complaint = 0, "it is not the one that a head was signed over"
    for head in sorted(evidence.heads, key=lambda one: one.size):
        if not same < head.size < tree.size:
            continue
        text = Checkpoint(key.name, head.size, tree.root(head.size)).text
        if not key.has_signed(text, _decoded(head.signature, "a head's signature")):
            return f"{_one_of(same, head.size)}: {complaint}"
        same = head.size
    return f"{_one_of(same, tree.size)}: {complaint}"


def _one_of(start: int, end: int) -> str:
    """Name the entries from `start` up to `end`, exclusive."""
    return f"entry {start}" + (f", or one of those up to {end - 1}" if end - start > 1 else "")


def _proof(hashes: Sequence[str], what: str) -> list[bytes]:
    return [_decoded(one, what) for one in hashes]


def _decoded(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise VerificationError(f"{what} is not base64") from error


def _bytes(text: str, seq: int) -> bytes:
    if not text.isascii():
        raise VerificationError(f"entry {seq}: it is not ASCII")
    return text.encode("ascii")

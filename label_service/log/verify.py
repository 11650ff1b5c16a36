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

from label_service.log.account import Account, EntryFails, RunAccount, play
from label_service.log.checkpoint import ORIGIN_PREFIX, Checkpoint, Verifier
from label_service.log.evidence import EarlierHead, Evidence, KeptAnswer, Receipt, label_leaf
from label_service.log.merkle import MerkleTree, VerificationError, leaf_hash, verify_inclusion


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
    answers = list(kept)
    log = _Log(key, [_bytes(text) for text in evidence.entries])
    log.compare_with_receipts([answer.receipt for answer in answers])
    log.compare_with_head(head)
    account = log.play()
    if account is None:
        log.compare_with_earlier_heads(evidence.heads)
        raise log.first_failure()
    openings = sum(_check_labels(answer, account.label_commitment, evidence.pool_size) for answer in answers)
    return Verdict(len(log.entries), account.runs, len(answers), openings, account.uncommitted, head.origin)


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


class _Log:
    """The entries of a bundle, and all that was found to speak for or against them."""

    def __init__(self, key: Verifier, entries: Sequence[bytes]) -> None:
        self.key = key
        self.entries = entries
        self.tree = MerkleTree(leaf_hash(entry) for entry in entries)
        # Sizes at which a signed head has this tree's root: no entry below was changed.
        self._same = {0}
        # What was found to differ from what was signed: the last entry that it can be about, and why.
        self._differences: list[tuple[int, str]] = []
        self._broken: EntryFails | None = None

    def compare_with_receipts(self, receipts: Sequence[Receipt]) -> None:
        """Compare with what a client was shown: its entries, and the heads they were shown under."""
        heads = {receipt.checkpoint: Checkpoint.open(receipt.checkpoint, self.key) for receipt in receipts}
        for receipt in receipts:
            head = heads[receipt.checkpoint]
            proof = _proof(receipt.inclusion_proof, f"entry {receipt.index}: its receipt's proof")
            entry = receipt.entry.encode()
            verify_inclusion(leaf_hash(entry), receipt.index, head.size, proof, head.root)
            if receipt.index < self.tree.size and self.entries[receipt.index] != entry:
                self._differences.append((receipt.index, "it is not the one that the receipt was given for"))
        for head in heads.values():
            if head.size > self.tree.size:
                reason = (
                    f"it is missing; a receipt's head was signed over {head.size} entries, and the bundle has "
                    f"{self.tree.size}: its end was cut or an older state put back"
                )
                self._differences.append((self.tree.size, reason))
            elif self.tree.root(head.size) == head.root:
                self._same.add(head.size)
            else:
                reason = (
                    "it is not what it was when a receipt's head was signed, so an entry was changed or the log was "
                    "forked"
                )
                self._differences.append((head.size - 1, reason))

    def compare_with_head(self, head: Checkpoint) -> None:
        """Compare with the bundle's own head."""
        size = self.tree.size
        if head.size > size:
            reason = f"it is missing; the bundle has {size} entries, and its head was signed over {head.size}"
            self._differences.append((size, reason))
        elif head.size < size:
            reason = f"it was added; the bundle has {size} entries, and its head was signed over {head.size}"
            self._differences.append((head.size, reason))
        elif head.root != self.tree.root():
            self._differences.append((size - 1, "it is not the one that the head was signed over"))

    def compare_with_earlier_heads(self, heads: Sequence[EarlierHead]) -> None:
        """Compare with the heads of earlier commits, which part the entries before a changed one from it."""
        for head in heads:
            if 0 < head.size <= self.tree.size:
                text = Checkpoint(self.key.name, head.size, self.tree.root(head.size)).text
                if self.key.has_signed(text, _decoded(head.signature, "a head's signature")):
                    self._same.add(head.size)
                else:
                    self._differences.append((head.size - 1, "it is not the one that a head was signed over"))

    def play(self) -> Account | None:
        """Play the entries through the rules; None if they break one, or differ from what was signed."""
        try:
            account = play(self.entries, self.key.name.removeprefix(ORIGIN_PREFIX))
        except EntryFails as broken:
            self._broken = broken
            return None
        return None if self._differences else account

    def first_failure(self) -> EntryFails:
        """Return the first entry that does not hold; if a head leaves several, the sentence says which."""
        # A forger's first change shows in hashes no later than in the rules, unless he signed anew.
        last, reason = min(self._differences, key=lambda one: one[0], default=(self.tree.size, ""))
        if self._broken is not None and (not reason or self._broken.seq < last):
            return self._broken
        return EntryFails(last, reason, since=max(size for size in self._same if size <= last))


def _check_labels(answer: KeptAnswer, commitment: str | None, pool_size: int) -> int:
    """Check the labels of an answer against its entry and the answer key; return how many there were."""
    labels, seq = answer.opened_labels, answer.receipt.index
    if not labels:
        return 0
    if sorted(label.id for label in labels) != sorted(json.loads(answer.receipt.entry)["ids"]):
        raise VerificationError(f"entry {seq}: the labels of its answer are not those it was charged for")
    if commitment is None:
        raise VerificationError(f"entry {seq}: its answer opens a commitment, and no entry binds one")
    (answer_root,) = _proof([commitment], "the commitment to the answer key")
    for label in labels:
        opened = leaf_hash(label_leaf(label.id, label.label, label.opening.salt))
        proof = _proof(label.opening.proof, f"entry {seq}: the opening of label {label.id}")
        try:
            verify_inclusion(opened, label.id, pool_size, proof, answer_root)
        except VerificationError as error:
            raise VerificationError(f"entry {seq}: label {label.id} is not the one committed to ({error})") from error
    return len(labels)


def _proof(hashes: Sequence[str], what: str) -> list[bytes]:
    return [_decoded(one, what) for one in hashes]


def _decoded(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise VerificationError(f"{what} is not base64") from error


def _bytes(text: str) -> bytes:
    # What cannot be encoded is no entry either; its place still counts.
    return text.encode("ascii") if text.isascii() else b""

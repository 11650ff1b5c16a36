"""Offline verification of an evidence bundle, with no database and no network.

The bundle and the pinned key alone show that the key has signed the tree head, that the entries have the head's root,
and that each entry follows from those before it under the rules of the log.

The receipts that a client kept show more: that this log is the one the client was shown, and that each label is the one
committed to before the client's first query. They reveal a fork, an older database put back, or a cut end, even if the
forger holds the signing key.

Whatever the files hold, a failure is a `VerificationError` of one sentence. What is not looked at, `docs/verifying.md`
lists, and `tests/campaigns/fuzz.py` checks the list.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pydantic import ValidationError

from label_service.log.account import EntryError, RunAccount, audit, find_rotations
from label_service.log.evidence import EarlierHead, Evidence, Receipt
from label_service.log.forerunner import Forerunner
from label_service.log.kept_answers import KeptAnswer, check_answer, find_charges, parse_json
from label_service.log.key_history import KeyHistory, KeyRotation
from label_service.log.merkle import MerkleTree, VerificationError, leaf_hash, verify_inclusion
from label_service.log.signed_note import Verifier, decode_base64
from label_service.log.tree_head import ORIGIN_PREFIX, TreeHead


@dataclass(frozen=True)
class Verdict:
    """What a verified bundle contains.

    Attributes:
        entries: number of entries.
        runs: the account of each run, by run id.
        receipts: number of entries whose receipts were checked.
        opened: the ids of the labels that the receipts open and that were committed to, by run id.
        uncommitted: number of entries that are older than the commitment to the answer key.
        signed_pool_size: an entry names the size of the pool; former versions left it to the bundle.
        origin: identity of the log.
        clock_set_back: numbers of the entries at which the service's clock stood behind the entry before.
        forerunner: the log that this one says to follow, None if it follows none.
        rotations: the replacements of the log's key, each signed by the key before.
    """

    entries: int
    runs: dict[str, RunAccount]
    receipts: int
    opened: dict[str, set[int]]
    uncommitted: int
    signed_pool_size: bool
    origin: str
    clock_set_back: tuple[int, ...] = ()
    forerunner: Forerunner | None = None
    rotations: tuple[KeyRotation, ...] = ()

    @property
    def openings(self) -> int:
        """Number of labels, by run, that were checked against the commitment."""
        return sum(map(len, self.opened.values()))

    @property
    def labels(self) -> set[int]:
        """The id of every label that the log revealed to anybody."""
        return set().union(*(run.labels for run in self.runs.values()))


def verify(evidence: Evidence, key: Verifier, kept: Iterable[KeptAnswer] = ()) -> Verdict:
    """Verify a bundle.

    Args:
        evidence: the bundle.
        key: a key of the log as it was pinned before, not taken from the bundle. Keys that replaced it are followed.
        kept: answers of the service that a client kept.

    Raises:
        VerificationError: the first thing that does not hold, with the number of its entry where there is one.
    """
    entries = [_to_bytes(text) for text in evidence.entries]
    rotations = find_rotations(entries)
    followed = KeyHistory((key,)).follow(rotations)
    if evidence.key != followed.newest.vkey:
        raise VerificationError(f"the bundle names the key {evidence.key}, and {followed.newest.vkey} is pinned")
    # The pinned key leads to the one that signed this head, and this head covers the entries that name all others.
    head = followed.open_head(evidence.checkpoint)
    keys = KeyHistory.of(rotations) if rotations else followed
    answers = list(kept)
    comparison = _Comparison(keys, entries)
    comparison.add_receipts([answer.receipt for answer in answers])
    comparison.add_head(head)
    comparison.add_earlier_heads(evidence.heads, head.size)
    broken: EntryError | None = None
    try:
        account = audit(comparison.entries, key.name.removeprefix(ORIGIN_PREFIX))
    except EntryError as error:
        broken = error
    if broken is not None or comparison.differences:
        raise comparison.first_failure(broken)
    if account.pool_size not in (None, evidence.pool_size):
        raise VerificationError(
            f"the bundle says that the pool has {evidence.pool_size} labels, and the log says {account.pool_size}"
        )
    if account.forerunner is not None:
        account.forerunner.require_statement(keys.keys[0])
    kept_entries = [json.loads(comparison.entries[answer.receipt.index]) for answer in answers]
    charges = find_charges(comparison.entries, {entry["run"] for entry in kept_entries})
    opened: dict[str, set[int]] = {}
    for answer, entry in zip(answers, kept_entries, strict=True):
        ids = check_answer(answer, entry, account, charges.get(entry["run"], {}), evidence.pool_size)
        opened.setdefault(entry["run"], set()).update(ids)
    return Verdict(
        entries=len(comparison.entries),
        runs=account.runs,
        receipts=len({answer.receipt.index for answer in answers}),
        opened=opened,
        uncommitted=account.uncommitted,
        signed_pool_size=account.pool_size is not None,
        origin=head.origin,
        clock_set_back=tuple(account.clock_set_back),
        forerunner=account.forerunner,
        rotations=tuple(rotations),
    )


def read_bundle(path: Path) -> Evidence:
    """Read an evidence bundle from a file.

    Raises:
        VerificationError: the file cannot be read or is no bundle.
    """
    try:
        return Evidence.model_validate(parse_json(path.read_bytes()))
    except OSError as error:
        raise VerificationError(f"{path} cannot be read ({error.strerror})") from error
    except (ValidationError, ValueError) as error:
        raise VerificationError(f"{path} is not an evidence bundle") from error


class _Comparison:
    """The entries of a bundle, compared with every tree head that the log's keys have signed over them.

    A signed head whose root is not the root of the bundle's entries shows that one of these entries was changed, but
    not which one. A smaller signed head with the right root shows that the entries under it are as they were. Together
    they bound the changed entry from both sides.

    Attributes:
        entries: their exact bytes.
        differences: for each head or receipt that does not fit: the last entry that can be the cause, and the reason.
    """

    def __init__(self, keys: KeyHistory, entries: Sequence[bytes]) -> None:
        self.entries = entries
        self.differences: list[tuple[int, str]] = []
        self._keys = keys
        self._tree = MerkleTree(leaf_hash(entry) for entry in entries)
        # Sizes at which a signed head has the root of these entries.
        self._matching_sizes = {0}

    def add_receipts(self, receipts: Sequence[Receipt]) -> None:
        """Compare with the entries and the heads in the receipts of a client.

        Raises:
            VerificationError: a receipt does not hold by itself.
        """
        heads = {receipt.checkpoint: self._keys.open_head(receipt.checkpoint) for receipt in receipts}
        for receipt in receipts:
            head = heads[receipt.checkpoint]
            proof = _decode_proof(receipt.inclusion_proof, f"entry {receipt.index}: its receipt's proof")
            entry = _to_bytes(receipt.entry)
            verify_inclusion(leaf_hash(entry), receipt.index, head.size, proof, head.root)
            if receipt.index < self._tree.size and self.entries[receipt.index] != entry:
                self.differences.append((receipt.index, "it is not the one that the receipt was given for"))
        for head in heads.values():
            if head.size > self._tree.size:
                reason = (
                    f"it is missing; a receipt's head was signed over {head.size} entries, and the bundle has "
                    f"{self._tree.size}: its end was cut or an older state put back"
                )
                self.differences.append((self._tree.size, reason))
            elif self._tree.root(head.size) == head.root:
                self._matching_sizes.add(head.size)
            else:
                reason = (
                    "it is not what it was when a receipt's head was signed, so an entry was changed or the log was "
                    "forked"
                )
                self.differences.append((head.size - 1, reason))

    def add_head(self, head: TreeHead) -> None:
        """Compare with the bundle's own head."""
        size = self._tree.size
        if head.size > size:
            reason = f"it is missing; the bundle has {size} entries, and its head was signed over {head.size}"
            self.differences.append((size, reason))
        elif head.size < size:
            reason = f"it was added; the bundle has {size} entries, and its head was signed over {head.size}"
            self.differences.append((head.size, reason))
        elif head.root != self._tree.root():
            self.differences.append((size - 1, "it is not the one that the head was signed over"))

    def add_earlier_heads(self, heads: Sequence[EarlierHead], size: int) -> None:
        """Compare with the heads of earlier commits, which narrow down where the first changed entry is.

        Args:
            heads: in the order of their sizes.
            size: of the bundle's own head.

        Raises:
            VerificationError: the heads are out of order, or a signature is not base64.
        """
        sizes = [head.size for head in heads]
        if heads and any(later <= earlier for earlier, later in pairwise([0, *sizes, size])):
            raise VerificationError("the earlier heads of the bundle are not in order below its own head")
        for head in heads:
            signature = decode_base64(head.signature, "a head's signature")
            if head.size > self._tree.size:
                continue  # the end of the log is missing, which `add_head` has found
            if self._keys.has_signed(head.size, self._tree.root(head.size), signature):
                self._matching_sizes.add(head.size)
            else:
                self.differences.append((head.size - 1, "it is not the one that a head was signed over"))

    def first_failure(self, broken: EntryError | None) -> EntryError:
        """Return the first entry that does not hold, or the range of entries that it is in.

        Args:
            broken: the first entry that breaks the rules of the log, if one does.
        """
        # A changed entry shows in the hashes no later than in the rules, unless the forger signed a new head.
        last, reason = min(self.differences, key=lambda difference: difference[0], default=(self._tree.size, ""))
        if broken is not None and (not reason or broken.seq < last):
            return broken
        return EntryError(last, reason, since=max(size for size in self._matching_sizes if size <= last))


def _decode_proof(hashes: Sequence[str], what: str) -> list[bytes]:
    return [decode_base64(text, what) for text in hashes]


def _to_bytes(text: str) -> bytes:
    # An entry is ASCII. Other text becomes an empty, invalid entry, so that those after it keep their numbers.
    return text.encode("ascii") if text.isascii() else b""

"""Verify what a transparency log shows: inclusion and consistency proofs, signed checkpoints, keys. Pure functions.

Sources: RFC 6962 (2013), section 2.1, for the hashes; RFC 9162 (2021), sections 2.1.3.2 and 2.1.4.2, for the two
verifications; C2SP signed-note and tlog-checkpoint with Ed25519 (RFC 8032) for keys and heads. SHA-256 throughout.

This shares no code with the label service, which has its own: a mistake in one implementation is found by the other
(docs/decisions/0015). Nothing here knows what an entry means, see `trainer.oracle.receipts`, or remembers, see
`trainer.oracle.witness`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

HASH_BYTES = 32
# The signature type of Ed25519 in a C2SP verifier key.
_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
# A checkpoint has under 300 characters; witnesses may add a signature line each.
_MAX_NOTE_CHARACTERS = 20_000
_SIGNATURE_LINE = re.compile(r"\u2014 ([^ +\n]+) ([A-Za-z0-9+/]+={0,2})")
# No leading zero, and no more digits than any log will have.
_SIZE = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)


class LogProofError(Exception):
    """A proof, signature or key does not hold; the message is a clause that says which."""


@dataclass(frozen=True)
class LogKey:
    """The public key of a log, whose origin is the key's name.

    Attributes:
        name: Key name and origin.
        key_id: Four bytes that say which key a signature is of.
        public_key: 32 bytes (RFC 8032).
    """

    name: str
    key_id: bytes
    public_key: bytes

    @classmethod
    def parse(cls, vkey: str) -> LogKey:
        """Read a verifier key, `NAME+ID+KEY`.

        Raises:
            LogProofError: It is not written so, is of another type, or its id is not that of its name and key.
        """
        # Base64 may hold plus signs: only the first two part the line.
        name, _, rest = vkey.partition("+")
        written_id, _, encoded = rest.partition("+")
        if not name or name.split() != [name] or not encoded:
            raise LogProofError("a log's key is written NAME+ID+KEY, and this is not")
        typed_key = decode_base64(encoded)
        if typed_key[:1] != _ED25519 or len(typed_key) != 1 + 32:
            raise LogProofError("the log's key is not an Ed25519 key")
        key_id = hashlib.sha256(name.encode(errors="replace") + b"\n" + typed_key).digest()[:_KEY_ID_BYTES]
        if written_id != key_id.hex():
            raise LogProofError("the log's key has an id that is not its own, so a character of it is wrong")
        return cls(name, key_id, typed_key[1:])

    @property
    def vkey(self) -> str:
        """The key as the one line to pin."""
        encoded = base64.b64encode(_ED25519 + self.public_key).decode("ascii")
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    def open_note(self, note: str) -> str:
        """Return the text of a signed note. Signatures under other names or key ids are ignored, as C2SP has it.

        Raises:
            LogProofError: The note is malformed, not signed by this key, or its signature does not hold.
        """
        if len(note) > _MAX_NOTE_CHARACTERS or any(character < " " and character != "\n" for character in note):
            raise LogProofError("the checkpoint is too long or holds control characters")
        # The last empty line parts text and signatures.
        text, gap, signed = note.rpartition("\n\n")
        lines = [_SIGNATURE_LINE.fullmatch(line) for line in signed.removesuffix("\n").split("\n")]
        if not gap or not signed.endswith("\n") or None in lines:
            raise LogProofError("the checkpoint is not a signed note")
        signatures = [(line[1], decode_base64(line[2])) for line in lines if line is not None]
        own = [data[_KEY_ID_BYTES:] for name, data in signatures if (name, data[:_KEY_ID_BYTES]) == self._mark]
        if not own:
            raise LogProofError("the checkpoint is not signed by the log's pinned key")
        text += "\n"
        for signature in own:
            try:
                Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text.encode())
            except (InvalidSignature, ValueError) as error:
                raise LogProofError("the checkpoint's signature does not hold") from error
        return text

    @property
    def _mark(self) -> tuple[str, bytes]:
        return self.name, self.key_id


@dataclass(frozen=True)
class Checkpoint:
    """A tree head that the log has signed.

    Attributes:
        size: Number of leaves.
        root: Of the tree of that size, 32 bytes.
        note: As it was signed.
    """

    size: int
    root: bytes
    note: str

    @classmethod
    def open(cls, note: str, key: LogKey) -> Checkpoint:
        """Read a checkpoint under a pinned key.

        Raises:
            LogProofError: It is malformed, of another log, or not signed by the key.
        """
        lines = key.open_note(note).split("\n")
        if len(lines) != 4 or not _SIZE.fullmatch(lines[1]):
            raise LogProofError("the checkpoint does not have the three lines origin, size and root")
        if lines[0] != key.name:
            raise LogProofError(f"the checkpoint is of the log {lines[0]!r} and not of {key.name!r}")
        return cls(int(lines[1]), decode_hash(lines[2]), note)


def leaf_hash(data: bytes) -> bytes:
    """Hash a leaf; the prefix 0 keeps it from posing as an inner node."""
    return hashlib.sha256(b"\x00" + data).digest()


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """Compute the root over leaf hashes, in order.

    Pairs are joined level by level and a last one without a partner rises, which is the tree of RFC 6962 section 2.1.
    """
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = list(leaves)
    while len(level) > 1:
        joined = [_node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
        level = joined + level[len(joined) * 2 :]
    return level[0]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that a leaf hash is leaf `index` of the tree of `size` leaves with this root (RFC 9162, 2.1.3.2).

    Raises:
        LogProofError: The proof does not show it.
    """
    _require_widths([leaf, root, *proof])
    if not 0 <= index < size:
        raise LogProofError(f"a tree of {size} leaves has no leaf {index}")
    # fn and sn of the RFC: the places of the leaf's and the last leaf's ancestors on the level at hand.
    place, last, computed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise LogProofError("the inclusion proof has too many hashes")
        if place & 1 or place == last:
            computed = _node_hash(sibling, computed)
            place, last = _rise_to_right_child(place, last)
        else:
            computed = _node_hash(computed, sibling)
        place, last = place >> 1, last >> 1
    if last:
        raise LogProofError("the inclusion proof has too few hashes")
    if computed != root:
        raise LogProofError(f"leaf {index} is not in the tree of {size} leaves with this root")


def verify_consistency(first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of `second` leaves begins with the tree of `first` leaves (RFC 9162, 2.1.4.2).

    Raises:
        LogProofError: The proof does not show it, or the sizes are none that a proof can join.
    """
    if not 0 < first <= second:
        raise LogProofError(f"no proof leads from a tree of {first} leaves to one of {second}")
    if first == second:
        if proof or first_root != second_root:
            raise LogProofError(f"there are two trees of {first} leaves")
        return
    _require_widths([first_root, second_root, *proof])
    # Where the first tree is complete its root is the start, and the proof leaves it out.
    path = [first_root, *proof] if first & (first - 1) == 0 else list(proof)
    if not path:
        raise LogProofError("the consistency proof has no hashes")
    place, last = first - 1, second - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise LogProofError("the consistency proof has too many hashes")
        if place & 1 or place == last:
            old, new = _node_hash(sibling, old), _node_hash(sibling, new)
            place, last = _rise_to_right_child(place, last)
        else:
            new = _node_hash(new, sibling)
        place, last = place >> 1, last >> 1
    if last:
        raise LogProofError("the consistency proof has too few hashes")
    if old != first_root or new != second_root:
        raise LogProofError(f"the log of {second} entries does not begin with the log of {first}")


def verify_appended(size: int, former_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that a tree began with the `size` leaves of a former one, from the inclusion proof of its next leaf.

    In a tree of one leaf more, the siblings of the last leaf on its way up are all the complete subtrees of the former
    tree, so that a verified inclusion proof is a consistency proof too, and none has to be asked for.

    Args:
        size: Leaves of the former tree, at least 1; the proof has been verified for leaf `size` of `size + 1`.
        former_root: Root of the former tree.
        proof: Of the new leaf.

    Raises:
        LogProofError: The former tree was another one.
    """
    root = proof[0]
    for subtree in proof[1:]:
        root = _node_hash(subtree, root)
    if root != former_root:
        raise LogProofError(f"the log of {size + 1} entries does not begin with the log of {size}")


def decode_base64(text: str) -> bytes:
    """Decode base64 strictly: each value can be written in one way only.

    Raises:
        LogProofError: The text is not canonical base64.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise LogProofError("a value is not base64") from error
    # Bits beyond the last byte would be ignored, and two texts would mean the same.
    if base64.b64encode(data).decode("ascii") != text:
        raise LogProofError("a value is not canonical base64")
    return data


def decode_hash(text: str) -> bytes:
    """Decode a hash.

    Raises:
        LogProofError: It is not base64 of 32 bytes.
    """
    data = decode_base64(text)
    _require_widths([data])
    return data


def _rise_to_right_child(place: int, last: int) -> tuple[int, int]:
    """Leave the levels on which the node at the tree's right edge has no sibling (RFC 9162, step 4.2.2)."""
    while not place & 1 and place:
        place, last = place >> 1, last >> 1
    return place, last


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _require_widths(hashes: Sequence[bytes]) -> None:
    if any(len(one) != HASH_BYTES for one in hashes):
        raise LogProofError(f"a hash does not have {HASH_BYTES} bytes")

"""Verify a transparency log: inclusion and consistency proofs, signed tree heads, keys. Pure functions.

Sources: RFC 6962 (2013), section 2.1, for the hashes; RFC 9162 (2021), sections 2.1.3.2 and 2.1.4.2, for the two
verifications; C2SP signed-note and tlog-checkpoint with Ed25519 (RFC 8032) for keys and tree heads. SHA-256 throughout.

The label service has an implementation of its own, and no code is shared: a mistake in one is found by the other
(docs/decisions/0015). `receipts` knows the meaning of an entry, and `witness` remembers what was seen.
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
# A signed tree head has under 300 characters; other witnesses may add a signature line each.
_MAX_NOTE_CHARACTERS = 20_000
_SIGNATURE_LINE = re.compile(r"\u2014 ([^ +\n]+) ([A-Za-z0-9+/]+={0,2})")
# No leading zero, and no more digits than any log will have.
_SIZE = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)


class LogProofError(ValueError):
    """A proof, signature or key does not hold; the message is a clause."""


class UnknownKey(LogProofError):  # noqa: N818 - says what happened
    """A signed note is not signed by the key that was expected."""


@dataclass(frozen=True)
class LogKey:
    """The public key of a log, whose origin is the key's name.

    Attributes:
        name: Key name and origin.
        key_id: Four bytes; a signature names its key by them.
        public_key: 32 bytes (RFC 8032).
    """

    name: str
    key_id: bytes
    public_key: bytes

    @classmethod
    def parse(cls, vkey: str) -> LogKey:
        """Read a verifier key, `NAME+ID+KEY`.

        Raises:
            LogProofError: It has another form or type, or its id does not belong to its name and key.
        """
        # Base64 may hold plus signs: only the first two are separators.
        name, _, rest = vkey.partition("+")
        written_id, _, encoded = rest.partition("+")
        if not name or name.split() != [name] or not encoded:
            raise LogProofError("a log's key has the form NAME+ID+KEY, and this has not")
        typed_key = decode_base64(encoded)
        if typed_key[:1] != _ED25519 or len(typed_key) != 1 + 32:
            raise LogProofError("the log's key is not an Ed25519 key")
        key_id = hashlib.sha256(name.encode(errors="replace") + b"\n" + typed_key).digest()[:_KEY_ID_BYTES]
        if written_id != key_id.hex():
            raise LogProofError("the log's key has an id that does not belong to it, so a character is wrong")
        return cls(name, key_id, typed_key[1:])

    @property
    def vkey(self) -> str:
        """The key as the one line to pin."""
        encoded = base64.b64encode(_ED25519 + self.public_key).decode("ascii")
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    def open_note(self, note: str) -> str:
        """Return the text of a signed note. Signatures under other names or key ids are ignored (C2SP signed-note).

        Raises:
            LogProofError: The note is malformed, or its signature does not hold.
            UnknownKey: It is not signed by this key.
        """
        if len(note) > _MAX_NOTE_CHARACTERS or any(character < " " and character != "\n" for character in note):
            raise LogProofError("the tree head is too long or holds control characters")
        # The last empty line separates text and signatures.
        text, gap, signed = note.rpartition("\n\n")
        lines = [_SIGNATURE_LINE.fullmatch(line) for line in signed.removesuffix("\n").split("\n")]
        if not gap or not signed.endswith("\n") or None in lines:
            raise LogProofError("the tree head is not a signed note")
        signatures = [(line[1], decode_base64(line[2])) for line in lines if line is not None]
        own = [
            data[_KEY_ID_BYTES:]
            for name, data in signatures
            if (name, data[:_KEY_ID_BYTES]) == (self.name, self.key_id)
        ]
        if not own:
            raise UnknownKey("the tree head is not signed by the log's pinned key")
        text += "\n"
        for signature in own:
            try:
                Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text.encode())
            except (InvalidSignature, ValueError) as error:
                raise LogProofError("the tree head's signature does not hold") from error
        return text


@dataclass(frozen=True)
class TreeHead:
    """A tree head that the log has signed; its text is a C2SP tlog-checkpoint.

    Attributes:
        size: Number of leaves.
        root: Root of the tree of that size, 32 bytes.
        note: The signed text.
    """

    size: int
    root: bytes
    note: str

    @classmethod
    def open(cls, note: str, key: LogKey) -> TreeHead:
        """Read a signed tree head under a pinned key.

        Raises:
            LogProofError: It is malformed, of another log, or not signed by the key.
        """
        lines = key.open_note(note).split("\n")
        if len(lines) != 4 or not _SIZE.fullmatch(lines[1]):
            raise LogProofError("the tree head does not have the three lines origin, size and root")
        if lines[0] != key.name:
            raise LogProofError(f"the tree head is of the log {lines[0]!r} and not of {key.name!r}")
        return cls(int(lines[1]), decode_hash(lines[2]), note)


def leaf_hash(data: bytes) -> bytes:
    """Hash a leaf; the prefix 0 distinguishes it from an inner node."""
    return hashlib.sha256(b"\x00" + data).digest()


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that a leaf hash is leaf `index` of the tree of `size` leaves with this root (RFC 9162, 2.1.3.2).

    Raises:
        LogProofError: The proof does not show it.
    """
    _require_widths([leaf, root, *proof])
    if not 0 <= index < size:
        raise LogProofError(f"a tree of {size} leaves has no leaf {index}")
    # fn and sn of the RFC: positions, on the current level, of the ancestors of the leaf and of the last leaf.
    node, last, computed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise LogProofError("the inclusion proof has too many hashes")
        if node & 1 or node == last:
            computed = _node_hash(sibling, computed)
            node, last = _rise_to_right_child(node, last)
        else:
            computed = _node_hash(computed, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise LogProofError("the inclusion proof has too few hashes")
    if computed != root:
        raise LogProofError(f"leaf {index} is not in the tree of {size} leaves with this root")


def verify_consistency(first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of `second` leaves begins with the tree of `first` leaves (RFC 9162, 2.1.4.2).

    Raises:
        LogProofError: The proof does not show it, or no proof exists between these sizes.
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
    node, last = first - 1, second - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise LogProofError("the consistency proof has too many hashes")
        if node & 1 or node == last:
            old, new = _node_hash(sibling, old), _node_hash(sibling, new)
            node, last = _rise_to_right_child(node, last)
        else:
            new = _node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise LogProofError("the consistency proof has too few hashes")
    if old != first_root or new != second_root:
        raise LogProofError(f"the log of {second} entries does not begin with the log of {first}")


def decode_base64(text: str) -> bytes:
    """Decode base64 strictly: each value has one text only.

    Raises:
        LogProofError: The text is not canonical base64.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise LogProofError("a value is not base64") from error
    # The decoder ignores bits beyond the last byte, so two texts could mean the same.
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


def _rise_to_right_child(node: int, last: int) -> tuple[int, int]:
    """Skip the levels on which the node at the right edge of the tree has no sibling (RFC 9162, 2.1.3.2)."""
    while not node & 1 and node:
        node, last = node >> 1, last >> 1
    return node, last


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _require_widths(hashes: Sequence[bytes]) -> None:
    if any(len(data) != HASH_BYTES for data in hashes):
        raise LogProofError(f"a hash does not have {HASH_BYTES} bytes")

"""The signed tree head: how long the log is and what its Merkle root is, signed by the log's key.

A tree head commits the log to every entry so far. On the wire it is a C2SP checkpoint: a signed note whose text has
three lines, the log's origin, the number of entries and the root.

Source: c2sp.org/tlog-checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from label_service.log.merkle import HASH_BYTES, VerificationError, encode_base64
from label_service.log.signed_note import SigningKey, Verifier, decode_base64

# The origin of a log, which is also the name of its key: this prefix, then the log's id.
ORIGIN_PREFIX = "labelmeter/"
_MAX_DIGITS = 18


@dataclass(frozen=True)
class TreeHead:
    """A signed tree head.

    Attributes:
        origin: identity of the log.
        size: number of entries.
        root: root of the tree of that size, 32 bytes.
        note: the signed note; two heads that differ only in further signatures are equal.
    """

    origin: str
    size: int
    root: bytes
    note: str = field(compare=False, repr=False)

    @classmethod
    def sign(cls, key: SigningKey, size: int, root: bytes) -> TreeHead:
        """Sign a size and a root with the key of the log."""
        return cls(key.name, size, root, key.sign(head_text(key.name, size, root)))

    @classmethod
    def open(cls, note: str, verifier: Verifier) -> TreeHead:
        """Read the note of a tree head and check its signature.

        Raises:
            VerificationError: the note is malformed, not signed by this key, or of another log than the key's.
        """
        lines = verifier.open(note).split("\n")
        if len(lines) != 4 or lines[3]:
            raise VerificationError("a checkpoint of this log has three lines: origin, size, root")
        origin, size, root = lines[0], lines[1], decode_base64(lines[2], "the checkpoint's root")
        if origin != verifier.name:
            raise VerificationError(f"the checkpoint is of {origin}, not of {verifier.name}")
        if not (size.isascii() and size.isdigit() and len(size) <= _MAX_DIGITS and str(int(size)) == size):
            raise VerificationError("the checkpoint's size is not a number")
        if len(root) != HASH_BYTES:
            raise VerificationError(f"the checkpoint's root is not {HASH_BYTES} bytes long")
        return cls(origin, int(size), root, note)


def head_text(origin: str, size: int, root: bytes) -> str:
    """Return the text that the signature of a tree head covers."""
    return f"{origin}\n{size}\n{encode_base64(root)}\n"

"""Signed notes (C2SP signed-note) with Ed25519 keys.

A note is a text, an empty line and signature lines. A verifier key (vkey) is the one line that an outsider pins. A
signing key is stored as the same line with the private seed, in the form of Go's sumdb/note, so that other tools read
both. Lines below it keep what is needed of the keys that it replaced.

Sources: c2sp.org/signed-note; RFC 8032 (Ed25519).
"""

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from label_service.log.merkle import VerificationError, encode_base64

_ED25519 = b"\x01"
_KEY_BYTES = 32
_KEY_ID_BYTES = 4
_DASH = "\N{EM DASH} "
_PRIVATE = "PRIVATE+KEY+"
_RETIRED = "RETIRED"
# Longer notes are refused unread: a signed tree head has under 300 characters.
_MAX_NOTE_CHARACTERS = 100_000


@dataclass(frozen=True)
class Verifier:
    """A public key with its name.

    Attributes:
        name: without white space and plus signs.
        public_key: 32 bytes (RFC 8032).
    """

    name: str
    public_key: bytes

    def __post_init__(self) -> None:
        """Refuse a name or key that a note cannot carry."""
        if not self.name.isprintable() or "+" in self.name or self.name.split() != [self.name]:
            raise VerificationError("a key name must be one printable word without a plus sign")
        if len(self.public_key) != _KEY_BYTES:
            raise VerificationError(f"an Ed25519 key has {_KEY_BYTES} bytes, not {len(self.public_key)}")

    @classmethod
    def from_vkey(cls, vkey: str) -> "Verifier":
        """Read a verifier key, `NAME+ID+KEY`.

        Raises:
            VerificationError: the text is not a verifier key, or its id does not match its name and key.
        """
        name, key_id, key = _key_parts(vkey)
        verifier = cls(name, key)
        if key_id != verifier.key_id.hex():
            raise VerificationError("the verifier key's id does not belong to its name and key; a character is wrong")
        return verifier

    @property
    def key_id(self) -> bytes:
        """Four bytes that name the key a signature was made with."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key).digest()[:_KEY_ID_BYTES]

    @property
    def vkey(self) -> str:
        """The key as one line, to be pinned."""
        return f"{self.name}+{self.key_id.hex()}+{encode_base64(_ED25519 + self.public_key)}"

    def open(self, note: str) -> str:
        """Return the text of a note that this key has signed. Signatures of other keys are ignored.

        Raises:
            VerificationError: the note is malformed, or not signed by this key.
        """
        text, signatures = _parts(note)
        own = [signature for name, signature in signatures if name == self.name and signature[:4] == self.key_id]
        if not own:
            raise VerificationError(f"the note is not signed by {self.name} with the key {self.key_id.hex()}")
        if not all(self.has_signed(text, signature) for signature in own):
            raise VerificationError(f"the signature of {self.name} does not hold")
        return text

    def has_signed(self, text: str, signature: bytes) -> bool:
        """Return whether a note's signature (key id, then 64 bytes) is this key's signature of a text."""
        if signature[:_KEY_ID_BYTES] != self.key_id:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature[_KEY_ID_BYTES:], text.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class RetiredKey:
    """What is kept of a signing key that was replaced. It can sign nothing.

    Attributes:
        verifier: its public half.
        last_seq: number of the entry that replaced it, the last one that it authenticates.
        mac_secret: authenticates the entries up to that one; see `entry_mac`.
    """

    verifier: Verifier
    last_seq: int
    mac_secret: bytes = field(repr=False)

    @classmethod
    def from_line(cls, line: str) -> "RetiredKey":
        """Read a line of a key file.

        Raises:
            VerificationError: it is none.
        """
        match line.split(" "):
            case [mark, seq, vkey, secret] if mark == _RETIRED and seq.isascii() and seq.isdigit():
                return cls(Verifier.from_vkey(vkey), int(seq), decode_base64(secret, "a retired secret"))
        raise VerificationError("a line is neither a key nor what is left of one")

    @property
    def line(self) -> str:
        """The line of the key file."""
        return f"{_RETIRED} {self.last_seq} {self.verifier.vkey} {encode_base64(self.mac_secret)}\n"


@dataclass(frozen=True)
class SigningKey:
    """A private key with its name. The seed is left out of `repr`, so that it is not logged.

    Attributes:
        name: of the log.
        seed: 32 bytes (RFC 8032).
        retired: the log's keys before this one, oldest first.
    """

    name: str
    seed: bytes = field(repr=False)
    retired: tuple[RetiredKey, ...] = ()

    @classmethod
    def generate(cls, name: str, retired: tuple[RetiredKey, ...] = ()) -> "SigningKey":
        """Make a new key."""
        return cls(name, os.urandom(_KEY_BYTES), retired)

    @classmethod
    def load(cls, path: Path) -> "SigningKey":
        """Read a key file.

        Raises:
            VerificationError: the file holds no signing key.
            OSError: the file cannot be read.
        """
        line, *more = path.read_text(encoding="ascii", errors="replace").strip().split("\n")
        if not line.startswith(_PRIVATE):
            raise VerificationError(f"{path} holds no signing key")
        name, key_id, seed = _key_parts(line.removeprefix(_PRIVATE))
        key = cls(name, seed, tuple(map(RetiredKey.from_line, more)))
        if key_id != key.verifier.key_id.hex():
            raise VerificationError(f"the signing key in {path} is damaged")
        return key

    def save(self, path: Path) -> None:
        """Write a key file that only its owner can read. An existing file is never replaced.

        Raises:
            OSError: the file exists already or cannot be written.
        """
        line = f"{_PRIVATE}{self.name}+{self.verifier.key_id.hex()}+{encode_base64(_ED25519 + self.seed)}\n"
        content = line + "".join(retired.line for retired in self.retired)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    @cached_property
    def verifier(self) -> Verifier:
        """The public half."""
        return Verifier(self.name, self._private.public_key().public_bytes_raw())

    def sign(self, text: str) -> str:
        """Return the note of a text.

        Raises:
            ValueError: the text is empty, does not end in a newline, or holds control characters.
        """
        if not text.endswith("\n") or _has_control_characters(text):
            raise ValueError("a note's text must end in a newline and hold no other control character")
        signature = self.verifier.key_id + self._private.sign(text.encode())
        return f"{text}\n{_DASH}{self.name} {encode_base64(signature)}\n"

    @cached_property
    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)


def _key_parts(line: str) -> tuple[str, str, bytes]:
    """Split `NAME+ID+KEY` into the name, the id and the 32 bytes of the key."""
    # Base64 may contain plus signs, so only the first two separate the parts.
    parts = line.strip().split("+", 2)
    if len(parts) != 3:
        raise VerificationError("a key is written NAME+ID+KEY, and this is not")
    key = decode_base64(parts[2], "the key")
    if key[:1] != _ED25519 or len(key) != 1 + _KEY_BYTES:
        raise VerificationError("the key is not an Ed25519 key")
    return parts[0], parts[1], key[1:]


def _parts(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """Split a note into its text and pairs of key name and signature; a signature begins with the key id."""
    if len(note) > _MAX_NOTE_CHARACTERS or _has_control_characters(note):
        raise VerificationError("the note is too long or holds control characters")
    text, gap, signed = note.rpartition("\n\n")
    if not gap or not signed.endswith("\n"):
        raise VerificationError("the note has no signature")
    signatures = []
    for line in signed.removesuffix("\n").split("\n"):
        name, _, encoded = line.removeprefix(_DASH).rpartition(" ")
        signature = decode_base64(encoded, "a signature")
        if not line.startswith(_DASH) or not name or " " in name or len(signature) <= _KEY_ID_BYTES:
            raise VerificationError("the note has a malformed signature line")
        signatures.append((name, signature))
    return text + "\n", signatures


def _has_control_characters(text: str) -> bool:
    return any(character < " " and character != "\n" for character in text)


def decode_base64(text: str, what: str) -> bytes:
    """Decode base64 strictly, so that the same bytes have one text only.

    Args:
        text: the base64.
        what: what to call the text in an error.

    Raises:
        VerificationError: the text is not canonical base64.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise VerificationError(f"{what} is not base64") from error
    if encode_base64(data) != text:
        raise VerificationError(f"{what} is not canonical base64")
    return data

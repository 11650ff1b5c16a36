"""The authentication of entries: a MAC under a secret that is not in the database.

Whoever can write to the database can insert a row that follows every rule of the log. So each entry is stored with a
MAC, and an entry without a valid one is never taken into the tree and never signed. The MAC's key is derived from the
seed of the log's signing key, which lies in the key folder: a database's administrator has neither. Where the log's key
was replaced, the secrets of the keys before it are kept with it, each for its own entries.

The MAC covers what the entry binds without showing it, too: the hash of a run's token, or of an Idempotency-Key.

Sources: RFC 2104 (HMAC) and RFC 5869 (HKDF), both with SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from hmac import compare_digest
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from label_service.errors import LogChanged
from label_service.log.signed_note import SigningKey

_PURPOSE = b"labelmeter entry mac 1\n"
_KEY_BYTES = 32
_BLOCK_BYTES = 64


class Hmac:
    """HMAC-SHA256 under one key. It keeps the hash of the key, so it takes half the time of `hmac.digest`."""

    def __init__(self, key: bytes) -> None:
        """Hash the key, of at most 64 bytes."""
        block = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner, self._outer = (hashlib.sha256(bytes(byte ^ pad for byte in block)) for pad in (0x36, 0x5C))

    def digest(self, data: bytes) -> bytes:
        """Return the HMAC of data, 32 bytes."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        return outer.digest()


def derive_secret(key: SigningKey, purpose: bytes) -> bytes:
    """Return a secret for one purpose, 32 bytes: derived from the key's seed, and bound to the log by its name."""
    return HKDF(SHA256(), _KEY_BYTES, None, purpose + key.name.encode()).derive(key.seed)


class EntryMac:
    """Makes and checks the MACs of one log's entries.

    Attributes:
        secret: for the entries after the last replacement of the key.
    """

    def __init__(self, key: SigningKey) -> None:
        """Derive the secret."""
        self.secret = derive_secret(key, _PURPOSE)
        self._hmac = Hmac(self.secret)
        self._retired = [(retired.last_seq, Hmac(retired.mac_secret)) for retired in key.retired]

    def of(self, seq: int, data: bytes, bound_sha256: str | None = None) -> bytes:
        """Return the MAC of an entry.

        Args:
            seq: its number.
            data: its exact bytes.
            bound_sha256: hash of what it binds without showing it, None if it binds nothing.
        """
        hashed = self._hmac
        if self._retired:
            hashed = next((old for last_seq, old in self._retired if seq <= last_seq), hashed)
        return hashed.digest(b"%d %s\n%s" % (seq, (bound_sha256 or "-").encode(), data))

    def require(self, row: Sequence[Any]) -> None:
        """Make sure that this service has written a row of the table `entries`.

        Raises:
            LogChanged: somebody else has written or changed it.
        """
        # By position, in the order of the table: this is done for every entry of the log.
        seq, data, mac, bound = row[:4]
        # SQLite keeps a value of any type in any column; what is not of the service's types is not the service's.
        typed = type(seq) is int and isinstance(data, bytes) and isinstance(mac, bytes)
        if not (typed and (bound is None or isinstance(bound, str)) and compare_digest(mac, self.of(seq, data, bound))):
            raise LogChanged(f"Entry {seq} was not written by this service: the database was changed.")

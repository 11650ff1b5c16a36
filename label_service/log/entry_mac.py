"""The authentication of entries: a MAC under a secret that is not in the database.

Whoever can write to the database can insert a row that follows every rule of the log. So each entry is stored with a
MAC, and an entry without a valid one is never taken into the tree and never signed. The MAC's key is derived from the
seed of the log's signing key, which lies in the key folder: a database's administrator has neither.

The MAC covers what the entry binds without showing it, too: the hash of a run's token, or of an Idempotency-Key.

Sources: RFC 2104 (HMAC) and RFC 5869 (HKDF), both with SHA-256.
"""

from __future__ import annotations

import hmac
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import Row

from label_service.errors import LogChanged
from label_service.log.signed_note import SigningKey

_PURPOSE = b"labelmeter entry mac 1\n"
_KEY_BYTES = 32


class EntryMac:
    """Makes and checks the MACs of one log's entries."""

    def __init__(self, key: SigningKey) -> None:
        """Derive the secret; the key's name binds it to this log."""
        self._secret = HKDF(SHA256(), _KEY_BYTES, None, _PURPOSE + key.name.encode()).derive(key.seed)

    def of(self, seq: int, data: bytes, bound_sha256: str | None = None) -> bytes:
        """Return the MAC of an entry.

        Args:
            seq: its number.
            data: its exact bytes.
            bound_sha256: hash of what it binds without showing it, None if it binds nothing.
        """
        return hmac.digest(self._secret, b"%d %s\n%s" % (seq, (bound_sha256 or "-").encode(), data), "sha256")

    def require(self, row: Row[Any]) -> None:
        """Make sure that this service has written a row of the table `entries`.

        Raises:
            LogChanged: somebody else has written or changed it.
        """
        seq, data, mac, bound = row.seq, row.entry, row.mac, row.bound_sha256
        # SQLite keeps a value of any type in any column; what is not of the service's types is not the service's.
        typed = type(seq) is int and isinstance(data, bytes) and isinstance(mac, bytes)
        if not (typed and isinstance(bound, str | None) and hmac.compare_digest(mac, self.of(seq, data, bound))):
            raise LogChanged(f"Entry {seq} was not written by this service: the database was changed.")

"""The commitment to the answer key: one Merkle root over every pool label, fixed before the first query.

Each label is a leaf: the canonical JSON of its id, its class and a random salt. The root of the RFC 6962 tree over
these leaves is in every log entry. The answer to a query opens the commitment for its labels: with the salt and the
inclusion proof a client checks that its label is the one committed to, and learns nothing about other labels. All salts
are derived from one secret by HMAC-SHA256 (RFC 2104), so the database stores 32 bytes and not 60,000 salts.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping

from sqlalchemy import Connection, insert, select

from label_service.errors import DatabaseRefused, LogChanged
from label_service.log.entries import now
from label_service.log.evidence import LabelOpening, label_leaf
from label_service.log.merkle import MerkleTree, encode_hash, leaf_hash
from label_service.store import tables

_SECRET_BYTES = 32


class AnswerKey:
    """The Merkle tree over the labels.

    Attributes:
        commitment: its root, base64.
    """

    def __init__(self, secret: bytes, labels: Mapping[int, int]) -> None:
        """Build the tree.

        Args:
            secret: 32 bytes, from which the salts are derived.
            labels: class numbers by id, with every id from 0 up.
        """
        self._secret = secret
        self._tree = MerkleTree(self._leaf(label_id, labels[label_id]) for label_id in range(len(labels)))
        self.commitment = encode_hash(self._tree.root())

    def require(self, label_id: int, label: int) -> None:
        """Make sure that a label read from the database is the one committed to.

        Raises:
            LogChanged: it is another one.
        """
        if self._leaf(label_id, label) != self._tree.leaf(label_id):
            raise LogChanged(f"The label of image {label_id} is not the one that was committed to.")

    def open(self, label_id: int) -> LabelOpening:
        """Return the proof that a label is the one committed to."""
        proof = self._tree.inclusion_proof(label_id)
        return LabelOpening(salt=self._salt(label_id), proof=[encode_hash(node) for node in proof])

    def _leaf(self, label_id: int, label: int) -> bytes:
        return leaf_hash(label_leaf(label_id, label, self._salt(label_id)))

    def _salt(self, label_id: int) -> str:
        return hmac.digest(self._secret, b"%d" % label_id, "sha256").hex()


def open_answer_key(connection: Connection) -> AnswerKey:
    """Read the answer key of a seeded database, or commit to it if this is the first start.

    Args:
        connection: inside a transaction, before the first entry that is to carry the commitment.

    Raises:
        DatabaseRefused: the labels are not those committed to.
    """
    rows = connection.execute(select(tables.pool_labels.c.id, tables.pool_labels.c.label))
    labels = {row.id: row.label for row in rows}
    stored = connection.execute(select(tables.answer_key)).one_or_none()
    secret = secrets.token_bytes(_SECRET_BYTES) if stored is None else bytes(stored.secret)
    key = AnswerKey(secret, labels)
    if stored is None:
        connection.execute(
            insert(tables.answer_key).values(singleton=1, secret=secret, commitment=key.commitment, committed_at=now())
        )
    elif stored.commitment != key.commitment:
        raise DatabaseRefused(
            "The labels in the database are not those that were committed to: the database was changed."
        )
    return key

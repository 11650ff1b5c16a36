"""The commitment to the answer key: one Merkle root over every pool label, fixed before the first query.

Each label is a leaf: the canonical JSON of its id, its class and a random salt. The root of the RFC 6962 tree over
these leaves is in every log entry. The answer to a query opens the commitment for its labels: with the salt and the
inclusion proof a client checks that its label is the one committed to, and learns nothing about other labels. All salts
are derived from one secret by HMAC-SHA256 (RFC 2104), so the database stores 32 bytes and not 60,000 salts.

The test labels and the names of the classes are committed to by one salted hash, in the entry that opens a run. No
answer opens it. The service compares with it at each start and at each evaluation.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, insert, select

from label_service.errors import DatabaseRefused, LogChanged
from label_service.log.entries import canonical_json, now
from label_service.log.entry_mac import Hmac
from label_service.log.evidence import LabelOpening, label_leaf
from label_service.log.merkle import MerkleTree, encode_hash, leaf_hash
from label_service.store import tables

_SECRET_BYTES = 32
# A label's salt is made from its number, so no label has this one.
_TEST_SALT = b"test labels and class names"


class AnswerKey:
    """The Merkle tree over the labels.

    Attributes:
        commitment: its root, base64.
        test_commitment: salted hash of the test labels and the names of the classes, base64.
    """

    def __init__(
        self, secret: bytes, labels: Mapping[int, int], test_labels: Sequence[int] = (), class_names: str = "[]"
    ) -> None:
        """Build the tree.

        Args:
            secret: 32 bytes, from which the salts are derived.
            labels: class numbers by id, with every id from 0 up.
            test_labels: class numbers of the test images, in order.
            class_names: JSON list.
        """
        self._hmac = Hmac(secret)
        self._tree = MerkleTree(self._leaf(label_id, labels[label_id]) for label_id in range(len(labels)))
        self.commitment = encode_hash(self._tree.root())
        self.test_commitment = self._commit_to_tests(test_labels, class_names)

    def require(self, label_id: int, label: int) -> None:
        """Make sure that a label read from the database is the one committed to.

        Raises:
            LogChanged: it is another one.
        """
        if self._leaf(label_id, label) != self._tree.leaf(label_id):
            raise LogChanged(f"The label of image {label_id} is not the one that was committed to.")

    def read_test_labels(self, connection: Connection) -> Sequence[int]:
        """Read the test labels from the database, and make sure that they are those committed to.

        Raises:
            LogChanged: they, or the names of the classes, are others.
        """
        test_labels, class_names = _read_tests(connection)
        if self._commit_to_tests(test_labels, class_names) != self.test_commitment:
            raise LogChanged("The test labels, or the names of the classes, are not those that were committed to.")
        return test_labels

    def _commit_to_tests(self, test_labels: Sequence[int], class_names: str) -> str:
        salt = self._hmac.digest(_TEST_SALT).hex()
        try:
            committed = {"class_names": json.loads(class_names), "salt": salt, "test_labels": list(test_labels)}
            return encode_hash(hashlib.sha256(canonical_json(committed)).digest())
        except (TypeError, ValueError):
            return ""  # no JSON, so not what this service has written

    def open(self, label_id: int) -> LabelOpening:
        """Return the proof that a label is the one committed to."""
        proof = self._tree.inclusion_proof(label_id)
        return LabelOpening(salt=self._salt(label_id), proof=[encode_hash(node) for node in proof])

    def _leaf(self, label_id: int, label: int) -> bytes:
        return leaf_hash(label_leaf(label_id, label, self._salt(label_id)))

    def _salt(self, label_id: int) -> str:
        return self._hmac.digest(b"%d" % label_id).hex()


def _read_tests(connection: Connection) -> tuple[Sequence[int], str]:
    labels = select(tables.test_labels.c.label).order_by(tables.test_labels.c.id)
    class_names = connection.execute(select(tables.dataset.c.class_names)).scalar_one()
    return connection.execute(labels).scalars().all(), class_names


def open_answer_key(connection: Connection) -> AnswerKey:
    """Read the answer key of a seeded database, or commit to it if this is the first start.

    Args:
        connection: inside a transaction, before the first entry that is to carry the commitment.

    The row that it compares with lies in the same database, so `SignedLog.require_answer_key` compares with the log.

    Raises:
        DatabaseRefused: the labels are not those committed to.
    """
    rows = connection.execute(select(tables.pool_labels.c.id, tables.pool_labels.c.label))
    labels = dict(rows.all())
    stored = connection.execute(select(tables.answer_key)).one_or_none()
    secret = secrets.token_bytes(_SECRET_BYTES) if stored is None else bytes(stored.secret)
    key = AnswerKey(secret, labels, *_read_tests(connection))
    if stored is None:
        connection.execute(
            insert(tables.answer_key).values(singleton=1, secret=secret, commitment=key.commitment, committed_at=now())
        )
    elif stored.commitment != key.commitment:
        raise DatabaseRefused(
            "The labels in the database are not those that were committed to: the database was changed."
        )
    return key

"""The commitment to the answer key: one Merkle root over every pool label, fixed before the first query.

Each label is a leaf: the canonical JSON of its id, its class and a random salt. The root of the RFC 6962 tree over
these leaves is in every log entry. The answer to a query opens the commitment for its labels: with the salt and the
inclusion proof a client checks that its label is the one committed to, and learns nothing about other labels. All salts
are derived from one secret by HMAC-SHA256 (RFC 2104), so the database stores 32 bytes and not 60,000 salts.

The labels themselves, four bytes each, and the upper part of the tree are in memory: of a large pool the hashes over
16, 32 or more labels. The hashes below are made again where a label is opened. A start has to read all labels, because
any of them may have been changed, but it need not hash each: a file outside the database holds the upper part of the
tree, authenticated, with the hash of the labels that it was made of.

The test labels and the names of the classes are committed to by one salted hash, in the entry that opens a run. No
answer opens it. The service compares with it at each start and at each evaluation.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from array import array
from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, insert, select

from label_service.errors import DatabaseRefused, LogChanged
from label_service.log.authenticated_file import AuthenticatedFile
from label_service.log.entries import canonical_json, now
from label_service.log.entry_mac import Hmac
from label_service.log.evidence import LabelOpening, label_leaf
from label_service.log.merkle import HASH_BYTES, MerkleTree, encode_base64, leaf_hash
from label_service.store import tables
from label_service.store.labels import read_labels

_SECRET_BYTES = 32
# Hashes of the upper part of the tree, at most; with those above them they take 64 MB.
_MOST_SUBTREES = 1 << 20
# Labels whose leaves are in memory together while the tree is made.
_LEAVES_AT_ONCE = 1 << 16
# Of the secret under which the upper part of the tree is kept.
TREE_PURPOSE = b"labelmeter answer key mac 1\n"
# A label's salt is made from its number, so no label has this one.
_TEST_SALT = b"test labels and class names"


class AnswerKey:
    """The Merkle tree over the labels.

    Attributes:
        commitment: its root, base64.
        test_commitment: salted hash of the test labels and the names of the classes, base64.
        is_kept: the tree was taken from where it is kept.
    """

    def __init__(
        self,
        secret: bytes,
        labels: array[int],
        test_labels: Sequence[int] = (),
        class_names: str = "[]",
        kept: AuthenticatedFile | None = None,
    ) -> None:
        """Build the tree, or take its upper part from where it is kept, if it was made of this secret and these labels.

        Args:
            secret: 32 bytes, from which the salts are derived.
            labels: class numbers by id, with every id from 0 up.
            test_labels: class numbers of the test images, in order.
            class_names: JSON list.
            kept: where the upper part of the tree is kept.
        """
        self._secret, self._hmac = secret, Hmac(secret)
        self._labels = labels
        # Labels under one hash of the upper part, a power of two.
        self._width = 1 << (max(0, len(labels) - 1) // _MOST_SUBTREES).bit_length()
        # Of the secret its hash, which has a fixed length: else a part of the labels could be moved into the secret.
        self._made_of = hashlib.sha256(hashlib.sha256(secret).digest() + labels.tobytes()).digest()
        self.is_kept = False
        content = kept.read() if kept is not None else None
        subtrees = -(-len(labels) // self._width)
        if content is not None and len(content) == HASH_BYTES * (1 + subtrees) and content.startswith(self._made_of):
            roots, self.is_kept = content[HASH_BYTES:], True
        else:
            roots = b"".join(self._make_subtrees())
        self._tree = MerkleTree(roots[start : start + HASH_BYTES] for start in range(0, len(roots), HASH_BYTES))
        # The subtree that was opened last, with its number: ids are often asked for in order.
        self._opened = -1, MerkleTree()
        self.commitment = encode_base64(self._tree.root())
        self.test_commitment = self._commit_to_tests(test_labels, class_names)

    def commit(self, connection: Connection) -> bool:
        """Write down what is committed to, unless it stands there; return False if somebody committed to another key.

        In a transaction of its own, because to read and hash ten million labels takes minutes.
        """
        stored = connection.execute(select(tables.answer_key.c.commitment)).scalar_one_or_none()
        if stored is None:
            row = {"secret": self._secret, "commitment": self.commitment, "committed_at": now()}
            connection.execute(insert(tables.answer_key).values(singleton=1, **row))
        return stored in (None, self.commitment)

    def require(self, label_id: int, label: int) -> None:
        """Make sure that a label read from the database is the one committed to.

        Raises:
            LogChanged: it is another one.
        """
        if label != self._labels[label_id]:
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
            return encode_base64(hashlib.sha256(canonical_json(committed)).digest())
        except (TypeError, ValueError):
            return ""  # no JSON, so not what this service has written

    def open(self, label_id: int) -> LabelOpening:
        """Return the proof that a label is the one committed to."""
        number, place = divmod(label_id, self._width)
        proof = [] if self._width == 1 else self._subtree(number).inclusion_proof(place)
        proof += self._tree.inclusion_proof(number)
        return LabelOpening(salt=self._salt(label_id), proof=[encode_base64(node) for node in proof])

    def keep(self, kept: AuthenticatedFile) -> None:
        """Write the upper part of the tree to where the next start looks for it. A failure is only logged."""
        kept.write(self._made_of + self._tree.subtree_roots(1))

    def _make_subtrees(self) -> Iterator[bytes]:
        """Yield the hashes of the upper part from the leaves, some together."""
        at_once = max(_LEAVES_AT_ONCE, self._width)
        for start in range(0, len(self._labels), at_once):
            yield MerkleTree(self._leaves(start, start + at_once)).subtree_roots(self._width)

    def _subtree(self, number: int) -> MerkleTree:
        last, subtree = self._opened
        if last != number:
            start = number * self._width
            subtree = MerkleTree(self._leaves(start, start + self._width))
            self._opened = number, subtree
        return subtree

    def _leaves(self, start: int, end: int) -> Iterator[bytes]:
        for label_id, label in enumerate(self._labels[start:end], start):
            yield leaf_hash(label_leaf(label_id, label, self._salt(label_id)))

    def _salt(self, label_id: int) -> str:
        return self._hmac.digest(b"%d" % label_id).hex()


def _read_tests(connection: Connection) -> tuple[Sequence[int], str]:
    labels = select(tables.test_labels.c.label).order_by(tables.test_labels.c.id)
    class_names = connection.execute(select(tables.dataset.c.class_names)).scalar_one()
    return connection.execute(labels).scalars().all(), class_names


def open_answer_key(connection: Connection, kept: AuthenticatedFile | None = None) -> AnswerKey:
    """Read the answer key of a seeded database, or make one that `AnswerKey.commit` is to write down.

    Args:
        connection: inside a transaction; only read from.
        kept: where the upper part of the tree is kept; None makes it of the labels.

    The row that it compares with lies in the same database, so `SignedLog.require_answer_key` compares with the log.

    Raises:
        DatabaseRefused: the labels are not those committed to.
    """
    pool_size = connection.execute(select(tables.dataset.c.pool_size)).scalar_one()
    labels = read_labels(connection, tables.pool_labels, pool_size)
    stored = connection.execute(select(tables.answer_key)).one_or_none()
    secret = secrets.token_bytes(_SECRET_BYTES) if stored is None else bytes(stored.secret)
    key = AnswerKey(secret, labels, *_read_tests(connection), kept)
    if stored is not None and stored.commitment != key.commitment:
        raise DatabaseRefused(
            "The labels in the database are not those that were committed to: the database was changed."
        )
    return key

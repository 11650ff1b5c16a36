"""The signed log: the Merkle tree over the committed entries, its signed head, and receipts.

The tree holds the exact bytes of the entries in the order of their numbers. After each commit the tree
grows, one checkpoint is signed for all new entries, and the checkpoint is remembered in a file outside the database's
folder; only then is anybody answered. At the start the tree is made anew from the database, and a database
that does not grow from the newest remembered head is refused: it is older, or another one.

The writer's thread is the only one that grows the tree. Others read it for sizes that have been signed, which do not
change any more.

Several workers on one database hold a tree each. A tree takes in whatever was committed since it last grew, by
whichever worker, inside a transaction that keeps all others from writing. All sign with one key, and Ed25519 is
deterministic, so heads of one size are one head. What a worker committed and died before signing, the next one signs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, exists, func, insert, literal, select
from sqlalchemy.exc import SQLAlchemyError

from label_service.errors import DatabaseRefused, LogChanged
from label_service.log.checkpoint import ORIGIN_PREFIX, Checkpoint, SigningKey
from label_service.log.entries import Entry
from label_service.log.evidence import Receipt
from label_service.log.merkle import MerkleTree, VerificationError, encode_hash, leaf_hash
from label_service.log.remembered_heads import RememberedHeads
from label_service.store import tables

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SignedHead:
    """The newest checkpoint, read and as signed."""

    checkpoint: Checkpoint
    note: str

    @property
    def signature(self) -> str:
        """Key id and signature, base64: the end of the note."""
        return self.note.rstrip("\n").rpartition(" ")[2]


class SignedLog:
    """Grows with the entries and signs each growth.

    Attributes:
        verifier: the public key to pin.
        head: the newest signed head.
    """

    def __init__(self, connection: Connection, key: SigningKey, heads: RememberedHeads, shared: bool = False) -> None:
        """Make the tree of the database's entries, check it against the remembered head, and sign it.

        Args:
            connection: inside a transaction.
            key: signs; its name is the log's origin.
            heads: remembers what was signed.
            shared: other workers append to the same log.

        Raises:
            DatabaseRefused: the database does not grow from the newest remembered head.
        """
        self._key, self._heads, self._shared = key, heads, shared
        self.verifier = key.verifier
        self._tree = MerkleTree(leaf_hash(entry) for entry in _read(connection, 0))
        remembered = heads.newest(self.verifier)
        if remembered is not None:
            self._refuse_older(remembered)
        self.head = self._sign()
        heads.begin(self.head.note)
        self._doubtful = False
        # Whether the newest head is: a service that cannot remember its heads is not ready.
        self._remembered = True
        # The size whose head is stored; it is stored with the commit after its own.
        self._kept = 0

    def catch_up(self, connection: Connection) -> None:
        """Take in and sign what other workers have committed, inside a transaction that keeps them from writing.

        Done before any work, so that the head that this transaction grows from is known and can be kept.

        Raises:
            LogChanged: the signed entries are not there any more.
            OSError: the head cannot be remembered.
        """
        if self._shared and (new := self.new_entries(connection)):
            self.grow(new)

    def new_entries(self, connection: Connection) -> list[bytes]:
        """Read the entries that the tree does not hold yet, inside the transaction that appended them.

        What was signed before must still be there, or the head would be signed over a log that is gone: the last
        signed entry is compared each time, and all of them after a failed write.

        Raises:
            LogChanged: it is not.
        """
        size = self._tree.size
        start = 0 if self._doubtful else max(0, size - 1)
        entries = _read(connection, start)
        kept, new = entries[: size - start], entries[size - start :]
        if [leaf_hash(entry) for entry in kept] != [self._tree.leaf(index) for index in range(start, size)]:
            raise LogChanged(f"The {size} signed entries of the log are not what they were when they were signed.")
        self._doubtful = False
        return new

    def doubt(self) -> None:
        """Take note that a write has failed, so that the next one compares every signed entry."""
        self._doubtful = True

    def grow(self, new: Sequence[bytes]) -> None:
        """Take in committed entries, sign the new head, and remember it; one that could not be is tried again.

        Raises:
            OSError: the head cannot be remembered; it is signed all the same, and the next one covers it.
        """
        self._kept = self.head.checkpoint.size
        if not new and self._remembered:
            return
        self._remembered = False
        for entry in new:
            self._tree.append(leaf_hash(entry))
        self.head = self._sign()
        self._heads.remember(self.head.note)
        self._remembered = True

    def receipt(self, entry: Entry) -> Receipt:
        """Prove that a committed entry is under the newest head."""
        head = self.head
        proof = self._tree.inclusion_proof(entry.seq, head.checkpoint.size)
        return Receipt(
            entry=entry.data.decode("ascii"),
            index=entry.seq,
            inclusion_proof=[encode_hash(node) for node in proof],
            checkpoint=head.note,
        )

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """Prove an entry under a signed size; ValueError if there is no such entry or size."""
        self._require_signed(size)
        return self._tree.inclusion_proof(index, size)

    def consistency_proof(self, first: int, second: int) -> list[bytes]:
        """Prove that a signed size grew from another; ValueError if there are no such sizes."""
        self._require_signed(second)
        return self._tree.consistency_proof(first, second)

    def root(self, size: int) -> bytes:
        """Answer the root of a signed size; ValueError if there is none."""
        self._require_signed(size)
        return self._tree.root(size)

    def _require_signed(self, size: int) -> None:
        signed = self.head.checkpoint.size
        if size > signed:
            raise ValueError(f"the log has {signed} signed entries, not {size}")

    def _sign(self) -> SignedHead:
        checkpoint = Checkpoint(self.verifier.name, self._tree.size, self._tree.root())
        return SignedHead(checkpoint, checkpoint.sign(self._key))

    def keep_head(self, connection: Connection) -> None:
        """Store the newest head, inside the transaction of the commit after it.

        It was signed after its own commit, so it cannot be in that one. Nothing is lost if the process ends before:
        the same head can be signed again.
        """
        size = self.head.checkpoint.size
        if size == self._kept:
            return
        # Another process may have stored the same; both are the same bytes.
        row = select(literal(size), literal(self.head.signature))
        is_new = ~exists().where(tables.heads.c.size == size)
        connection.execute(insert(tables.heads).from_select(["size", "signature"], row.where(is_new)))

    def _refuse_older(self, remembered: Checkpoint) -> None:
        if remembered.size > self._tree.size:
            raise DatabaseRefused(
                f"The database has {self._tree.size} log entries and a head over {remembered.size} was signed: it is "
                "older than the log it continues, such as a backup put back; restore the newer one."
            )
        if self._tree.root(remembered.size) != remembered.root:
            raise DatabaseRefused(
                f"The first {remembered.size} log entries are not those that were signed: the database was changed."
            )


def _read(connection: Connection, start: int) -> list[bytes]:
    columns = tables.entries.c
    found = select(columns.entry).where(columns.seq >= start).order_by(columns.seq)
    # Entries are bytes. Whatever else lies there was not written by this service, and hashes to nothing known.
    return [entry if isinstance(entry, bytes) else b"" for entry in connection.execute(found).scalars()]


def load_key(path: Path, log_id: str, may_make: bool = True) -> SigningKey:
    """Read the log's signing key, or make it at the log's first start (mode 0600).

    Raises:
        DatabaseRefused: the key cannot be read or written, belongs to another log, or is missing and may not be made.
    """
    origin = ORIGIN_PREFIX + log_id
    try:
        try:
            key = SigningKey.load(path)
        except FileNotFoundError:
            if not may_make:
                raise DatabaseRefused(
                    f"The log has entries and its signing key is not at {path}; "
                    "put the key there, or name its folder with LABEL_SERVICE_KEY_FOLDER."
                ) from None
            path.parent.mkdir(parents=True, exist_ok=True)
            key = SigningKey.generate(origin)
            key.save(path)
            logger.info("made the log's signing key; pin its public half: %s", key.verifier.vkey)
    except (OSError, VerificationError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DatabaseRefused(f"The log's signing key {path} cannot be used ({reason}).") from error
    if key.name != origin:
        raise DatabaseRefused(f"{path} is the key of {key.name}, and the database holds {origin}; they must belong.")
    return key


def open_signed_log(engine: Engine, key_path: Path, heads_path: Path, log_id: str, shared: bool = False) -> SignedLog:
    """Open a database's signed log.

    Args:
        engine: the writing one; its transaction keeps other workers from making a key at the same time.
        key_path: the signing key's file.
        heads_path: the file of remembered heads.
        log_id: the log's id.
        shared: other workers write to the same log. A shared database does not lie beside its key, so a key that is
            not found is made only for a log that has answered nobody yet: nothing but the guest's opening is in it.

    Raises:
        DatabaseRefused: key, remembered head and database do not belong together, or cannot be read.
    """
    try:
        with engine.begin() as connection:
            answered = connection.execute(select(func.max(tables.entries.c.seq))).scalar_one()
            key = load_key(key_path, log_id, may_make=not shared or not answered)
            return SignedLog(connection, key, RememberedHeads(heads_path, shared), shared)
    except SQLAlchemyError as error:
        raise DatabaseRefused(f"The log cannot be read ({getattr(error, 'orig', error)}).") from error

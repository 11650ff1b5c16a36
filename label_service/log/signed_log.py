"""The signed log: the Merkle tree over the committed entries, its signed head, and the receipts.

The leaves of the tree are the exact bytes of the entries, in the order of their numbers. After each commit the log adds
the new entries to the tree, signs one tree head for all of them and remembers this head in a file outside the
database's folder. Only then does the service answer. At the start the log builds the tree from the database and refuses
a database that does not continue the newest remembered head, because that database is older or another one.

An entry enters the tree only with the MAC of a service that has the key (`entry_mac`). The entries in the tree are
added up in memory (`account`). This account is what decisions are compared with: the other tables only repeat it.

Only the writer's thread adds to the tree. Other threads read it at sizes that have been signed, which never change.

Several workers on one database have a tree each. Before it writes, a worker adds whatever the others have committed,
inside a transaction that keeps all others from writing. All workers sign with the same key, and Ed25519 is
deterministic, so two heads of one size are equal. If a worker dies after its commit and before it signs, the next
worker signs those entries.

A long log starts from a snapshot of its first entries (`snapshot`), and replays only the rest.

The key is replaced while the service is stopped (`label_service.rotation`). A worker that still runs then finds the
entry that says so, and signs nothing any more.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Integer, Result, Row, Text, bindparam, exists, func, insert, select
from sqlalchemy.exc import SQLAlchemyError

from label_service.errors import DatabaseRefused, LogChanged
from label_service.files import sync_folder
from label_service.log.account import Account, EntryError
from label_service.log.answer_key import AnswerKey
from label_service.log.entries import Entry
from label_service.log.entry_mac import EntryMac, derive_secret
from label_service.log.evidence import Receipt
from label_service.log.key_history import KeyHistory, KeyRotation
from label_service.log.merkle import MerkleTree, VerificationError, encode_base64, leaf_hash
from label_service.log.remembered_heads import RememberedHeads
from label_service.log.signed_note import RetiredKey, SigningKey
from label_service.log.snapshot import Snapshot, SnapshotFile
from label_service.log.table_check import ROWS_AT_ONCE, TableCheck
from label_service.log.tree_head import ORIGIN_PREFIX, TreeHead
from label_service.store import tables

# Built once: building a statement takes longer than running it.
_READ = select(tables.entries).where(tables.entries.c.seq >= bindparam("start")).order_by(tables.entries.c.seq)
_READ_UNTIL = _READ.where(tables.entries.c.seq < bindparam("end"))
# Another worker may have stored the head already; both are the same bytes.
_STORE_HEAD = insert(tables.heads).from_select(
    ["size", "signature"],
    select(bindparam("new_size", type_=Integer), bindparam("new_signature", type_=Text)).where(
        ~exists().where(tables.heads.c.size == bindparam("new_size"))
    ),
)

logger = logging.getLogger(__name__)

# Entries between two snapshots; replaying as many takes about a second.
SNAPSHOT_EVERY = 50_000


class SignedLog:
    """The tree over the entries and its newest signed head.

    Attributes:
        verifier: the public key, to be pinned by clients.
        keys: the log's keys so far, this one the newest.
        head: the newest signed tree head.
        mac: authenticates the entries.
        account: what the entries in the tree add up to.
    """

    def __init__(
        self,
        connection: Connection,
        key: SigningKey,
        heads: RememberedHeads,
        shared: bool = False,
        snapshots: SnapshotFile | None = None,
    ) -> None:
        """Build the tree from the database, check it against the newest remembered head, and sign it.

        Args:
            connection: inside a transaction; where the log is shared, one that has read nothing yet.
            key: the signing key; its name is the log's origin.
            heads: the heads signed so far.
            shared: other workers append to the same log.
            snapshots: where a snapshot is looked for and kept; None replays the whole log and keeps none.

        Raises:
            DatabaseRefused: the database does not continue the newest remembered head, or another service has written
                to it.
        """
        self._key, self._heads, self._shared, self._snapshots = key, heads, shared, snapshots
        self.verifier = key.verifier
        self.keys = KeyHistory.of_key(key)
        self.mac = EntryMac(key)
        # The size of the snapshot that this log starts from, or has kept last.
        self._snapshot_size = 0
        # Before the transaction sees the log, in which other workers may append and sign more in the meantime.
        remembered = heads.newest(self.keys)
        changed = self._build(connection)
        if remembered is not None:
            self._refuse_older(remembered)
        if changed is not None:
            raise DatabaseRefused(str(changed)) from changed
        self._require_keys()
        self.head = self._sign()
        heads.start_anew(self.head.note)
        # After a failed write the next one compares every signed entry, not only the last.
        self._compare_all = False
        # Whether the newest head is in the file of remembered heads.
        self._is_remembered = True
        # The size of the newest head that is in the database; a head is stored with the commit after its own.
        self._stored_size = 0
        # Whether account, tree and what they say of the tables are of the entries under the head.
        self._whole = True
        self.keep_snapshot()

    def catch_up(self, connection: Connection) -> None:
        """Add and sign what other workers have committed, inside a transaction that keeps them from writing.

        The writer does this before any work, so that this transaction knows the head that it continues and stores it.

        Raises:
            LogChanged: the signed entries are not in the database any more.
            OSError: the head cannot be remembered.
        """
        if self._shared and (new := self.new_entries(connection)):
            self.grow(new)

    def new_entries(self, connection: Connection) -> list[Row[Any]]:
        """Read the entries that are not in the tree yet, inside the transaction that appended them.

        The database must still have the entries that were signed before, or the next head would be signed over a log
        that is gone. Each call compares the last signed entry; after a failed write it compares all of them.

        Returns:
            Their rows, each with a MAC that holds.

        Raises:
            LogChanged: a signed entry is missing or changed, somebody else has added an entry, or the log's key was
                replaced.
        """
        size = self._tree.size
        start = 0 if self._compare_all else max(0, size - 1)
        rows = list(_read(connection, start))
        signed, new = rows[: size - start], rows[size - start :]
        if [leaf_hash(_data(row)) for row in signed] != [self._tree.leaf(index) for index in range(start, size)]:
            raise LogChanged(f"The {size} signed entries of the log are not what they were when they were signed.")
        for row in new:
            self.mac.require(row)
            if row.op == "key-rotated" or b'"op":"key-rotated"' in row.entry:
                raise LogChanged(f"The log's key was replaced at entry {row.seq}: start this service again.")
        self._compare_all = False
        return new

    def require_answer_key(self, key: AnswerKey) -> None:
        """Make sure that what the database holds is what the log's entries have committed to.

        Raises:
            DatabaseRefused: the labels, the test labels or the names of the classes are others.
        """
        account = self.account
        if account.entries and (key.commitment, key.test_commitment) != (
            account.label_commitment,
            account.test_commitment,
        ):
            what = "labels" if key.commitment != account.label_commitment else "test labels or the names of the classes"
            raise DatabaseRefused(
                f"The {what} in the database are not those that were committed to: the database was changed."
            )

    def secret(self, purpose: bytes) -> bytes:
        """Return a secret for one purpose that only who has the log's key can derive, 32 bytes."""
        return derive_secret(self._key, purpose)

    def name_successor(self, seq: int) -> tuple[KeyRotation, SigningKey]:
        """Make the key that is to replace this log's.

        Args:
            seq: number of the entry that will say so.

        Returns:
            What the entry is to say, signed by the key so far, and the new key.
        """
        retired = RetiredKey(self.verifier, seq, self.mac.secret)
        new = SigningKey.generate(self._key.name, (*self._key.retired, retired))
        return KeyRotation.sign(self._key, new.verifier, seq), new

    def recheck(self) -> None:
        """Make the next write compare every signed entry, because a write has failed."""
        self._compare_all = True

    def grow(self, new: Sequence[Row[Any]]) -> None:
        """Add committed entries to the account and the tree, sign the new head and remember it.

        A call without new entries tries again to remember a head that could not be remembered.

        Args:
            new: what `new_entries` returned.

        Raises:
            OSError: the head cannot be remembered. It is signed all the same, and the next head covers its entries.
            EntryError: an entry breaks the rules of the log, though its MAC holds; nothing is signed any more.
        """
        self._stored_size = self.head.size
        if not new and self._is_remembered:
            return
        # Stays so if an entry fails: it may be half added up.
        was_whole, self._is_remembered, self._whole = self._whole, False, False
        for row in new:
            entry = json.loads(row.entry)
            self._said.add(row, entry, self.account.add(entry))
            self._tree.append(leaf_hash(row.entry))
        self._said.settle()
        self.head = self._sign()
        self._whole = was_whole
        self._heads.remember(self.head.note)
        self._is_remembered = True

    def keep_snapshot(self, *, stopping: bool = False) -> None:
        """Write what the signed entries add up to, if enough follow the last snapshot. A full disk is only logged.

        Args:
            stopping: one entry is enough.
        """
        enough = 1 if stopping else SNAPSHOT_EVERY
        if self._snapshots is not None and self._whole and self.head.size - self._snapshot_size >= enough:
            self._snapshot_size = self.head.size
            self._snapshots.write(Snapshot.of(self.head.root, self._said, self.account))

    def head_over(self, size: int) -> TreeHead:
        """Return the signed head over the first `size` entries; signing a size again gives the same bytes.

        Raises:
            ValueError: fewer entries are signed.
        """
        self._require_signed(size)
        return TreeHead.sign(self._key, size, self._tree.root(size))

    def receipt(self, entry: Entry, head: TreeHead) -> Receipt:
        """Prove that a committed entry is in the log under a signed head that covers it."""
        proof = self._tree.inclusion_proof(entry.seq, head.size)
        return Receipt(
            entry=entry.data.decode("ascii"),
            index=entry.seq,
            inclusion_proof=[encode_base64(node) for node in proof],
            checkpoint=head.note,
        )

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """Prove that an entry is in the log of a signed size.

        Raises:
            ValueError: there is no such entry, or fewer entries are signed.
        """
        self._require_signed(size)
        return self._tree.inclusion_proof(index, size)

    def consistency_proof(self, first: int, second: int) -> list[bytes]:
        """Prove that the log of the second size begins with the log of the first.

        Raises:
            ValueError: the sizes are out of order, or fewer entries are signed.
        """
        self._require_signed(second)
        return self._tree.consistency_proof(first, second)

    def root(self, size: int) -> bytes:
        """Return the root of a signed size.

        Raises:
            ValueError: fewer entries are signed.
        """
        self._require_signed(size)
        return self._tree.root(size)

    def _require_signed(self, size: int) -> None:
        if size > self.head.size:
            raise ValueError(f"the log has {self.head.size} signed entries, not {size}")

    def _sign(self) -> TreeHead:
        return TreeHead.sign(self._key, self._tree.size, self._tree.root())

    def store_head(self, connection: Connection) -> None:
        """Store the newest head in the database, inside the transaction of the commit after it.

        A head is signed after its own commit, so it cannot be stored in that one. Nothing is lost if the process ends
        in between, because the same head can be signed again.

        Raises:
            OSError: the head after this commit could not be remembered.
        """
        # Before the commit, so that a full disk refuses the commit and not the head after it.
        self._heads.reserve()
        size = self.head.size
        if size == self._stored_size:
            return
        # The note of this log's own head ends in its one signature.
        signature = self.head.note.rstrip("\n").rpartition(" ")[2]
        connection.execute(_STORE_HEAD, {"new_size": size, "new_signature": signature})

    def _build(self, connection: Connection) -> LogChanged | EntryError | None:
        """Build tree and account from the database, from a snapshot on if there is one that fits.

        Returns:
            The first thing that this service has not written; the tree is complete all the same.
        """
        snapshot = self._snapshots.read() if self._snapshots is not None else None
        if snapshot is not None:
            changed = self._replay(connection, snapshot)
            if changed is None:
                self._snapshot_size = snapshot.size
                logger.info("compared %d entries with the snapshot, replayed the rest", snapshot.size)
                return None
            # A snapshot refuses nothing, and nothing goes on from one that does not fit.
            logger.warning("the snapshot is not used, and the whole log is replayed: %s", changed)
        return self._replay(connection)

    def _replay(self, connection: Connection, snapshot: Snapshot | None = None) -> LogChanged | EntryError | None:
        """Add up the entries after a snapshot, or all of them, and compare the other tables with them.

        Returns:
            The first thing that this service has not written; without a snapshot the tree is complete all the same.
        """
        changed: LogChanged | EntryError | None = None
        self.account = Account(self._key.name.removeprefix(ORIGIN_PREFIX))
        self._tree = MerkleTree()
        with closing(TableCheck(connection)) as check, _without_collector():
            self._said = check.said
            if snapshot is not None:
                try:
                    for rows in _read(connection, 0, snapshot.size).partitions(ROWS_AT_ONCE):
                        self._tree.extend([leaf_hash(_data(row)) for row in rows])
                        check.take_over(rows, self._tree.size - 1)
                    self.account = snapshot.open(self._tree.root(), check.said, check.labels)
                except LogChanged as error:
                    return error
            for rows in _read(connection, self._tree.size).partitions(ROWS_AT_ONCE):
                self._tree.extend([leaf_hash(_data(row)) for row in rows])
                if changed is None:
                    try:
                        for row in rows:
                            self.mac.require(row)
                        # Parsed together, which takes less time: their MACs say that each is the service's own JSON.
                        for row, entry in zip(rows, json.loads(b"[%s]" % b",".join(map(_data, rows))), strict=True):
                            check.add(row, entry, self.account.add(entry))
                    except (LogChanged, EntryError) as error:
                        changed = error
            if changed is None:
                try:
                    check.finish(self.account)
                except LogChanged as error:
                    changed = error
        return changed

    def _require_keys(self) -> None:
        """Make sure that the log has replaced its key where the key file says so."""
        rotations = self.account.rotations
        said = KeyHistory.of(rotations) if rotations else KeyHistory(self.keys.keys[-1:])
        if said == self.keys:
            return
        if rotations and self.verifier in said.keys[:-1]:
            raise DatabaseRefused(
                f"The log's key was replaced at entry {said.ends[-1]}, and the key that is there is an older one: put "
                "the newest key back, or let serve or rotate-key finish what a crash cut off."
            )
        raise DatabaseRefused(
            "The database lacks an entry that replaced the log's key: it is older than its key. Put the newest "
            "database back."
        )

    def _refuse_older(self, remembered: TreeHead) -> None:
        if remembered.size > self._tree.size:
            raise DatabaseRefused(
                f"The database has {self._tree.size} log entries and a head over {remembered.size} was signed: it is "
                "older than the log it continues. If a backup was restored, put the newest database back."
            )
        if self._tree.root(remembered.size) != remembered.root:
            raise DatabaseRefused(
                f"The first {remembered.size} log entries are not those that were signed: the database was changed."
            )


@contextmanager
def _without_collector() -> Iterator[None]:
    """Do not look for cycles meanwhile: a replay makes millions of objects and none, and looking takes a sixth."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read(connection: Connection, start: int, end: int | None = None) -> Result[Any]:
    query = _READ if end is None else _READ_UNTIL
    return connection.execute(query, {"start": start, "end": end}, execution_options={"yield_per": ROWS_AT_ONCE})


def _data(row: Sequence[Any]) -> bytes:
    # Entries are bytes. A value of another type was not written by this service; as b"" it matches no signed leaf.
    data = row[1]
    return data if isinstance(data, bytes) else b""


def load_key(path: Path, log_id: str, may_make: bool) -> SigningKey:
    """Read the log's signing key. If it is missing and may be made, make it (mode 0600).

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
        raise DatabaseRefused(f"{path} is the key of {key.name}, the database is {origin}; they must belong together.")
    return key


def next_key_path(path: Path) -> Path:
    """Return where a new key lies until an entry names it and it takes the old key's place."""
    return path.with_name(f"{path.name}.next")


def _finish_rotation(connection: Connection, path: Path, key: SigningKey) -> SigningKey:
    """Put a new key into the place of the old one, if the log names it.

    Returns:
        The key that is in place then.

    Raises:
        OSError: the key cannot be put in place.
    """
    entries = tables.entries
    rotated = select(entries).where(entries.c.op == "key-rotated").order_by(entries.c.seq.desc()).limit(1)
    row = connection.execute(rotated).one_or_none()
    if row is None:
        return key
    try:
        new = SigningKey.load(next_key_path(path))
        # The new key has the secret of the old one, by which the entry is authenticated.
        EntryMac(new).require(row)
        if KeyRotation.read(json.loads(row.entry)["detail"]).new_key != new.verifier.vkey:
            return key
    except (FileNotFoundError, VerificationError, LogChanged):
        # There is none, or no entry of this service names it.
        return key
    next_key_path(path).replace(path)
    sync_folder(path.parent)
    logger.info("put the log's new signing key in place; its public half: %s", new.verifier.vkey)
    return new


def open_signed_log(
    engine: Engine,
    key_path: Path,
    heads_path: Path,
    log_id: str,
    shared: bool = False,
    reading: Engine | None = None,
) -> SignedLog:
    """Open the signed log of a database.

    Args:
        engine: the writing one; its transaction keeps other workers from making a key at the same time.
        key_path: the file of the signing key.
        heads_path: the file of remembered heads; a snapshot lies beside it.
        log_id: the id of the log.
        shared: other workers write to the same log.
        reading: reads the log; None for the writing one.

    Raises:
        DatabaseRefused: key, remembered head and database do not belong together, or cannot be read.
    """
    try:
        with engine.begin() as connection:
            last_seq = connection.execute(select(func.max(tables.entries.c.seq))).scalar_one()
            # A new key could authenticate no entry that is there, and would sign another log than clients have pinned.
            key = load_key(key_path, log_id, may_make=last_seq is None)
            key = _finish_rotation(connection, key_path, key)
        snapshots = SnapshotFile(heads_path.with_suffix(".snapshot"), key)
        with (reading or engine).begin() as connection:
            return SignedLog(connection, key, RememberedHeads(heads_path, shared), shared, snapshots)
    except SQLAlchemyError as error:
        raise DatabaseRefused(f"The log cannot be read ({getattr(error, 'orig', error)}).") from error
    except OSError as error:
        raise DatabaseRefused(f"The log's signing key {key_path} cannot be replaced ({error.strerror}).") from error

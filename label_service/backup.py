"""Backup of a log with its labels, while the service runs, and restoring it without ever forking the log.

A backup is a folder: the database as one file, the newest signed head (over exactly the entries in it), the public key,
the signing key if that was asked for, and a manifest with a hash of each. It is checked like a database at the start of
the service before the folder gets its name, so a backup that is there is whole.

A restored log may go on only if nothing was signed after the backup. Otherwise the service would number other entries
as it has numbered before, and clients hold receipts for those. Then, and if the signing key is lost, a new log begins
over the same labels: with another id and key, and with an opening that names its forerunner and the forerunner's last
head. The forerunner's evidence is kept, and verifies as ever.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, Engine, insert, select
from sqlalchemy.exc import SQLAlchemyError

from label_service.data.seed import load_info, new_log_id
from label_service.errors import BackupRefused, DatabaseRefused, LogChanged
from label_service.files import hash_file, sync_folder, write_atomically
from label_service.log.answer_key import open_answer_key
from label_service.log.entries import now
from label_service.log.evidence import Evidence
from label_service.log.forerunner import Forerunner
from label_service.log.key_history import KeyHistory
from label_service.log.log_reader import LogReader
from label_service.log.merkle import MerkleTree, VerificationError, leaf_hash
from label_service.log.remembered_heads import RememberedHeads
from label_service.log.signed_log import SignedLog, load_key
from label_service.log.signed_note import SigningKey, Verifier
from label_service.log.tree_head import ORIGIN_PREFIX, TreeHead
from label_service.service import begin_log
from label_service.settings import Settings
from label_service.store import tables
from label_service.store.backends import SqliteDatabase, find_database, heads_path, key_path, reason_of
from label_service.store.labels import read_labels, write_labels
from label_service.store.migrations import migrate
from label_service.store.sqlite import checkpoint, open_reading_engine, open_writing_engine

_MANIFEST, _DATABASE, _HEADS, _PUBLIC, _KEY = "manifest.json", "labels.sqlite3", "log.heads", "log.vkey", "log.key"


class Manifest(BaseModel):
    """What a backup holds."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    backup: int = Field(ge=1, le=1, description="Version of this format.")
    log_id: str
    key: str = Field(description="The log's verifier key.")
    entries: int
    made_at: str
    files: dict[str, str] = Field(description="SHA-256 of each file.")


@dataclass(frozen=True)
class Restored:
    """What was put in place.

    Attributes:
        log_id: the log that goes on, or the new one.
        forerunner: of a new log, else None.
        evidence: the file of the forerunner's evidence, None if the log goes on.
    """

    log_id: str
    forerunner: Forerunner | None = None
    evidence: Path | None = None


def back_up(settings: Settings, to: Path, with_key: bool) -> Manifest:
    """Copy the log and its labels into a new folder; the service may run and write meanwhile.

    Args:
        settings: name the database, the key folder and the heads folder.
        to: the folder to make.
        with_key: copy the signing key too.

    Raises:
        BackupRefused: there is no log, the folder exists or cannot be written, or the database is none of SQLite.
        DatabaseRefused: the database or the key cannot be used, or the database was changed.
    """
    database = _sqlite_database(settings)
    if to.exists():
        raise BackupRefused(f"{to} exists already; name a folder that a backup may make.")
    with _one_sentence(f"The backup {to} cannot be made"), _staging(to) as part:
        with _reading(database.path) as engine, engine.begin() as connection:
            info = load_info(connection)
        if info is None:
            raise BackupRefused(f"{database.path} holds no log yet; serve begins it.")
        key = load_key(key_path(settings, database, info.log_id), info.log_id, may_make=False)
        # Before the copy, which then has all the entries under this head.
        remembered = RememberedHeads(heads_path(settings, database, info.log_id)).newest(KeyHistory.of_key(key))
        heads = RememberedHeads(part / _HEADS)
        if remembered is not None:
            heads.start_anew(remembered.note)
        _copy_database(database.path, part / _DATABASE)
        with _reading(part / _DATABASE) as engine, engine.begin() as connection:
            # Compares everything, and leaves in the file the head over exactly these entries.
            log = SignedLog(connection, key, heads)
            log.require_answer_key(open_answer_key(connection))
        write_atomically(part / _PUBLIC, f"{key.verifier.vkey}\n".encode())
        if with_key:
            key.save(part / _KEY)
        manifest = Manifest(
            backup=1,
            log_id=info.log_id,
            key=key.verifier.vkey,
            entries=log.head.size,
            made_at=now(),
            files={path.name: hash_file(path) for path in sorted(part.iterdir())},
        )
        write_atomically(part / _MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")
        sync_folder(part)
        part.rename(to)
        sync_folder(to.parent)
    return manifest


def restore(
    settings: Settings, source: Path, *, nothing_followed: bool = False, accept_lost_entries: bool = False
) -> Restored:
    """Put a backup into an empty place, after everything in it was checked.

    Args:
        settings: name the places of the database, the key and the heads.
        source: the backup.
        nothing_followed: the operator's word that the log had no entry after the backup; the remembered heads, where
            there are any, are asked all the same.
        accept_lost_entries: begin a new log that names the old one, because entries or the key are lost.

    Raises:
        BackupRefused: the backup is damaged, the place is not empty, or the log may not go on like this.
        DatabaseRefused: the database or the key cannot be used.
    """
    database = _sqlite_database(settings)
    if nothing_followed and accept_lost_entries:
        raise BackupRefused("Either nothing followed the backup or entries are lost: give one of the two options.")
    manifest = _read_manifest(source)
    with _one_sentence(f"{source} cannot be restored"), database.hold():
        _require_empty(database.path)
        with _staging(database.path) as part:
            staged = part / database.path.name
            shutil.copyfile(source / _DATABASE, staged)
            staged.chmod(0o600)
            head = _require_head(staged, manifest, source)
            key = _find_key(settings, database, manifest, source)
            heads = heads_path(settings, database, manifest.log_id)
            newest = RememberedHeads(heads).newest(_keys(key, manifest))
            with _reading(staged) as engine:
                lost = _count_lost(engine, head, newest)
            _decide(source, key, newest, lost, nothing_followed, accept_lost_entries)
            if accept_lost_entries:
                restored = _begin_new_log(settings, database, part, manifest, head, newest, key)
            else:
                assert key is not None
                _continue_log(staged, key, RememberedHeads(heads))
                _place_key(key, key_path(settings, database, manifest.log_id))
                restored = Restored(manifest.log_id)
            # Last: until the database is there, nothing is restored, and the command can be given again.
            staged.replace(database.path)
            sync_folder(database.path.parent)
    return restored


def _decide(
    source: Path, key: SigningKey | None, newest: TreeHead | None, lost: int, nothing_followed: bool, accept: bool
) -> None:
    """Refuse to go on where that could fork the log, and to begin a new one where there is no need.

    Raises:
        BackupRefused: see the sentences.
    """
    begin = "--accept-lost-entries begins a new log that names this one."
    if accept:
        if key is not None and newest is not None and not lost:
            raise BackupRefused(f"{source} lacks no entry and its key is there; leave out --accept-lost-entries.")
    elif lost:
        raise BackupRefused(
            f"{source} is older than the newest head that the service has signed: it lacks {lost:,} entries, and "
            f"clients hold receipts for them. Restore a newer backup if there is one; else {begin}"
        )
    elif newest is None and not nothing_followed:
        raise BackupRefused(
            f"Nothing here remembers the newest head that the service has signed, so {source} may lack entries. Put "
            "the heads folder back (LABEL_SERVICE_HEADS_FOLDER); or say --nothing-followed if the service was stopped "
            f"before the backup and not started since; else {begin}"
        )
    elif key is None:
        raise BackupRefused(
            f"{source} holds no signing key; put the log's key where the service looks for it "
            f"(LABEL_SERVICE_KEY_FOLDER). If the key is lost, {begin}"
        )


def _continue_log(staged: Path, key: SigningKey, heads: RememberedHeads) -> None:
    """Migrate and compare a copy, as a start of the service would, and remember its head."""
    with _writing(staged) as engine:
        migrate(engine)
        with engine.begin() as connection:
            log = SignedLog(connection, key, heads)
            log.require_answer_key(open_answer_key(connection))


def _begin_new_log(
    settings: Settings,
    database: SqliteDatabase,
    part: Path,
    manifest: Manifest,
    head: TreeHead,
    newest: TreeHead | None,
    old_key: SigningKey | None,
) -> Restored:
    """Replace the copy by a database with the same labels and a log of its own, whose opening names the old one."""
    staged, old = part / database.path.name, part / "forerunner.sqlite3"
    staged.rename(old)
    evidence = database.path.with_name(f"{manifest.log_id}.evidence.json")
    last = head if newest is None or newest.size < head.size else newest
    log_id = new_log_id()
    key = SigningKey.generate(ORIGIN_PREFIX + log_id)
    kept = head
    if old_key is not None:
        # The backup may be older than the key, which then signs for both heads.
        kept, last = (TreeHead.sign(old_key, one.size, one.root) for one in (head, last))
    forerunner = Forerunner.state(_keys(old_key, manifest).newest, kept, last, key.verifier, old_key)
    place = SqliteDatabase(staged, database.busy_timeout_s)
    # The new key stays in the staging folder until all is ready; the head of the new log can be remembered at once.
    heads_folder = heads_path(settings, database, log_id).parent
    staged_settings = settings.model_copy(update={"key_folder": part, "heads_folder": heads_folder})
    staged_key = key_path(staged_settings, place, log_id)
    key.save(staged_key)
    with _reading(old) as reading, _writing(staged) as writing:
        write_atomically(evidence, _evidence_of(reading, manifest.key, head).model_dump_json().encode() + b"\n")
        migrate(writing)
        with reading.begin() as source, writing.begin() as target:
            _copy_labels(source, target, log_id)
        begin_log(writing, staged_settings, place, forerunner)
    target_key = key_path(settings, database, log_id)
    if target_key.exists():
        _set_aside(target_key)
    target_key.parent.mkdir(parents=True, exist_ok=True)
    _place_key(key, target_key)
    return Restored(log_id, forerunner, evidence)


def _copy_labels(source: Connection, target: Connection, log_id: str) -> None:
    """Copy the labels and what they were committed to with, but no run and no entry."""
    # The row of the data set last: it closes the tables of labels.
    sizes = source.execute(select(tables.dataset.c.pool_size, tables.dataset.c.test_size)).one()
    for table, count in zip((tables.pool_labels, tables.test_labels), sizes, strict=True):
        write_labels(target, table, read_labels(source, table, count))
    for table in (tables.answer_key, tables.dataset):
        rows = [dict(row._mapping) for row in source.execute(select(table))]
        if table is tables.dataset:
            rows = [row | {"log_id": log_id} for row in rows]
        if rows:
            target.execute(insert(table), rows)


def _evidence_of(engine: Engine, vkey: str, head: TreeHead) -> Evidence:
    reader = LogReader(engine)
    with engine.begin() as connection:
        info = load_info(connection)
    assert info is not None
    return Evidence(
        bundle=1,
        key=vkey,
        pool_size=info.pool_size,
        checkpoint=head.note,
        entries=[entry.decode("ascii") for entry in reader.between(0, head.size)],
        heads=reader.heads(0, head.size - 1),
    )


def _require_head(path: Path, manifest: Manifest, source: Path) -> TreeHead:
    """Make sure that the entries of a copy are those under the backup's signed head; that needs the public key alone.

    Raises:
        BackupRefused: they are not.
    """
    verifier = Verifier.from_vkey(manifest.key)
    head = RememberedHeads(source / _HEADS).newest(KeyHistory((verifier,)))
    with _reading(path) as engine:
        with engine.begin() as connection:
            if connection.exec_driver_sql("PRAGMA quick_check").scalar_one() != "ok":
                raise BackupRefused(f"The database in {source} is damaged; take another backup.")
            info = load_info(connection)
        tree = _tree(engine)
    origin = ORIGIN_PREFIX + manifest.log_id
    if head is None or info is None or (verifier.name, ORIGIN_PREFIX + info.log_id) != (origin, origin):
        raise BackupRefused(f"The parts of {source} do not belong to one log; take another backup.")
    if (tree.size, tree.root()) != (head.size, head.root) or head.size != manifest.entries:
        raise BackupRefused(f"The entries in {source} are not those that were signed: the backup was changed.")
    return head


def _count_lost(engine: Engine, head: TreeHead, newest: TreeHead | None) -> int:
    """Return how many entries the service has signed after the backup, by the newest remembered head.

    Raises:
        BackupRefused: the backup does not begin with the entries under that head.
    """
    if newest is None:
        return 0
    if newest.size <= head.size and _tree(engine).root(newest.size) != newest.root:
        raise BackupRefused(
            f"The first {newest.size:,} entries of the backup are not those that were signed: it is another history."
        )
    return max(0, newest.size - head.size)


def _tree(engine: Engine) -> MerkleTree:
    reader = LogReader(engine)
    return MerkleTree(leaf_hash(line) for page in reader.export() for line in page.splitlines())


def _find_key(settings: Settings, database: SqliteDatabase, manifest: Manifest, source: Path) -> SigningKey | None:
    """Return the log's signing key from its place, else from beside it, else from the backup; None if it is lost.

    A key that replaced the backup's is the log's.

    Raises:
        BackupRefused: the backup's key is not that of the backup's log.
        VerificationError: a key is damaged.
    """
    place = key_path(settings, database, manifest.log_id)
    for path in (place, place.with_name(f"{manifest.log_id}.key"), source / _KEY):
        try:
            key = SigningKey.load(path)
        except FileNotFoundError:
            continue
        if manifest.key in KeyHistory.of_key(key):
            return key
        if path.parent == source:
            raise BackupRefused(f"{path} is not the key of the log in {source}; take another backup.")
    return None


def _keys(key: SigningKey | None, manifest: Manifest) -> KeyHistory:
    """Return the keys of a backup's log, as far as they are known here."""
    return KeyHistory((Verifier.from_vkey(manifest.key),)) if key is None else KeyHistory.of_key(key)


def _place_key(key: SigningKey, path: Path) -> None:
    """Write a key, unless it is there already; never over another key.

    Raises:
        BackupRefused: another key is there.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        key.save(path)
    elif SigningKey.load(path) != key:
        raise BackupRefused(
            f"{path} is the key of another log; move it away, or name another LABEL_SERVICE_KEY_FOLDER."
        )


def _set_aside(path: Path) -> None:
    """Give the key of a former log its log's name, so that it is never lost."""
    log_id = SigningKey.load(path).name.removeprefix(ORIGIN_PREFIX)
    kept = path.with_name(f"{log_id}.key")
    if kept.exists():
        raise BackupRefused(f"{kept} and {path} are both there; move one of them away.")
    path.rename(kept)


def _require_empty(path: Path) -> None:
    """Refuse to overwrite a database. The empty file that holding it makes is none.

    Raises:
        BackupRefused: there is one.
    """
    journals = [path.with_name(path.name + end) for end in ("-wal", "-journal")]
    if path.stat().st_size or any(journal.exists() for journal in journals):
        raise BackupRefused(f"{path} exists; a backup is restored into an empty place, so move it away first.")


def _read_manifest(source: Path) -> Manifest:
    """Read a manifest, and compare every file with it.

    Raises:
        BackupRefused: this is no backup, or it is damaged.
    """
    try:
        manifest = Manifest.model_validate_json((source / _MANIFEST).read_bytes())
        if not {_DATABASE, _HEADS, _PUBLIC} <= manifest.files.keys() <= {_DATABASE, _HEADS, _PUBLIC, _KEY}:
            raise BackupRefused(f"{source / _MANIFEST} does not list the files of a backup.")
        for name, sha256 in manifest.files.items():
            if hash_file(source / name) != sha256:
                raise BackupRefused(f"{source / name} is not as it was when the backup was made; take another backup.")
        if (source / _PUBLIC).read_text(encoding="ascii").strip() != manifest.key:
            raise BackupRefused(f"The parts of {source} do not belong to one log; take another backup.")
        Verifier.from_vkey(manifest.key)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise BackupRefused(f"{source} is not a whole backup ({reason}); take another one.") from error
    except (ValidationError, VerificationError) as error:
        raise BackupRefused(f"{source / _MANIFEST} is not the manifest of a backup that this version reads.") from error
    return manifest


def _copy_database(source: Path, target: Path) -> None:
    """Copy a database with SQLite's online backup: one state, whatever is written meanwhile."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    uri = f"file:{quote(str(source))}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as reading, closing(sqlite3.connect(target)) as writing:
        reading.backup(writing)
        # One file, without a write-ahead log beside it.
        writing.execute("PRAGMA journal_mode = DELETE")


def _sqlite_database(settings: Settings) -> SqliteDatabase:
    database = find_database(settings)
    if not isinstance(database, SqliteDatabase):
        raise BackupRefused(
            f"{database.name} is a PostgreSQL database: back it up with pg_dump, and keep the key and heads folders; "
            "see docs/operating.md."
        )
    return database


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Make a folder beside a target; it is removed at the end, unless it was renamed."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.mkdir(mode=0o700)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _reading(path: Path) -> Iterator[Engine]:
    if not path.is_file():
        raise BackupRefused(f"{path} does not exist.")
    engine = open_reading_engine(path)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _writing(path: Path) -> Iterator[Engine]:
    engine = open_writing_engine(path, 0.0)
    try:
        yield engine
        checkpoint(engine)
    finally:
        engine.dispose()


@contextmanager
def _one_sentence(what: str) -> Iterator[None]:
    """Turn what a file or database may raise into a sentence.

    Raises:
        BackupRefused: something failed; the sentence says what and why.
    """
    try:
        yield
    except OSError as error:
        raise BackupRefused(f"{what} ({error.strerror or error}); check space and permissions.") from error
    except (sqlite3.Error, SQLAlchemyError) as error:
        raise BackupRefused(f"{what} ({reason_of(error)}); the database cannot be read or is damaged.") from error
    except (VerificationError, LogChanged) as error:
        raise DatabaseRefused(f"{what} ({error}).") from error

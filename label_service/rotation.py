"""Replacing a log's signing key: by an entry in which the old key names the new one, while the service is stopped.

The steps follow one another so that a crash after any of them leaves a log that starts: the new key is written beside
the old one; the entry is committed, authenticated by the old key; the next start of the log finds the new key named by
the entry, and puts it in the old one's place. A new key that no entry names is written over by the next rotation.
"""

from __future__ import annotations

from contextlib import ExitStack

from sqlalchemy.exc import SQLAlchemyError

from label_service.data.seed import load_info
from label_service.errors import DatabaseRefused, LogChanged
from label_service.files import sync_folder
from label_service.ledger.append import Rules, append
from label_service.ledger.runs import NO_REQUEST
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log.answer_key import open_answer_key
from label_service.log.entries import GUEST
from label_service.log.key_history import KeyRotation
from label_service.log.signed_log import next_key_path, open_signed_log
from label_service.settings import Settings
from label_service.store.backends import find_database, heads_path, key_path, reason_of
from label_service.store.migrations import migrate


def rotate_key(settings: Settings) -> KeyRotation:
    """Replace the signing key of a log.

    Args:
        settings: name the places of the database, the key and the heads.

    Returns:
        What the new entry says.

    Raises:
        DatabaseRefused: there is no log, a service holds it, or key, heads and database do not belong together.
    """
    database = find_database(settings)
    with ExitStack() as stack:
        reading = database.open_reading_engine()
        stack.callback(reading.dispose)
        try:
            with reading.connect() as connection:
                info = load_info(connection)
        except SQLAlchemyError as error:
            raise DatabaseRefused(f"{database.name} cannot be read ({reason_of(error)}).") from error
        if info is None:
            raise DatabaseRefused(f"{database.name} holds no log yet; serve begins it.")
        keys, heads = (path(settings, database, info.log_id) for path in (key_path, heads_path))
        stack.enter_context(database.hold())
        engine = database.open_writing_engine()
        stack.callback(engine.dispose)
        try:
            migrate(engine)
            log = open_signed_log(engine, keys, heads, info.log_id, database.shared)
            if not log.account.entries:
                raise DatabaseRefused(f"The log of {database.name} has no entry yet; serve begins it.")
            # Many labels take longer than a writer may be silent.
            with reading.begin() as connection:
                answer_key = open_answer_key(connection)
            log.require_answer_key(answer_key)
            with engine.begin() as connection:
                # On PostgreSQL workers may have written since.
                log.catch_up(connection)
                unit = UnitOfWork(connection, log)
                rotation, new = log.name_successor(unit.next_seq())
                # One that is there was named by no entry, or it would be in place by now.
                next_key_path(keys).unlink(missing_ok=True)
                new.save(next_key_path(keys))
                sync_folder(keys.parent)
                rules = Rules(info.log_id, answer_key, info.pool_size)
                guest, said = unit.run(GUEST), rotation.model_dump()
                append(unit, rules, guest, NO_REQUEST, "key-rotated", "rotated", detail=said)
                unit.flush()
                log.store_head(connection)
            # Puts the new key in place, compares everything, and signs with it.
            open_signed_log(engine, keys, heads, info.log_id, database.shared)
            database.finish(engine)
        except (SQLAlchemyError, OSError, LogChanged) as error:
            raise DatabaseRefused(f"The key of {database.name} cannot be replaced ({reason_of(error)}).") from error
    return rotation

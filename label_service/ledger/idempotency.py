"""Idempotency keys: a repeated request gets the answer of the first one and costs nothing.

A key belongs to a run and is bound, in the transaction that does the work, to the entry that first answered it. The
answer is rebuilt from that entry's rows, so no copy of a label is kept. Refusals are not kept: they are decided anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import insert, select

from label_service.errors import IdempotencyKeyReused
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.store import tables


@dataclass(frozen=True)
class Earlier:
    """The entry that first answered a key: its number, and the run's count after it."""

    seq: int
    spent: int


def find_key(
    work: UnitOfWork, run_id: str, key: str | None, request_sha256: str
) -> Earlier | IdempotencyKeyReused | None:
    """Look a key up.

    Args:
        work: the writer's transaction.
        run_id: the run that sent the key.
        key: the key, None if none was sent.
        request_sha256: hash of what is asked now.

    Returns:
        None for a fresh key, the entry that answered it before, or the refusal if it came with another body.
    """
    if key is None:
        return None
    keys = tables.idempotency_keys
    row = work.connection.execute(
        select(keys.c.request_sha256, keys.c.seq, tables.entries.c.entry)
        .join(tables.entries, tables.entries.c.seq == keys.c.seq)
        .where(keys.c.run_id == run_id, keys.c.key == key)
    ).one_or_none()
    if row is None:
        return None
    if row.request_sha256 != request_sha256:
        return IdempotencyKeyReused(
            "This Idempotency-Key came before with another body; send a fresh key with a new request."
        )
    return Earlier(row.seq, json.loads(row.entry)["spent"])


def keep_key(work: UnitOfWork, run_id: str, key: str | None, request_sha256: str, seq: int) -> None:
    """Bind a key, if one was sent, to the entry that answered it."""
    if key is not None:
        work.connection.execute(
            insert(tables.idempotency_keys).values(run_id=run_id, key=key, request_sha256=request_sha256, seq=seq)
        )

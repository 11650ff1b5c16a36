"""Idempotency keys: a repeated request gets the answer of the first one and costs nothing.

A key belongs to a run. The transaction that answers its first request binds it to the entry of that answer. A repeat
gets an answer rebuilt from that entry's rows, so no copy of a label is stored. Writers follow one another, so of two
requests that arrive together the second finds the key of the first. A refusal binds no key: a repeat is decided anew.
The entry's MAC covers the hash of the key and its request, so a key that somebody else has written binds nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from label_service.errors import IdempotencyKeyReused, LogChanged
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log.table_check import hash_key


@dataclass(frozen=True)
class Earlier:
    """The entry that first answered a key: its number, and what it says."""

    seq: int
    entry: dict[str, Any]


def find_key(
    unit: UnitOfWork, run_id: str, key: str | None, request_sha256: str
) -> Earlier | IdempotencyKeyReused | None:
    """Look a key up.

    Args:
        unit: the writer's transaction.
        run_id: the run that sent the key.
        key: the key, None if none was sent.
        request_sha256: hash of what is asked now.

    Returns:
        None for a fresh key, the entry that first answered it, or the refusal if it came with another body.

    Raises:
        LogChanged: the key is not the one that its entry binds.
    """
    if key is None:
        return None
    row = unit.key_row(run_id, key)
    if row is None:
        return None
    unit.log.mac.require(row)
    if row.bound_sha256 != hash_key(run_id, key, row.request_sha256):
        raise LogChanged(f"An Idempotency-Key of run {run_id} is not the one of entry {row.seq}.")
    if row.request_sha256 != request_sha256:
        return IdempotencyKeyReused(
            "This Idempotency-Key came before with another body; send a fresh key with a new request."
        )
    return Earlier(row.seq, json.loads(row.entry))


def bind_key(run_id: str, key: str | None, request_sha256: str) -> str | None:
    """Return what the entry that first answers a key binds, None without a key."""
    return None if key is None else hash_key(run_id, key, request_sha256)

"""Log entries: their fields, their exact bytes, and the one place where they are appended.

The bytes of an entry are its canonical JSON: keys sorted, no white space, ASCII only. They are stored, served and
exported as they are and never made again from other columns, so that a hash over them stays good.
An entry never holds a label. `docs/service.md` describes the fields.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from label_service.ledger.unit_of_work import UnitOfWork

ENTRY_VERSION = 2

Op = Literal["run-opened", "run-sealed", "budget-changed", "query", "evaluation"]

# Outcomes of what was done; any other outcome is the code of the error that refused it.
DONE = ("opened", "sealed", "changed", "revealed", "replayed", "evaluated")


@dataclass(frozen=True)
class Draft:
    """An entry before it has its number, time and log.

    Attributes:
        run: id of the run it belongs to.
        op: what was asked for.
        ids: the ids asked for, without repeats, in the order asked; empty for anything but a query.
        outcome: one of `DONE`, or the code of the error that refused it.
        charged: labels charged by this entry.
        spent: labels charged to the run so far, this entry included.
        budget: the run's budget.
        request_id: the id of the HTTP request, as in the access log.
        detail: what else this kind of entry says (the name of a run opened, the result of an evaluation).
    """

    run: str
    op: Op
    outcome: str
    spent: int
    budget: int
    request_id: str
    ids: Sequence[int] = ()
    charged: int = 0
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A stored entry: its number and its exact bytes."""

    seq: int
    data: bytes


def canonical_json(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Return the one byte string that stands for a JSON value: sorted keys, compact, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def now() -> str:
    """Return the time as RFC 3339 in UTC with microseconds, such as 2026-01-31T12:00:00.000000Z."""
    return datetime.now(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def append(work: UnitOfWork, draft: Draft, *, log_id: str, label_commitment: str, pool_size: int) -> Entry:
    """Append an entry and return it with its number.

    Args:
        work: the writer's transaction.
        draft: what the entry says.
        log_id: the log's own id, so that entries of two logs cannot be mixed.
        label_commitment: root of the answer key, base64: every entry binds the labels.
        pool_size: ids from 0 to this, exclusive, are indexed for the filter by id.
    """
    seq = work.next_seq()
    document: dict[str, Any] = {
        "v": ENTRY_VERSION,
        "seq": seq,
        "ts": now(),
        "log_id": log_id,
        "run": draft.run,
        "op": draft.op,
        "ids": list(draft.ids),
        "outcome": draft.outcome,
        "charged": draft.charged,
        "spent": draft.spent,
        "budget": draft.budget,
        "label_commitment": label_commitment,
        "request_id": draft.request_id,
    }
    if draft.detail:
        document["detail"] = draft.detail
    entry = Entry(seq, canonical_json(document))
    work.append(
        {
            "seq": seq,
            "entry": entry.data,
            "run_id": draft.run,
            "op": draft.op,
            "outcome": draft.outcome,
            "charged": draft.charged,
        },
        [label_id for label_id in draft.ids if 0 <= label_id < pool_size],
    )
    return entry

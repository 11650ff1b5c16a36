"""Appending to the log: the one place where an entry gets its number, its time and its fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from label_service.ledger.limits import RunState
from label_service.ledger.pace import Pace
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log.answer_key import AnswerKey
from label_service.log.entries import ENTRY_VERSION, Entry, Op, canonical_json, now


@dataclass(frozen=True)
class Rules:
    """What holds for every run of this log.

    Attributes:
        log_id: the log's id; it stands in every entry, so that entries of two logs cannot be mixed.
        answer_key: the labels committed to; its root stands in every entry.
        pool_size: labels that can be asked for; ids run from 0 to pool_size - 1.
        total_budget: labels that all runs together may be charged, None for no limit.
        total_evaluations: evaluations that all runs together may make, None for no limit.
        tokenless_budget: labels that all runs opened without a token may be charged together, None for no limit.
        tokenless_evaluations: evaluations that all runs opened without a token may make together, None for no limit.
        uncharged: how fast entries that charge nothing may come, None for no limit.
        openings: how fast runs may be opened, None for no limit.
    """

    log_id: str
    answer_key: AnswerKey
    pool_size: int
    total_budget: int | None = None
    total_evaluations: int | None = None
    tokenless_budget: int | None = None
    tokenless_evaluations: int | None = None
    uncharged: Pace | None = None
    openings: Pace | None = None


def append(
    unit: UnitOfWork,
    rules: Rules,
    run: RunState,
    request_id: str,
    op: Op,
    outcome: str,
    *,
    ids: Sequence[int] = (),
    charged: int = 0,
    detail: Mapping[str, Any] | None = None,
    bound_sha256: str | None = None,
) -> Entry:
    """Append an entry to the log and return it. An entry never holds a label.

    Args:
        unit: the writer's transaction.
        rules: of this log.
        run: the run as it stood before this request.
        request_id: the id of the HTTP request, as in the access log.
        op: what was asked for.
        outcome: one of `DONE`, or the code of the error that refused it.
        ids: the ids of a query, without repeats, in the order asked.
        charged: labels that this entry charges to the run.
        detail: what else this kind of entry says, such as the result of an evaluation.
        bound_sha256: hash of what the entry binds without showing it, such as the token of the run it opens.
    """
    seq, clock = unit.next_seq(), now()
    # The time of the log never goes back, though the clock may; the entry then says what the clock said.
    time = max(clock, unit.newest_time)
    if time != clock:
        detail = {**(detail or {}), "clock": clock}
    document: dict[str, Any] = {
        "v": ENTRY_VERSION,
        "seq": seq,
        "ts": time,
        "log_id": rules.log_id,
        "run": run.run_id,
        "op": op,
        "ids": list(ids),
        "outcome": outcome,
        "charged": charged,
        "spent": run.spent + charged,
        "budget": run.budget,
        "label_commitment": rules.answer_key.commitment,
        "request_id": request_id,
    }
    if detail:
        document["detail"] = detail
    entry = Entry(seq, canonical_json(document))
    row = {
        "seq": seq,
        "entry": entry.data,
        "mac": unit.log.mac.of(seq, entry.data, bound_sha256),
        "bound_sha256": bound_sha256,
        "run_id": run.run_id,
        "op": op,
        "outcome": outcome,
        "charged": charged,
    }
    unit.newest_time = time
    unit.append(row, [label_id for label_id in ids if 0 <= label_id < rules.pool_size])
    return entry

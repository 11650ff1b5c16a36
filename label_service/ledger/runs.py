"""Opening runs: the guest run of a fresh log, and runs with a token of their own. Inside the writer's transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from sqlalchemy import insert, select, update

from label_service.errors import (
    IdempotencyKeyReused,
    InvalidRequest,
    LogChanged,
    Problem,
    RunBudgetTooLarge,
    TooManyEvaluations,
)
from label_service.ledger.append import Rules, append
from label_service.ledger.limits import GUEST, RunState
from label_service.ledger.teams import refuse_ended_token
from label_service.ledger.tokens import matches, new_nonce, new_run_id, new_token, token_hash, token_of_key
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log.account import open_account
from label_service.log.entries import REGISTRATION, Entry, canonical_sha256, now
from label_service.log.log_reader import RunInfo, describe_run
from label_service.store import tables

# Entries that no HTTP request caused carry this instead of a request id.
NO_REQUEST = "service"


class Opened(RunInfo, frozen=True):
    """A fresh run and its token, which the service stores only as a hash."""

    token: str
    # That logs the opening; a client gets it inside the receipt.
    entry: Entry = Field(exclude=True)


def refuse_opening(
    budget: int, evaluation_budgets: Sequence[int], max_run_budget: int | None, max_evaluations: int
) -> Problem | None:
    """Decide whether a run may be opened: no evaluation above its budget, and the operator's limits hold.

    Args:
        budget: labels the run is to have.
        evaluation_budgets: points of its learning curve, ascending.
        max_run_budget: the operator's limit on the budget, None for no limit.
        max_evaluations: the operator's limit on the number of points.
    """
    if evaluation_budgets and evaluation_budgets[-1] > budget:
        return InvalidRequest(
            f"The run's budget is {budget} and it declared an evaluation at {evaluation_budgets[-1]}; "
            "declare none above the budget."
        )
    if max_run_budget is not None and budget > max_run_budget:
        return RunBudgetTooLarge(
            f"A run may have {max_run_budget} labels here and {budget} were asked for; ask for fewer.",
            extras={"max_run_budget": max_run_budget},
        )
    if len(evaluation_budgets) > max_evaluations:
        return TooManyEvaluations(
            f"A run may have {max_evaluations} evaluations here and {len(evaluation_budgets)} were declared; "
            "declare fewer.",
            extras={"max_evaluations": max_evaluations},
        )
    return None


def open_run(
    unit: UnitOfWork,
    rules: Rules,
    request_id: str,
    *,
    name: str,
    budget: int,
    evaluation_budgets: Sequence[int] = (),
    opened_with: str | None = None,
    key: str | None = None,
) -> Opened | Problem:
    """Open a run and log it, or return the refusal; a repeat under the same key returns the same run, without an entry.

    Args:
        unit: the writer's transaction.
        rules: of this log.
        request_id: the id of the HTTP request.
        name: what the client calls the run.
        budget: labels the run may be charged.
        evaluation_budgets: ascending, at most `budget`; a run that declares none may be evaluated once.
        opened_with: name of the token that allows it, None if none was needed.
        key: the Idempotency-Key, None if none was sent.
    """
    if (ended := refuse_ended_token(unit, opened_with)) is not None:
        return ended
    declared = tuple(evaluation_budgets)
    request_sha256 = canonical_sha256([name, budget, declared])
    earlier = None if key is None else _find_opening(unit, request_sha256, opened_with, key)
    if earlier is not None:
        return earlier
    if opened_with != REGISTRATION and rules.openings is not None:
        hurry = rules.openings.refuse(opened_with or "")
        if hurry is not None:
            return hurry
    allowed = max(1, len(declared))
    run = RunState(
        new_run_id(),
        budget,
        0,
        evaluation_budgets=declared,
        evaluations_allowed=allowed,
        opened_with=opened_with,
    )
    nonce = new_nonce()
    token = new_token(run.run_id) if key is None else token_of_key(run.run_id, nonce, key)
    entry = _open(unit, rules, request_id, run, name, token_hash(token))
    if key is not None:
        unit.connection.execute(
            insert(tables.opening_keys).values(
                key_sha256=canonical_sha256([key, opened_with]),
                request_sha256=request_sha256,
                nonce=nonce,
                run_id=run.run_id,
            )
        )
    return _describe(run.run_id, token, entry)


def _find_opening(
    unit: UnitOfWork, request_sha256: str, opened_with: str | None, key: str
) -> Opened | IdempotencyKeyReused | None:
    """Return the run that was opened under a key, None if none was, or the refusal."""
    keys = tables.opening_keys
    opened = keys.c.key_sha256 == canonical_sha256([key, opened_with])
    found = unit.connection.execute(select(keys).where(opened)).one_or_none()
    if found is None:
        return None
    entries = select(tables.entries).where(tables.entries.c.run_id == found.run_id).order_by(tables.entries.c.seq)
    opening, *later = unit.connection.execute(entries.limit(2)).all()
    # Receipts name the key, and may be published: a token is not given away again once it was used.
    if found.request_sha256 != request_sha256 or later:
        return IdempotencyKeyReused(
            "This Idempotency-Key opened another run, or one that was used since; send a fresh key."
        )
    token = token_of_key(found.run_id, found.nonce, key)
    unit.log.mac.require(opening)
    if not matches(token, opening.bound_sha256):
        raise LogChanged(f"The key that opened run {found.run_id} is not the one of entry {opening.seq}.")
    return _describe(found.run_id, token, Entry(opening.seq, bytes(opening.entry)))


def _describe(run_id: str, token: str, entry: Entry) -> Opened:
    """Describe a run by the entry that opened it, which need not be committed yet."""
    run = open_account(json.loads(entry.data))
    return Opened(**dict(describe_run(run_id, run)), token=token, entry=entry)


def set_guest_budget(unit: UnitOfWork, rules: Rules, budget: int, forerunner: Mapping[str, Any] | None = None) -> None:
    """Make the guest run's budget what the operator set, and log it if that changes anything.

    Args:
        unit: the writer's transaction.
        rules: of this log.
        budget: labels that the guest run may be charged.
        forerunner: what the first entry of a new log, which opens this run, says of the log before it.
    """
    row = unit.connection.execute(select(tables.runs).where(tables.runs.c.run_id == GUEST)).one_or_none()
    if row is None:
        run = RunState(GUEST, budget, 0, evaluations_allowed=0)
        _open(unit, rules, NO_REQUEST, run, name=GUEST, forerunner=forerunner)
    elif row.budget != budget:
        unit.run(GUEST)  # before its row changes
        unit.connection.execute(update(tables.runs).where(tables.runs.c.run_id == GUEST).values(budget=budget))
        detail = {"previous_budget": row.budget}
        append(unit, rules, unit.run(GUEST), NO_REQUEST, "budget-changed", "changed", detail=detail)


def _open(
    unit: UnitOfWork,
    rules: Rules,
    request_id: str,
    run: RunState,
    name: str,
    token_sha256: str | None = None,
    forerunner: Mapping[str, Any] | None = None,
) -> Entry:
    declared = list(run.evaluation_budgets)
    unit.connection.execute(
        insert(tables.runs).values(
            run_id=run.run_id,
            name=name,
            token_sha256=token_sha256,
            budget=run.budget,
            evaluation_budgets=json.dumps(declared),
            evaluations_allowed=run.evaluations_allowed,
            opened_with=run.opened_with,
            opened_at=now(),
        )
    )
    detail: dict[str, Any] = {
        "name": name,
        "evaluation_budgets": declared,
        "evaluations_allowed": run.evaluations_allowed,
        "pool_size": rules.pool_size,
        "test_commitment": rules.answer_key.test_commitment,
    }
    if run.opened_with is not None:
        detail["opened_with"] = run.opened_with
    if forerunner is not None:
        detail["forerunner"] = forerunner
    return append(unit, rules, run, request_id, "run-opened", "opened", detail=detail, bound_sha256=token_sha256)

"""Opening runs: the guest run of a fresh log, and runs with a token of their own. Inside the writer's transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select, update

from label_service.errors import Problem, RunBudgetTooLarge, TooManyEvaluations
from label_service.ledger.ledger import Rules
from label_service.ledger.limits import GUEST
from label_service.ledger.tokens import new_run_id, new_token, token_hash
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log.entries import Draft, Entry, now
from label_service.store import tables

# Entries that no HTTP request caused carry this instead of a request id.
NO_REQUEST = "service"


@dataclass(frozen=True)
class Opening:
    """What a client asks for when it opens a run; `evaluation_budgets` ascend and end at most at `budget`."""

    name: str
    budget: int
    evaluation_budgets: Sequence[int]


@dataclass(frozen=True)
class Opened:
    """A fresh run, its token, which nobody can be told again, and the entry of its opening."""

    run_id: str
    token: str
    evaluations_allowed: int
    opened_at: str
    entry: Entry


def refuse_opening(opening: Opening, max_run_budget: int | None, max_evaluations: int) -> Problem | None:
    """Decide whether a run may be opened under the operator's limits."""
    if max_run_budget is not None and opening.budget > max_run_budget:
        return RunBudgetTooLarge(
            f"A run may have {max_run_budget} labels here and {opening.budget} were asked for; ask for fewer.",
            extras={"max_run_budget": max_run_budget},
        )
    if len(opening.evaluation_budgets) > max_evaluations:
        return TooManyEvaluations(
            f"A run may have {max_evaluations} evaluations here and {len(opening.evaluation_budgets)} were declared; "
            "declare fewer.",
            extras={"max_evaluations": max_evaluations},
        )
    return None


def open_run(work: UnitOfWork, rules: Rules, opening: Opening, request_id: str) -> Opened:
    """Open a run and log it. A run that declares no evaluation budgets may be evaluated once."""
    run_id = new_run_id()
    token = new_token(run_id)
    opened_at, allowed = now(), max(1, len(opening.evaluation_budgets))
    work.connection.execute(
        insert(tables.runs).values(
            run_id=run_id,
            name=opening.name,
            token_sha256=token_hash(token),
            budget=opening.budget,
            evaluation_budgets=json.dumps(list(opening.evaluation_budgets)),
            evaluations_allowed=allowed,
            opened_at=opened_at,
        )
    )
    detail = {
        "name": opening.name,
        "evaluation_budgets": list(opening.evaluation_budgets),
        "evaluations_allowed": allowed,
    }
    draft = Draft(run_id, "run-opened", "opened", spent=0, budget=opening.budget, request_id=request_id, detail=detail)
    entry = rules.append(work, draft)
    return Opened(run_id, token, allowed, opened_at, entry)


def set_guest_budget(work: UnitOfWork, rules: Rules, budget: int) -> None:
    """Make the guest run's budget what the operator set, and log it if that changes anything."""
    row = work.connection.execute(select(tables.runs).where(tables.runs.c.run_id == GUEST)).one_or_none()
    if row is None:
        work.connection.execute(
            insert(tables.runs).values(
                run_id=GUEST,
                name=GUEST,
                budget=budget,
                evaluation_budgets="[]",
                evaluations_allowed=0,
                opened_at=now(),
            )
        )
        detail = {"name": GUEST, "evaluation_budgets": [], "evaluations_allowed": 0}
        draft = Draft(GUEST, "run-opened", "opened", spent=0, budget=budget, request_id=NO_REQUEST, detail=detail)
    elif row.budget != budget:
        work.connection.execute(update(tables.runs).where(tables.runs.c.run_id == GUEST).values(budget=budget))
        draft = Draft(
            GUEST,
            "budget-changed",
            "changed",
            spent=row.spent,
            budget=budget,
            request_id=NO_REQUEST,
            detail={"previous_budget": row.budget},
        )
    else:
        return
    rules.append(work, draft)

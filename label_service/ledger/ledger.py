"""Queries, evaluations and seals of a run: each is decided, carried out and logged in one transaction.

Every function below runs inside the writer's transaction, a unit of work. It decides (`limits`), changes the rows,
appends the entry, and returns either the result or the `Problem` that refuses. It returns the `Problem` and does not
raise it, because a refusal is an entry of the log too and is committed like a reveal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field
from sqlalchemy import insert, select, update

from label_service.errors import LogChanged, Problem, UnknownId
from label_service.ledger.append import Rules, append
from label_service.ledger.idempotency import bind_key, find_key
from label_service.ledger.limits import RunState, Total, refuse_ended, refuse_evaluation, refuse_reveal
from label_service.ledger.teams import refuse_ended_token
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log.entries import Entry, canonical_sha256, now
from label_service.log.log_reader import Evaluation
from label_service.store import tables

ALL_RUNS, TOKENLESS_RUNS = "All runs", "All runs opened without a token"


@dataclass(frozen=True)
class Request:
    """Who asks: the run, the id of the HTTP request, and the Idempotency-Key if the client sent one."""

    run_id: str
    request_id: str
    key: str | None = None


@dataclass(frozen=True)
class RevealedLabel:
    """One label of an answer, and whether this request was charged for it."""

    id: int
    label: int
    charged: bool


@dataclass(frozen=True)
class Revealed:
    """The answer to a query.

    Attributes:
        labels: in the order asked, each id once.
        budget: the run's budget.
        charged: labels charged by this request; under a repeated key, by the first request with that key.
        queries: labels charged to the run so far.
        remaining: labels left of its budget.
        replayed: nothing was charged now, because the run had every label already or the key was used before.
        entry: the log entry of this request.
    """

    run_id: str
    labels: tuple[RevealedLabel, ...]
    budget: int
    charged: int
    queries: int
    remaining: int
    replayed: bool
    entry: Entry


class Evaluated(Evaluation, frozen=True):
    """The answer to an evaluation: how many test predictions are right, never which."""

    run_id: str
    evaluations_used: int
    evaluations_allowed: int
    replayed: bool = Field(description="This repeats an earlier answer under the same Idempotency-Key.")
    # The log entry of this request; a client gets it inside the receipt.
    entry: Entry = Field(exclude=True)


def reveal(unit: UnitOfWork, rules: Rules, request: Request, ids: Sequence[int]) -> Revealed | Problem:
    """Reveal labels to a run: charge, entry and labels, all of them or none.

    Args:
        unit: the writer's transaction.
        rules: of this log.
        request: who asks.
        ids: the ids asked for, at least one; repeats count once.

    Returns:
        The labels, or the refusal. An unknown id refuses the whole request and charges nothing.
    """
    asked = list(dict.fromkeys(ids))
    run = unit.run(request.run_id)
    fingerprint = canonical_sha256({"op": "query", "ids": asked}) if request.key is not None else ""
    earlier = find_key(unit, request.run_id, request.key, fingerprint)
    if isinstance(earlier, Problem):
        return earlier
    unknown = [label_id for label_id in asked if not 0 <= label_id < rules.pool_size]
    known = [] if unknown else asked
    labels, revealed_by = unit.labels(request.run_id, known)
    for label_id, label in labels.items():
        # Before the commit: a label that was changed in the database is neither charged nor answered.
        rules.answer_key.require(label_id, label)
    new = [label_id for label_id in known if label_id not in revealed_by]
    refusal = (
        refuse_ended(run)
        or _refuse_unknown(unknown, rules)
        or (refuse_ended_token(unit, run.opened_with) if new else None)
        or refuse_reveal(run, _labels_used(unit, rules, run), len(new))
    )
    if (refusal is not None or not new) and (hurry := _hurry(rules, run)) is not None:
        return hurry
    if refusal is not None:
        # The ids themselves would let a client fill the log with what it was refused.
        detail = {"asked": len(asked), "asked_sha256": canonical_sha256(asked)}
        append(unit, rules, run, request.request_id, "query", refusal.code, detail=detail)
        return refusal
    outcome = "revealed" if new else "replayed"
    bound = bind_key(request.run_id, request.key, fingerprint) if earlier is None else None
    entry = append(
        unit, rules, run, request.request_id, "query", outcome, ids=asked, charged=len(new), bound_sha256=bound
    )
    if new:
        unit.reveal(run.run_id, new, entry.seq)
    if earlier is None:
        unit.keep_key(request.run_id, request.key, fingerprint, entry.seq)
        charged, spent = set(new), run.spent + len(new)
    else:
        charged = {label_id for label_id, seq in revealed_by.items() if seq == earlier.seq}
        spent = earlier.entry["spent"]
        if len(charged) != earlier.entry["charged"]:
            raise LogChanged(f"The reveals of entry {earlier.seq} are not those of the log: the database was changed.")
    return Revealed(
        run_id=run.run_id,
        labels=tuple(RevealedLabel(label_id, labels[label_id], label_id in charged) for label_id in asked),
        budget=run.budget,
        charged=len(charged),
        queries=spent,
        remaining=max(0, run.budget - spent),
        replayed=not new,
        entry=entry,
    )


def evaluate(
    unit: UnitOfWork, rules: Rules, request: Request, predictions: Sequence[int], budget: int | None
) -> Evaluated | Problem:
    """Compare a run's test predictions with the test labels and count the evaluation.

    Args:
        unit: the writer's transaction.
        rules: of this log.
        request: who asks.
        predictions: one class number for each test image, in order; the caller has checked length and range.
        budget: the point of the learning curve that is evaluated, None if the client named none.

    Returns:
        The number of right predictions, or the refusal.
    """
    run = unit.run(request.run_id)
    predictions_sha256 = canonical_sha256(list(predictions))
    fingerprint = canonical_sha256({"op": "evaluation", "predictions": predictions_sha256, "budget": budget})
    earlier = find_key(unit, request.run_id, request.key, fingerprint)
    if isinstance(earlier, Problem):
        return earlier
    refusal = refuse_ended(run)
    if refusal is None and earlier is None:
        refusal = refuse_ended_token(unit, run.opened_with) or refuse_evaluation(
            run, _evaluations_used(unit, rules, run), budget
        )
    if (refusal is not None or earlier is not None) and (hurry := _hurry(rules, run)) is not None:
        return hurry
    if refusal is not None:
        append(unit, rules, run, request.request_id, "evaluation", refusal.code)
        return refusal
    if earlier is not None:
        detail = {name: value for name, value in earlier.entry["detail"].items() if name != "clock"}
        number, correct, total = detail["evaluation"], detail["correct"], detail["total"]
        # The repeat says the result again, so that its receipt proves it.
        entry = append(unit, rules, run, request.request_id, "evaluation", "replayed", detail=detail)
    else:
        truth = rules.answer_key.read_test_labels(unit.connection)
        correct = sum(guess == label for guess, label in zip(predictions, truth, strict=True))
        number, total = run.evaluations_used + 1, len(truth)
        detail = {
            "evaluation": number,
            "evaluated_budget": budget,
            "correct": correct,
            "total": total,
            "predictions_sha256": predictions_sha256,
        }
        bound = bind_key(request.run_id, request.key, fingerprint)
        entry = append(
            unit, rules, run, request.request_id, "evaluation", "evaluated", detail=detail, bound_sha256=bound
        )
        unit.connection.execute(
            insert(tables.evaluations).values(
                run_id=run.run_id, number=number, budget=budget, correct=correct, total=total, seq=entry.seq
            )
        )
        unit.keep_key(request.run_id, request.key, fingerprint, entry.seq)
    return Evaluated(
        run_id=run.run_id,
        evaluation=number,
        budget=budget,
        correct=correct,
        total=total,
        evaluations_used=number,
        evaluations_allowed=run.evaluations_allowed,
        replayed=earlier is not None,
        entry=entry,
    )


def seal(unit: UnitOfWork, rules: Rules, request: Request, by_operator: bool = False) -> Entry:
    """End a run for good and return the entry of it. A run that has ended already gets that first entry again."""
    run = unit.run(request.run_id)
    if run.sealed:
        entries = tables.entries
        sealing = select(entries).where(entries.c.run_id == run.run_id, entries.c.op == "run-sealed")
        row = unit.connection.execute(sealing).one()
        unit.log.mac.require(row)
        return Entry(row.seq, bytes(row.entry))
    unit.connection.execute(update(tables.runs).where(tables.runs.c.run_id == run.run_id).values(sealed_at=now()))
    detail = {"sealed_by": "operator"} if by_operator else None
    return append(unit, rules, run, request.request_id, "run-sealed", "sealed", detail=detail)


def _hurry(rules: Rules, run: RunState) -> Problem | None:
    """Refuse an entry that charges nothing if such entries come too fast, so that nobody can fill the log with them."""
    # Whoever opens runs without a token could open another as soon as one has to wait.
    key = TOKENLESS_RUNS if run.is_tokenless else run.run_id
    return None if rules.uncharged is None else rules.uncharged.refuse(key)


def _labels_used(unit: UnitOfWork, rules: Rules, run: RunState) -> list[Total]:
    account, now = unit.log.account, unit.used
    tokenless = account.tokenless_queries + now.tokenless_spent
    totals = _totals(run, account.queries + now.spent, rules.total_budget, tokenless, rules.tokenless_budget)
    token = unit.token(run.opened_with) if run.opened_with is not None else None
    return totals if token is None else [*totals, Total(_team_runs(run), token.queries, token.budget)]


def _evaluations_used(unit: UnitOfWork, rules: Rules, run: RunState) -> list[Total]:
    account, now = unit.log.account, unit.used
    used = account.evaluations + now.evaluations
    tokenless = account.tokenless_evaluations + now.tokenless_evaluations
    totals = _totals(run, used, rules.total_evaluations, tokenless, rules.tokenless_evaluations)
    token = unit.token(run.opened_with) if run.opened_with is not None else None
    if token is None or token.evaluations_allowed is None:
        return totals
    return [*totals, Total(_team_runs(run), token.evaluations, token.evaluations_allowed)]


def _team_runs(run: RunState) -> str:
    return f"All runs opened with the token {run.opened_with}"


def _totals(run: RunState, used: int, limit: int | None, tokenless: int, tokenless_limit: int | None) -> list[Total]:
    """Return the sums that limit a run: that of all runs, and that of runs opened without a token if it is one."""
    totals = [Total(ALL_RUNS, used, limit)] if limit is not None else []
    if run.is_tokenless and tokenless_limit is not None:
        totals.append(Total(TOKENLESS_RUNS, tokenless, tokenless_limit))
    return totals


def _refuse_unknown(unknown: Sequence[int], rules: Rules) -> Problem | None:
    if not unknown:
        return None
    return UnknownId(
        f"No image has id {unknown[0]}; ids run from 0 to {rules.pool_size - 1}, and nothing was charged.",
        extras={"unknown_ids": list(unknown)},
    )

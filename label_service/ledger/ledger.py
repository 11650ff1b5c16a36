"""The core: what a run may do, done and logged in one transaction. No HTTP here.

Every function below is part of the writer's transaction, a unit of work. It decides (`limits`), changes the rows,
appends the entry, and returns either the result or the `Problem` that refuses - returned, not raised, because a
refusal is an entry of the log too and must be committed like a reveal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, insert, select, update

from label_service.data.dataset import sha256
from label_service.errors import Problem, UnknownId
from label_service.ledger.idempotency import find_key, keep_key
from label_service.ledger.limits import RunState, Totals, refuse_ended, refuse_evaluation, refuse_reveal
from label_service.ledger.unit_of_work import UnitOfWork
from label_service.log.answer_key import AnswerKey
from label_service.log.entries import Draft, Entry, Op, append, canonical_json, now
from label_service.store import tables


@dataclass(frozen=True)
class Rules:
    """What holds for every run of this log.

    Attributes:
        log_id: the log's id.
        answer_key: the labels committed to.
        pool_size: labels that can be asked for; ids run from 0 to pool_size - 1.
        total_budget: labels that all runs may be charged together, None for no limit.
        total_evaluations: evaluations that all runs may make together, None for no limit.
    """

    log_id: str
    answer_key: AnswerKey
    pool_size: int
    total_budget: int | None = None
    total_evaluations: int | None = None

    def append(self, work: UnitOfWork, draft: Draft) -> Entry:
        """Append an entry to this log."""
        return append(
            work,
            draft,
            log_id=self.log_id,
            label_commitment=self.answer_key.commitment,
            pool_size=self.pool_size,
        )


@dataclass(frozen=True)
class Request:
    """Who asks: the run, the id of the HTTP request, and the Idempotency-Key if one was sent."""

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
        charged: labels charged by this request (by the first one, if this is a repeat under the same key).
        queries: labels charged to the run so far.
        remaining: labels left of its budget.
        replayed: nothing was charged now, because the run had every label already or the key was used before.
        entry: that logs this request.
    """

    run_id: str
    labels: tuple[RevealedLabel, ...]
    budget: int
    charged: int
    queries: int
    remaining: int
    replayed: bool
    entry: Entry


@dataclass(frozen=True)
class Evaluated:
    """The answer to an evaluation: how many of the test predictions are right (never which), and the entry of it."""

    run_id: str
    number: int
    budget: int | None
    correct: int
    total: int
    allowed: int
    replayed: bool
    entry: Entry


def reveal(work: UnitOfWork, rules: Rules, request: Request, ids: Sequence[int]) -> Revealed | Problem:
    """Reveal labels to a run: charge, entry and labels, all of them or none.

    Args:
        work: the writer's transaction.
        rules: of this log.
        request: who asks.
        ids: the ids asked for, at least one; repeats count once.

    Returns:
        The labels, or the refusal. An unknown id refuses the whole request and charges nothing.
    """
    asked = list(dict.fromkeys(ids))
    run = work.run(request.run_id)
    fingerprint = sha256(canonical_json({"op": "query", "ids": asked})) if request.key is not None else ""
    earlier = find_key(work, request.run_id, request.key, fingerprint)
    if isinstance(earlier, Problem):
        return earlier
    unknown = [label_id for label_id in asked if not 0 <= label_id < rules.pool_size]
    known = [] if unknown else asked
    labels, held = work.labels(request.run_id, known)
    for label_id, label in labels.items():
        # Before the commit: a label that was changed in the database is neither charged nor answered.
        rules.answer_key.require(label_id, label)
    new = [label_id for label_id in known if label_id not in held]
    refusal = refuse_ended(run) or _refuse_unknown(unknown, rules) or refuse_reveal(run, _totals(work, rules), len(new))
    if refusal is not None:
        _append(work, rules, run, request, "query", refusal.code, ids=asked)
        return refusal
    entry = _append(work, rules, run, request, "query", "revealed" if new else "replayed", ids=asked, charged=len(new))
    if new:
        work.reveal(run.run_id, new, entry.seq)
    charged_by, spent = (earlier.seq, earlier.spent) if earlier else (entry.seq, run.spent + len(new))
    if earlier is None:
        keep_key(work, request.run_id, request.key, fingerprint, entry.seq)
    charged = {label_id for label_id, at in held.items() if at == charged_by} if earlier else set(new)
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
    work: UnitOfWork, rules: Rules, request: Request, predictions: Sequence[int], budget: int | None
) -> Evaluated | Problem:
    """Compare a run's test predictions with the test labels and count the evaluation.

    Args:
        work: the writer's transaction.
        rules: of this log.
        request: who asks.
        predictions: one class number for each test image, in order; length and range are checked before.
        budget: the point of the learning curve that is evaluated, None if none was named.

    Returns:
        The number of right predictions, or the refusal.
    """
    run = work.run(request.run_id)
    predictions_sha256 = sha256(canonical_json(list(predictions)))
    fingerprint = sha256(canonical_json({"op": "evaluation", "predictions": predictions_sha256, "budget": budget}))
    earlier = find_key(work, request.run_id, request.key, fingerprint)
    if isinstance(earlier, Problem):
        return earlier
    refusal = refuse_ended(run)
    if refusal is None and earlier is not None:
        entry = _append(work, rules, run, request, "evaluation", "replayed")
        row = work.connection.execute(select(tables.evaluations).where(tables.evaluations.c.seq == earlier.seq)).one()
        return Evaluated(
            run.run_id, row.number, row.budget, row.correct, row.total, run.evaluations_allowed, True, entry
        )
    refusal = refusal or refuse_evaluation(run, _totals(work, rules), budget)
    if refusal is not None:
        _append(work, rules, run, request, "evaluation", refusal.code)
        return refusal
    truth = (
        work.connection.execute(select(tables.test_labels.c.label).order_by(tables.test_labels.c.id)).scalars().all()
    )
    correct = sum(guess == label for guess, label in zip(predictions, truth, strict=True))
    number, total = run.evaluations_used + 1, len(truth)
    detail = {
        "evaluation": number,
        "evaluated_budget": budget,
        "correct": correct,
        "total": total,
        "predictions_sha256": predictions_sha256,
    }
    entry = _append(work, rules, run, request, "evaluation", "evaluated", detail=detail)
    work.connection.execute(
        insert(tables.evaluations).values(
            run_id=run.run_id, number=number, budget=budget, correct=correct, total=total, seq=entry.seq
        )
    )
    keep_key(work, request.run_id, request.key, fingerprint, entry.seq)
    return Evaluated(run.run_id, number, budget, correct, total, run.evaluations_allowed, False, entry)


def seal(work: UnitOfWork, rules: Rules, request: Request) -> Entry:
    """End a run for good and return the entry that says so; if it had ended before, nothing is logged twice."""
    run = work.run(request.run_id)
    if run.sealed:
        entries = tables.entries.c
        ended = select(entries.seq, entries.entry).where(entries.run_id == run.run_id, entries.op == "run-sealed")
        row = work.connection.execute(ended).one()
        return Entry(row.seq, bytes(row.entry))
    work.connection.execute(update(tables.runs).where(tables.runs.c.run_id == run.run_id).values(sealed_at=now()))
    return _append(work, rules, run, request, "run-sealed", "sealed")


def _append(
    work: UnitOfWork,
    rules: Rules,
    run: RunState,
    request: Request,
    op: Op,
    outcome: str,
    *,
    ids: Sequence[int] = (),
    charged: int = 0,
    detail: dict[str, Any] | None = None,
) -> Entry:
    draft = Draft(
        run=run.run_id,
        op=op,
        outcome=outcome,
        spent=run.spent + charged,
        budget=run.budget,
        request_id=request.request_id,
        ids=ids,
        charged=charged,
        detail=detail or {},
    )
    return rules.append(work, draft)


def _totals(work: UnitOfWork, rules: Rules) -> Totals:
    if rules.total_budget is None and rules.total_evaluations is None:
        return Totals(0, 0)  # nothing to compare them with, so they are not counted
    spent = work.connection.execute(select(func.coalesce(func.sum(tables.runs.c.spent), 0))).scalar_one()
    evaluations = work.connection.execute(select(func.count()).select_from(tables.evaluations)).scalar_one()
    return Totals(spent, evaluations, rules.total_budget, rules.total_evaluations)


def _refuse_unknown(unknown: Sequence[int], rules: Rules) -> Problem | None:
    if not unknown:
        return None
    return UnknownId(
        f"No image has id {unknown[0]}; ids run from 0 to {rules.pool_size - 1}, and nothing was charged.",
        extras={"unknown_ids": list(unknown)},
    )

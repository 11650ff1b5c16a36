"""Budget, evaluation and rate decisions: pure functions on frozen dataclasses.

Nothing here reads a clock, a database or a request; the ledger passes the numbers in and acts on the answer. A decision
is `None` (allowed) or the `Problem` that refuses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from label_service import errors
from label_service.log import entries

GUEST = entries.GUEST


@dataclass(frozen=True)
class RunState:
    """What a decision needs to know of one run, as it stands inside the transaction.

    Attributes:
        run_id: the run's id; `guest` for requests without a token.
        budget: labels the run may be charged.
        spent: labels it has been charged.
        evaluation_budgets: budgets it declared for its learning curve; empty if it declared none.
        evaluations_allowed: evaluations it may make.
        evaluated_at: the budget that each evaluation so far was for (None if the client named none).
        sealed: whether the run has ended.
        opened_with: name of the token that allowed to open it, None if it was opened without one.
    """

    run_id: str
    budget: int
    spent: int
    evaluation_budgets: tuple[int, ...] = ()
    evaluations_allowed: int = 1
    evaluated_at: tuple[int | None, ...] = ()
    sealed: bool = False
    opened_with: str | None = None

    @property
    def is_tokenless(self) -> bool:
        """Whether somebody opened the run without a token; nobody opened the guest run."""
        return self.opened_with is None and self.run_id != GUEST

    @property
    def remaining(self) -> int:
        """Labels the run may still be charged; 0 if the operator lowered the budget below what was spent."""
        return max(0, self.budget - self.spent)

    @property
    def evaluations_used(self) -> int:
        """Evaluations made so far."""
        return len(self.evaluated_at)


@dataclass(frozen=True)
class Total:
    """What several runs have used together, labels or evaluations, and the operator's limit on it."""

    runs: str
    used: int
    limit: int

    @property
    def left(self) -> int:
        """What is left; 0 if the operator lowered the limit below what was used."""
        return max(0, self.limit - self.used)


def refuse_ended(run: RunState) -> errors.Problem | None:
    """Refuse anything a sealed run asks for."""
    if run.sealed:
        return errors.RunSealed(f"Run {run.run_id} is sealed and takes no more calls; open a new run to go on.")
    return None


def refuse_reveal(run: RunState, totals: Sequence[Total], new: int) -> errors.Problem | None:
    """Decide whether `new` labels that the run does not have yet may be charged to it.

    Args:
        run: the run as it stands.
        totals: the labels charged to each group of runs that this one belongs to and that has a limit.
        new: labels that would be charged; 0 (a replay) is never refused for lack of budget.

    Returns:
        None, or the reason to refuse the whole request.
    """
    if new == 0:
        return None
    extras = {"budget": run.budget, "queries": run.spent, "remaining": run.remaining}
    if run.run_id == GUEST and run.budget == 0:
        return errors.GuestClosed("Queries without a token are switched off here; open a run and send its token.")
    if run.evaluations_used:
        return errors.QueryingClosed(
            f"Run {run.run_id} has been evaluated and gets no new labels; labels it already has can be asked again.",
            extras=extras,
        )
    if new > run.remaining:
        return errors.LabelBudgetExhausted(
            f"Run {run.run_id} has {run.remaining} of its {run.budget} labels left and asked for {new} new; "
            "ask for fewer, or open a run with a larger budget.",
            extras=extras,
        )
    for total in totals:
        if new > total.left:
            return errors.TotalBudgetExhausted(
                f"{total.runs} together have {total.left} of {total.limit} labels left and this request needs {new}; "
                "the operator can raise the total.",
                extras=extras,
            )
    return None


def refuse_evaluation(run: RunState, totals: Sequence[Total], budget: int | None) -> errors.Problem | None:
    """Decide whether the run may see one more test accuracy.

    Args:
        run: the run as it stands.
        totals: the evaluations of each group of runs that this one belongs to and that has a limit.
        budget: the point of the learning curve that this evaluation is for. A run that declared points must name one
            that is left; a run that declared none may name any or none.

    Returns:
        None, or the reason to refuse.
    """
    if run.run_id == GUEST:
        return errors.GuestHasNoEvaluations("The guest run has no evaluations; open a run and send its token.")
    extras = {"evaluations_used": run.evaluations_used, "evaluations_allowed": run.evaluations_allowed}
    if run.evaluations_used >= run.evaluations_allowed:
        return errors.EvaluationsExhausted(
            f"Run {run.run_id} has used its {run.evaluations_allowed} evaluation(s); "
            "declare more as evaluation_budgets when opening a run.",
            extras=extras,
        )
    for total in totals:
        if not total.left:
            return errors.EvaluationsExhausted(
                f"{total.runs} together have used their {total.limit} evaluation(s); the operator can raise the total.",
                extras=extras,
            )
    left = [point for point in run.evaluation_budgets if point not in run.evaluated_at]
    if run.evaluation_budgets and budget not in left:
        return errors.EvaluationNotDeclared(
            f"Run {run.run_id} may still be evaluated at budgets {left}, not at {budget}; name one of these.",
            extras={**extras, "budgets_left": left},
        )
    return None


@dataclass(frozen=True)
class TokenBucket:
    """A rate limit's state (token bucket: what flows in a whole period may be taken at once).

    Attributes:
        size: what flows in each period, and the most that can be saved up.
        level: what may be taken now; negative after a batch larger than the bucket.
        at_s: time of `level`, in seconds of a monotonic clock.
        period_s: length of the period.
    """

    size: int
    level: float
    at_s: float
    period_s: float = 60.0

    def take(self, amount: int, now_s: float) -> tuple[TokenBucket, float]:
        """Take an amount from the bucket at `now_s`.

        A batch larger than the bucket passes when the bucket is full, and leaves a debt.

        Returns:
            The bucket afterwards, and the whole seconds to wait: 0 if the amount was taken.
        """
        level = min(float(self.size), self.level + (now_s - self.at_s) * self.size / self.period_s)
        needed = min(amount, self.size)
        if level < needed:
            wait_s = math.ceil((needed - level) * self.period_s / self.size)
            return replace(self, level=level, at_s=now_s), float(max(1, wait_s))
        return replace(self, level=level - amount, at_s=now_s), 0.0

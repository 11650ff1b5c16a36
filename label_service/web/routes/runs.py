"""Runs: open, look at, evaluate, seal."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.convertors import StringConvertor, register_url_convertor

from label_service.errors import (
    EvaluationNotDeclared,
    EvaluationsExhausted,
    GuestHasNoEvaluations,
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    InvalidPredictions,
    InvalidRequest,
    InvalidToken,
    LogNotWritable,
    NotYourRun,
    RegistrationClosed,
    RunBudgetTooLarge,
    RunSealed,
    TokenRequired,
    TooManyEvaluations,
    UnknownRun,
)
from label_service.ledger import runs
from label_service.ledger.limits import GUEST
from label_service.service import LabelService
from label_service.web.callers import NO_STORE, OwnRun, Service, ledger_request, may_open_run, receipt
from label_service.web.openapi import problems
from label_service.web.routes.labels import dataset_answer
from label_service.web.schemas import (
    EvaluationAnswer,
    EvaluationRequest,
    RunAnswer,
    RunOpenedAnswer,
    RunRequest,
    RunsAnswer,
    RunSealedAnswer,
)


class _RunIdConvertor(StringConvertor):
    """A run's id in a path: no colon, or `/v1/runs/ID:seal` would be a run of that name to the routes without one."""

    regex = "[^/:]+"


register_url_convertor("run_id", _RunIdConvertor())

router = APIRouter(prefix="/v1/runs", tags=["runs"])


@router.post(
    "",
    status_code=201,
    dependencies=[Depends(may_open_run)],
    responses=problems(InvalidToken, LogNotWritable, RegistrationClosed, RunBudgetTooLarge, TooManyEvaluations),
)
async def open_run(body: RunRequest, request: Request, response: Response, service: Service) -> RunOpenedAnswer:
    """Open a run and answer its token, once. 201 is logged; the errors are not."""
    budget = service.settings.default_run_budget if body.budget is None else body.budget
    if body.evaluation_budgets and body.evaluation_budgets[-1] > budget:
        raise InvalidRequest(
            f"The run's budget is {budget} and it declared an evaluation at {body.evaluation_budgets[-1]}; "
            "declare none above the budget."
        )
    opening = runs.Opening(body.name, budget, tuple(body.evaluation_budgets))
    opened = await service.open_run(opening, request.state.request_id)
    response.headers.update({**NO_STORE, "Location": f"/v1/runs/{opened.run_id}"})
    return RunOpenedAnswer(
        run_id=opened.run_id,
        token=opened.token,
        name=body.name,
        budget=budget,
        queries=0,
        remaining=budget,
        evaluation_budgets=body.evaluation_budgets,
        evaluations_allowed=opened.evaluations_allowed,
        evaluations_used=0,
        evaluations=[],
        querying_closed=False,
        opened_at=opened.opened_at,
        sealed_at=None,
        dataset=dataset_answer(service.dataset),
        receipt=receipt(service, opened.entry),
    )


@router.get("", responses=problems())
def list_runs(service: Service) -> RunsAnswer:
    """List all runs, oldest first. Charges and logs nothing."""
    return RunsAnswer(runs=[RunAnswer(**state) for state in service.reader.runs()])


@router.get("/{run_id:run_id}", responses=problems(UnknownRun))
def read_run(run_id: str, service: Service) -> RunAnswer:
    """Tell a run's state. Charges and logs nothing; needs no token, as the log is open too."""
    return RunAnswer(**_state(service, run_id))


@router.post(
    "/{run_id:run_id}:seal",
    responses=problems(InvalidToken, LogNotWritable, NotYourRun, TokenRequired, UnknownRun),
)
async def seal_run(request: Request, service: Service, run_id: OwnRun) -> RunSealedAnswer:
    """End a run for good. Sealing it again answers the same and logs nothing."""
    if run_id == GUEST:
        raise NotYourRun("The guest run belongs to nobody and cannot be sealed; the operator can close it.")
    entry = await service.seal(ledger_request(request, run_id))
    evidence = await run_in_threadpool(service.evidence)
    return RunSealedAnswer(**_state(service, run_id), receipt=receipt(service, entry), evidence=evidence)


@router.post(
    "/{run_id:run_id}/evaluations",
    responses=problems(
        EvaluationNotDeclared,
        EvaluationsExhausted,
        GuestHasNoEvaluations,
        IdempotencyKeyInUse,
        IdempotencyKeyReused,
        InvalidPredictions,
        InvalidToken,
        LogNotWritable,
        NotYourRun,
        RunSealed,
        TokenRequired,
        UnknownRun,
    ),
)
async def evaluate_run(
    body: EvaluationRequest, request: Request, response: Response, service: Service, run_id: OwnRun
) -> EvaluationAnswer:
    """Answer the accuracy of test predictions, and close the run to new labels.

    200 uses one evaluation and is logged; 403, 409 and 410 are logged and use none. A repeat under the same
    Idempotency-Key answers the same and uses none.
    """
    _check_predictions(service, body.predictions)
    answer = await service.evaluate(ledger_request(request, run_id), body.predictions, body.budget)
    response.headers.update(NO_STORE)
    return EvaluationAnswer(
        run_id=run_id,
        evaluation=answer.number,
        budget=answer.budget,
        accuracy=answer.correct / answer.total,
        correct=answer.correct,
        total=answer.total,
        evaluations_used=answer.number,
        evaluations_allowed=answer.allowed,
        replayed=answer.replayed,
        receipt=receipt(service, answer.entry),
    )


def _check_predictions(service: LabelService, predictions: list[int]) -> None:
    expected, classes = service.dataset.test_size, len(service.dataset.class_names)
    if len(predictions) != expected:
        raise InvalidPredictions(
            f"{len(predictions)} predictions were sent and there are {expected} test images; send one for each."
        )
    if min(predictions) < 0 or max(predictions) >= classes:
        raise InvalidPredictions(f"Predictions are class numbers from 0 to {classes - 1}, and at least one is not.")


def _state(service: LabelService, run_id: str) -> dict[str, Any]:
    state = service.reader.run(run_id)
    if state is None:
        raise UnknownRun("No run has this id; open one with POST /v1/runs.")
    return state

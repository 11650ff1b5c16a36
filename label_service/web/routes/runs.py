"""Runs: open, look at, evaluate, seal."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.convertors import StringConvertor, register_url_convertor

from label_service.errors import (
    EvaluationNotDeclared,
    EvaluationsExhausted,
    GuestHasNoEvaluations,
    IdempotencyKeyReused,
    InvalidPredictions,
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
from label_service.ledger.limits import GUEST
from label_service.log.log_reader import RunInfo
from label_service.service import LabelService
from label_service.web.callers import NO_STORE, OwnRun, Service, ledger_request, may_open_run
from label_service.web.openapi import problems
from label_service.web.schemas import (
    EvaluationAnswer,
    EvaluationRequest,
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
    opened = await service.open_run(request.state.request_id, body.name, body.budget, body.evaluation_budgets)
    response.headers.update({**NO_STORE, "Location": f"/v1/runs/{opened.run_id}"})
    return RunOpenedAnswer(**dict(opened), dataset=service.dataset, receipt=service.log.receipt(opened.entry))


@router.get("", responses=problems())
def list_runs(service: Service) -> RunsAnswer:
    """List all runs, oldest first. Charges and logs nothing."""
    return RunsAnswer(runs=service.reader.runs())


@router.get("/{run_id:run_id}", responses=problems(UnknownRun))
def read_run(run_id: str, service: Service) -> RunInfo:
    """Answer a run's state. Charges and logs nothing; needs no token, as the log is open too."""
    return find_run(service, run_id)


@router.post(
    "/{run_id:run_id}:seal",
    responses=problems(InvalidToken, LogNotWritable, NotYourRun, TokenRequired, UnknownRun),
)
async def seal_run(request: Request, service: Service, run_id: OwnRun) -> RunSealedAnswer:
    """End a run for good. Sealing it again answers the same and logs nothing."""
    if run_id == GUEST:
        raise NotYourRun("The guest run belongs to nobody and cannot be sealed; the operator can close it.")
    entry = await service.seal(ledger_request(request, run_id))
    run = await run_in_threadpool(find_run, service, run_id)
    evidence = await run_in_threadpool(service.evidence)
    return RunSealedAnswer(**dict(run), receipt=service.log.receipt(entry), evidence=evidence)


@router.post(
    "/{run_id:run_id}/evaluations",
    responses=problems(
        EvaluationNotDeclared,
        EvaluationsExhausted,
        GuestHasNoEvaluations,
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
    answer = await service.evaluate(ledger_request(request, run_id), body.predictions, body.budget)
    response.headers.update(NO_STORE)
    return EvaluationAnswer(**dict(answer), receipt=service.log.receipt(answer.entry))


def find_run(service: LabelService, run_id: str) -> RunInfo:
    """Read a run's state from the database.

    Raises:
        UnknownRun: no run has this id.
    """
    run = service.reader.run(run_id)
    if run is None:
        raise UnknownRun("No run has this id; open one with POST /v1/runs.")
    return run

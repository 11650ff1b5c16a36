"""Runs: open, look at, evaluate, seal."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.convertors import StringConvertor, register_url_convertor

from label_service.errors import NotYourRun
from label_service.ledger import ledger
from label_service.ledger.limits import GUEST
from label_service.log.log_reader import RunInfo
from label_service.web.callers import (
    NO_STORE,
    Operator,
    OwnRun,
    Registration,
    Service,
    find_run,
    idempotency_key,
    known_log_size,
    ledger_request,
    prove,
)
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
    """A run id in a path has no colon; otherwise `/v1/runs/ID:seal` would be read as the run `ID:seal`."""

    regex = "[^/:]+"


register_url_convertor("run_id", _RunIdConvertor())

router = APIRouter(prefix="/v1/runs", tags=["runs"])

# Who repeats an opening under its key gets the run's token.
OPENING_KEY_CHARACTERS = 16

# Codes of the errors of every call that a run makes about itself.
_OF_OWN_RUN = ("cross-site", "invalid-token", "log-not-writable", "not-your-run", "token-required", "unknown-run")
_EVALUATING = (
    *_OF_OWN_RUN, "evaluation-not-declared", "evaluations-exhausted", "guest-has-no-evaluations",
    "idempotency-key-reused", "invalid-predictions", "run-sealed", "token-ended", "too-many-requests",
)  # fmt: skip


@router.post(
    "",
    status_code=201,
    responses=problems(
        "cross-site",
        "idempotency-key-reused",
        "invalid-token",
        "log-not-writable",
        "registration-closed",
        "run-budget-too-large",
        "token-ended",
        "too-many-evaluations",
        "too-many-requests",
    ),
)
async def open_run(
    body: RunRequest, request: Request, response: Response, service: Service, opened_with: Registration
) -> RunOpenedAnswer:
    """Open a run and answer its token, once. 201 is logged; the errors are not.

    A repeat under the same Idempotency-Key (16 characters or more, which nobody can guess) answers the same run and
    token, until the run is first used.
    """
    known_size = known_log_size(request)
    opened = await service.open_run(
        request.state.request_id,
        body.name,
        body.budget,
        body.evaluation_budgets,
        opened_with,
        idempotency_key(request, shortest=OPENING_KEY_CHARACTERS),
    )
    receipt, growth = prove(service, opened.entry, known_size)
    location = f"{service.settings.root_path}/v1/runs/{opened.run_id}"
    response.headers.update({**NO_STORE, **growth, "Location": location})
    return RunOpenedAnswer(**dict(opened), dataset=service.dataset, receipt=receipt)


@router.get("", response_model=RunsAnswer, responses=problems("log-not-writable"))
async def list_runs(service: Service) -> Response:
    """List all runs, oldest first. Charges and logs nothing."""
    await service.catch_up()
    # In a thread, because thousands of runs take a while to list and to write.
    body = await run_in_threadpool(lambda: RunsAnswer(runs=service.runs()).model_dump_json())
    return Response(body, media_type="application/json")


@router.get("/{run_id:run_id}", responses=problems("log-not-writable", "unknown-run"))
async def read_run(run_id: str, service: Service) -> RunInfo:
    """Answer a run's state. Charges and logs nothing; needs no token, as the log is open too."""
    return await find_run(service, run_id)


@router.post("/{run_id:run_id}:seal", responses=problems(*_OF_OWN_RUN))
async def seal_run(request: Request, response: Response, service: Service, run_id: OwnRun) -> RunSealedAnswer:
    """End a run for good. Sealing it again returns the first entry and logs nothing."""
    if run_id == GUEST:
        raise NotYourRun("The guest run belongs to nobody and cannot be sealed; the operator can close it.")
    return await _seal(service, request, response, ledger_request(request, run_id))


@router.post(
    "/{run_id:run_id}:close", responses=problems("log-not-writable", "not-your-run", "operator-only", "unknown-run")
)
async def close_run(
    run_id: str, request: Request, response: Response, service: Service, _operator: Operator
) -> RunSealedAnswer:
    """End a run as the operator: its client gets 410 from then on. Closing it again logs nothing."""
    if run_id == GUEST:
        raise NotYourRun("The guest run cannot be closed like this; set LABEL_SERVICE_GUEST_BUDGET to 0.")
    await find_run(service, run_id)
    asked = ledger.Request(run_id, request.state.request_id)
    return await _seal(service, request, response, asked, by_operator=True)


async def _seal(
    service: Service, request: Request, response: Response, asked: ledger.Request, *, by_operator: bool = False
) -> RunSealedAnswer:
    known_size = known_log_size(request)
    entry = await service.seal(asked, by_operator)
    run = await find_run(service, asked.run_id)
    receipt, growth = prove(service, entry, known_size)
    response.headers.update(growth)
    return RunSealedAnswer(**dict(run), receipt=receipt)


@router.post("/{run_id:run_id}/evaluations", responses=problems(*_EVALUATING))
async def evaluate_run(
    body: EvaluationRequest, request: Request, response: Response, service: Service, run_id: OwnRun
) -> EvaluationAnswer:
    """Answer the accuracy of test predictions, and close the run to new labels.

    200 uses one evaluation and is logged; 403, 409 and 410 are logged and use none. A repeat under the same
    Idempotency-Key answers the same and uses none.
    """
    known_size = known_log_size(request)
    answer = await service.evaluate(ledger_request(request, run_id), body.predictions, body.budget)
    receipt, growth = prove(service, answer.entry, known_size)
    response.headers.update({**NO_STORE, **growth})
    return EvaluationAnswer(**dict(answer), receipt=receipt)

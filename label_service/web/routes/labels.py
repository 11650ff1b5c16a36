"""Labels: reveal one or a batch, and describe the data set they belong to."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from label_service.data.seed import DatasetInfo
from label_service.ledger import ledger
from label_service.service import LabelService
from label_service.web.callers import Caller, Service, known_log_size, label_headers, ledger_request, prove
from label_service.web.openapi import problems
from label_service.web.schemas import Label, LabelAnswer, LabelQuery, LabelsAnswer, PathLabelId

router = APIRouter(tags=["labels"])

_PROBLEMS = problems(
    "cross-site", "guest-closed", "idempotency-key-reused", "invalid-token", "label-budget-exhausted",
    "log-not-writable", "querying-closed", "run-sealed", "token-ended", "too-many-requests",
    "total-budget-exhausted", "unknown-id",
)  # fmt: skip


@router.get("/v1/dataset", responses=problems())
def read_dataset(service: Service) -> DatasetInfo:
    """Say what data set the labels belong to. Charges and logs nothing."""
    return service.dataset


@router.get("/label/{label_id}", response_model=LabelAnswer, responses=_PROBLEMS, operation_id="reveal_label")
@router.get("/v1/labels/{label_id}", response_model=LabelAnswer, responses=_PROBLEMS, operation_id="reveal_label_v1")
async def reveal_label(label_id: PathLabelId, request: Request, service: Service, run_id: Caller) -> Response:
    """Reveal one label: charged and logged the first time, free and logged afterwards.

    200 charges one label or none; 403, 404, 409 and 410 are logged and charge nothing; 401, 422, 429 and 503 leave
    no entry.
    """
    known_size = known_log_size(request)
    answer = await service.reveal(ledger_request(request, run_id), [label_id])
    return _respond(service, LabelAnswer, answer, _label(service, answer.labels[0]), known_size)


@router.post("/v1/labels:query", response_model=LabelsAnswer, responses=_PROBLEMS)
async def query_labels(query: LabelQuery, request: Request, service: Service, run_id: Caller) -> Response:
    """Reveal up to 1,000 labels, all or none; each id the run does not have yet is charged once.

    A repeat under the same Idempotency-Key answers what the first request answered and charges nothing. Statuses act
    on budget and log as for a single label.
    """
    known_size = known_log_size(request)
    answer = await service.reveal(ledger_request(request, run_id), query.ids)
    labels = [Label(**_label(service, label)) for label in answer.labels]
    return _respond(service, LabelsAnswer, answer, {"labels": labels}, known_size)


def _label(service: LabelService, revealed: ledger.RevealedLabel) -> dict[str, Any]:
    return {
        **vars(revealed),
        "label_name": service.dataset.class_names[revealed.label],
        "opening": service.rules.answer_key.open(revealed.id),
    }


def _respond(
    service: LabelService,
    model: type[BaseModel],
    answer: ledger.Revealed,
    labels: dict[str, Any],
    known_size: int | None,
) -> Response:
    """Return the answer: the ledger's counts, the fields about labels, and the receipt."""
    receipt, growth = prove(service, answer.entry, known_size)
    body = model(**{**vars(answer), **labels, "receipt": receipt})
    # Written here: FastAPI would validate and copy the model again, which takes most of an answer's time.
    headers = {**label_headers(answer.budget, answer.remaining), **growth}
    return Response(body.model_dump_json(), media_type="application/json", headers=headers)

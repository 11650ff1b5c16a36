"""Health of the service: alive, ready, and its counters."""

from __future__ import annotations

from fastapi import APIRouter, Response

from label_service.errors import LogNotWritable
from label_service.web.callers import Service
from label_service.web.openapi import problems
from label_service.web.schemas import HealthAnswer

router = APIRouter(tags=["health"])


@router.get("/healthz", responses=problems())
async def live() -> HealthAnswer:
    """Return 200 as long as the process runs."""
    return HealthAnswer()


@router.get("/readyz", responses=problems("log-not-writable"))
async def ready(service: Service) -> HealthAnswer:
    """Answer 200 if a log entry could be written now (tried by writing), else 503."""
    if not await service.ready():
        raise LogNotWritable("The log cannot be written now; see the service's own messages for the reason.")
    return HealthAnswer()


@router.get("/metrics", response_class=Response, responses=problems())
def metrics(service: Service) -> Response:
    """Answer the counters in Prometheus' text format."""
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

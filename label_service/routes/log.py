"""The query log, readable by anybody: entries, export, counts. No label is in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from label_service.log_reader import Filter
from label_service.openapi import problems
from label_service.routes.callers import NO_STORE, Service
from label_service.schemas import MAX_ID, MAX_SEQ, LogPage, SummaryAnswer

router = APIRouter(prefix="/v1/log", tags=["log"])

MAX_PAGE = 1000


@router.get("/entries", response_model=LogPage, responses=problems())
def read_entries(
    service: Service,
    after: Annotated[int, Query(ge=-1, le=MAX_SEQ, description="Only entries with a larger number.")] = -1,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most entries to answer.")] = 100,
    run: Annotated[str | None, Query(max_length=100, description="Only this run's entries.")] = None,
    label_id: Annotated[
        int | None, Query(ge=-MAX_ID, le=MAX_ID, description="Only entries asking for this id.")
    ] = None,
    op: Annotated[str | None, Query(max_length=100, description="Only this kind of entry.")] = None,
) -> Response:
    """Answer entries in order, exactly as stored, and where the next page begins. Nothing is logged."""
    # Only ids of the data set are indexed; any other has no reveal, and SQLite cannot hold the largest.
    if label_id is not None and not 0 <= label_id < service.dataset.pool_size:
        label_id = -1
    entries, following = service.reader.page(after, limit, Filter(run, label_id, op))
    # Put together by hand: the bytes of an entry are not to be parsed and written again.
    end = b"null" if following is None else str(following).encode()
    body = b'{"entries":[' + b",".join(entries) + b'],"next":' + end + b"}"
    return Response(body, media_type="application/json", headers=NO_STORE)


@router.get(
    "/export.ndjson",
    response_class=StreamingResponse,
    responses={**problems(), 200: {"content": {"application/x-ndjson": {}}, "description": "One entry a line."}},
)
def export_log(service: Service) -> StreamingResponse:
    """Answer the whole log, one entry a line, exactly as stored. Nothing is logged."""
    return StreamingResponse(_lines(service.reader.export()), media_type="application/x-ndjson", headers=NO_STORE)


@router.get("/summary", responses=problems())
def summarise_log(service: Service, response: Response) -> SummaryAnswer:
    """Count the log: each run, and the labels that anybody has seen. Nothing is logged."""
    response.headers.update(NO_STORE)
    return SummaryAnswer(log_id=service.dataset.log_id, **asdict(service.reader.summary()))


def _lines(entries: Iterator[bytes]) -> Iterator[bytes]:
    for entry in entries:
        yield entry + b"\n"

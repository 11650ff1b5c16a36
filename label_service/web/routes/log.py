"""The query log, readable by anybody: entries, export, counts, signed heads and proofs. It holds no label."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from label_service.errors import NotSigned
from label_service.log.evidence import EvidencePage
from label_service.log.log_reader import EntryFilter, Summary
from label_service.log.merkle import encode_base64
from label_service.web.callers import NO_STORE, Service
from label_service.web.openapi import problems
from label_service.web.schemas import MAX_ID, MAX_SEQ, ConsistencyAnswer, InclusionAnswer, KeyAnswer, LogPage, UtcTime

router = APIRouter(prefix="/v1/log", tags=["log"])

MAX_PAGE = 1000


After = Annotated[int, Query(ge=-1, le=MAX_SEQ, description="Only entries with a larger number.")]
Before = Annotated[int | None, Query(ge=0, le=MAX_SEQ, description="Only entries with a smaller number.")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most entries to answer.")]
Run = Annotated[str | None, Query(max_length=100, description="Only this run's entries.")]
AskedId = Annotated[int | None, Query(ge=-MAX_ID, le=MAX_ID, description="Only entries asking for this id.")]
Operation = Annotated[str | None, Query(max_length=100, description="Only this kind of entry.")]
Outcome = Annotated[str | None, Query(max_length=100, description="Only entries with this outcome.")]
Since = Annotated[UtcTime | None, Query(description="Not older than this time (RFC 3339; UTC if it names no zone).")]
Until = Annotated[UtcTime | None, Query(description="Older than this time.")]


# async, because FastAPI runs a plain function in a thread, which costs more than this function.
async def entry_filter(
    service: Service,
    run: Run = None,
    label_id: AskedId = None,
    op: Operation = None,
    outcome: Outcome = None,
    since: Since = None,
    until: Until = None,
) -> EntryFilter:
    """Return the filter of a request."""
    # Only ids of the data set are indexed. All others become -1, because SQLite cannot hold the largest of them.
    if label_id is not None and not 0 <= label_id < service.dataset.pool_size:
        label_id = -1
    return EntryFilter(run, label_id, op, outcome, since, until)


Wanted = Annotated[EntryFilter, Depends(entry_filter)]


@router.get("/entries", response_model=LogPage, responses=problems())
def read_entries(
    service: Service,
    wanted: Wanted,
    after: After = -1,
    before: Before = None,
    limit: Limit = 100,
    order: Annotated[Literal["oldest", "newest"], Query(description="Which entries come first.")] = "oldest",
) -> Response:
    """Answer entries in order, exactly as stored, and where the next page begins. Nothing is logged.

    All filters given must hold.
    """
    rows = service.reader.find(wanted, limit + 1, after, before, newest_first=order == "newest")
    page = rows[:limit]
    # Joined as bytes, so that each entry is answered exactly as stored.
    end = str(page[-1].seq).encode() if len(rows) > limit else b"null"
    body = b'{"entries":[' + b",".join(row.entry for row in page) + b'],"next":' + end + b"}"
    return Response(body, media_type="application/json", headers=NO_STORE)


@router.get(
    "/export.ndjson",
    response_class=StreamingResponse,
    responses={**problems(), 200: {"content": {"application/x-ndjson": {}}, "description": "One entry a line."}},
)
def export_log(service: Service, wanted: Wanted) -> StreamingResponse:
    """Answer the whole log, or the entries that the filters want: one a line, exactly as stored. Nothing is logged."""
    return StreamingResponse(service.reader.export(wanted), media_type="application/x-ndjson", headers=NO_STORE)


@router.get(
    "/export.csv",
    response_class=StreamingResponse,
    responses={**problems(), 200: {"content": {"text/csv": {}}, "description": "A header, then one entry a line."}},
)
def export_table(service: Service, wanted: Wanted) -> StreamingResponse:
    """Answer the same entries as a table; ids are separated by spaces, the detail is JSON. Nothing is logged."""
    headers = {**NO_STORE, "Content-Disposition": 'attachment; filename="log.csv"'}
    return StreamingResponse(service.reader.export_csv(wanted), media_type="text/csv", headers=headers)


@router.get("/evidence", response_model=EvidencePage, responses=problems("log-not-writable", "not-signed"))
async def read_evidence(
    service: Service,
    limit: Annotated[int | None, Query(ge=1, le=MAX_PAGE, description="Most entries of a page; default 1,000.")] = None,
    after: Annotated[int, Query(ge=-1, le=MAX_SEQ, description="A page: only larger numbers.")] = -1,
    size: Annotated[int | None, Query(ge=1, le=MAX_SEQ, description="A page: entries under this head.")] = None,
) -> Response:
    """Answer the log under a signed head: what `verify` reads. Nothing is logged.

    Without a parameter it is the whole log under its newest head, as a stream. With any it is a page; the size of the
    first page's head, given with the next ones, keeps them at one head while the log grows.
    """
    if size is None:
        await service.catch_up()
    else:
        await service.cover(size)
    if (limit, after, size) == (None, -1, None):
        return StreamingResponse(service.evidence(), media_type="application/json", headers=NO_STORE)
    with _signed_only():
        head = service.log.head if size is None else service.log.head_over(size)
    page = await run_in_threadpool(service.evidence_page, head, min(after + 1, head.size), limit or MAX_PAGE)
    return Response(page.model_dump_json(), media_type="application/json", headers=NO_STORE)


@router.get("/summary", responses=problems("log-not-writable"))
async def summarise_log(service: Service, response: Response) -> Summary:
    """Count the log: each run, and the labels that anybody has seen. Nothing is logged."""
    response.headers.update(NO_STORE)
    return await service.summary()


@router.get("/key", responses=problems())
async def read_key(service: Service, response: Response) -> KeyAnswer:
    """Answer the log's public key. Pin it before the first query: a key that replaces it is signed by it."""
    response.headers.update(NO_STORE)
    return KeyAnswer(key=service.log.verifier.vkey, rotations=service.log.account.rotations)


@router.get(
    "/checkpoint",
    response_class=PlainTextResponse,
    responses={**problems("log-not-writable"), 200: {"content": {"text/plain": {}}, "description": "A signed note."}},
)
async def read_checkpoint(service: Service) -> PlainTextResponse:
    """Answer the newest signed head: a C2SP tlog-checkpoint."""
    return PlainTextResponse((await service.head()).note, headers=NO_STORE)


@router.get("/proof/inclusion", responses=problems("log-not-writable", "not-signed"))
async def prove_inclusion(
    service: Service,
    response: Response,
    index: Annotated[int, Query(ge=0, le=MAX_SEQ, description="Number of the entry.")],
    size: Annotated[int, Query(ge=1, le=MAX_SEQ, description="Size of the tree to prove it in, such as a head's.")],
) -> InclusionAnswer:
    """Prove that an entry is in the log of a signed size."""
    await service.cover(size)
    with _signed_only():
        proof, root = service.log.inclusion_proof(index, size), service.log.root(size)
    response.headers.update(NO_STORE)
    return InclusionAnswer(
        index=index, size=size, root=encode_base64(root), proof=[encode_base64(node) for node in proof]
    )


@router.get("/proof/consistency", responses=problems("log-not-writable", "not-signed"))
async def prove_consistency(
    service: Service,
    response: Response,
    first: Annotated[int, Query(ge=1, le=MAX_SEQ, description="Size of the older head.")],
    second: Annotated[int, Query(ge=1, le=MAX_SEQ, description="Size of the newer head.")],
) -> ConsistencyAnswer:
    """Prove that the log of one signed size begins with the log of another."""
    await service.cover(second)
    with _signed_only():
        proof = service.log.consistency_proof(first, second)
        roots = service.log.root(first), service.log.root(second)
    response.headers.update(NO_STORE)
    return ConsistencyAnswer(
        first=first,
        second=second,
        first_root=encode_base64(roots[0]),
        second_root=encode_base64(roots[1]),
        proof=[encode_base64(node) for node in proof],
    )


@contextmanager
def _signed_only() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise NotSigned(f"There is no such proof: {error}.") from error

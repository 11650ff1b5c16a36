"""The pages for people: overview, runs, the log, verification in the browser, the API, error codes. They show no label.

All facts come from the account of the log and from entries whose MACs hold; other tables are not believed. A page is
whole without script. With script, `live.js` fetches it again when the log has grown, and exchanges what has changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import Row
from starlette.concurrency import run_in_threadpool

from label_service.errors import UnknownRun, all_problems
from label_service.log.account import OPERATIONS, RunAccount
from label_service.log.entries import DONE
from label_service.log.log_reader import EntryFilter
from label_service.service import LabelService
from label_service.web.burn_down import BurnDown
from label_service.web.callers import NO_STORE, Service
from label_service.web.openapi import first_line, problems
from label_service.web.schemas import MAX_SEQ, utc

router = APIRouter(include_in_schema=False)

# Strangers choose the names of runs, so everything is escaped, and a page loads nothing but this service's own files.
_templates = Environment(
    loader=PackageLoader("label_service.web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["query"] = urlencode
PAGE_HEADERS = {
    **NO_STORE,
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
RUNS_OF_A_PAGE = 25
ENTRIES_OF_A_PAGE = 50
LATEST = 10
# Points of a burn-down: more than a picture of its width can show apart.
POINTS = 300


def render(request: Request, service: LabelService, template: str, status: int = 200, **values: Any) -> HTMLResponse:  # noqa: ANN401 - what the template takes
    """Return a page."""
    root: str = request.scope.get("root_path", "")
    page = _templates.get_template(template).render(
        root=root,
        here=request.scope["route"].path,
        base_url=str(request.base_url).rstrip("/"),
        dataset=service.dataset,
        vkey=service.log.verifier.vkey,
        size=service.log.head.size,
        live=service.settings.max_watchers > 0,
        done=DONE,
        **values,
    )
    return HTMLResponse(page, status_code=status, headers=PAGE_HEADERS)


@router.get("/", responses=problems())
async def overview(request: Request, service: Service, page: Annotated[int, Query(ge=1, le=10**6)] = 1) -> HTMLResponse:
    """Show the data set, the runs (those that go on and the newest first) and the latest entries of the log."""
    await service.catch_up()
    return await run_in_threadpool(_overview, request, service, page)


def _overview(request: Request, service: LabelService, page: int) -> HTMLResponse:
    account = service.log.account
    newest = list(account.runs.items())[::-1]
    ordered = sorted(newest, key=lambda item: state_of(item[1]) != "open")
    first = (page - 1) * RUNS_OF_A_PAGE
    shown = dict(ordered[first : first + RUNS_OF_A_PAGE])
    runs = [{"id": run_id, "account": run, "state": state_of(run)} for run_id, run in shown.items()]
    return render(
        request,
        service,
        "overview.html",
        account=account,
        open_runs=sum(state_of(run) == "open" for _, run in newest),
        runs=runs,
        page=page,
        pages=max(1, -(-len(ordered) // RUNS_OF_A_PAGE)),
        entries=_latest(service, EntryFilter()),
    )


@router.get("/runs/{run_id}", responses=problems("unknown-run"))
async def run_page(request: Request, service: Service, run_id: str) -> HTMLResponse:
    """Show one run: how its budget went, what it asked, its evaluations and its seal, and how to check them."""
    await service.catch_up()
    return await run_in_threadpool(_run_page, request, service, run_id)


def _run_page(request: Request, service: LabelService, run_id: str) -> HTMLResponse:
    run = service.log.account.runs.get(run_id)
    if run is None:
        raise UnknownRun("No run has this id; the overview lists all runs.")
    reader = service.reader
    spending = parsed(reader.spending(run_id, POINTS))
    evaluations = parsed(reader.find(EntryFilter(run=run_id, outcome="evaluated"), 1000))
    seals = parsed(reader.find(EntryFilter(run=run_id, outcome="sealed"), 1)) if run.sealed else []
    latest = _latest(service, EntryFilter(run=run_id))
    outcomes = reader.outcomes(run_id) if run.refusals else {}
    return render(
        request,
        service,
        "run.html",
        run_id=run_id,
        run=run,
        state=state_of(run),
        chart=BurnDown(run.opened_at, spending, evaluations, latest[0]["ts"], run.budget),
        evaluations=evaluations,
        seal=seals[0] if seals else None,
        refused={outcome: outcomes[outcome] for outcome in sorted(outcomes) if outcome not in DONE},
        entries=latest,
    )


# The fields of the form. A browser sends those left empty, too.
_Text = Annotated[str, Query(max_length=100)]
_Number = Annotated[int | None, Query(ge=0, le=MAX_SEQ)]


@router.get("/log", responses=problems())
async def log_page(
    request: Request,
    service: Service,
    run: _Text = "",
    label_id: _Text = "",
    op: _Text = "",
    outcome: _Text = "",
    since: _Text = "",
    until: _Text = "",
    before: _Number = None,
    after: _Number = None,
) -> HTMLResponse:
    """Show the log by page, the newest entries first, with filters; a field that cannot be read is said (422)."""
    await service.catch_up()
    form = {"run": run, "label_id": label_id, "op": op, "outcome": outcome, "since": since, "until": until}
    form = {name: text.strip() for name, text in form.items()}
    return await run_in_threadpool(_log_page, request, service, form, before, after)


def _log_page(
    request: Request, service: LabelService, form: Mapping[str, str], before: int | None, after: int | None
) -> HTMLResponse:
    given = {name: text for name, text in form.items() if text}
    mistakes: dict[str, str] = {}
    read: dict[str, Any] = dict(given)
    for name, parse, must in (
        ("label_id", label_number, "The id must be a whole number, such as 42."),
        ("since", utc, "A time is written like 2026-01-31T12:00."),
        ("until", utc, "A time is written like 2026-01-31T12:00."),
    ):
        if name in given:
            try:
                read[name] = parse(given[name])
            except ValueError:
                mistakes[name] = must
    entries: list[dict[str, Any]] = []
    newer = older = None
    if not mistakes:
        label_id = read.get("label_id")
        if label_id is not None and label_id >= service.dataset.pool_size:
            read["label_id"] = -1
        wanted, size = EntryFilter(**read), service.log.head.size
        end = size if before is None else min(before, size)
        # Newer entries are asked for from below, so that the page begins right above `after`.
        rising = after is not None
        found = service.reader.find(
            wanted, ENTRIES_OF_A_PAGE + 1, -1 if after is None else after, end, newest_first=not rising
        )
        more = len(found) > ENTRIES_OF_A_PAGE
        rows = found[:ENTRIES_OF_A_PAGE]
        entries = parsed(rows[::-1] if rising else rows)
        if entries:
            older = entries[-1]["seq"] if more or rising else None
            newer = entries[0]["seq"] if (more if rising else before is not None) else None
    return render(
        request,
        service,
        "log.html",
        422 if mistakes else 200,
        form=form,
        given=given,
        mistakes=mistakes,
        entries=entries,
        older=older,
        newer=newer,
        first_page=before is None and after is None,
        operations=OPERATIONS,
        outcomes=[*DONE, *sorted(problem.code for problem in all_problems() if problem.status in (403, 404, 409, 410))],
    )


def label_number(text: str) -> int:
    """Return the id in a field.

    Raises:
        ValueError: it is no number from 0 on.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise ValueError("no id")
    return int(text)


@router.get("/verify", responses=problems())
async def verify_page(request: Request, service: Service) -> HTMLResponse:
    """Show the page on which the browser verifies this log, or an evidence file."""
    return render(request, service, "verify.html")


@router.get("/docs", responses=problems())
async def api_page(request: Request, service: Service) -> HTMLResponse:
    """Show the calls of the API in Swagger UI, whose files are served from here."""
    return render(request, service, "docs.html")


@router.get("/errors", responses=problems())
async def error_codes(request: Request, service: Service) -> HTMLResponse:
    """Explain every error code; the `type` of a problem links here."""
    rows = [{"code": kind.code, "status": kind.status, "meaning": first_line(kind)} for kind in all_problems()]
    return render(request, service, "errors.html", problems=rows)


def parsed(rows: Sequence[Row[Any]]) -> list[dict[str, Any]]:
    """Return the entries of rows, which the reader has authenticated."""
    return [json.loads(row.entry) for row in rows]


def _latest(service: LabelService, wanted: EntryFilter) -> list[dict[str, Any]]:
    return parsed(service.reader.find(wanted, LATEST, before=service.log.head.size, newest_first=True))


def state_of(run: RunAccount) -> str:
    """Return the state of a run: `open` to new labels, `evaluated` and so closed to them, or `sealed`."""
    if run.sealed:
        return "sealed"
    return "evaluated" if run.evaluations else "open"

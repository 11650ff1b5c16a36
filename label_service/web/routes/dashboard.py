"""The pages for people: an overview, and the meaning of each error code. Plain HTML without scripts and labels."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from label_service.errors import all_problems
from label_service.log.entries import DONE, GUEST
from label_service.log.log_reader import describe_run
from label_service.web.callers import NO_STORE, Service
from label_service.web.openapi import first_line, problems

router = APIRouter(include_in_schema=False)

# Strangers choose the names of runs, so everything is escaped, and the page may load and run nothing.
_templates = Environment(loader=PackageLoader("label_service.web"), autoescape=True, undefined=StrictUndefined)
PAGE_HEADERS = {
    **NO_STORE,
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
SHOWN_ENTRIES = 20
SHOWN_RUNS = 50


@router.get("/", responses=problems())
def overview(request: Request, service: Service) -> HTMLResponse:
    """Show the data set, the runs and the latest entries of the log."""
    account = service.log.account
    opened = [run_id for run_id in list(account.runs) if run_id != GUEST]
    shown = [GUEST, *opened[1 - SHOWN_RUNS :]]
    page = _templates.get_template("dashboard.html").render(
        dataset=service.dataset,
        account=account,
        runs=[describe_run(run_id, account.runs[run_id]) for run_id in shown],
        hidden_runs=len(opened) + 1 - len(shown),
        latest=service.reader.latest(SHOWN_ENTRIES),
        done=DONE,
        base_url=request.base_url,
    )
    return HTMLResponse(page, headers=PAGE_HEADERS)


@router.get("/errors")
async def error_codes() -> HTMLResponse:
    """Explain every error code; the `type` of a problem links here."""
    rows = [{"code": kind.code, "status": kind.status, "meaning": first_line(kind)} for kind in all_problems()]
    page = _templates.get_template("errors.html").render(problems=rows)
    return HTMLResponse(page, headers=PAGE_HEADERS)

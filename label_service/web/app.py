"""The web application: routes, error answers, OpenAPI."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from label_service import __version__
from label_service.errors import (
    InternalError,
    InvalidRequest,
    LogChanged,
    LogNotReadable,
    MethodNotAllowed,
    NotFound,
    Problem,
)
from label_service.service import LabelService
from label_service.web.callers import admit, problem_headers
from label_service.web.middleware import RequestFrame
from label_service.web.openapi import DESCRIPTION, PROBLEM_MEDIA_TYPE, describe
from label_service.web.routes import events, health, labels, log, pages, runs, static, tokens
from label_service.web.routes.events import Watchers

logger = logging.getLogger(__name__)


ROUTERS = tuple(module.router for module in (labels, runs, tokens, log, events, health, pages, static))


def create_app(service: LabelService) -> FastAPI:
    """Return the web application of an open service. The caller opens and closes the service."""
    app = _route()
    app.state.service = service
    app.state.watchers = Watchers(service.settings.max_watchers)
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(SQLAlchemyError, _answer_unreadable)
    app.add_exception_handler(LogChanged, _answer_unreadable)
    app.add_exception_handler(Exception, _answer_fault)
    app.add_middleware(RequestFrame, metrics=service.metrics, max_body_bytes=service.settings.max_body_bytes)
    return app


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document of every service of this version."""
    return _route().openapi()


def _route() -> FastAPI:
    """Return an application that has the routes and their description, and no service yet."""
    app = FastAPI(
        title="Label service",
        version=__version__,
        description=DESCRIPTION,
        # A path with an extra slash does not exist, so it gets 404 and no redirect.
        redirect_slashes=False,
        # `routes/pages.py` has a page for the calls whose files come from here.
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(admit)],
    )
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


def _methods_of(path: str) -> list[str]:
    """Return the methods that a path takes. FastAPI would name only those of the first route that matches."""
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, Route)]
    return sorted({method for route in routes if route.path_regex.match(path) for method in route.methods or ()})


async def _answer_problem(request: Request, problem: Exception) -> Response:
    """Answer an error of the contract."""
    assert isinstance(problem, Problem), "registered for Problem only"
    service: LabelService = request.app.state.service
    service.metrics.problems.labels(problem.code).inc()
    document = {**problem.document(request.scope["root_path"]), "request_id": request.state.request_id}
    # ASCII, because a message may quote a lone surrogate, which UTF-8 cannot encode.
    body = json.dumps(document, ensure_ascii=True).encode()
    return Response(body, status_code=problem.status, media_type=PROBLEM_MEDIA_TYPE, headers=problem_headers(problem))


async def _answer_invalid(request: Request, error: Exception) -> Response:
    """Answer a path, query, header or body that does not fit its model: where, and why, without quoting it."""
    assert isinstance(error, RequestValidationError), "registered for RequestValidationError only"
    faults = [
        {"where": ".".join(str(part)[:100] for part in fault["loc"]), "why": str(fault["msg"])}
        for fault in error.errors()[:10]
    ]
    hint = ""
    content_type = request.headers.get("content-type", "")
    if faults[0]["where"] == "body" and "json" not in content_type:
        hint = "; send JSON with the header Content-Type: application/json"
    first = f"{faults[0]['where']}: {faults[0]['why']}"
    return await _answer_problem(request, InvalidRequest(f"{first}{hint}.", extras={"errors": faults}))


async def _answer_http(request: Request, error: Exception) -> Response:
    """Answer what FastAPI refuses by itself: unknown paths, wrong methods, bodies that are not JSON."""
    assert isinstance(error, HTTPException), "registered for HTTPException only"
    problem: Problem
    if error.status_code == 404:
        problem = NotFound("The service has no such path; see /docs for those it has.")
    elif error.status_code == 405:
        allowed = {"Allow": ", ".join(_methods_of(request.scope["path"].removeprefix(request.scope["root_path"])))}
        problem = MethodNotAllowed("This path does not take this method; see /docs.", headers=allowed)
    elif error.status_code < 500:
        problem = InvalidRequest("The body could not be read as JSON; send JSON as /docs describes it.")
    else:
        problem = _internal_error()
    return await _answer_problem(request, problem)


async def _answer_unreadable(request: Request, error: Exception) -> Response:
    """Answer a read of the database that failed, or found what somebody else has written; the writer answers writes."""
    logger.error("database not readable: %s", getattr(error, "orig", error))
    problem = LogNotReadable("The database could not be read; try again later.", headers={"Retry-After": "1"})
    return await _answer_problem(request, problem)


async def _answer_fault(request: Request, error: Exception) -> Response:
    """Answer a fault of the service itself; Starlette writes its trace to stderr afterwards."""
    logger.error("fault in request %s: %s", request.state.request_id, type(error).__name__)
    return await _answer_problem(request, _internal_error())


def _internal_error() -> InternalError:
    return InternalError("The service failed; its messages have the reason under this request id.")

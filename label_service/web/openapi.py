"""The OpenAPI document: every route names the errors it can answer, each with an example."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from label_service.errors import Problem, all_problems
from label_service.web.schemas import ProblemAnswer

PROBLEM_MEDIA_TYPE = "application/problem+json"

DESCRIPTION = """\
Reveals labels, charges them to a run, and keeps a log of every query.

Send `Authorization: Bearer TOKEN` to ask as a run; without it a request belongs to the run `guest`.
Errors are `application/problem+json` with a stable `code`; they are listed at [/errors](/errors).
"""

Responses = dict[int | str, dict[str, Any]]


# Codes of the errors that every route can answer.
_ANYWHERE = (
    "body-too-large", "headers-too-large", "host-not-allowed", "internal-error", "invalid-request", "log-not-readable",
    "request-too-slow", "too-many-connections",
)  # fmt: skip
_KINDS = {kind.code: kind for kind in all_problems()}


def problems(*codes: str) -> Responses:
    """Return the `responses` of a route: the errors with these codes, and the errors that every route can answer."""
    by_status: dict[int, list[type[Problem]]] = defaultdict(list)
    for code in sorted({*codes, *_ANYWHERE}):
        by_status[_KINDS[code].status].append(_KINDS[code])
    return {
        status: {
            "description": " ".join(f"`{kind.code}`: {first_line(kind)}" for kind in found),
            "content": {
                PROBLEM_MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/ProblemAnswer"},
                    "examples": {kind.code: {"value": _example(kind)} for kind in found},
                }
            },
        }
        for status, found in by_status.items()
    }


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the document of an app, with the error model and the token scheme. It is made once."""
    if not app.openapi_schema:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        schemas["ProblemAnswer"] = ProblemAnswer.model_json_schema()
        for generated in ("HTTPValidationError", "ValidationError"):
            schemas.pop(generated, None)
        components["securitySchemes"] = {"run": {"type": "http", "scheme": "bearer"}}
        # Every call may carry a token, and most may come without one: `{}` is the guest.
        document["security"] = [{"run": []}, {}]
        app.openapi_schema = document
    return app.openapi_schema


def first_line(kind: type[Problem]) -> str:
    """Return what an error means: the first line of its docstring."""
    return (kind.__doc__ or "").strip().splitlines()[0]


def _example(kind: type[Problem]) -> dict[str, Any]:
    return {**Problem.document(kind(first_line(kind))), "request_id": "req-6a1f0c2e9b7d4358"}

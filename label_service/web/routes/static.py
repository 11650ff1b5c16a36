"""The files that the pages load: style, scripts, and Swagger UI's own, all read once and served from memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from label_service.errors import NotFound
from label_service.web.openapi import problems

router = APIRouter(prefix="/static", include_in_schema=False)

_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
# Which package has which files. Swagger UI comes with a package of its own, so that no page needs the internet.
_SOURCES = {
    "label_service.web": ("icon.svg", "live.js", "log_verifier.js", "style.css", "swagger.js", "verify.js"),
    "fastapi_offline": ("swagger-ui-bundle.js", "swagger-ui.css"),
}


@dataclass(frozen=True)
class _File:
    body: bytes
    media_type: str
    etag: str


def _read() -> dict[str, _File]:
    found = {}
    for package, names in _SOURCES.items():
        for name in names:
            body = (files(package) / "static" / name).read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            found[name] = _File(body, f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8", etag)
    return found


_FILES = _read()


@router.get("/{name}", responses=problems("not-found"))
async def read_file(name: str, request: Request) -> Response:
    """Answer a file. A browser asks each time whether its copy is still the right one, so no page mixes versions."""
    file = _FILES.get(name)
    if file is None:
        raise NotFound("There is no such file.")
    headers = {"Cache-Control": "no-cache", "ETag": file.etag, "Cross-Origin-Resource-Policy": "same-origin"}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)

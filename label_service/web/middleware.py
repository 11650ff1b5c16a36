"""What happens to every request before and after its route: request id, body limit, access log, metrics.

Plain ASGI, because the body limit must act while the body arrives. Bodies are small (one MiB unless the operator sets
another limit), so the middleware reads a body whole before it calls the route.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from label_service.errors import BodyTooLarge
from label_service.metrics import Metrics
from label_service.web.messages import ACCESS_LOG
from label_service.web.openapi import PROBLEM_MEDIA_TYPE

access = logging.getLogger(ACCESS_LOG)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# After an early 413 the service reads and drops the rest of the body for this long. A client that is still sending then
# gets the answer and not a reset connection.
DRAIN_S = 1.0
# Stands for a body that did not arrive whole: such a request is not carried out.
_CUT_OFF = b"(cut off)"


class RequestFrame:
    """Gives each request an id, refuses large bodies, and writes one line of access log. Never logs a header."""

    def __init__(self, app: ASGIApp, metrics: Metrics, max_body_bytes: int) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id", b""))
        scope.setdefault("state", {})["request_id"] = request_id
        started_s, status = time.monotonic(), 500

        async def send_framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            body = await self._read_body(headers, receive)
            if body is _CUT_OFF:
                return
            if body is None:
                await self._refuse_body(scope, receive, send_framed, b"expect" in headers)
            else:
                await self._app(scope, _replay(body, receive), send_framed)
        finally:
            self._record(scope, status, time.monotonic() - started_s, request_id)

    async def _read_body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """Return the whole body, None as soon as it is known to be too large, or `_CUT_OFF` if the client went."""
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared[:20]) > self._max_body_bytes:
            return None
        if declared == b"0" and b"transfer-encoding" not in headers:
            return b""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                return None
            if message["type"] != "http.request":
                return _CUT_OFF
            if not message.get("more_body"):
                return bytes(body)

    async def _refuse_body(self, scope: Scope, receive: Receive, send: Send, expects_continue: bool) -> None:
        limit = self._max_body_bytes
        problem = BodyTooLarge(f"The body is larger than {limit} bytes; send less, or in several requests.")
        self._metrics.problems.labels(problem.code).inc()
        document = problem.document(scope["root_path"])
        body = json.dumps({**document, "request_id": scope["state"]["request_id"]}).encode()
        headers = [
            (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        if not expects_continue:
            try:
                async with asyncio.timeout(DRAIN_S):
                    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                        pass
            except TimeoutError:
                pass
        await send({"type": "http.response.body", "body": b""})

    def _record(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        route = getattr(scope.get("route"), "path", "(none)")
        if not scope["state"].get("endless"):
            # The time of a stream without end says nothing of how fast the service answers.
            self._metrics.observe_request(route, scope["method"], status, seconds)
        method = scope["method"] if scope["method"].isalpha() and len(scope["method"]) <= 7 else "(other)"
        run_id = scope["state"].get("run_id", "-")
        # raw_path is still percent-encoded, so no line break in a hostile path reaches the log. The query is left out.
        path = scope.get("raw_path", b"").partition(b"?")[0].decode("ascii", "backslashreplace")[:200]
        client = scope["client"][0] if scope.get("client") else "-"
        access.info(
            '%(client)s "%(method)s %(path)s" %(status)d %(duration_ms).1fms run=%(run)s %(request_id)s',
            {
                "client": client,
                "method": method,
                "path": path,
                "status": status,
                "duration_ms": round(seconds * 1000, 3),
                "run": run_id,
                "request_id": request_id,
            },
        )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body that was read, then the connection's own messages."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _request_id(sent: bytes) -> str:
    """Return the client's request id if it is harmless, else a fresh one."""
    text = sent.decode("latin-1")
    if text and REQUEST_ID.fullmatch(text):
        return text
    # Unique, not secret: a secure random number would take a system call, a tenth of a request's time.
    return f"req-{random.getrandbits(64):016x}"

"""Connections: how many, how large a request's head, and how long a client may take; nobody can hold them all.

uvicorn limits none of these. Each worker counts its own connections. A full service closes the connection that has
waited longest without sending a request, so that a client with a request gets in whatever others hold open.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from label_service.errors import HeadersTooLarge, Problem, RequestTooSlow, TooManyConnections
from label_service.web.openapi import PROBLEM_MEDIA_TYPE


@dataclass(frozen=True)
class ConnectionLimits:
    """What one worker accepts.

    Attributes:
        total: connections at a time.
        per_address: connections at a time from one address.
        head_bytes: request line and headers, and what trailers and chunk extensions may take.
        head_timeout_s: for a request's head, from its first byte or from the connection on.
        body_timeout_s: for the rest of the request.
        write_timeout_s: for a client that does not read its answer.
    """

    total: int
    per_address: int
    head_bytes: int = 32 * 1024
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    write_timeout_s: float = 30.0


class _Reading(Enum):
    """What the service waits for on a connection."""

    HEAD = "the request's headers"
    BODY = "the request's body"


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection under limits."""

    def __init__(self, *, limits: ConnectionLimits, **given: Any) -> None:  # noqa: ANN401 - as uvicorn calls it
        """Take uvicorn's arguments, and the limits."""
        super().__init__(**given)
        self._limits = limits
        # None: nothing is awaited, or the start of another request, for which uvicorn has a time-out of its own.
        self._reading: _Reading | None = _Reading.HEAD
        self._timed: _Reading | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        # Bytes received since the parser last handed something on: it keeps them in memory.
        self._held_bytes = 0
        self._refusal: Problem | None = None
        self._since_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Take a connection, if need be in place of one that waits."""
        super().connection_made(transport)
        self._since_s = self.loop.time()
        self._time()
        others = [cast("LimitedConnection", other) for other in self.connections if other is not self]
        address = self.client[0] if self.client else None
        same = [other for other in others if other.client is not None and other.client[0] == address]
        for group, limit in ((same, self._limits.per_address), (others, self._limits.total)):
            if len(group) < limit:
                continue
            waiting = [other for other in group if other.is_waiting]
            if not waiting:
                self._refuse(TooManyConnections("There are too many connections; try again later."))
                return
            min(waiting, key=lambda other: other._since_s).drop()

    @property
    def is_waiting(self) -> bool:
        """Whether the service waits for the client, and no complete request waits for the service."""
        return self._reading is not None or self.cycle.response_complete

    def drop(self) -> None:
        """Close the connection at once and forget it."""
        self.connections.discard(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, and go on waiting only within the limits."""
        if self.transport.is_closing():
            return
        if self._reading is None and self.cycle.response_complete:
            self._reading = _Reading.HEAD
        self._held_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._held_bytes > self._limits.head_bytes:
            self._refuse(self._too_large())
        self._time()

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._reading = _Reading.HEAD

    def on_headers_complete(self) -> None:
        """Let the application have the request, unless its head is too large."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self._limits.head_bytes:
            # The parser turns an error of a callback into one of its own, which `send_400_response` answers.
            self._refusal = self._too_large()
            raise self._refusal
        self._held_bytes, self._reading = 0, _Reading.BODY
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hand a part of the body on."""
        self._held_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._held_bytes, self._reading = 0, None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser refused."""
        if self._refusal is None:
            super().send_400_response(msg)
            self._end()
        else:
            self._refuse(self._refusal)

    def pause_writing(self) -> None:
        """Give a client that does not read some time."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on with a client that reads."""
        super().resume_writing()
        self._cancel()

    def shutdown(self) -> None:
        """Let the request in progress be answered; a stream without end is cut."""
        if self.cycle is not None and self.cycle.scope["state"].get("endless"):
            self.transport.close()
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which no further request came."""
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and its time-outs."""
        self._reading = None
        self._cancel()
        self._time()
        super().connection_lost(exc)

    def _time(self) -> None:
        """Begin a deadline for what is awaited now, if that is not what it was begun for."""
        if self._reading is self._timed:
            return
        self._timed = self._reading
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._reading is not None:
            is_head = self._reading is _Reading.HEAD
            seconds = self._limits.head_timeout_s if is_head else self._limits.body_timeout_s
            self._deadline = self.loop.call_later(seconds, self._expire, self._reading, seconds)

    def _expire(self, awaited: _Reading, seconds: float) -> None:
        self._refuse(RequestTooSlow(f"The service waited {seconds:.0f} s for {awaited.value}; send them faster."))

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"The URL and the headers have more than {self._limits.head_bytes} bytes; send less.")

    def _refuse(self, problem: Problem) -> None:
        """Answer with an error, unless an answer is under way, and close."""
        if self.transport.is_closing():
            return
        # An answer may be under way to an earlier request of the same connection.
        if self.cycle is None or self.cycle.response_complete or self._reading is _Reading.BODY:
            document = problem.document(self.root_path)
            body = json.dumps(document).encode()
            head = (
                f"HTTP/1.1 {problem.status} {document['title']}\r\ncontent-type: {PROBLEM_MEDIA_TYPE}\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self._end()

    def _end(self) -> None:
        """Close; a client that does not take the rest of its answer in time loses it."""
        if not self.transport.is_closing():
            self.transport.close()
        if self.transport.get_write_buffer_size() and self._stalled is None:
            self._stalled = self.loop.call_later(self._limits.write_timeout_s, self.transport.abort)

    def _cancel(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

"""Server-sent events: pages that are open are told that the log has grown. They then ask for what they show.

An event says only how many entries there are, so nothing waits in a queue: a watcher that reads slowly misses sizes in
between, and uvicorn ends it when it reads nothing. The writer is not involved: each watcher looks at the size of the
signed log now and then. The number of watchers is bounded, in all and by address, and each is ended after a while; the
browser then comes back by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.types import Receive, Scope, Send

from label_service.errors import TooManyConnections
from label_service.service import LabelService
from label_service.web.callers import Service
from label_service.web.openapi import problems
from label_service.web.schemas import MAX_SEQ

router = APIRouter(prefix="/v1/log", tags=["log"])

TICK_S = 0.5
# A line now and then keeps proxies from closing a connection on which nothing happens.
HEARTBEAT_S = 15.0
LONGEST_S = 15 * 60.0
# Workers that share a database look for each other's entries; that is one look for all watchers of a worker.
SHARED_TICK_S = 1.0


class Watchers:
    """Who watches, by address; one of these belongs to each worker."""

    def __init__(self, most: int) -> None:
        """Allow so many; one address may have half of them."""
        self._most = most
        self._of_address = max(1, most // 2)
        self._by_address: Counter[str] = Counter()
        self._looked_s = 0.0

    @contextmanager
    def admit(self, address: str) -> Iterator[None]:
        """Count a watcher while the block runs.

        Raises:
            TooManyConnections: there are as many as there may be.
        """
        self.require_room(address)
        self._by_address[address] += 1
        try:
            yield
        finally:
            self._by_address[address] -= 1
            self._by_address += Counter()  # drops the addresses that have none

    def require_room(self, address: str) -> None:
        """Refuse one too many.

        Raises:
            TooManyConnections: there are as many as there may be.
        """
        if self._by_address.total() >= self._most or self._by_address[address] >= self._of_address:
            raise TooManyConnections(
                "Too many pages are told of new entries; reload the page instead.", headers={"Retry-After": "30"}
            )

    async def size(self, service: LabelService) -> int:
        """Return the size of the signed log, with what other workers have committed."""
        now_s = time.monotonic()
        if service.shared and now_s - self._looked_s >= SHARED_TICK_S:
            self._looked_s = now_s
            await service.catch_up()
        return service.log.head.size


class _Events(Response):
    """The stream of one watcher: an answer that sends a size whenever it has changed."""

    def __init__(self, service: LabelService, watchers: Watchers, address: str, seen: int) -> None:
        super().__init__()
        self._service, self._watchers, self._address, self._seen = service, watchers, address, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the client goes, the service stops, or the time is over."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        with self._watchers.admit(self._address):
            # A stopping service does not wait for this answer (`connections`).
            scope["state"]["endless"] = True
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"retry: 5000\n\n", "more_body": True})
            begun_s = spoken_s = time.monotonic()
            while not await _gone(receive) and (now_s := time.monotonic()) - begun_s < LONGEST_S:
                size = await self._watchers.size(self._service)
                if size != self._seen:
                    text = b'id: %d\nevent: size\ndata: {"size":%d}\n\n' % (size, size)
                elif now_s - spoken_s >= HEARTBEAT_S:
                    text = b":\n\n"
                else:
                    continue
                self._seen, spoken_s = size, now_s
                await send({"type": "http.response.body", "body": text, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> bool:
    """Wait for one tick; return whether the client has gone."""
    try:
        async with asyncio.timeout(TICK_S):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


@router.get(
    "/events",
    responses={
        **problems("too-many-connections"),
        200: {"content": {"text/event-stream": {}}, "description": 'Events `size` with `{"size": N}`.'},
    },
)
async def watch_log(
    request: Request,
    service: Service,
    seen: Annotated[int, Query(ge=0, le=MAX_SEQ, description="Entries that are known already.")] = 0,
) -> Response:
    """Tell of new entries as server-sent events, until the client goes. Nothing is logged.

    A size is sent when it is not the one that was sent before, at most twice a second.
    """
    watchers: Watchers = request.app.state.watchers
    address = request.client.host if request.client else ""
    watchers.require_room(address)
    return _Events(service, watchers, address, seen)

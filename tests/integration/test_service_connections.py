"""Clients that hold connections, send headers without end, or read no answer: raw sockets against the real server."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from label_service.web import server
from label_service.web.connections import ConnectionLimits
from tests.support.services import RunningService, wait_until

WHOLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
Connect = Callable[..., socket.socket]


@pytest.fixture
def connect(running: RunningService) -> Iterator[Connect]:
    """Open connections to the service, and close them at the end; each has sent some bytes."""
    address = urlsplit(running.base_url)
    with ExitStack() as stack:

        def make(sent: bytes = b"") -> socket.socket:
            client = stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=20))
            client.sendall(sent)
            return client

        yield make


def is_closed(client: socket.socket) -> bool:
    """Read what there is; return whether the service has closed the connection."""
    client.settimeout(0.01)
    try:
        while client.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the service's patience short."""

    def limits(total: int, per_address: int) -> ConnectionLimits:
        return ConnectionLimits(total, per_address, head_timeout_s=0.5, body_timeout_s=0.5, write_timeout_s=0.5)

    monkeypatch.setattr(server, "ConnectionLimits", limits)


def test_half_open_connections_shut_nobody_out(connect: Connect, running: RunningService) -> None:
    """With 400 half-open connections others are answered, and within 15 s every one of them is closed."""
    begun_s = time.monotonic()
    clients = [connect(b"GET /healthz HTTP/1.1\r\nHost: lo") for _ in range(200)]
    silent = [connect() for _ in range(200)]
    assert running.client.get("/healthz").status_code == 200
    waiting = clients + silent
    while waiting:
        waiting = [client for client in waiting if not is_closed(client)]
        assert time.monotonic() - begun_s < 15
    assert running.client.get("/healthz").status_code == 200


@pytest.mark.parametrize("part", [b"x", b"X-A: b\r\n"], ids=["one header", "many headers"])
def test_endless_headers_take_no_memory(connect: Connect, part: bytes) -> None:
    """After 32 KiB the service answers 431 and takes no more."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    client = connect(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: a")
    sent = 0
    try:
        while sent < 200_000_000:
            sent += client.send(part * (65536 // len(part)))
    except OSError:
        pass
    assert sent < 20_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz?%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"x" * 40_000),
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: %s\r\n\r\n" % (b"x" * 40_000),
    ],
    ids=["url", "header"],
)
def test_large_heads_are_refused(connect: Connect, head: bytes) -> None:
    """The answer is a problem document, and the connection ends."""
    client = connect(head)
    answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"code": "headers-too-large"' in answer


def test_endless_trailers_are_refused(connect: Connect) -> None:
    """Headers after a chunked body count as headers do."""
    client = connect(
        b"POST /v1/labels:query HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: a"
    )
    with pytest.raises(OSError):
        for _ in range(1000):
            client.sendall(b"x" * 65536)


@pytest.mark.usefixtures("quick")
def test_slow_clients_are_cut_off(connect: Connect) -> None:
    """A head or a body that does not come, and an answer that is not read, end the connection."""
    slow = [
        connect(WHOLE[:20]),
        connect(WHOLE[:-2]),
        connect(b"POST /v1/labels:query HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"),
    ]
    for client in slow:
        answer = b"".join(iter(lambda client=client: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 408 ")
    greedy = connect()
    with pytest.raises(ConnectionError):
        while True:
            greedy.sendall(WHOLE.replace(b"healthz", b"openapi.json") * 100)
    drip = connect(WHOLE)
    begun_s = time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - begun_s < 10:
            drip.sendall(b"\r\n")
            time.sleep(0.1)


def test_many_requests_on_one_connection_are_answered(connect: Connect) -> None:
    """The limits are for each request: a kept connection has none of its own, and may send requests ahead."""
    client = connect(WHOLE * 50)
    wanted, answers = 50, b""
    while answers.count(b'{"status":"ok"}') < wanted:
        answers += client.recv(65536)
    client.sendall(WHOLE)
    assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_is_cut_off_is_not_carried_out(connect: Connect, running: RunningService) -> None:
    """Half a request is no request, also where the half is valid JSON."""
    before = len(running.entries())
    body = b'{"ids": [3]}'
    client = connect(
        b"POST /v1/labels:query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 99\r\n\r\n" + body
    )
    time.sleep(0.2)
    client.shutdown(socket.SHUT_RDWR)
    time.sleep(0.5)
    assert len(running.entries()) == before


def test_busy_connections_are_not_closed_for_others(start_service: Callable[..., RunningService]) -> None:
    """Beyond the limit the connection that has waited longest makes place, and the newest is answered."""
    running = start_service(max_connections_per_address=3)
    address = urlsplit(running.base_url)
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection((address.hostname, address.port))) for _ in range(12)]
        wait_until(lambda: sum(is_closed(client) for client in clients) >= 12 - 3 * running.service.settings.workers)
        newest = clients[-1]
        newest.settimeout(10)
        newest.sendall(WHOLE)
        assert newest.recv(65536).startswith(b"HTTP/1.1 200 ")

"""Connections whose every step ends by one deadline.

A timeout counts anew with each byte, so a service that sends one now and then, or interim responses (1xx) without end,
would keep a client for ever. Here connecting, the TLS handshake, sending and receiving share the time of an attempt.
Only the look-up of the host's name keeps the system's own limit.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore


class DeadlineBackend(httpcore.SyncBackend):
    """httpcore's network, with a deadline that all connections share. Not safe to share between threads.

    Attributes:
        peer_closed: Whether the other side closed a connection during the attempt.
    """

    def __init__(self) -> None:
        self.peer_closed = False
        self._deadline = 0.0

    def begin_attempt(self, seconds: float) -> None:
        """Let all that follows take so many seconds together."""
        self.peer_closed = False
        self._deadline = time.monotonic() + seconds

    def left_s(self) -> float:
        """Return the seconds that are left of the attempt, negative after the deadline."""
        return self._deadline - time.monotonic()

    def limit_s(self, timeout: float | None, expired: type[httpcore.TimeoutException]) -> float:
        """Return how long a step may take, in seconds.

        Raises:
            httpcore.TimeoutException: No time is left; it is of the class `expired`.
        """
        left_s = self.left_s()
        if left_s <= 0:
            raise expired("the deadline of the attempt has passed")
        return left_s if timeout is None else min(timeout, left_s)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of a host that answers."""
        try:
            addresses = dict.fromkeys(found[4][0] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            raise httpcore.ConnectError(error) from error
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            limit_s = self.limit_s(timeout, httpcore.ConnectTimeout)
            try:
                stream = super().connect_tcp(str(address), port, limit_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _DeadlineStream(stream, self)
        raise failure


class _DeadlineStream(httpcore.NetworkStream):
    """A connection whose reads and writes respect the backend's deadline."""

    def __init__(self, stream: httpcore.NetworkStream, backend: DeadlineBackend) -> None:
        self._stream = stream
        self._backend = backend

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, self._backend.limit_s(timeout, httpcore.ReadTimeout))
        self._backend.peer_closed |= not data
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # httpcore's own stream begins its timeout anew with each part that the other side takes.
        connection: socket.socket = self._stream.get_extra_info("socket")
        try:
            while buffer:
                connection.settimeout(self._backend.limit_s(timeout, httpcore.WriteTimeout))
                buffer = buffer[connection.send(buffer) :]
        except TimeoutError as error:
            raise httpcore.WriteTimeout(error) from error
        except OSError as error:
            raise httpcore.WriteError(error) from error

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        limit_s = self._backend.limit_s(timeout, httpcore.ConnectTimeout)
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, limit_s), self._backend)

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore's own signature
        return self._stream.get_extra_info(info)

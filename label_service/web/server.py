"""Serving: listen first, open the service, then run uvicorn: in this process, or in several that share the socket.

With several workers the first process opens the service once (migrations, seeding, key, checks) and closes it again,
so that an operator reads of a fault in one sentence, before any worker starts. It then only starts workers, replaces
those that die, and stops them. Each worker is a whole service of its own on the same database.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from label_service.errors import PortTaken, SetupError
from label_service.service import LabelService, open_service
from label_service.settings import Settings
from label_service.web.app import create_app
from label_service.web.connections import ConnectionLimits, LimitedConnection
from label_service.web.messages import configure_logging

logger = logging.getLogger(__name__)

# Longer than the slowest answer, so that a stopping service finishes the requests it has begun.
SHUTDOWN_TIMEOUT_S = 10
BACKLOG = 256
# uvicorn replaces a worker that does not answer its supervisor for this long. It must be long enough for a slow machine
# to import the service, which comes before a worker's first answer. It must not be much longer: a worker that is killed
# while the supervisor waits for its answer delays the start of others by this long.
WORKER_TIMEOUT_S = 15


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        PortTaken: another program listens there, or the machine does not have the address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # IPPROTO_TCP, because asyncio switches Nagle's algorithm off only for sockets that name this protocol. With Nagle's
    # algorithm each answer on a kept connection waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Lets a restarted service listen before the old connections have timed out.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"Port {port} on {host} is in use; stop what listens there or choose another --port."
            ) from error
        raise PortTaken(
            f"The service cannot listen on {host}:{port} ({error}); choose another --host or --port."
        ) from error
    return listener


def configure(app: Any, settings: Settings, **more: Any) -> uvicorn.Config:  # noqa: ANN401 - an app, or what makes one
    """Return uvicorn's configuration. uvicorn itself logs only warnings."""
    limits = ConnectionLimits(settings.max_connections, settings.max_connections_per_address)
    return uvicorn.Config(
        app,
        # uvicorn takes whatever makes a protocol. A partial travels to the workers by pickle.
        http=cast("type[asyncio.Protocol]", partial(LimitedConnection, limits=limits)),
        ws="none",
        root_path=settings.root_path,
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        # A header must not change the client's address in the access log, and looking for one takes time.
        proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        **more,
    )


def make_server(service: LabelService) -> uvicorn.Server:
    """Return the uvicorn server of an open service."""
    return uvicorn.Server(configure(create_app(service), service.settings, lifespan="off"))


def _keep_from_collector() -> None:
    """Let the collector pass over what the start has made: looking through 200,000 entries held a request up 165 ms."""
    gc.freeze()


def open_worker(settings: Settings) -> FastAPI:
    """Open a service in a worker process and return its application, which closes it when the worker stops.

    Raises:
        SystemExit: the service cannot be opened, such as while the database is away; the supervisor tries again.
    """
    configure_logging(settings.log_format)
    stack = ExitStack()
    try:
        service = stack.enter_context(open_service(settings))
        _keep_from_collector()
    except SetupError as error:
        logger.error("a worker cannot start: %s", error)
        raise SystemExit(1) from error

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with stack:
            yield

    app = create_app(service)
    app.router.lifespan_context = lifespan
    return app


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until stopped by a signal.

    Raises:
        SetupError: the address, the database or the data cannot be used.
    """
    configure_logging(settings.log_format)
    # uvicorn raises the signal that stopped it once more, to be handled here. Without a handler the process would end
    # before the service is closed.
    before = signal.signal(signal.SIGTERM, _stop)
    listener = listen(settings.host, settings.port)
    try:
        with open_service(settings) as service:
            _keep_from_collector()
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            dataset, several = service.dataset, settings.workers > 1
            announce = logger.info if settings.log_format == "json" else say
            announce(
                f"Label service on http://{shown}:{port} - {dataset.name}, {dataset.pool_size:,} labels, "
                f"{service.database_version}{f', {settings.workers} workers' if several else ''}. "
                f"Try: curl http://{shown}:{port}/label/42"
            )
            if not several:
                make_server(service).run(sockets=[listener])
        if several:
            supervise(settings, listener)
    finally:
        listener.close()
        signal.signal(signal.SIGTERM, before)


def _stop(_signal: int, _frame: object) -> None:
    """End the process with exit code 0, through every block that closes something. A second signal changes nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(0)


def supervise(settings: Settings, listener: socket.socket) -> None:
    """Run the workers until a signal stops this process; then let them finish the requests they have begun."""
    # Each worker calls `open_worker`. The settings travel there by pickle, so no secret stands in an environment or an
    # argument.
    config = configure(
        partial(open_worker, settings),
        settings,
        factory=True,
        lifespan="on",
        workers=settings.workers,
        timeout_worker_healthcheck=WORKER_TIMEOUT_S,
    )
    Multiprocess(config, sockets=[listener]).run()

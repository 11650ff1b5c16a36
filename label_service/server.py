"""Serving: listen first, open the service, then run uvicorn with one worker (SQLite takes one writer)."""

from __future__ import annotations

import errno
import logging
import socket
import sqlite3
import sys
from collections.abc import Callable

import uvicorn

from label_service.app import create_app
from label_service.errors import PortTaken
from label_service.service import LabelService, open_service
from label_service.settings import Settings

# Longer than the slowest answer: what is being answered at a stop is finished.
SHUTDOWN_TIMEOUT_S = 10
BACKLOG = 256


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        PortTaken: somebody else listens there, or the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio switches Nagle's algorithm off only for sockets that say they are TCP;
    # without that each answer on a kept connection waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A restarted service must not wait for the old connections to time out.
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


def make_server(service: LabelService) -> uvicorn.Server:
    """Return the uvicorn server of an open service. It logs nothing of its own but warnings."""
    config = uvicorn.Config(
        create_app(service),
        access_log=False,
        log_config=None,
        log_level="warning",
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
    )
    return uvicorn.Server(config)


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until stopped by a signal.

    Raises:
        SetupError: the address, the database or the data cannot be used.
    """
    configure_logging()
    listener = listen(settings.host, settings.port)
    try:
        with open_service(settings) as service:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            dataset = service.dataset
            say(
                f"Label service on http://{shown}:{port} - {dataset.name}, {dataset.pool_size:,} labels, "
                f"SQLite {sqlite3.sqlite_version}. Try: curl http://{shown}:{port}/label/42"
            )
            make_server(service).run(sockets=[listener])
    finally:
        listener.close()


def configure_logging() -> None:
    """Send the package's messages and access log to stderr, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(handler)
    logging.getLogger("label_service").setLevel(logging.INFO)

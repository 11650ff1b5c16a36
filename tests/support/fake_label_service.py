"""A small label service on a real socket that keeps the contract, and breaks it on command.

It has its own ledger in memory: budgets and idempotency keys. `fail(path, fault, …)` makes the next requests of a
path go wrong, one fault each; `stop` and `start` on the same port are a restart.
"""

from __future__ import annotations

import json
import socket
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

CLASS_NAMES = ("coat", "shirt", "bag")
TOKEN = "token-that-nobody-may-see"
Fault = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers one connection; `self.fake` is the service."""

    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the standard library's
        """Keep the test's output clean."""

    @property
    def fake(self) -> FakeLabelService:
        return self.server.fake

    def setup(self) -> None:
        super().setup()
        self.fake.connections.add(self.connection)

    def finish(self) -> None:
        self.fake.connections.discard(self.connection)
        super().finish()

    def handle_any(self) -> None:
        """Read the request, then go wrong as ordered, or answer."""
        url = urlsplit(self.path)
        length = int(self.headers.get("content-length", 0))
        self.body = json.loads(self.rfile.read(length)) if length else None
        self.route, self.params = url.path, {name: values[0] for name, values in parse_qs(url.query).items()}
        self.fake.requests.append((self.command, url.path, dict(self.headers.items()), self.body))
        faults = self.fake.faults[url.path]
        if faults:
            faults.popleft()(self)
        else:
            self.answer(*self.fake.respond(self))

    do_GET = do_POST = handle_any  # noqa: N815 - names of the standard library

    def answer(self, status: int, document: object, **headers: str) -> None:
        """Send JSON."""
        kind = "application/json" if status < 400 else "application/problem+json"
        self.send(status, json.dumps(document).encode(), kind, **headers)

    def send(self, status: int, content: bytes, kind: str, **headers: str) -> None:
        """Send bytes."""
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def drop(self) -> None:
        """Cut the connection."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


class FakeServer(ThreadingHTTPServer):
    """A server that knows its fake and is silent about clients that go away."""

    daemon_threads = False
    fake: FakeLabelService

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up on a slow answer is part of the tests."""


class FakeLabelService:
    """The ledger and the switches."""

    def __init__(self, pool_size: int = 2500) -> None:
        self.pool_size = pool_size
        self.charged_ids: list[int] = []
        self.budget = 10_000
        self.answers_by_key: dict[str, tuple[object, dict[str, Any]]] = {}
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.connections: set[socket.socket] = set()
        self.released = threading.Event()
        self.port = 0
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before."""
        self.server = FakeServer(("127.0.0.1", self.port), Handler)
        self.server.fake = self
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self) -> None:
        """Go down as a killed process does: open connections are cut."""
        self.server.shutdown()
        self.thread.join()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the client was faster
        self.server.server_close()

    def fail(self, path: str, *faults: Fault) -> None:
        """Make the next requests of a path go wrong."""
        self.faults[path].extend(faults)

    def paths(self, path: str) -> list[tuple[str, str, dict[str, str], Any]]:
        """Return the requests of one path."""
        return [request for request in self.requests if request[1] == path]

    def respond(self, handler: Handler) -> tuple[int, object]:
        """Answer by the contract."""
        key = handler.headers.get("idempotency-key", "")
        match handler.command, handler.route:
            case "GET", "/readyz":
                return 200, {"status": "ready"}
            case "GET", "/v1/dataset":
                return 200, self.dataset()
            case "POST", "/v1/runs":
                return 201, {
                    "run_id": "r1",
                    "token": TOKEN,
                    "budget": handler.body["budget"],
                    "dataset": self.dataset(),
                }
            case "GET", "/v1/runs/r1":
                return 200, self.state() | {"name": "test", "budget": self.budget, "querying_closed": False}
            case "POST", "/v1/runs/r1:seal":
                return 200, self.state() | {"sealed_at": "2026-01-01T00:00:00Z"}
            case "POST", "/v1/runs/r1/evaluations":
                total = len(handler.body["predictions"])
                return 200, {"accuracy": (total - 1) / total, "correct": total - 1, "total": total, "run_id": "r1"}
            case "POST", "/v1/labels:query":
                return self.query(handler.body["ids"], key)
            case "GET", "/v1/log/summary":
                return 200, self.summary()
        return 404, {"code": "not-found", "detail": "No such path."}

    def dataset(self) -> dict[str, object]:
        return {
            "name": "fake",
            "official": False,
            "pool_size": self.pool_size,
            "test_size": 10,
            "class_names": list(CLASS_NAMES),
            "fingerprint": "f00d",
        }

    def state(self) -> dict[str, Any]:
        spent = len(self.charged_ids)
        return {"run_id": "r1", "queries": spent, "remaining": self.budget - spent, "sealed_at": None}

    def query(self, ids: list[int], key: str) -> tuple[int, object]:
        """Charge what is new; the answers come in ascending order, which is not the order asked."""
        if key in self.answers_by_key:
            asked, answer = self.answers_by_key[key]
            if asked != ids:
                return 422, {"code": "idempotency-key-reused", "detail": "This key came with another body."}
            return 200, answer | {"replayed": True}
        if any(label_id >= self.pool_size for label_id in ids):
            return 404, {"code": "unknown-id", "detail": "No image has that id."}
        new = [label_id for label_id in ids if label_id not in self.charged_ids]
        if len(self.charged_ids) + len(new) > self.budget:
            return 403, {"code": "label-budget-exhausted", "detail": "The budget does not cover it."}
        self.charged_ids += new
        labels = [{"id": i, "label": i % 3, "label_name": CLASS_NAMES[i % 3], "charged": i in new} for i in sorted(ids)]
        state = self.state()
        del state["sealed_at"]
        answer = {**state, "labels": labels, "charged": len(new), "replayed": not new, "receipt": None}
        self.answers_by_key[key] = (ids, answer)
        return 200, answer

    def summary(self) -> dict[str, object]:
        mine = {"run_id": "r1", "queries": 3, "distinct_labels": 3, "evaluations": 1, "entries": 3, "replays": 0}
        other = {"run_id": "other", "queries": 2, "distinct_labels": 2, "evaluations": 0, "entries": 2, "replays": 0}
        return {
            "runs": [mine, other],
            "queries": 5,
            "distinct_labels_revealed_to_anybody": 4,
            "evaluations": 1,
            "entries": 5,
        }


def answer_json(status: int, document: object, **headers: str) -> Fault:
    """Answer this JSON."""
    return lambda handler: handler.answer(status, document, **headers)


def answer_bytes(status: int, content: bytes, kind: str = "application/json", **headers: str) -> Fault:
    """Answer these bytes."""
    return lambda handler: handler.send(status, content, kind, **headers)


def edit(change: Callable[[dict[str, Any]], object]) -> Fault:
    """Answer properly, but for a change."""

    def fault(handler: Handler) -> None:
        status, document = handler.fake.respond(handler)
        copy = json.loads(json.dumps(document))
        change(copy)
        handler.answer(status, copy)

    return fault


def drop_before_answering(handler: Handler) -> None:
    """Cut the connection; nothing was charged."""
    handler.drop()


def lose_the_answer(handler: Handler) -> None:
    """Charge, then cut the connection: the worst moment for a restart."""
    handler.fake.respond(handler)
    handler.drop()


def cut_the_body(handler: Handler) -> None:
    """Charge, send half of the answer, cut the connection."""
    content = json.dumps(handler.fake.respond(handler)[1]).encode()
    handler.send_response(200)
    handler.send_header("content-length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.drop()


def hang(handler: Handler) -> None:
    """Charge, and keep the client waiting."""
    handler.fake.respond(handler)
    handler.fake.released.wait(20)
    handler.drop()


def drip(handler: Handler) -> None:
    """Send a byte now and then, for ever."""
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    while not handler.fake.released.wait(0.02):
        handler.wfile.write(b" ")


def speak_no_http(handler: Handler) -> None:
    """Be another kind of server."""
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    handler.drop()

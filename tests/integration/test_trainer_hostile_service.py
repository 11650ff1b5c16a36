"""The trainer against a label service that means harm: no hang, no flood of memory, no sign that moves the terminal."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from typer.testing import CliRunner

from tests.support.tiny_trainer import TINY, use_one_thread
from trainer.cli import app
from trainer.errors import RequestRefused, ServiceProtocolError, ServiceUnavailable
from trainer.oracle import LabelClient, receipts, transport
from trainer.oracle.answers import ConsistencyAnswer, DatasetInfo, LogSummary, QueryAnswer
from trainer.profiles import PROFILES
from trainer.run import pipeline

Answer = Callable[[socket.socket], None]
# What an attempt may take in these tests, and what a client may take in all until it gives up.
ATTEMPT_S, GIVES_UP_S = 0.6, 5.0
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
# A terminal would clear the screen, ring, write a line of its own, and turn the reading direction round.
EVIL = "over\x1b[2J\x07\r\n2026-01-01T00:00:00.000Z INFO trainer: test accuracy: 99.99%\u202egnp\x9b31m\u2028"
SHOWN = r"over\x1b[2J\x07\r\n2026-01-01T00:00:00.000Z INFO trainer: test accuracy: 99.99%\u202egnp\x9b31m\u2028"


class HostileService:
    """A listening socket that treats every connection the same way."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._answer(connection)

    def stop(self) -> None:
        """Close everything; a thread that still sends ends with an error."""
        for opened in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()


@pytest.fixture
def hostile() -> Iterator[Callable[[Answer], str]]:
    """Start hostile services and return their addresses."""
    services: list[HostileService] = []

    def start(answer: Answer) -> str:
        services.append(HostileService(answer))
        return services[-1].address

    yield start
    for service in services:
        service.stop()


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an attempt take little time. The timeout from byte to byte alone would never end these answers."""
    monkeypatch.setattr(transport, "TIMEOUT_S", ATTEMPT_S / 6)
    monkeypatch.setattr(transport, "FIRST_PAUSE_S", 0.01)


def read_request(connection: socket.socket) -> None:
    """Read a request without a body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)


def repeat(part: bytes, *, pause_s: float = 0.0, after: bytes = b"") -> Answer:
    """Send the same bytes for ever, after some first ones."""

    def answer(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(after)
        while True:
            connection.sendall(part)
            time.sleep(pause_s)

    return answer


def send(content: bytes, *headers: str, status: str = "200 OK") -> Answer:
    """Send one answer."""
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {len(content)}", *headers]

    def answer(connection: socket.socket) -> None:
        while True:
            read_request(connection)
            connection.sendall("\r\n".join([*lines, "\r\n"]).encode() + content)

    return answer


def never_read(connection: socket.socket) -> None:
    """Take a byte of the request now and then."""
    while connection.recv(1):
        time.sleep(ATTEMPT_S / 20)


def drip_a_handshake(connection: socket.socket) -> None:
    """Begin a TLS record of 16,384 bytes, and send a byte of it now and then."""
    connection.recv(65536)
    connection.sendall(b"\x16\x03\x03\x40\x00")
    while True:
        connection.sendall(b"\x02")
        time.sleep(ATTEMPT_S / 20)


@pytest.mark.parametrize(
    "answer",
    [
        repeat(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"),
        repeat(b"HTTP/1.1 103 Early Hints\r\n\r\n", pause_s=ATTEMPT_S / 20),
        repeat(b"x", pause_s=ATTEMPT_S / 20, after=HEAD + b"x: "),
        repeat(b"x: y\r\n", pause_s=ATTEMPT_S / 20, after=HEAD),
        repeat(b"1\r\n \r\n", pause_s=ATTEMPT_S / 20, after=HEAD + b"transfer-encoding: chunked\r\n\r\n"),
    ],
    ids=["a flood of 103", "a 103 now and then", "a header byte by byte", "header after header", "chunk by chunk"],
)
def test_an_answer_that_never_ends_is_given_up_in_time(hostile: Callable[[Answer], str], answer: Answer) -> None:
    """One deadline holds for the whole attempt, whatever the service sends meanwhile."""
    begin = time.monotonic()
    with (
        LabelClient(f"http://{hostile(answer)}", patience_s=0.1) as client,
        pytest.raises(ServiceUnavailable, match="the answer came too slowly"),
    ):
        client.wait_until_ready()
    assert time.monotonic() - begin < GIVES_UP_S


@pytest.mark.parametrize(("scheme", "answer"), [("https", drip_a_handshake), ("http", never_read)])
def test_a_handshake_or_a_request_that_never_ends_is_given_up_in_time(
    hostile: Callable[[Answer], str], scheme: str, answer: Answer
) -> None:
    """The deadline holds before the answer, too."""
    begin = time.monotonic()
    with (
        contextlib.closing(transport.Transport(f"{scheme}://{hostile(answer)}", patience_s=0.1)) as sender,
        pytest.raises(ServiceUnavailable, match=r"too slowly|no answer within"),
    ):
        sender.request("POST", "/v1/labels:query", body=["x" * 20_000_000])
    assert time.monotonic() - begin < GIVES_UP_S


@pytest.mark.parametrize(
    "answer",
    [
        repeat(b"x" * 1000, after=HEAD + b"x: "),
        repeat(b"x-y: z\r\n" * 1000, after=HEAD),
        repeat(b"x" * 1000, after=HEAD + b"transfer-encoding: chunked\r\n\r\n1; "),
        send(b"[]", "transfer-encoding: gzip"),
    ],
    ids=["a header", "headers", "a chunk's extension", "a transfer coding"],
)
def test_a_head_without_end_is_refused(hostile: Callable[[Answer], str], answer: Answer) -> None:
    """What is no answer of a label service is no reason for another try."""
    with (
        LabelClient(f"http://{hostile(answer)}") as client,
        pytest.raises(ServiceProtocolError, match="does not speak HTTP as a label service does"),
    ):
        client.dataset()


def packed(times: int) -> bytes:
    """Pack 100 MB, several times over."""
    return reduce(lambda data, _: gzip.compress(data), range(times), bytes(100_000_000))


@pytest.mark.parametrize(
    ("make", "headers", "message"),
    [
        (lambda: packed(1), ("content-encoding: gzip",), "is packed .gzip."),
        (lambda: packed(3), ("content-encoding: gzip, gzip, gzip",), "is packed .gzip, gzip, gzip."),
        (lambda: packed(3), ("content-encoding: gzip",) * 3, "is packed .gzip, gzip, gzip."),
        (lambda: b'{"x":[' + b"[]," * 1_000_000 + b"[]]}", (), "more than 250000 arrays and objects"),
    ],
    ids=["packed", "packed thrice", "packed thrice in three headers", "a million arrays"],
)
def test_an_answer_that_grows_in_memory_is_refused_before_it_does(
    hostile: Callable[[Answer], str], make: Callable[[], bytes], headers: tuple[str, ...], message: str
) -> None:
    """Nothing is unpacked, and a small text becomes no mountain of objects."""
    address = hostile(send(make(), *headers))
    tracemalloc.start()
    try:
        with LabelClient(f"http://{address}") as client, pytest.raises(ServiceProtocolError, match=message):
            client.dataset()
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("model", "content"),
    [
        (DatasetInfo, {"class_names": [0] * 1000}),
        (QueryAnswer, {"labels": [{}] * 1000}),
        (LogSummary, {"runs": [{}] * 1000}),
        (ConsistencyAnswer, {"proof": [0] * 1000}),
        (receipts.Receipt, {"inclusion_proof": [0] * 1000}),
        (receipts.LabelOpening, {"proof": [0] * 1000}),
        (receipts.Entry, {"ids": ["0"] * 1000}),
    ],
)
def test_the_first_wrong_item_of_an_answer_is_enough(model: type[BaseModel], content: dict[str, Any]) -> None:
    """A mistake takes a kilobyte: those of 350,000 items, which is a megabyte of text, took 1.5 GB."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(content))
    assert caught.value.error_count() < 20


def test_a_plain_answer_is_asked_for_and_may_say_that_it_is_plain(hostile: Callable[[Answer], str]) -> None:
    """The request names identity alone, and an answer that names it is read."""
    seen: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        seen.append(connection.recv(65536))
        connection.sendall(HEAD + b"content-encoding: Identity\r\ncontent-length: 2\r\n\r\n{}")

    with LabelClient(f"http://{hostile(answer)}") as client:
        client.wait_until_ready()
    assert b"accept-encoding: identity\r\n" in seen[0].lower()


@pytest.mark.parametrize("status", ["418 x", "503 x"], ids=["refused", "asked again"])
def test_control_characters_of_an_answer_reach_neither_terminal_nor_log(
    status: str,
    hostile: Callable[[Answer], str],
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are shown as Python writes them, in one line, in the console, the log and its tracebacks."""
    monkeypatch.setitem(PROFILES, TINY.name, TINY)
    monkeypatch.setattr(pipeline, "use_all_cores", use_one_thread)
    monkeypatch.setattr(transport, "SILENT_WAIT_S", 0)
    url = "http://" + hostile(send(json.dumps({"code": "co\tde", "detail": EVIL}).encode(), status=status))
    given = ["run", "--data", str(tiny_data / "images"), "--out", str(tmp_path), "--service", url, "--profile", "tiny"]
    done = CliRunner().invoke(app, [*given, "--device", "cpu", "--patience-s", "0.5", "--verbose"])
    log = (tmp_path / "trainer.log").read_text()
    assert done.exit_code in (RequestRefused.exit_code, ServiceUnavailable.exit_code)
    for text in (done.stderr, log):
        assert SHOWN in text and r"co\tde" in text
        assert all(char.isprintable() or char == "\n" for char in text)
        assert not [line for line in text.splitlines() if line.startswith("2026-01-01")]


def test_a_long_detail_is_cut(hostile: Callable[[Answer], str]) -> None:
    """A service cannot fill the screen."""
    address = hostile(send(json.dumps({"code": "x", "detail": "y" * 1_000_000}).encode(), status="418 x"))
    with LabelClient(f"http://{address}") as client, pytest.raises(RequestRefused) as caught:
        client.dataset()
    assert 1000 < len(str(caught.value)) < 3000

"""The pages without a browser: what they show, filters, paging, prefixes, and who may watch the log."""

from __future__ import annotations

import csv
import http.server
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

from label_service.settings import Settings
from label_service.web.app import openapi_document
from tests.support.services import RunningService, run_service, wait_until
from tests.support.tamper import tamper

ROOT = Path(__file__).parents[2]
PAGES = ("/", "/log", "/verify", "/docs", "/errors", "/runs/guest")


@pytest.fixture(scope="module")
def busy(shared_service: RunningService) -> RunningService:
    """A service with two runs, replays, refusals, an evaluation and a seal, and 130 entries of the guest."""
    first, token = shared_service.open_run(budget=30, evaluation_budgets=[20])
    client = shared_service.client
    for start in range(0, 20, 4):
        client.post("/v1/labels:query", json={"ids": list(range(start, start + 4))}, headers=token)
    client.get("/label/3", headers=token)
    client.get("/label/9999", headers=token)
    evaluation = {"predictions": [0] * 50, "budget": 20}
    client.post(f"/v1/runs/{first}/evaluations", json=evaluation, headers=token)
    client.post(f"/v1/runs/{first}:seal", headers=token)
    shared_service.open_run(budget=7)
    for number in range(130):
        client.get(f"/label/{number % 90}")
    return shared_service


def numbers(page: str) -> list[int]:
    """Return the numbers of the entries that a page shows, in its order."""
    return [int(seq) for seq in re.findall(r'<tr data-key="(\d+)">', page)]


FILTERS = [
    {"run": "guest"},
    {"label_id": "3"},
    {"op": "evaluation"},
    {"outcome": "revealed"},
    {"outcome": "unknown-id"},
    {"run": "guest", "outcome": "replayed"},
    {"run": "guest", "op": "query", "label_id": "3"},
    {"run": "nobody"},
    {"outcome": "replayed", "op": "run-opened"},
]


@pytest.mark.parametrize("given", FILTERS)
def test_filters_find_the_entries_that_have_all_of_it(busy: RunningService, given: dict[str, str]) -> None:
    """Entries, both exports and the page agree with a search in the whole log."""
    everything = [json.loads(line) for line in busy.client.get("/v1/log/export.ndjson").text.splitlines()]
    expected = [
        entry["seq"]
        for entry in everything
        if all(int(text) in entry["ids"] if name == "label_id" else entry[name] == text for name, text in given.items())
    ]
    answered = busy.client.get("/v1/log/entries", params={**given, "limit": 1000}).json()
    assert [entry["seq"] for entry in answered["entries"]] == expected
    newest = busy.client.get("/v1/log/entries", params={**given, "limit": 1000, "order": "newest"}).json()
    assert [entry["seq"] for entry in newest["entries"]] == expected[::-1]
    lines = busy.client.get("/v1/log/export.ndjson", params=given).text.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == expected
    table = list(csv.DictReader(io.StringIO(busy.client.get("/v1/log/export.csv", params=given).text)))
    assert [int(row["seq"]) for row in table] == expected
    page = busy.client.get("/log", params=given)
    assert page.status_code == 200
    assert numbers(page.text) == expected[::-1][:50]


def test_times_bound_the_entries(busy: RunningService) -> None:
    """From `since` on, and before `until`, in any time zone."""
    entries = busy.entries()
    since, until = entries[20]["ts"], entries[60]["ts"]
    found = busy.entries(since=since, until=until)
    assert [entry["seq"] for entry in found] == list(range(20, 60))
    shifted = since.replace("Z", "+00:00")
    assert busy.entries(since=shifted)[0]["seq"] == 20
    assert busy.entries(since="9999-12-31T23:59:59Z") == []
    assert busy.entries(until="1990-01-01") == []
    for wrong in ("yesterday", "0001-01-01T00:00+14:00", "1", "2026-13-01"):
        assert busy.client.get("/v1/log/entries", params={"since": wrong}).status_code == 422


def test_pages_of_the_log_lead_through_all_of_it(busy: RunningService) -> None:
    """Older and newer again: each entry comes once, by the links alone."""
    size = busy.service.log.head.size

    def follow(page: str, rel: str) -> str | None:
        link = re.search(rf'href="([^"]+)" rel="{rel}"', page)
        return link and busy.client.get(link[1].replace("&amp;", "&")).text

    page, seen = busy.client.get("/log").text, []
    assert "Newer entries" not in page
    last = page
    while page:
        seen += numbers(page)
        last, page = page, follow(page, "next") or ""
    assert seen == list(range(size - 1, -1, -1))
    again = []
    page = last
    while page:
        again = numbers(page) + again
        page = follow(page, "prev") or ""
    assert again == seen


def test_a_run_has_a_page_with_all_that_the_log_tells(busy: RunningService) -> None:
    """Counts, the picture, the evaluation, the seal, downloads and the commands to copy."""
    run_id = next(entry["run"] for entry in busy.entries(op="evaluation"))
    page = busy.client.get(f"/runs/{run_id}").text
    assert "34.00%" in page and "17 of 50" in page
    assert re.search(r"Sealed <time[^>]*>[^<]+</time> UTC by entry \d+", page)
    assert ">1 unknown-id</a>" in page
    assert "20 of 30 labels are spent" in page
    (line,) = re.findall(r'class="line" d="M([^"]+)"', page)
    heights = [float(point.split(",")[1]) for point in line.split(" L")]
    assert heights == sorted(heights) and len(set(heights)) == 6
    assert f"curl -s {busy.base_url}/v1/log/evidence -o evidence.json" in page
    assert f"verify evidence.json --key &#39;{busy.service.log.verifier.vkey}&#39;" in page
    links = set(re.findall(r'href="(/v1/log/[^"]+)"', page))
    assert any(link.startswith("/v1/log/export.csv") for link in links)
    for link in links:
        assert busy.client.get(link.replace("&amp;", "&")).status_code == 200
    unknown = busy.client.get("/runs/run-0000")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown-run")


def test_the_overview_has_open_runs_first_and_then_the_newest(busy: RunningService) -> None:
    """The sealed run is the last; each run has its counts."""
    page = busy.client.get("/").text
    shown = re.findall(r'<tr data-key="(run-\w+|guest)">', page)
    states = {run["run_id"]: run["sealed_at"] for run in busy.client.get("/v1/runs").json()["runs"]}
    assert set(shown) == set(states)
    assert [states[run] is not None for run in shown] == sorted(states[run] is not None for run in shown)
    assert busy.client.get("/", params={"page": 7}).status_code == 200


def test_a_field_that_cannot_be_read_is_said_on_the_page(busy: RunningService) -> None:
    """A mistake in a filter names its field; an empty field filters nothing; what was typed stays, as text."""
    hostile = '"><script>alert(1)</script>'
    for field in ("label_id", "since", "until"):
        page = busy.client.get("/log", params={field: hostile})
        assert page.status_code == 422
        assert f'id="{field}-mistake"' in page.text and "<script>alert" not in page.text
    assert busy.client.get("/log?run=&label_id=&op=&outcome=&since=&until=").status_code == 200
    page = busy.client.get("/log", params={"run": hostile})
    assert page.status_code == 200 and "<script>alert" not in page.text
    assert numbers(busy.client.get("/log", params={"label_id": "999999999999999"}).text) == []


@pytest.mark.parametrize("path", PAGES)
def test_every_page_keeps_to_its_own_host_and_files(busy: RunningService, path: str) -> None:
    """No inline script or style, and nothing from elsewhere; each file that a page names is there."""
    page = busy.client.get(path)
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "'unsafe" not in policy and "default-src 'none'" in policy and "http" not in policy
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\bsrc=)", page.text)
    loaded = re.findall(r'<(?:script|link|img)[^>]*\b(?:src|href)="([^"]+)"', page.text)
    assert loaded
    for link in loaded:
        assert link.startswith("/static/")
        answer = busy.client.get(link)
        assert answer.status_code == 200
        again = busy.client.get(link, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert busy.client.get("/static/%2e%2e/app.py").status_code == 404


@contextmanager
def stripping_proxy(target: str, prefix: str) -> Iterator[str]:
    """Run a reverse proxy that shows a service under a path and takes the path away; yield its address."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(prefix + "/"):
                self.send_error(404)
                return
            answer = httpx.get(target + self.path.removeprefix(prefix), headers={"Host": self.headers["Host"]})
            self.send_response(answer.status_code)
            for name in ("content-type", "content-security-policy", "location"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_every_link_works_behind_a_path(service_settings: Callable[..., Settings]) -> None:
    """Behind a proxy that takes a path away, each link, form and file of each page leads back under that path."""
    prefix = "/labels/of-ours"
    with ExitStack() as stack:
        running = stack.enter_context(run_service(service_settings(root_path=prefix)))
        outside = stack.enter_context(stripping_proxy(running.base_url, prefix))
        run_id, _ = running.open_run()
        running.client.get("/label/1")
        assert httpx.get(f"{outside}/log").status_code == 404
        todo, seen = [f"{prefix}/", f"{prefix}/runs/{run_id}"], set()
        while todo:
            path = todo.pop()
            if path in seen:
                continue
            seen.add(path)
            answer = httpx.get(outside + path)
            assert answer.status_code == 200, path
            if "html" not in answer.headers["content-type"]:
                continue
            assert f"{outside}{prefix}" in answer.text  # the commands, and what the script makes of them
            for link in re.findall(r'(?:href|src|action|data-\w+)="((?:/|\?|\.)[^"]*)"', answer.text):
                found = urlsplit(urljoin(path, link.replace("&amp;", "&")))
                assert found.path.startswith(prefix), link
                if not found.path.endswith("/events") and found.path != prefix:
                    todo.append(found._replace(fragment="").geturl())
        assert {f"{prefix}/static/live.js", f"{prefix}/openapi.json", f"{prefix}/v1/log/evidence"} <= seen
        assert httpx.get(f"{outside}{prefix}/openapi.json").json()["servers"] == [{"url": prefix}]
    with pytest.raises(ValueError, match="pattern"):
        service_settings(root_path="labels/")


def test_a_changed_entry_is_on_no_page(running: RunningService) -> None:
    """What somebody writes into the database is not shown: 503, and other pages still answer."""
    run_id, _ = running.open_run()
    running.client.get("/label/1")
    tamper(
        running.service.settings.database_url,
        "UPDATE entries SET entry = swap(entry, 'revealed', 'replayed') WHERE op = 'query'",
    )
    for path in ("/", "/log", "/runs/guest"):
        answer = running.client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (503, "log-not-readable")
    assert running.client.get(f"/runs/{run_id}").status_code == 200


def test_counts_of_a_page_are_those_of_the_log(running: RunningService) -> None:
    """Other tables that somebody changes change nothing on a page."""
    running.client.get("/label/1")
    tamper(running.service.settings.database_url, "UPDATE runs SET spent = 0, name = 'other', budget = 5")
    for path in ("/", "/runs/guest"):
        page = running.client.get(path).text
        assert "other" not in re.findall(r'<td class="name"[^>]*>([^<]*)<|<h1[^>]*>([^<]*)<', page)
        assert "1 / 100" in page or "of a budget of 100" in page


class Watcher:
    """A client that watches the log over a socket of its own."""

    def __init__(self, running: RunningService, query: str = "") -> None:
        host, port = running.base_url.removeprefix("http://").split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=5)
        self._socket.sendall(f"GET /v1/log/events{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        self.received = b""

    def read(self, until: bytes, timeout_s: float = 5.0) -> bytes:
        """Read until some bytes have come, or the connection has ended; return all that came."""
        self._socket.settimeout(timeout_s)
        while until not in self.received:
            try:
                part = self._socket.recv(65536)
            except TimeoutError:
                break
            if not part:
                break
            self.received += part
        return self.received

    def close(self) -> None:
        self._socket.close()


def test_watchers_are_told_of_new_entries(running: RunningService) -> None:
    """The size comes when it differs from the one known, and again when the log grows."""
    size = running.service.log.head.size
    watcher = Watcher(running, f"?seen={size}")
    assert b"event: size" not in watcher.read(b"event: size", timeout_s=1.2)
    running.client.get("/label/1")
    running.client.get("/label/2")
    assert b'data: {"size":%d}' % (size + 2) in watcher.read(b'{"size":%d}' % (size + 2))
    watcher.close()
    late = Watcher(running)
    assert b"text/event-stream" in late.read(b'{"size":%d}' % (size + 2))
    late.close()


def test_watchers_are_bounded_and_leave_their_places(start_service: Callable[..., RunningService]) -> None:
    """One too many gets 503 with Retry-After; who goes makes room; labels are answered all the while."""
    running = start_service(max_watchers=6)
    watchers = [Watcher(running) for _ in range(3)]
    for watcher in watchers:
        assert b"200 OK" in watcher.read(b"event: size")
    refused = running.client.get("/v1/log/events")
    assert (refused.status_code, refused.json()["code"]) == (503, "too-many-connections")
    assert refused.headers["retry-after"] == "30"
    assert running.client.get("/label/1").status_code == 200
    watchers.pop().close()

    def there_is_room() -> bool:
        again = Watcher(running)
        found = b"200 OK" in again.read(b"\r\n\r\n")
        again.close()
        return found

    wait_until(there_is_room)
    for watcher in watchers:
        watcher.close()


def test_watching_can_be_closed(start_service: Callable[..., RunningService]) -> None:
    """With no place for a watcher the pages do not ask for one."""
    running = start_service(max_watchers=0)
    assert running.client.get("/v1/log/events").status_code == 503
    assert "data-events" not in running.client.get("/").text


def test_many_idle_watchers_do_not_slow_the_writer(start_service: Callable[..., RunningService]) -> None:
    """With 100 watchers that never read, labels are charged nearly as fast as without."""
    running = start_service(max_watchers=200, guest_budget=200)

    def ask_s(first: int) -> float:
        begun_s = time.monotonic()
        for number in range(first, first + 60):
            assert running.client.get(f"/label/{number}").status_code == 200
        return time.monotonic() - begun_s

    ask_s(0)
    alone_s = ask_s(60)
    watchers = [Watcher(running) for _ in range(100)]
    wait_until(lambda: running.service.log.head.size > 0)
    for watcher in watchers:
        watcher.read(b"event: size")
    watched_s = ask_s(120)
    for watcher in watchers:
        watcher.close()
    print(f"60 labels: {alone_s:.3f} s alone, {watched_s:.3f} s with 100 watchers")
    # Loose, because a machine that does much else is slower by chance.
    assert watched_s < 5 * alone_s + 2


def test_a_stopping_service_does_not_wait_for_watchers(service_settings: Callable[..., Settings]) -> None:
    """A stream without end is cut, so that a service stops at once."""
    with run_service(service_settings()) as running:
        watcher = Watcher(running)
        assert b"200 OK" in watcher.read(b"event: size")
        begun_s = time.monotonic()
    assert time.monotonic() - begun_s < 5
    watcher.close()


def test_the_api_is_the_one_that_is_kept() -> None:
    """A change of a call shows in docs/openapi.json; `make openapi` renews it."""
    kept = json.loads((ROOT / "docs" / "openapi.json").read_text())
    current = openapi_document()
    for document in (kept, current):
        document["info"].pop("version")
    assert json.dumps(kept, sort_keys=True) == json.dumps(json.loads(json.dumps(current)), sort_keys=True), (
        "the calls are not those of docs/openapi.json: run `make openapi`, and look at what has changed"
    )

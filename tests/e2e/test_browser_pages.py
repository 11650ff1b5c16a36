"""The pages in a real Chromium: pictures of each, what a screen reader and the keyboard find, and entries as they come.

Pictures are written to `test-output/pages/`, at 1400 and 400 pixels, light and dark.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files

import pytest
from playwright.sync_api import Browser, Page, expect

from label_service.settings import Settings
from tests.support.browser import PICTURES, open_page
from tests.support.datasets import make_idx_dataset
from tests.support.services import RunningService, run_service

WIDTHS, SCHEMES = (1400, 400), ("light", "dark")
HOSTILE = "<img src=x onerror=\"document.title='run over'\">"
AXE = (files("axe_playwright_python") / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with runs in every state, 60 entries or more, and names of runs that attack the page."""
    folder = tmp_path_factory.mktemp("service")
    data = make_idx_dataset(folder / "data")
    url = f"sqlite:///{folder / 'service' / 'labels.sqlite3'}"
    with run_service(Settings(data=data, other_data=True, database_url=url, port=0)) as running:
        client = running.client
        for number, name in enumerate(
            ["seed 41", HOSTILE, "a curve of ten points with a name that goes on and on " * 2]
        ):
            body = {"name": name[:100], "budget": 120, "evaluation_budgets": [40, 80]}
            opened = client.post("/v1/runs", json=body).json()
            token = {"Authorization": f"Bearer {opened['token']}"}
            for start in range(0, 100, 10):
                client.post("/v1/labels:query", json={"ids": list(range(start, start + 10))}, headers=token)
            client.get("/label/5", headers=token)
            client.get("/label/9999", headers=token)
            if number:
                for point in (40, 80):
                    evaluation = {"predictions": [number] * 50, "budget": point}
                    client.post(f"/v1/runs/{opened['run_id']}/evaluations", json=evaluation, headers=token)
            if number == 2:
                client.post(f"/v1/runs/{opened['run_id']}:seal", headers=token)
        for number in range(30):
            client.get(f"/label/{number}")
        yield running


def paths(service: RunningService) -> dict[str, str]:
    """Return the path of each page, by the name of its picture."""
    run_id = service.entries(op="run-sealed")[0]["run"]
    return {
        "overview": "/",
        "run": f"/runs/{run_id}",
        "log": "/log",
        "log-filtered": "/log?outcome=revealed&run=guest",
        "log-mistake": "/log?label_id=x",
        "verify": "/verify",
        "api": "/docs",
        "errors": "/errors",
    }


PAGES = ("overview", "run", "log", "log-filtered", "log-mistake", "verify", "api", "errors")


def visit(page: Page, service: RunningService, name: str) -> None:
    """Open a page and wait for what it makes by script."""
    page.goto(service.base_url + paths(service)[name])
    if name == "api":
        page.locator(".opblock-summary").first.wait_for()
    if name == "verify":
        page.fill("#key", service.service.log.verifier.vkey)
        page.get_by_role("button", name="Verify").click()
        expect(page.locator(".verdict")).to_contain_text("Verified")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_whole_and_open_to_all(
    browser: Browser, service: RunningService, name: str, width: int, scheme: str
) -> None:
    """No sideways scrolling, no error or refused file, and no serious finding of axe; a picture is kept."""
    expected = 422 if name == "log-mistake" else None
    with open_page(
        browser, allowed_status=expected, viewport={"width": width, "height": 900}, color_scheme=scheme
    ) as page:
        visit(page, service, name)
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f"{name}-{width}-{scheme}.png", full_page=True, animations="disabled")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # Swagger UI's own markup is not ours to mend; what surrounds it is.
        target = "{exclude: [['#swagger']]}" if name == "api" else "document"
        page.evaluate(AXE)
        found = page.evaluate(f"axe.run({target}).then(found => found.violations)")
        serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
        told = [(fault["id"], [node["html"][:200] for node in fault["nodes"]]) for fault in serious]
        assert not told, told


def test_new_entries_appear_by_themselves(browser: Browser, service: RunningService) -> None:
    """On the overview, on the run's page and in the log, without a reload, and said to a screen reader."""
    for name in ("/", "/log", "/runs/guest"):
        with open_page(browser) as page:
            page.goto(service.base_url + name)
            expect(page.locator(".live")).to_have_text("live")
            page.evaluate("window.stayed = true")
            seq = service.service.log.head.size
            service.client.get("/label/1")
            expect(page.locator(f"[data-key='{seq}']")).to_be_visible()
            expect(page.locator(".live")).to_have_text("1 new entry")
            assert page.evaluate("window.stayed"), "the page was not loaded again"


def test_without_script_the_pages_say_the_same(browser: Browser, service: RunningService) -> None:
    """Rows, filters and paging are there; reloading shows new entries."""
    with open_page(browser, java_script_enabled=False) as page:
        page.goto(service.base_url + "/log")
        page.get_by_label("Outcome").select_option("unknown-id")
        page.get_by_role("button", name="Filter").click()
        expect(page.locator("tbody tr")).to_have_count(3)
        page.get_by_role("link", name="Show all").click()
        page.get_by_role("link", name="Older entries").click()
        expect(page.locator("tbody tr").first).to_be_visible()
        seq = service.service.log.head.size
        page.goto(service.base_url + "/")
        service.client.get("/label/2")
        expect(page.locator(f"[data-key='{seq}']")).to_have_count(0)
        page.reload()
        expect(page.locator(f"[data-key='{seq}']")).to_be_visible()


def test_hostile_names_run_nothing_in_a_browser(browser: Browser, service: RunningService) -> None:
    """A name that would run a script is shown as it was written, on pages, after an update, and by the verifier."""
    run_id = next(e["run"] for e in service.entries(op="run-opened") if e["detail"]["name"] == HOSTILE)
    with open_page(browser) as page:
        page.goto(f"{service.base_url}/runs/{run_id}")
        expect(page.locator("h1")).to_have_text(HOSTILE)
        page.goto(service.base_url)
        expect(page.locator(".live")).to_have_text("live")
        service.client.get("/label/3")
        expect(page.locator(".live")).to_have_text("1 new entry")
        expect(page.get_by_text(HOSTILE)).to_be_visible()
        visit(page, service, "verify")
        expect(page.locator("#counts").get_by_text(HOSTILE)).to_be_visible()
        assert "run over" not in page.title()
        assert page.locator("img[src=x]").count() == 0


def test_the_keyboard_reaches_everything(browser: Browser, service: RunningService) -> None:
    """Tab alone: the way to the content first, then each link, field, button and table; Enter verifies."""
    for path in ("/", "/log", "/verify", paths(service)["run"]):
        with open_page(browser) as page:
            page.goto(service.base_url + path)
            wanted = page.evaluate(
                "[...document.querySelectorAll('a[href], button, select, textarea, summary, .wide[tabindex], "
                "input:not([type=radio])')].filter(e => e.checkVisibility()).length"
            )
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.textContent") == "To the content"
            reached = set()
            for _ in range(wanted + 20):
                reached.add(
                    page.evaluate(
                        "[...document.querySelectorAll('*')].indexOf(document.activeElement) * "
                        "!document.activeElement.matches('[type=radio], body, pre')"
                    )
                )
                page.keyboard.press("Tab")
            assert len(reached - {0}) >= wanted, path
    with open_page(browser) as page:
        page.goto(service.base_url + "/verify")
        page.get_by_role("button", name="Verify").focus()
        page.keyboard.press("Enter")
        expect(page.locator(".verdict")).to_contain_text("Verified")


def test_a_command_is_copied_as_the_reader_can_use_it(browser: Browser, service: RunningService) -> None:
    """The button copies the command with the address under which the browser knows the service."""
    with open_page(browser, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.goto(service.base_url)
        page.get_by_role("button", name="Copy").first.click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == f"curl {service.base_url}/label/42"


def test_swagger_ui_needs_no_internet(browser: Browser, service: RunningService) -> None:
    """All that the page of the calls loads comes from the service, and it lists each call."""
    asked: list[str] = []
    with open_page(browser) as page:
        page.on("request", lambda request: asked.append(request.url))
        visit(page, service, "api")
        shown = page.locator(".opblock-summary-path").all_inner_texts()
    assert asked and all(url.startswith((service.base_url, "data:")) for url in asked)
    document = json.loads(service.client.get("/openapi.json").text)
    calls = [path for path, methods in document["paths"].items() for _ in methods]
    assert sorted(text.replace("\u200b", "") for text in shown) == sorted(calls)

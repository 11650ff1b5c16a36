"""A real Chromium, driven by Playwright. It is the one that is installed: none is fetched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# Looked at by people, and kept by CI: one picture of each page, width and colour scheme.
PICTURES = Path(__file__).parents[2] / "test-output" / "pages"
# Without a sandbox, which root cannot have: it shows pages of this project alone.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


@contextmanager
def run_browser() -> Iterator[Browser]:
    """Run a headless Chromium; skip the test, and say so, where there is none."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"NO BROWSER TEST RUNS HERE: install one of {', '.join(PROGRAMS)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Browser, allowed_status: int | None = None, **context: Any) -> Iterator[Page]:
    """Open an empty page in a fresh profile; at the end, fail if a page wrote an error or broke its own policy.

    Args:
        browser: a running one.
        allowed_status: a status of an answer that is no fault, though Chromium writes it as an error.
        context: what Playwright's contexts take, such as `viewport` and `color_scheme`.
    """
    faults: list[str] = []
    with browser.new_context(**context) as fresh:
        page = fresh.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
        yield page
    if allowed_status is not None:
        faults = [fault for fault in faults if f"status of {allowed_status}" not in fault]
    assert not faults, faults

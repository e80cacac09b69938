"""A browser for the tests of the pages."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from browsing import CHROMIUM, watched

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page


@pytest.fixture
def figures_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of a project are found as fast as anything else: beside busy tests a nice process waits for minutes."""
    from konomi.web import figures

    monkeypatch.setattr(figures, "_CHILD", f"import os; os.nice = lambda by: 0; {figures._CHILD}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium (make install-dev does so as root)")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=20_000)  # the machine may be busy
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages in contexts of their own; none of them may complain."""
    contexts: list[BrowserContext] = []
    complaints: list[list[str]] = []

    def open_page(address: str, **options: Any) -> Page:
        usual = {"locale": "ja-JP", "viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}
        context = browser.new_context(**usual | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        with watched(page) as found:
            complaints.append(found)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    # that a request got no is said by the page itself; what the policy refuses reads otherwise
    assert [each for each in itertools.chain(*complaints) if not each.startswith("error: Failed to load resource")] == []

"""What a project may ask for beside ranks, in headless Chromium: how much better a text is, and a better one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make install-dev")
pytest.importorskip("axe_core_python", reason="axe-core-python is not installed: make install-dev")

from axe_core_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from browsing import Server, begin, next_shown, project_of
from konomi.labelling.records import LabelOptions

HOSTILE = "<img src=x onerror='window.pwned = 1'> 元の文"
PHONE = {"width": 360, "height": 740}


def clean(page: Page) -> None:
    """An accessibility scan, in light and dark, finds nothing; nothing is wider than the page, nothing too small to press."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert [(each["id"], each["nodes"][0]["html"]) for each in Axe().run(page)["violations"]] == []
    page.emulate_media(color_scheme="light")
    small = """() => [...document.querySelectorAll('button, input, textarea, summary, nav a')].filter(each => {
        const box = (each.closest('label') ?? each).getBoundingClientRect();
        return each.checkVisibility() && box.width && (box.width < 24 || box.height < 24);
    }).map(each => each.outerHTML)"""
    assert page.evaluate(small) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]  # type: ignore[index]


def test_how_much_better_and_a_better_text(tmp_path: Path, visit: Callable[..., Page]) -> None:
    tasks = [[HOSTILE, "別の文"], ["三つの文", "二つの文", "一つの文"]]
    project = project_of(tmp_path / "project", tasks, options=LabelOptions(strength=True, edit=True), seed=1)
    with Server(project) as server:
        page = visit(server.start, viewport=PHONE)
        begin(page)
        shown, strength = next_shown(page, ""), page.locator("#strength")
        if page.locator(".card").count() == 3:  # of three texts nothing is asked but a better one
            expect(strength).to_be_hidden()
            page.keyboard.press("x")
            page.locator("#submit").click()
            shown = next_shown(page, shown)
        expect(strength).to_be_disabled()
        first = page.locator(".card").first
        page.keyboard.press("1")
        page.keyboard.press("1")
        expect(strength).to_be_disabled()  # a tie
        page.locator(".card").nth(1).press("2")
        expect(strength).to_be_enabled()
        for value in ("1", "2", "3", None, "1", "2"):
            first.press("m")
            checked = page.locator('[name="strength"]:checked')
            expect(checked).to_have_count(int(value is not None))
            assert value is None or checked.input_value() == value
        expect(page.locator("#announce")).to_contain_text("差の大きさは「はっきり」です")
        first.press("u")
        expect(page.locator('[name="strength"][value="1"]')).to_be_checked()
        first.press("m")
        # a better text: it begins as the text, is kept over a reload, and typing in it is no command
        card = page.locator(".card", has_text="元の文")
        card.press("w")
        own = card.locator(".own")
        expect(own).to_be_focused()
        expect(own).to_have_value(HOSTILE)
        page.keyboard.press("End")
        page.keyboard.type("、x")
        expect(page.locator("#all-bad")).not_to_be_checked()
        page.keyboard.press("Escape")
        expect(card).to_be_focused()
        clean(page)
        page.reload()
        expect(own).to_have_value(f"{HOSTILE}、x")
        page.locator('.languages [value="en"]').click()
        expect(own).to_have_accessible_name(f"{card.get_attribute('data-name')}, better")
        button = card.locator(".rewrite")
        button.click()
        expect(own).to_be_hidden()
        expect(button).to_have_text("Write it better")
        button.click()
        page.set_viewport_size({"width": 1280, "height": 900})
        clean(page)
        page.context.set_offline(True)
        page.locator("#submit").click()
        expect(page.locator("#state")).to_have_attribute("data-state", "offline")
        page.context.set_offline(False)
        expect(page.locator("#state")).to_have_attribute("data-state", "saved")
        [(item, judgement)] = [each for each in server.judgements() if len(each[0].candidates) == 2]
        number = [each.text for each in item.candidates].index(HOSTILE)
        assert (judgement.strength, judgement.edits[number]) == (2, f"{HOSTILE}、x")
        # and it comes back to be changed
        page.locator('[data-act="earlier"]').click()
        page.locator("#earlier-list button", has_text="ranked").click()
        assert next_shown(page, "") == shown
        expect(page.locator(".card", has_text="元の文").locator(".own")).to_have_value(f"{HOSTILE}、x")
        expect(page.locator('[name="strength"][value="2"]')).to_be_checked()
        assert page.evaluate("window.pwned") is None

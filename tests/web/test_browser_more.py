"""The pages in headless Chromium, beyond ranks: how much better a text is, a better one, what the owner decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make install-dev")
pytest.importorskip("axe_core_python", reason="axe-core-python is not installed: make install-dev")

from playwright.sync_api import Page, expect

from browsing import PHONE, Server, begin, clean, next_shown, project_of
from konomi.labelling.answers import collect, save
from konomi.labelling.assignments import next_task
from konomi.labelling.database import Store
from konomi.labelling.people import add_person
from konomi.labelling.records import LabelOptions
from people_at_work import NOW, answer_to

HOSTILE = "<img src=x onerror='window.pwned = 1'> 元の文"


def test_how_much_better_and_a_better_text(tmp_path: Path, visit: Callable[..., Page]) -> None:
    tasks = [[HOSTILE, "別の\r文"], ["三つの文", "二つの文", "一つの文"]]
    project = project_of(tmp_path / "project", tasks, options=LabelOptions(strength=True, edit=True), seed=1)
    with Server(project) as server:
        page = visit(server.start, viewport=PHONE)
        begin(page)
        shown, strength = next_shown(page, ""), page.locator("#strength input").first
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
        page.locator(".card").filter(has_not_text="元の文").locator(".rewrite").click()  # which changes nothing by itself
        page.set_viewport_size({"width": 1280, "height": 900})
        clean(page)
        page.context.set_offline(True)
        page.locator("#submit").click()
        expect(page.locator("#state")).to_contain_text("1 kept")
        page.context.set_offline(False)
        expect(page.locator("#state")).to_have_attribute("data-state", "saved")
        [(item, judgement)] = [each for each in server.judgements() if len(each[0].candidates) == 2]
        number = [each.text for each in item.candidates].index(HOSTILE)
        assert (judgement.strength, judgement.edits[number]) == (2, f"{HOSTILE}、x")
        assert judgement.edits[1 - number] is None
        # and it comes back to be changed
        page.locator('[data-act="earlier"]').click()
        page.locator("#earlier-list button", has_text="ranked").click()
        assert next_shown(page, "") == shown
        expect(page.locator(".card", has_text="元の文").locator(".own")).to_have_value(f"{HOSTILE}、x")
        expect(page.locator('[name="strength"][value="2"]')).to_be_checked()
        assert page.evaluate("window.pwned") is None


def ranked_in_two_ways(server: Server, agreed: str = "") -> Store:
    """Let two raters rank all tasks, one the other way round, but for that of the prompt on which they agree."""
    store: Store = server.app.state.site.store
    for at, (name, turn) in enumerate((("Aki", 1), ("Ben", -1)), start=int(NOW)):
        person = add_person(store, name)[0]
        while (shown := next_task(store, person, NOW)) is not None:
            texts = sorted(each.text for each in shown.texts)[:: 1 if shown.prompt == agreed else turn]
            ranks = {each.key: 1 + texts.index(each.text) for each in shown.texts}
            save(store, person, answer_to(shown, ranks=ranks), at)
    return store


def test_the_owner_decides_where_raters_differ(tmp_path: Path, visit: Callable[..., Page]) -> None:
    tasks = [[HOSTILE, "別の文", "三つ目の文"], ["良い文", "悪い文"], ["同じ文", "違う文"]]
    prompts = ["お題 0" + "。" * 115 + "😀 と続く"]  # cut within an emoji
    with Server(project_of(tmp_path / "project", tasks, prompts, overlap=2.0)) as server:
        store = ranked_in_two_ways(server, agreed="お題 2")
        page = visit(server.start, viewport=PHONE)
        page.wait_for_url("**/guidelines")
        page.goto(f"{server.address}/decisions")
        rows = page.locator("#disputes button")
        expect(rows).to_have_count(2)
        expect(page.locator("#count")).to_have_text("全 2 件のうち、まだ決めていないもの 2 件")
        clean(page)
        expect(rows.filter(has_text="お題 0")).to_contain_text("。😀")
        # with the keyboard: both raters' ranks are there, whose text is whose is not
        rows.filter(has_text="お題 0").press("Enter")
        card = page.locator(".card", has_text="元の文")
        expect(card.locator(".votes")).to_have_text("参加者 1：1 位 · 参加者 2：3 位")
        assert "secret-model" not in page.content() and "Aki" not in page.content()
        expect(page.locator("#submit")).to_be_disabled()
        for key in ("1", "1", "u", "1", "3"):
            page.keyboard.press(key)
        clean(page)
        page.locator("#comment").fill("決めた")
        page.locator('.languages [value="en"]').click()
        expect(card.locator(".votes")).to_have_text("rater 1: 1 · rater 2: 3")
        page.locator(".card").first.press("Enter")
        expect(page.locator("#count")).to_have_text("1 of 2 without a decision")
        expect(rows.filter(has_text="お題 1")).to_be_focused()
        expect(rows.last).to_contain_text("decided")
        page.set_viewport_size({"width": 1280, "height": 900})
        # an outdated window is told, and keeps what is on it
        other = page.context.new_page()
        other.goto(f"{server.address}/decisions")
        for window in (page, other):
            window.locator("#disputes button", has_text="お題 0").click()
            window.locator(".card").first.wait_for()
            expect(window.locator("#comment")).to_have_value("決めた")
        page.locator("#withdraw").click()
        expect(page.locator("#count")).to_have_text("2 of 2 without a decision")
        other.locator("#submit").click()
        expect(other.locator("#alarm")).to_contain_text("another window")
        expect(other.locator("#form")).to_be_visible()
        page.locator("#disputes button", has_text="お題 1").click()
        page.locator('[data-rank="1"]').click()
        page.locator('[data-rank="2"]').click()
        posted: list[str] = []
        page.on("request", lambda request: posted.append(request.method) if request.method == "POST" else None)
        page.locator("#submit").evaluate("button => (button.click(), button.click())")
        expect(page.locator("#count")).to_have_text("1 of 2 without a decision")
        assert posted == ["POST"]
        page.locator("#disputes button", has_text="お題 1").click()
        page.locator('[data-act="leave"]').press("Enter")
        expect(page.locator("#disputes button", has_text="お題 1")).to_be_focused()
        clean(page)
        (decision,) = collect(store).decisions
        assert sorted(decision.ranks) == [1, 2]
        assert page.evaluate("window.pwned") is None


def test_tasks_beyond_the_first_hundred_are_decided_too(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with Server(project_of(tmp_path / "project", [["良い文", "悪い文"]] * 102, overlap=2.0)) as server:
        ranked_in_two_ways(server)
        page = visit(server.start)
        page.wait_for_url("**/guidelines")
        page.goto(f"{server.address}/decisions")
        rows, more = page.locator("#disputes button"), page.locator("#more")
        expect(rows).to_have_count(100)
        clean(page)
        more.press("Enter")
        expect(rows).to_have_count(102)
        expect(rows.nth(100)).to_be_focused()
        expect(more).to_be_hidden()
        last = rows.last.get_attribute("data-task")
        rows.last.click()
        page.locator('[data-rank="1"]').click()
        page.locator('[data-rank="2"]').click()
        page.locator("#submit").click()
        expect(rows.first).to_be_focused()  # the next one, and what is decided is still there
        expect(rows).to_have_count(102)
        expect(page.locator(f'[data-task="{last}"]')).to_contain_text("決定済み")

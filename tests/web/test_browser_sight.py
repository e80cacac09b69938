"""The ranking page in headless Chromium: what is in sight, what is said aloud, what is said in which language."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make install-dev")

from playwright.sync_api import Page, Route, expect

from browsing import Server, begin, next_shown, one_task, project_of

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
LONG = "長い文が続きます。" * 60


def many(tmp_path: Path, count: int, text: str = "短い文。") -> Server:
    """One task of ``count`` texts."""
    return Server(project_of(tmp_path / "project", [[f"{n} {text}" for n in range(count)]]))


def test_a_task_opens_at_its_top(tmp_path: Path, visit: Callable[..., Page]) -> None:
    tasks = [["文 1", "文 2"], ["文 3", "文 4"]]
    with Server(project_of(tmp_path / "project", tasks, [f"{n} {LONG * 4}" for n in range(2)])) as server:
        page = visit(server.start, **PHONE)
        begin(page)
        first = next_shown(page, "")
        assert page.evaluate("scrollY") == 0
        expect(page.locator(".card").first).to_be_focused()
        for key in ("1", "2", "Enter"):
            page.keyboard.press(key)
        next_shown(page, first)
        assert page.evaluate("scrollY") == 0
        expect(page.locator("#prompt")).to_be_in_viewport()


def test_a_finger_that_scrolls_chooses_nothing(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with many(tmp_path, 4, LONG) as server:
        page = visit(server.start, **PHONE)
        begin(page)
        expect(page.locator("#whom")).to_have_text("A の順位")
        box = page.locator(".card .text").nth(1).bounding_box()
        assert box
        page.evaluate(f"scrollTo(0, {box['y'] - 100})")
        protocol = page.context.new_cdp_session(page)
        protocol.send("Input.synthesizeScrollGesture", {"x": 180, "y": 350, "yDistance": -120, "gestureSourceType": "touch"})
        expect(page.locator(".card").nth(1)).to_be_in_viewport()
        expect(page.locator("#whom")).to_have_text("A の順位")
        page.locator(".card .rank").nth(1).tap()
        expect(page.locator("#whom")).to_have_text("B の順位")


def test_the_next_card_comes_into_sight_by_slot_too(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with many(tmp_path, 3, LONG) as server:
        page = visit(server.start, **PHONE)
        begin(page)
        focused = page.evaluate("document.activeElement.className")
        for rank in (1, 2):
            expect(page.locator(".card.selected")).to_be_in_viewport()
            page.locator(f'[data-rank="{rank}"]').tap()
        expect(page.locator("#whom")).to_have_text("C の順位")
        expect(page.locator(".card").nth(2).locator(".head")).to_be_in_viewport()
        assert focused.startswith("card")
        assert not page.evaluate(
            "document.activeElement.classList.contains('card') && document.activeElement.dataset.name !== 'A'"
        )


def test_nothing_that_is_focused_is_under_the_tray(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with many(tmp_path, 9) as server:
        page = visit(server.start, viewport={"width": 320, "height": 640})
        begin(page)
        for _ in range(9):
            page.keyboard.press("1")
        expect(page.locator(".slot .names").first).to_have_text("A–I")
        tray = page.locator("#tray").bounding_box()
        assert tray and tray["height"] < 220
        covered = """() => {
            const tray = document.getElementById("tray");
            const box = document.activeElement.getBoundingClientRect();
            const { top, bottom } = tray.getBoundingClientRect();
            return !tray.contains(document.activeElement) && box.top >= top && box.bottom <= bottom;
        }"""
        for _ in range(60):
            page.keyboard.press("Tab")
            assert page.evaluate(covered) is False, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")


def test_screen_readers_hear_of_ranks_tasks_and_troubles_alone(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with one_task(tmp_path, 2) as server:
        page = visit(server.start)
        begin(page)
        page.evaluate("""() => {
            window.heard = [];
            new MutationObserver(() => {
                const text = document.getElementById("announce").textContent;
                if (text) window.heard.push(text);
            }).observe(document.getElementById("announce"), { childList: true });
            window.written = [];
            new MutationObserver(() => window.written.push(document.getElementById("state").textContent))
                .observe(document.getElementById("state"), { childList: true });
        }""")
        said = page.locator("#announce")
        expect(said).to_have_text("新しい課題です。候補は 2 件あります")
        page.keyboard.press("1")
        expect(said).to_have_text("候補 A、1 位")
        page.keyboard.press("2")
        expect(said).to_have_text("候補 B、2 位 すべて順位がつきました")
        first = next_shown(page, "")
        page.keyboard.press("Enter")
        next_shown(page, first)
        expect(said).to_have_text("新しい課題です。候補は 2 件あります")  # and not that it was saved
        assert page.evaluate("window.written") == ["送信待ち 1 件", "保存済み"]
        assert page.locator("#state").get_attribute("role") is None
        page.keyboard.press("7")
        expect(said).to_have_text("順位は 1 から 2 までです")
        expect(page.locator("#missing")).to_have_text("順位は 1 から 2 までです")
        page.context.set_offline(True)
        expect(said).to_contain_text("オフライン")
        page.context.set_offline(False)
        expect(page.locator("#state")).to_have_attribute("data-state", "saved")
        assert len(page.evaluate("window.heard")) <= 6


def test_a_card_is_described_by_its_text(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with many(tmp_path, 2) as server:
        page = visit(server.start)
        begin(page)
        for card in page.locator(".card").all():
            expect(card).to_have_accessible_description(card.locator(".text").inner_text())


@pytest.mark.usefixtures("figures_at_once")
def test_a_switch_of_language_leaves_no_word_behind(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with one_task(tmp_path) as server:
        figures = server.app.state.site.figures
        figures.every = figures._at = 0.0
        page = visit(server.start)
        page.wait_for_url("**/guidelines")
        page.route("**/api/next", lambda route: route.fulfill(status=503, body="{}"))
        page.locator("#seen").click()
        expect(page.locator("#alarm")).to_have_text("サーバーでエラーが起きました（503）。")
        page.locator('.languages [value="en"]').click()
        expect(page.locator("#alarm")).to_have_text("The server reports an error (503).")
        expect(page.locator("#loading-text")).to_have_text("Loading …")
        page.unroute("**/api/next")
        next_shown(page, "")
        page.locator('.languages [value="ja"]').click()
        enough = page.locator("#progress-enough")
        expect(enough).to_have_text("比較はまだありません。報酬モデルには約 2,000 件必要です")
        page.locator('.languages [value="en"]').click()
        expect(enough).to_have_text("No comparisons yet; a reward model needs about 2,000")
        page.locator('.languages [value="ja"]').click()
        expect(enough).to_have_text("比較はまだありません。報酬モデルには約 2,000 件必要です")
        page.route("**/api/answers", lambda route: route.fulfill(status=429, body=TOO_MANY))
        for key in ("1", "2"):
            page.locator(".card").nth(int(key) - 1).press(key)
        page.locator("#submit").click()
        expect(page.locator("#alarm")).to_have_text("多すぎます")
        page.locator('.languages [value="en"]').click()
        expect(page.locator("#alarm")).to_have_text("Too many")
        expect(page.locator("#loading-text")).to_have_text("Sending …")


def test_guidelines_that_come_late_do_not_undo_a_switch(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with one_task(tmp_path) as server:
        (tmp_path / "project" / "guidelines.md").write_text("# Guidelines\nHello\n\n# ガイドライン\nこんにちは", "utf-8")
        page = visit(server.start)
        page.wait_for_url("**/guidelines")
        expect(page.locator("#text")).to_contain_text("こんにちは")
        late: list[Route] = []
        page.route("**/api/guidelines", lambda route: route.continue_() if late else late.append(route))
        page.locator('.languages [value="ja"]').click()
        page.locator('.languages [value="en"]').click()
        expect(page.locator("#text")).to_contain_text("Hello")
        with page.expect_response("**/api/guidelines"):
            late[0].continue_()
        page.wait_for_load_state("networkidle")
        expect(page.locator("#text")).to_contain_text("Hello")


TOO_MANY = '{"error": {"code": "too_many", "message": "多すぎます", "messages": {"ja": "多すぎます", "en": "Too many"}}}'


def test_each_text_has_its_language(tmp_path: Path, visit: Callable[..., Page]) -> None:
    tasks = [["Very good, and cheap.", "とても良い"], ["Good.", "良い"]]
    with Server(project_of(tmp_path / "project", tasks, ["The breakfast was", "朝食は、"])) as server:
        page = visit(server.start)
        begin(page)
        shown = ""
        for _ in tasks:
            shown = next_shown(page, shown)
            english = "breakfast" in page.locator("#prompt").inner_text()
            expect(page.locator("#prompt")).to_have_attribute("lang", "en" if english else "ja")
            expect(page.locator(".text", has_text="ood")).to_have_attribute("lang", "en")
            expect(page.locator(".text", has_text="良い")).to_have_attribute("lang", "ja")
            page.keyboard.press("x")
            page.locator("#submit").click()
        page.locator("#done").wait_for()
        page.locator('[data-act="earlier"]').click()
        expect(page.locator("#earlier-list .start", has_text="朝食")).to_have_attribute("lang", "ja")
        assert page.locator("#earlier-list .start", has_text="breakfast").get_attribute("lang") is None  # it is not known here


def test_what_is_known_after_one_answer_is_said_once(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with many(tmp_path, 6, LONG) as server:
        page = visit(server.start, **PHONE)
        begin(page)
        expect(page.locator("#hint")).to_be_visible()
        expect(page.locator("#state")).to_be_attached()
        page.evaluate("scrollTo(0, document.getElementById('cards').offsetTop + 900)")
        page.keyboard.press("x")
        expect(page.locator("#whom")).to_be_in_viewport()  # and beside it, whether all is saved
        page.locator("#submit").tap()
        page.locator("#done").wait_for()
        expect(page.locator("#state")).to_be_in_viewport()
        page.keyboard.press("u")
        page.locator("#editing").wait_for()
        expect(page.locator("#hint")).to_be_hidden()
        page.locator(".more summary").click()
        expect(page.locator(".more details")).to_contain_text("ドラッグ")


def test_lines_are_of_a_length_that_can_be_read(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with many(tmp_path, 4, LONG) as server:
        page = visit(server.start)
        begin(page)
        widths = page.locator(".card .text, #prompt").evaluate_all("all => all.map(each => each.clientWidth)")
        assert max(widths) <= 45 * 16

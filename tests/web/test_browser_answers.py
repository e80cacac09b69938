"""The ranking page in headless Chromium: no answer is lost, whatever the network, the server or another window does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from konomi.labelling.people import add_person, new_token, revoke

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make install-dev")

from playwright.sync_api import Page, expect

from browsing import Ranking, answer, begin, next_shown, one_task, two_tasks


@two_tasks
def test_an_answer_outlives_the_network(ranking: Ranking) -> None:
    page, server = ranking
    state = page.locator("#state")
    page.context.set_offline(True)
    answer(page, 1, 2)
    expect(state).to_have_attribute("data-state", "offline")
    expect(state).to_contain_text("1 件")
    assert server.judgements() == []
    [waiting] = page.evaluate("Object.entries(localStorage).filter(([key]) => key.startsWith('konomi.outbox'))")
    assert json.loads(waiting[1])[0]["kind"] == "ranked"
    page.context.set_offline(False)
    expect(state).to_have_attribute("data-state", "saved")
    page.locator(".card").first.wait_for()
    assert len(server.judgements()) == 1


@two_tasks
def test_an_answer_outlives_the_page_and_a_lost_reply(ranking: Ranking) -> None:
    page, server = ranking

    def lose_the_reply(route: Any) -> None:
        route.fetch()  # it arrives, and is saved
        route.abort()

    page.route("**/api/answers", lose_the_reply)
    answer(page, 1, 1)
    expect(page.locator("#state")).to_have_attribute("data-state", "offline")
    page.unroute("**/api/answers")
    page.reload()
    expect(page.locator("#state")).to_have_attribute("data-state", "saved")
    page.locator(".card").first.wait_for()
    [(_, judgement)] = server.judgements()
    assert judgement.ranks == (1, 1)
    assert judgement.revision == 1


def test_a_refused_answer_is_said_and_its_ranks_stay(ranking: Ranking) -> None:
    page, server = ranking
    page.evaluate("document.getElementById('comment').removeAttribute('maxlength')")
    page.locator("#comment").fill("長" * 2001)
    page.locator(".card").first.press("1")
    answer(page, 2)
    expect(page.locator("#alarm")).to_contain_text("2,000")
    page.locator("#comment").fill("短い")
    page.locator(".card").first.press("Enter")
    page.locator("#done").wait_for()
    expect(page.locator("#alarm")).to_be_hidden()
    [(_, judgement)] = server.judgements()
    assert judgement.comment == "短い"


def look_again(page: Page) -> None:
    """Come back to the page."""
    page.evaluate("dispatchEvent(new Event('focus'))")


def in_the_outbox(page: Page) -> int:
    return int(
        page.evaluate("JSON.parse(Object.entries(localStorage).find(([key]) => key.startsWith('konomi.outbox'))[1]).length")
    )


PASSING = [
    (404, "<h1>nginx</h1>", "（404）"),
    (403, '{"error": {"code": "cross_site", "message": "別の場所から"}}', "別の場所から"),
    (421, '{"error": {"code": "bad_host", "message": "この名前では"}}', "この名前では"),
    (500, '{"error": {"code": "damaged", "message": "壊れています"}}', "壊れています"),
    (503, "Service Unavailable", "（503）"),
]
"""Responses that do not refuse an answer for good: status, body, words on the page."""


def reply_with(status: int, body: str) -> Callable[[Any], None]:
    return lambda route: route.fulfill(status=status, body=body)


@pytest.mark.parametrize("ranking", [len(PASSING) + 1], indirect=True)
def test_what_may_pass_keeps_the_answer_and_is_said(ranking: Ranking) -> None:
    page, server = ranking
    shown = next_shown(page, "")
    for number, (status, content, words) in enumerate(PASSING, start=1):
        page.route("**/api/answers", reply_with(status, content))
        answer(page, 1, 2)
        expect(page.locator("#alarm")).to_contain_text(words)
        expect(page.locator("#state")).to_have_attribute("data-state", "pending")
        assert in_the_outbox(page) == 1
        page.unroute("**/api/answers")
        look_again(page)
        shown = next_shown(page, shown)
        expect(page.locator("#alarm")).to_be_hidden()
        assert len(server.judgements()) == number


def test_a_server_that_asks_to_wait_is_not_asked_before(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with one_task(tmp_path) as server:
        page = visit("about:blank")
        page.clock.install()
        page.goto(server.start)
        begin(page)
        tries: list[str] = []

        def refuse(route: Any) -> None:
            tries.append(route.request.url)
            route.fulfill(status=429, headers={"retry-after": "60"}, body="{}")

        page.route("**/api/answers", refuse)
        answer(page, 1, 2)
        expect(page.locator("#alarm")).to_be_visible()
        page.clock.fast_forward(50_000)
        page.evaluate("fetch('/api/progress')")  # what the page had to ask, it has asked before this
        assert len(tries) == 1
        page.unroute("**/api/answers")
        page.clock.fast_forward(11_000)
        page.locator("#done").wait_for()
        assert len(server.judgements()) == 1


def test_a_refused_edit_comes_back_with_its_comment(ranking: Ranking) -> None:
    page, server = ranking
    answer(page, 1, 2)
    page.locator("#done").wait_for()
    page.keyboard.press("u")
    page.locator("#editing").wait_for()
    page.evaluate("document.getElementById('comment').removeAttribute('maxlength')")
    page.locator("#comment").fill("長" * 2001)
    page.locator(".card").first.press("2")
    page.keyboard.press("Enter")
    expect(page.locator("#alarm")).to_contain_text("2,000")
    expect(page.locator("#editing")).to_be_visible()
    assert len(page.locator("#comment").input_value()) == 2001
    expect(page.locator(".card .rank").first).to_have_text("1 位（同順位）")
    page.locator("#comment").fill("短い")
    page.locator("#submit").click()
    page.locator("#done").wait_for()
    [(_, judgement)] = server.judgements()
    assert (judgement.comment, judgement.ranks, judgement.revision) == ("短い", (1, 1), 2)


def test_two_windows_of_one_person(ranking: Ranking) -> None:
    page, server = ranking
    other = page.context.new_page()
    other.goto(server.address)
    other.locator(".card").first.wait_for()
    answer(page, 1, 2)
    page.locator("#done").wait_for()
    other.locator("#comment").fill("こちらは別")
    other.locator(".card").first.press("2")
    answer(other, 1)
    expect(other.locator("#alarm")).to_contain_text("別のウィンドウ")
    [(_, first)] = server.judgements()
    assert (first.revision, first.comment) == (1, "")
    # it is on the page still, and replaces the other one if that is wanted
    expect(other.locator("#editing")).to_be_visible()
    expect(other.locator("#comment")).to_have_value("こちらは別")
    other.locator("#submit").click()
    other.locator("#done").wait_for()
    [(_, second)] = server.judgements()
    assert (second.revision, second.comment) == (2, "こちらは別")
    assert second.ranks == first.ranks[::-1]


@two_tasks
def test_drafts_of_two_tasks_are_apart(ranking: Ranking) -> None:
    page, _ = ranking
    first = next_shown(page, "")
    answer(page, 1, 2)
    second = next_shown(page, first)
    page.locator("#comment").fill("まだ途中")
    page.locator('[data-act="earlier"]').click()
    page.locator("#earlier-list button").click()
    assert next_shown(page, second) == first
    page.locator("#comment").fill("直しの途中")
    page.reload()
    assert next_shown(page, "") == second
    expect(page.locator("#comment")).to_have_value("まだ途中")
    page.locator('[data-act="earlier"]').click()
    page.locator("#earlier-list button").click()
    expect(page.locator("#comment")).to_have_value("直しの途中")


@two_tasks
def test_undo_goes_back_step_by_step_and_never_away_from_work(ranking: Ranking) -> None:
    page, _ = ranking
    first = next_shown(page, "")
    answer(page, 1, 2)
    second = next_shown(page, first)
    page.keyboard.press("1")
    page.keyboard.press("x")
    page.locator('[name="confidence"][value="3"]').check()
    page.locator(".card summary").first.click()
    page.locator('.card [value="broken"]').first.check()
    card = page.locator(".card").first
    card.press("u")
    expect(page.locator('.card [value="broken"]').first).not_to_be_checked()
    card.press("u")
    expect(page.locator('[name="confidence"]:checked')).to_have_count(0)
    card.press("u")
    expect(page.locator("#all-bad")).not_to_be_checked()
    expect(page.locator(".card.ranked")).to_have_count(1)
    card.press("u")
    expect(page.locator(".card.ranked")).to_have_count(0)
    # what is typed or was restored is not left behind
    page.locator("#comment").fill("途中")
    card.press("u")
    expect(page.locator("#missing")).to_have_text("元に戻すものはありません")
    page.reload()
    assert next_shown(page, "") == second
    page.keyboard.press("u")
    expect(page.locator("#announce")).to_contain_text("元に戻すものはありません")
    # on a task that nothing was done to it opens the last answer, and stays there
    page.locator("#comment").fill("")
    page.locator(".card").first.press("u")
    assert next_shown(page, second) == first
    page.locator("#comment").fill("直す")
    page.locator(".card").first.press("u")
    expect(page.locator("#missing")).to_have_text("元に戻すものはありません")
    expect(page.locator("#comment")).to_have_value("直す")


def test_who_is_locked_out_is_told_and_loses_nothing(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with one_task(tmp_path, 2) as server:
        store = server.app.state.site.store
        person, token = add_person(store, "鈴木")
        page = visit(f"{server.address}/i/{token}")
        begin(page)
        revoke(store, person.id)
        answer(page, 1, 2)
        expect(page.locator("#alarm")).to_contain_text("新しいリンク")
        expect(page.locator("#state")).to_have_attribute("data-state", "signed_out")
        assert in_the_outbox(page) == 1
        other = page.context.new_page()
        other.goto(f"{server.address}/i/{new_token(store, person.id)}")
        other.locator(".card").first.wait_for()  # it has sent what was kept
        next_shown(page, "")  # and this window knows
        expect(page.locator("#alarm")).to_be_hidden()
        assert len(server.judgements()) == 1


def test_a_browser_that_keeps_nothing_asks_before_it_leaves(ranking: Ranking) -> None:
    page, server = ranking
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new DOMException('full') } }")
    leaves = "!dispatchEvent(new Event('beforeunload', { cancelable: true }))"
    assert page.evaluate(leaves) is False
    page.context.set_offline(True)
    answer(page, 1, 2)
    expect(page.locator("#state")).to_contain_text("ページを閉じないでください")
    assert page.evaluate(leaves) is True
    page.context.set_offline(False)
    page.locator("#done").wait_for()
    assert page.evaluate(leaves) is False
    assert len(server.judgements()) == 1


def test_tasks_that_come_back_are_noticed(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with one_task(tmp_path) as server:
        store = server.app.state.site.store
        page = visit(server.start)
        begin(page)
        store.freeze()
        answer(page, 1, 2)
        expect(page.locator("#alarm")).to_contain_text("締め切られました")
        expect(page.locator("#done-for-good")).to_be_visible()
        assert "すべて保存" not in page.locator("#done-for-good").inner_text()  # this one was not
        store.freeze(False)
        look_again(page)
        expect(page.locator("#state")).to_have_attribute("data-state", "saved")  # it has waited
        expect(page.locator("#done-for-now")).to_be_visible()
        assert len(server.judgements()) == 1

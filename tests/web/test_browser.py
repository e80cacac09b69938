"""The pages in headless Chromium: people who rank, texts that attack, a network that drops, scans for accessibility."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make install-dev")
pytest.importorskip("axe_core_python", reason="axe-core-python is not installed: make install-dev")

from axe_core_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, TimeoutError, expect

from browsing import Ranking, Server, begin, next_shown, one_task, project_of
from konomi.runs.directory import RunDir

WEB = Path(__file__).resolve().parents[2] / "src" / "konomi" / "web"
HOSTILE = [
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>",
    "</div></main><style>* { display: none !important }</style><h1>x",
    "\u202egnp.exe\u2066 \u200b\u200d\u00ad\ufeff\u2028\u0000 \U000e0041 end",
    "W" * 4000,
    "Z̸" + "̷̧̢̛͙͎" * 400 + "alg",
    '{{ 7 * 7 }} ${alert(1)} javascript:alert(1) " onfocus="alert(1)" autofocus="',
    "\n" * 200 + "下",
    "\tcol\tcol\r\nline\rline",
    "ﷺ" * 300,
]


def qualities(page: Page) -> list[int]:
    """What the texts on the cards are worth: they say it."""
    return [int(re.search(r"良さ (\d)", text)[1]) for text in page.locator(".card .text").all_inner_texts()]  # type: ignore[index]


def wanted_ranks(values: list[int]) -> list[int]:
    """1 for the best; equal values tie."""
    return [1 + sum(other > value for other in values) for value in values]


@pytest.fixture
def twelve(tmp_path: Path) -> Iterator[Server]:
    """12 tasks of 2 to 5 texts, some of equal worth; the prompts are all different."""
    counts = [2 + number % 4 for number in range(12)]
    tasks = [[f"{place} 番目の文。良さ {(number * place + place) % 4}" for place in range(k)] for number, k in enumerate(counts)]
    with Server(project_of(tmp_path / "project", tasks)) as server:
        yield server


def check_twelve(server: Server) -> None:
    said = server.judgements()
    assert len(said) == 12
    for item, judgement in said:
        worth = [int(each.text.rsplit(" ", 1)[1]) for each in item.candidates]
        assert judgement.kind == "ranked"
        assert list(judgement.ranks) == wanted_ranks(worth)
        assert judgement.seconds >= 0


def test_twelve_tasks_with_the_keyboard_alone(twelve: Server, visit: Callable[..., Page]) -> None:
    page = visit(twelve.start)
    page.wait_for_url("**/guidelines")
    expect(page.locator("#seen")).to_be_enabled()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "seen":
            break
    page.keyboard.press("Enter")
    shown = ""
    for number in range(12):
        shown = next_shown(page, shown)
        ranks = wanted_ranks(qualities(page))
        if number % 3:  # digits: the next card without a rank is focused by itself
            for rank in ranks:
                page.keyboard.press(str(rank))
        else:  # arrows alone: the best first, each to the bottom; up once more makes a tie
            order = sorted(range(len(ranks)), key=lambda i: ranks[i])
            at = 0
            for previous, i in zip([None, *order], order, strict=False):
                for _ in range(abs(i - at)):
                    page.keyboard.press("ArrowRight" if i > at else "ArrowLeft")
                at = i
                page.keyboard.press("ArrowDown")
                if previous is not None and ranks[i] == ranks[previous]:
                    page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
    page.locator("#done").wait_for()
    check_twelve(twelve)


def drag(page: Page, card: int, rank: int) -> None:
    page.locator(".grip").nth(card).scroll_into_view_if_needed()
    source, target = page.locator(".grip").nth(card).bounding_box(), page.locator(f'[data-rank="{rank}"]').bounding_box()
    assert source and target
    page.mouse.move(source["x"] + 10, source["y"] + 10)
    page.mouse.down()
    page.mouse.move(300, 300)
    page.mouse.move(target["x"] + target["width"] / 2, target["y"] + target["height"] / 2)
    page.mouse.up()


def test_twelve_tasks_with_a_pointer_alone(twelve: Server, visit: Callable[..., Page]) -> None:
    page = visit(twelve.start)
    begin(page)
    shown = ""
    for number in range(12):
        shown = next_shown(page, shown)
        for card, rank in enumerate(wanted_ranks(qualities(page))):
            if number % 3 == 0:
                drag(page, card, rank)
            else:
                page.locator(".card .head").nth(card).click(position={"x": 30, "y": 12})
                page.locator(f'[data-rank="{rank}"]').click()
        page.locator("#submit").click()
    page.locator("#done").wait_for()
    check_twelve(twelve)


def touch_drag(page: Page, card: int, rank: int) -> None:
    page.locator(".grip").nth(card).scroll_into_view_if_needed()
    source, target = page.locator(".grip").nth(card).bounding_box(), page.locator(f'[data-rank="{rank}"]').bounding_box()
    assert source and target
    protocol = page.context.new_cdp_session(page)
    start = {"x": source["x"] + 10, "y": source["y"] + 10}
    end = {"x": target["x"] + target["width"] / 2, "y": target["y"] + target["height"] / 2}
    for kind, points in (("touchStart", [start]), ("touchMove", [{"x": 180, "y": 300}]), ("touchMove", [end]), ("touchEnd", [])):
        protocol.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    protocol.detach()
    page.locator(".project").tap()  # headless Chromium makes no click of the first tap after touches that came over the protocol


def test_twelve_tasks_on_a_phone(twelve: Server, visit: Callable[..., Page]) -> None:
    page = visit(twelve.start, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.locator("#seen").tap()
    shown = ""
    for number in range(12):
        shown = next_shown(page, shown)
        ranks = wanted_ranks(qualities(page))
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        if number % 10 == 0:
            for card, rank in enumerate(ranks):
                touch_drag(page, card, rank)
        elif number % 2:
            for card, rank in enumerate(ranks):
                page.locator(".card .rank").nth(card).tap()
                page.locator(f'[data-rank="{rank}"]').tap()
        else:  # buttons: the best first, each to the bottom; up once more makes a tie
            order = sorted(range(len(ranks)), key=lambda i: ranks[i])
            for previous, i in zip([None, *order], order, strict=False):
                page.locator('[data-action="worse"]').nth(i).tap()
                if previous is not None and ranks[i] == ranks[previous]:
                    page.locator('[data-action="better"]').nth(i).tap()
        page.locator("#submit").tap()
    page.locator("#done").wait_for()
    check_twelve(twelve)


def test_hostile_texts_run_nothing_and_break_no_layout(tmp_path: Path, visit: Callable[..., Page]) -> None:
    tasks = [HOSTILE, HOSTILE[:2], HOSTILE[2:5]]
    prompts = [HOSTILE[0], HOSTILE[3], HOSTILE[2]]
    with Server(project_of(tmp_path / "project", tasks, prompts)) as server:
        for width in (1280, 360):
            page = visit(server.start, viewport={"width": width, "height": 800})
            if width == 1280:
                begin(page)
            shown = ""
            for _ in tasks if width == 360 else tasks[:1]:
                shown = next_shown(page, shown)
                assert page.evaluate("window.pwned") is None
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                # nothing in a text is an element but our marks, and none reaches out of its card
                assert page.locator(".text :not(span.code)").count() == 0
                assert page.evaluate("""() => [...document.querySelectorAll('.card')].every(card => {
                    const outer = card.getBoundingClientRect();
                    return [...card.querySelectorAll('*')].every(each => {
                        const inner = each.getBoundingClientRect();
                        const inside = inner.left >= outer.left - 1 && inner.right <= outer.right + 1;
                        return inside || each.closest('.unseen, .text *');
                    });
                })""")
                expect(page.locator("#submit")).to_be_in_viewport()
                if width == 360:
                    for _ in range(page.locator(".card").count()):
                        page.keyboard.press("1")
                    page.keyboard.press("Enter")
        page.locator("#done").wait_for()
        assert len(server.judgements()) == 3


def test_what_is_not_seen_is_marked(tmp_path: Path, visit: Callable[..., Page]) -> None:
    hidden = "a\ufe0fb\u180bc\u2800d\U000e0101e\U0001d173f\u180eg\U000e01efh葛\U000e0100\U000e0101i❤️\ufe0fj"
    hidden += "葛\U000e0141k葛\ufe00\u200dl"
    plain = "家族 👨‍👩‍👧 と ❤️ と می‌خواهم と葛󠄀 1️⃣ ᠠ᠋ \u0600١"
    ends = "終わりに空白 \n\n\n\u3000"
    with Server(project_of(tmp_path / "project", [[HOSTILE[2], plain, hidden, ends, " \t"]])) as server:
        page = visit(server.start)
        begin(page)

        def marks(part: str) -> list[str]:
            return page.locator(".card .text", has_text=part).locator(".code").all_inner_texts()

        assert marks("gnp") == ["U+202E", "U+2066", "U+200B", "U+200D", "U+00AD", "U+FEFF", "U+2028", "U+0000", "U+E0041"]
        seen = ["U+FE0F", "U+180B", "U+2800", "U+E0101", "U+1D173", "U+180E", "U+E01EF", "U+E0101", "U+FE0F", "U+E0141", "U+200D"]
        assert marks("U+1D173") == seen
        assert marks("終わりに空白") == ["␣", "⏎×3", "□"]
        assert marks("空の文章") == ["空の文章", "␣", "⇥"]
        other = page.locator(".card .text", has_text="家族")
        assert other.inner_text() == plain
        assert other.get_attribute("lang") == "ja"
        assert page.locator("#prompt").get_attribute("lang") == "ja"


@pytest.mark.parametrize("ranking", [3], indirect=True)
def test_flags_skip_all_bad_undo_and_edit(ranking: Ranking) -> None:
    page, server = ranking
    # nothing is ranked before somebody did it, and half a ranking is none
    expect(page.locator("#submit")).to_be_disabled()
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator("#submit")).to_be_disabled()
    page.keyboard.press("u")
    expect(page.locator(".card.ranked")).to_have_count(0)
    # ranks with flags, a comment and confidence
    page.locator(".card summary").first.click()
    page.locator('.card [value="unsafe"]').first.check()
    page.locator("#comment").fill("1 と 2 は数字")
    page.locator('[name="confidence"][value="3"]').check()
    expect(page.locator(".card.ranked")).to_have_count(0)
    page.locator(".card").first.press("2")
    page.keyboard.press("1")
    first = str(page.locator("#task").get_attribute("data-shown"))
    page.reload()  # what was begun is still there
    expect(page.locator(".card.ranked")).to_have_count(2)
    expect(page.locator("#comment")).to_have_value("1 と 2 は数字")
    page.keyboard.press("Enter")
    second = next_shown(page, first)
    # skipped, for a reason
    page.keyboard.press("s")
    page.locator('#skip [value="other"]').check()
    page.locator("#skip-other").fill("読めない")
    page.locator("#skip-other").press("Enter")
    third = next_shown(page, second)
    page.keyboard.press("x")
    page.locator(".card").first.press("Enter")
    page.locator("#done").wait_for()
    kinds = {judgement.kind: judgement for _, judgement in server.judgements()}
    assert set(kinds) == {"ranked", "skipped", "all_bad"}
    assert kinds["skipped"].reason == "読めない"
    assert (kinds["ranked"].confidence, kinds["ranked"].comment) == (3, "1 と 2 は数字")
    assert sorted(kinds["ranked"].flags) == [(), ("unsafe",)]
    # the newest answer comes back to be changed
    page.keyboard.press("u")
    assert next_shown(page, "") == third
    expect(page.locator("#all-bad")).to_be_checked()
    page.locator("#all-bad").uncheck()
    page.locator(".card").first.press("1")
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    page.locator("#done").wait_for()
    # and an older one, from the list
    page.locator('[data-act="earlier"]').click()
    expect(page.locator("#earlier-list button")).to_have_count(3)
    page.locator("#earlier-list button", has_text="順位づけ").last.click()
    assert next_shown(page, third) == first
    expect(page.locator("#editing")).to_be_visible()
    expect(page.locator('.card [value="unsafe"]').first).to_be_checked()
    expect(page.locator(".card summary").first).to_have_text("フラグ: 危険")
    page.locator("#leave").click()
    page.locator("#done").wait_for()
    assert sorted((judgement.kind, judgement.revision) for _, judgement in server.judgements()) == [
        ("ranked", 1),
        ("ranked", 2),
        ("skipped", 1),
    ]


PRESS = """(card, init) => {
    const event = new KeyboardEvent("keydown", { bubbles: true, cancelable: true, ...init });
    card.dispatchEvent(event);
    return event.defaultPrevented;
}"""


def test_an_input_method_ranks_nothing(ranking: Ranking) -> None:
    page, _ = ranking
    card = page.locator(".card").first
    for init in ({"code": "Digit1", "isComposing": True}, {"code": "Digit1", "keyCode": 229}):
        assert card.evaluate(PRESS, {"key": "1", **init}) is False
    expect(page.locator(".card.ranked")).to_have_count(0)
    # a French keyboard has digits above other signs, a number pad has its own, an input method's are wide
    for code, key in (("Digit1", "&"), ("Numpad2", "2"), ("Digit2", "２")):
        page.locator(".card").last.evaluate(PRESS, {"code": code, "key": key})
        page.locator(".card:not(.ranked)").first.evaluate(PRESS, {"code": code, "key": key})
        expect(page.locator("#submit")).to_be_enabled()
        if code != "Digit2":
            card.press("u"), card.press("u")
            expect(page.locator(".card.ranked")).to_have_count(0)
    # Enter ends a composition, and no task
    for init in ({"isComposing": True}, {"keyCode": 229}):
        assert card.evaluate(PRESS, {"key": "Enter", "code": "Enter", **init}) is False
    expect(page.locator("#task")).to_be_visible()
    assert card.evaluate(PRESS, {"key": "Enter", "code": "Enter"}) is True
    page.locator("#done").wait_for()


def test_what_is_typed_is_no_command(ranking: Ranking) -> None:
    page, _ = ranking
    comment = page.locator("#comment")
    comment.focus()
    protocol = page.context.new_cdp_session(page)
    protocol.send("Input.imeSetComposition", {"text": "にほん1", "selectionStart": 4, "selectionEnd": 4})
    protocol.send("Input.insertText", {"text": "日本1"})
    page.keyboard.type("2sux")
    expect(comment).to_have_value("日本12sux")
    expect(page.locator(".card.ranked")).to_have_count(0)
    expect(page.locator("#skip")).to_be_hidden()
    expect(page.locator("#all-bad")).not_to_be_checked()


def test_letters_are_those_that_are_written_on_the_keys(ranking: Ranking) -> None:
    page, _ = ranking
    card = page.locator(".card").first
    page.keyboard.press("1")
    card.evaluate(PRESS, {"code": "KeyF", "key": "u"})  # Dvorak
    expect(page.locator(".card.ranked")).to_have_count(0)
    card.evaluate(PRESS, {"code": "KeyS", "key": "o"})
    expect(page.locator("#skip")).to_be_hidden()
    card.evaluate(PRESS, {"code": "KeyX", "key": "ч"})  # Russian
    expect(page.locator("#all-bad")).to_be_checked()
    card.evaluate(PRESS, {"code": "KeyX", "key": "ｘ"})
    expect(page.locator("#all-bad")).not_to_be_checked()


def test_single_keys_can_be_switched_off(ranking: Ranking) -> None:
    page, _ = ranking
    with page.expect_response("**/api/me"):
        page.locator("#shortcuts").uncheck()
    page.reload()
    expect(page.locator("#shortcuts")).not_to_be_checked()
    page.locator(".card").first.press("1")
    page.keyboard.press("x")
    expect(page.locator(".card.ranked")).to_have_count(0)
    expect(page.locator("#all-bad")).not_to_be_checked()
    page.keyboard.press("ArrowUp")
    expect(page.locator(".card.ranked")).to_have_count(1)


def test_the_language_is_switched_without_losing_anything(ranking: Ranking) -> None:
    page, _ = ranking
    page.keyboard.press("1")
    page.locator('.languages [value="en"]').click()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.locator(".card .rank").first).to_have_text("rank 1")
    expect(page.locator(".card").first).to_have_accessible_name("Candidate A, rank 1")
    page.reload()
    expect(page.locator("#submit")).to_have_text("Submit")
    assert "順位" not in page.locator("main").inner_text().replace("順位づけ", "")
    page.locator(".card").first.press("9")
    expect(page.locator("#announce")).to_contain_text("Ranks are 1 to 2")


def test_people_are_invited_and_locked_out(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with one_task(tmp_path) as server:
        page = visit(server.start)
        page.wait_for_url("**/guidelines")
        page.goto(f"{server.address}/people")
        page.locator("#person").fill("<b>鈴木</b>")
        page.locator("#person").press("Enter")
        expect(page.locator("#address")).to_have_value(re.compile(r"^http://127\.0\.0\.1:\d+/i/.+"))
        assert page.locator("#people b").count() == 0
        guest = visit(page.locator("#address").input_value())
        begin(guest)
        assert guest.locator('nav a[href="/people"]').count() == 0
        # a link in somebody's mail takes nobody's place unasked, and leads the guest in
        for who, words in ((page, "プライベートウィンドウ"), (guest, "宿の感想")):
            mail = who.context.new_page()
            mail.set_content(f'<a href="{page.locator("#address").input_value()}">link</a>')
            mail.locator("a").click()
            expect(mail.locator("body")).to_contain_text(words)
        revoke = page.locator("#people .person", has_text="鈴木").get_by_role("button", name="取り消す")
        revoke.click()
        page.locator("#sure-do").click()
        expect(page.locator("#people .person", has_text="鈴木")).to_contain_text("取り消し済み")
        assert guest.context.request.get(f"{server.address}/api/next").status == 401
        # a second try that fails shows no link of the first
        page.locator("#person").fill("<b>鈴木</b>")
        page.locator("#person").press("Enter")
        expect(page.locator("#alarm")).to_contain_text("すでにいます")
        expect(page.locator("#invited")).to_be_hidden()


def test_nothing_can_be_pressed_before_the_scripts_that_answer(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with one_task(tmp_path) as server:
        page = visit(server.start)
        page.wait_for_url("**/guidelines")
        held: list[Route] = []
        page.route("**/static/people.js", lambda route: held.append(route))
        page.goto(f"{server.address}/people", wait_until="commit")
        for button in ("#freeze", ".languages button[value='en']"):
            with pytest.raises(TimeoutError):
                page.locator(button).click(timeout=500)
        held[0].continue_()
        page.locator("#freeze").click()
        expect(page.locator("#sure-question")).to_be_visible()


@pytest.fixture
def two_runs(tmp_path: Path) -> list[RunDir]:
    runs = []
    for name in ("first", "second"):
        run = RunDir.create(tmp_path / "runs", name, {"ppo": {"kl_target": 6.0, "kl_cap": 30.0}}, seed=0)
        run.append_samples(0, [{"prompt": "フロントの対応は", "response": "<b>普通</b>", "score": 0.1, "kl": 0.0}])
        for update in range(1, 13):
            figures = {"ppo/mean_scores": update / 10, "objective/kl": update / 2, "objective/kl_coef": 0.05, "odd/key": 1.0}
            run.append_metrics(update, figures | {"objective/entropy": 40.0 - update, "tokens/responses_len_mean": 12.0})
            sample = {"prompt": "フロントの対応は", "response": f"{update} 回目の文", "score": 1.0, "kl": 1.0}
            run.append_samples(update, [sample])
        runs.append(run)
    return runs


def test_runs_are_watched_as_they_go(two_runs: list[RunDir], visit: Callable[..., Page]) -> None:
    with Server(None, [run.path for run in two_runs]) as server:
        page = visit(server.start, locale="en-GB")
        page.wait_for_url("**/watch")
        figures = page.locator("figure")
        expect(figures).to_have_count(3)
        expect(page.get_by_text("Did not change:")).to_contain_text("KL coefficient 0.05 · Response length 12.00")
        expect(figures.first.locator("path.line")).to_have_count(2)
        expect(figures.first.locator("svg")).to_have_attribute("aria-label", "mean score: first 1.2, second 1.2")
        texts = page.locator('[data-part="samples"]')
        expect(texts).to_contain_text("12 回目の文")
        assert texts.locator("b").count() == 0
        expect(page.locator("#alerts p")).to_have_count(0)
        # it goes on, too far; the other one dies
        two_runs[0].append_metrics(13, {"ppo/mean_scores": 0.5, "objective/kl": 28.0})
        difference = {"mean": 1.25, "low": 1.0, "high": 1.5, "level": 0.95, "wins": 5, "losses": 2, "ties": 1}
        text = {"prompt": "朝食は", "before": "<i>普通</i>", "after": "最高でした", "score_before": 0.1, "score_after": 2.0}
        verdict = {"grade": "few", "en": "Too few prompts.", "ja": "少なすぎます。"}
        two_runs[1].write_json("compare.json", {"version": 1, "difference": difference, "verdict": verdict, "texts": [text]})
        two_runs[1].set_status("failed", "out of memory")
        expect(page.locator("#alerts p")).to_have_count(2)
        expect(page.locator("#alerts")).to_contain_text("the KL 28 is near its cap 30")
        expect(page.locator("#alerts")).to_contain_text("second: failed. out of memory")
        expect(figures.first.locator("svg")).to_have_attribute("aria-label", "mean score: first 0.5, second 1.2")
        second = page.locator('[data-of="1"]')
        expect(second).to_contain_text("+1.25 [+1.00, +1.50]")
        expect(second.locator(".verdict")).to_have_text("Too few prompts.")
        second.locator("summary").first.click()
        expect(second.locator(".sides .text").first).to_have_text("<i>普通</i>")
        two_runs[0].append_metrics(14, {"ppo/mean_scores": 0.6, "objective/kl": 28.0})
        expect(figures.first.locator("svg")).to_have_attribute("aria-label", "mean score: first 0.6, second 1.2")
        expect(second.locator(".sides .text").first).to_be_visible()  # what was opened stays so
        page.locator('[data-run="1"]').uncheck()  # one alone: the page of its report
        expect(second).to_have_count(0)
        expect(figures.first.locator("path.line")).to_have_count(1)
        expect(page.locator('figure[data-chart="path"]')).to_have_count(1)
        expect(page.locator("#page")).to_contain_text("The before/after has not been made.")
        page.locator("#all-curves").check()
        expect(figures).to_have_count(5)
        page.get_by_role("button", name="日本語").click()
        expect(page.locator("#page")).to_contain_text("学習前後の比較はまだ行われていません。")


def test_runs_of_sft_and_reward_models_are_watched_too(tmp_path: Path, visit: Callable[..., Page]) -> None:
    sft = RunDir.create(tmp_path, "sft", {"sft": {}}, seed=0)
    reward = RunDir.create(tmp_path, "reward", {"train": {}}, seed=0)
    sft.append_metrics(0, {"eval/loss": 3.0, "eval/perplexity": 20.1})
    sft.append_metrics(1, {"sft/loss": 2.5})
    reward.append_metrics(1, {"epoch": 0.5, "train/loss": 0.7, "eval/loss": 0.68, "eval/accuracy": 0.6})
    with Server(None, [sft.path, reward.path]) as server:
        page = visit(server.start, locale="en-GB")
        figures = page.locator("figure")
        expect(figures).to_have_count(5)
        perplexity = page.locator('[data-chart="held_out_perplexity"] svg')
        expect(perplexity).to_have_attribute("aria-label", "Perplexity on held-out texts: sft 20.1")
        sft.append_metrics(1, {"eval/loss": 2.0, "eval/perplexity": 7.39})  # the evaluation after an update that was seen
        expect(perplexity).to_have_attribute("aria-label", "Perplexity on held-out texts: sft 7.39")
        page.locator('[data-run="1"]').uncheck()
        expect(figures).to_have_count(3)


def test_what_a_run_says_last_is_there(two_runs: list[RunDir], visit: Callable[..., Page]) -> None:
    run = two_runs[0]
    falling = [5.0] * 6 + [0.0] * 7
    for update, score in enumerate(falling, start=13):
        run.append_metrics(update, {"ppo/mean_scores": score, "objective/kl": 0.0 if update % 2 else -0.1})
    with Server(None, [run.path]) as server:
        page = visit(server.start, locale="en-GB")
        expect(page.locator("#alerts")).to_contain_text("the score falls")
        assert "−0" not in page.locator("figure svg text").all_inner_texts()
        expect(page.locator('[data-chart="kl_short"]').locator("svg text", has_text="update")).to_have_count(1)
        # the figures of the last update were seen already; its texts and the end come a moment later
        sample = {"prompt": "フロントの対応は", "response": "これが最後の文", "score": 1.0, "kl": 1.0}
        run.append_samples(25, [sample])
        run.set_status("finished")
        texts = page.locator('[data-part="samples"]')
        expect(texts).to_contain_text("これが最後の文")
        expect(texts).to_contain_text("<b>普通</b>")  # and the first one stays
        expect(texts.locator(".of-prompt").first).to_have_attribute("lang", "ja")
        expect(page.locator("#runs")).to_contain_text("finished")
        expect(page.locator("#alerts p")).to_have_count(0)
        (run.path / "run.json").write_text("{")
        expect(page.locator("#runs")).to_contain_text("state unknown")
        assert page.locator("h1, h2").all_inner_texts().count("Runs") == 1


def test_a_scan_for_accessibility_finds_nothing(tmp_path: Path, two_runs: list[RunDir], visit: Callable[..., Page]) -> None:
    """Also in dark colours, where contrast alone is another."""
    tasks = [[f"文 {n}" for n in range(9)]]
    with Server(project_of(tmp_path / "project", tasks), [run.path for run in two_runs]) as server:
        page = visit(server.start, viewport={"width": 640, "height": 500})  # a screen of 1280 at 200 %

        def scan(what: str) -> None:
            found = Axe().run(page)["violations"]
            page.emulate_media(color_scheme="dark")
            dark = Axe().run(page, options={"runOnly": ["color-contrast"]})
            assert dark["passes"] or dark["incomplete"] or dark["violations"], what
            found += dark["violations"]
            page.emulate_media(color_scheme="light")
            assert [(what, each["id"], each["nodes"][0]["html"]) for each in found] == []
            assert page.evaluate("document.documentElement.scrollWidth") <= 640
            small = page.evaluate("""() => [...document.querySelectorAll('button, input, summary, nav a')].filter(each => {
                const box = (each.closest('label') ?? each).getBoundingClientRect();
                return each.checkVisibility() && box.width && (box.width < 24 || box.height < 24);
            }).map(each => each.outerHTML)""")
            assert small == []

        page.wait_for_url("**/guidelines")
        page.locator("#seen:enabled").wait_for()
        scan("guidelines")
        page.locator("#seen").click()
        page.locator(".card").first.wait_for()
        for key in "1234":
            page.keyboard.press(key)
        scan("rank")
        page.locator('.languages [value="en"]').click()
        page.keyboard.press("s")
        scan("skip")
        page.keyboard.press("Escape")
        page.locator('[data-act="guidelines"]').click()
        scan("guidelines at hand")
        page.keyboard.press("Escape")
        for details in page.locator("details summary").all():
            details.click()
        scan("flags and keys")
        page.context.set_offline(True)
        page.keyboard.press("x")
        page.locator("#submit").click()
        expect(page.locator("#state")).to_have_attribute("data-state", "offline")
        scan("offline")
        page.context.set_offline(False)
        page.locator("#done").wait_for()
        scan("done")
        page.locator('[data-act="earlier"]').click()
        page.locator("#earlier-list button").wait_for()
        scan("earlier")
        page.locator("#earlier-list button").click()
        page.locator("#editing").wait_for()
        page.route("**/api/mine", lambda route: route.fulfill(status=503, body="{}"))
        page.locator('[data-act="earlier"]').click()
        page.locator("#alarm").wait_for()
        scan("editing, with an alarm")
        page.goto(f"{server.address}/people")
        page.locator("#person").fill("鈴木")
        page.locator("#person").press("Enter")
        page.locator("#invited").wait_for()
        scan("people, one invited")
        invite = page.locator("#address").input_value()
        page.locator(".person button").last.click()
        page.locator("#sure-question").wait_for()
        scan("sure?")
        page.goto(invite)
        expect(page.locator("main a")).to_have_count(2)
        scan("whose link")
        page.goto(f"{server.address}/nothing")
        scan("error")
        page.goto(f"{server.address}/watch")
        page.locator("figure").first.wait_for()
        scan("watch")
        page.locator('[data-run="1"]').uncheck()
        page.locator('[data-chart="path"]').wait_for()
        scan("one run")


def test_the_first_page_is_light_and_comes_from_here(tmp_path: Path, visit: Callable[..., Page]) -> None:
    with one_task(tmp_path) as server:
        begin(visit(server.start))
        page = visit("about:blank")  # another person's browser, with nothing kept in it
        responses: list[Any] = []
        page.on("response", lambda response: responses.append(response))
        page.goto(server.start)
        page.locator(".card").first.wait_for()
        page.wait_for_load_state("networkidle")
        sizes = {response.url: len(response.body()) for response in responses if response.status == 200}
        assert len(sizes) > 8
        assert all(url.startswith(server.address) for url in sizes)
        assert sum(sizes.values()) < 100_000
        # keyboards find what is focused above the tray, never under it
        page.set_viewport_size({"width": 360, "height": 740})
        tray = page.locator("#tray").bounding_box()
        page.locator("#comment").focus()
        comment = page.locator("#comment").bounding_box()
        assert tray
        assert comment
        assert comment["y"] + comment["height"] <= page.locator("#tray").bounding_box()["y"] + 1  # type: ignore[index]

"""The report of a run: self-contained, in both languages, and deaf to what texts try to do to it; drawn in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from some_runs import (
    HOSTILE,
    LABELS,
    PPO,
    REWARD,
    SFT,
    add_compare,
    add_evaluations,
    judged_run,
    landed,
    ppo_run,
    preference,
    reward_run,
    scored_texts,
    sft_run,
)
from typer.testing import CliRunner

from browsing import browser, visit  # noqa: F401
from konomi.cli import app
from konomi.errors import DataError
from konomi.report.advice import change, locale
from konomi.report.page import SAMPLE_UPDATES, SCRIPTS, STATIC, data_of, write_report, write_rounds
from konomi.runs.directory import RunDir
from konomi.statistics import evaluate_labels, evaluate_preferences, evaluate_scores, evaluate_truth
from konomi.text import flat
from konomi.training.guard import Alarm

if TYPE_CHECKING:
    from playwright.sync_api import Page

CURVES = ["score_mean", "kl_short", "kl_coef", "entropy", "response_length", "policy_loss", "value_loss", "path"]


class Elements(HTMLParser):
    """The tags of a file with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))


def written(run: RunDir) -> str:
    path = write_report(run)
    assert path == run.report
    return path.read_text(encoding="utf-8")


@pytest.fixture
def drawn(visit: Callable[..., Page]) -> Callable[..., Page]:  # noqa: F811
    """Writes a run's report and opens it, in the window of the run before where there is one."""
    window: list[Page] = []

    def open_report(run: RunDir, **options: Any) -> Page:
        address = write_report(run).absolute().as_uri()
        if not window or options:
            window.insert(0, visit(address, **{"locale": "en-US", **options}))
        else:
            window[0].goto(address)
        return window[0]

    return open_report


def text_of(page: Page) -> str:
    return page.locator("h1").inner_text() + "\n" + (page.locator("#page").text_content() or "")


def dots(page: Page) -> dict[str, int]:
    counted = "all => all.map(each => [each.dataset.chart, each.querySelectorAll('.dot.run-0').length])"
    return dict(page.locator("figure").evaluate_all(counted))


def cells(page: Page, part: str) -> list[list[str]]:
    read = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent.trim()))"
    return list(page.locator(f'table[data-part="{part}"] tbody tr').evaluate_all(read))


def test_a_whole_run(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    run = ppo_run(tmp_path)
    add_compare(run)
    odd = {"ppo/policy/ratio": 1.5, "ppo/policy/approxkl": 0.2, "ppo/policy/entropy": 0.1, "ppo/policy/grad_norm": 40.0}
    run.append_metrics(16, {"out_of_range": list(odd), **odd})
    run.set_status("finished")
    page = drawn(run)
    assert page.title() == "run: PPO of embedded:gemma3-270m toward embedded:asari (positive)"
    assert dots(page) == dict.fromkeys(CURVES, 16)
    assert (page.locator(".band").count(), page.locator("figure line.limit").count()) == (1, 1)
    marks = page.locator(".mark").evaluate_all("all => all.map(each => each.getAttribute('class'))")
    assert marks == [f"mark mark-{name}" for name in ("first", "last", "before", "after")]
    text = text_of(page)
    order = [
        "PPO of ", "finished", "The mean score rose by 2.03 on 64 held-out prompts (95 % interval +1.60 to +2.41).",
        "−0.48 → 1.55", "+2.03 [+1.60, +2.41]", "52 / 64", "nats/response", "16 / 16", "p0", "p1", "p2", "mean score raw score",
        "−0.48 ± 1.40", "29.80", "+5.80", "(95 %)", "Mean score"[1:], "ppo/policy/ratio: 1/17, 1.5 (0.95 to 1.05)", "p3", "+3.75",
        "More texts (9)", "p19", "p20", "応答1", "応答16", "classifier embedded:asari (positive, logit, both)", "fp32",
        run.info["machine"]["platform"],
    ]  # fmt: skip
    places = [0]
    for part in order:
        places.append(text.find(part, places[-1]))
        assert places[-1] >= 0, part
    assert page.locator("article.pair").count() == 23
    assert json.loads(page.locator('[data-key="0 config"] pre').text_content() or "") == PPO
    # values under the pointer
    chart = page.locator('figure[data-chart="score_mean"]')
    chart.locator("svg").hover(position={"x": 5, "y": 50})
    assert re.fullmatch(r"update 1: −0\.\d+ ± 1\.47", chart.locator(".reading").inner_text())
    path = page.locator('figure[data-chart="path"]')
    path.locator(".mark-last").hover(force=True)
    assert path.locator(".reading").inner_text().startswith("update 16: 6.")
    page.get_by_label("Show all curves").check()
    assert page.locator('figure[data-chart="ppo/learning_rate"]').count() == 1
    # the other language; what was opened stays open
    page.locator('[data-key="0 config"] summary').click()
    page.get_by_role("button", name="日本語").click()
    assert "更新" in text_of(page) and "nats/応答" in text_of(page) and "完了" in text_of(page)
    assert not re.search(r"\b(?:held-out|mean score|update)\b", page.locator("#page").inner_text())
    assert page.locator("details[open]").count() == 3 and page.get_by_label("すべての曲線を表示").is_checked()
    add_compare(run, prompts=1)
    assert not re.search(r"\b1 [a-z-]*( ?[a-z]+)s\b", page.locator(".verdict").inner_text())


def test_it_is_read_on_a_telephone_at_night_and_on_paper(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    run = reward_run(tmp_path)
    for size, scheme, paper in ((390, "dark", "rgb(23, 22, 19)"), (1280, "light", "rgb(251, 250, 247)")):
        page = drawn(run, viewport={"width": size, "height": 800}, color_scheme=scheme, locale="ja-JP")
        assert page.evaluate("document.documentElement.scrollWidth") == size
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        assert page.evaluate("document.documentElement.lang") == "ja" and "報酬モデル" in text_of(page)
    page.emulate_media(media="print")
    assert not page.locator(".languages").is_visible() and page.locator("figure svg").first.is_visible()


def test_a_series_that_does_not_change_is_no_chart(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    run = RunDir.create(tmp_path, "fixed", PPO | {"ppo": {"kl_controller": "fixed", "kl_target": 6.0}}, seed=0)
    for update in (1, 2, 3):
        run.append_metrics(update, {"objective/kl": 1.0 * update, "objective/kl_coef": 0.2, "ppo/learning_rate": 1e-5 / update})
    page = drawn(run)
    assert dots(page) == {"kl_short": 3}
    assert page.get_by_text("Did not change:").inner_text() == "Did not change: KL coefficient 0.2"
    assert page.locator("line.limit").count() == 0  # a fixed coefficient has no target


def test_verdicts() -> None:
    for prompts, low, high, grade in (
        (60, 0.5, 1.5, "better"), (60, -1.5, -0.5, "worse"), (60, -0.5, 1.5, "unclear"), (29, 0.5, 1.5, "few"),
        (60, None, None, "same"),
    ):  # fmt: skip
        said = change({"mean": 0.5, "low": low, "high": high}, prompts)
        assert said["grade"] == grade
        assert f"{prompts} held-out prompts" in said["en"] and f"{prompts} 個" in said["ja"]
    assert "1 held-out prompt:" in change({"mean": 0.5, "low": None, "high": None}, 1)["en"]
    assert change({}, 0)["grade"] == "few"


def test_a_run_of_sft(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    run = sft_run(tmp_path, [3.0, 2.0, 2.5])
    run.append_samples(4, [{"prompt": "書き出し", "response": "応答", "score": None, "kl": None}])
    run.set_status("finished")
    page = drawn(run)
    assert dots(page) == {"train_loss": 2, "eval_loss": 3, "held_out_perplexity": 3}
    for part in (
        "Fine-tuning of embedded:gemma3-270m-ja on texts.jsonl", "20.09 → 7.39", "3.00 → 2.00", "finished", "応答",
        "the perplexity fell from 20.09 to 7.39: the model after update 4 is the best",
    ):  # fmt: skip
        assert part in text_of(page), part
    assert "Before and after" not in text_of(page) and "NaN" not in text_of(page)
    for losses, part in (
        ([3.0, 3.5], "No evaluation was better"), ([3.0, 3.5, 3.4], "3.00 → 3.00"), ([3.0], "No evaluation of the trained"),
        ([], "No evaluation of the trained"),
    ):  # fmt: skip
        assert part in text_of(drawn(sft_run(tmp_path, losses, f"of{len(losses)}")))


def test_a_run_of_dpo_has_its_evaluation_and_a_before_after_if_one_was_made(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    run = reward_run(tmp_path)
    run.note(verb="dpo")
    said = text_of(drawn(run))
    assert "DPO of embedded:gemma3-270m on pairs.jsonl" in said and "How far it can be trusted" in said
    assert "Before and after" not in said and "Accuracy by part" in said
    add_compare(run)
    said = text_of(drawn(run))
    for part in ("Before and after", "The mean score ", "distance (KL)", "How far it can be trusted", "Accuracy by part"):
        assert part in said, part


def test_judges_and_best_of_n(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    run = judged_run(tmp_path)
    page = drawn(run)
    found = dots(page)
    assert list(found)[:3] == ["score_mean", "judge_0", "judge_1"]
    assert {key: found[key] for key in found if "judge" in key} == dict.fromkeys(
        ("judge_0", "judge_1", "judge_path_0", "judge_path_1"), 3
    )
    beside = {key: page.locator(f'figure[data-chart="{key}"] .dot.beside').count() for key in found}
    assert {key: count for key, count in beside.items() if count} == {"path": 3, "judge_path_0": 3}
    for part in (
        "sum (1 × mood: classifier embedded:asari (positive), -0.5 × short: function m:f)", "strict: function m:f",
        "遠い: http http://host:8000/score", "0.5 → 1.25", "+0.75 [+0.25, +1.25]", "7.25", "8.50", "A judge is a reward",
        "best of n",
    ):  # fmt: skip
        assert part in text_of(page), part
    chart = page.locator('figure[data-chart="judge_path_0"]')
    chart.locator(".dot.beside").last.hover(force=True)
    assert chart.locator(".reading").inner_text() == "n = 4: 1.2, 0.2"
    assert text_of(page).count("geheim") == 1  # in the whole configuration at the end of the page
    add_compare(plain := ppo_run(tmp_path, 2))
    page = drawn(plain)
    assert page.locator(".beside").count() == 0 and not re.search("judge|best of n", text_of(page))


def test_a_preference_model(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    truth = evaluate_truth([(str(i), [0.0, 1.0], [0.0, 0.5 - i % 3 / 4]) for i in range(40)])
    run = reward_run(tmp_path, truth=truth, train=preference(None))
    run.set_status("finished")
    page = drawn(run)
    found = run.read_json("eval.json")["held_out"]
    accuracy, agreement = found["accuracy"], found["agreement"]
    for part in (
        f"{100 * accuracy['value']:.1f} %", f"[{100 * accuracy['low']:.1f} %, {100 * accuracy['high']:.1f} %]",
        f"{100 * agreement['ceiling']['value']:.1f} %", f"{100 * found['longer']['accuracy']['value']:.1f} %",
        f"{100 * found['baselines']['text']['accuracy']['value']:.1f} %", "text baseline (characters counted)",
        "240", "in training: 800", found["verdict"]["en"], "μ = 1.50, σ = 0.75, n = 64", "embedded:gemma3-270m", "pairs.jsonl",
        "fp32", "finished", f"{100 * truth['accuracy']['value']:.1f} %", "accuracy against the truth", "Kendall",
    ):  # fmt: skip
        assert part in text_of(page), part
    curves = {"train_loss": 12, "eval_loss": 3, "eval_accuracy": 3}
    assert dots(page) == curves | {"calibration": len(found["calibration"]["bins"])}
    assert page.locator("path.limit").count() == 1  # where said and observed are equal
    assert len(cells(page, "by_length")) == len(cells(page, "by_length_difference")) == 4
    assert [row[:2] for row in cells(page, "by_source")] in (
        [["web", "120"], ["not named", "120"]],
        [["not named", "120"], ["web", "120"]],
    )
    assert re.fullmatch(r"−\d+ – −\d+", cells(page, "by_length_difference")[0][0])
    values = page.locator('[data-part="by_source"] circle.value').evaluate_all("all => all.map(each => each.cx.baseVal.value)")
    assert values == pytest.approx([100 * row["accuracy"]["value"] for row in found["by_source"]])


def test_the_ends_of_the_scored_texts_are_shown(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    order = [item["response"] for item in sorted(scored_texts(), key=lambda item: -item["score"])]
    assert re.findall(r"応答\d+", text_of(drawn(reward_run(tmp_path)))) == order[:5] + order[::-1][:5]
    for count in range(4):
        page = drawn(reward_run(tmp_path, name=f"of{count}", texts=scored_texts(count)))
        assert len(re.findall(r"応答\d+", text_of(page))) == count


def test_a_classifier_and_a_regression(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    run = reward_run(tmp_path, "classification")
    page = drawn(run)
    found = run.read_json("eval.json")["held_out"]
    assert cells(page, "confusion") == [[label, *map(str, row)] for label, row in zip(LABELS, found["confusion"], strict=True)]
    assert [row[:2] for row in cells(page, "classes")] == [[row["label"], str(row["count"])] for row in found["classes"]]
    assert page.locator("td.hit").count() == 3
    assert set(dots(page)) == {"train_loss", "eval_loss", "eval_accuracy", "calibration"}
    assert "macro F1" in text_of(page) and found["majority"]["label"] in text_of(page)
    run = reward_run(tmp_path, "score", "regression")
    page = drawn(run)
    assert set(dots(page)) == {"train_loss", "eval_loss"}
    assert f"{run.read_json('eval.json')['held_out']['r2']['value']:.3g}[" in text_of(page)


def test_it_needs_nothing_from_outside(tmp_path: Path) -> None:
    for run in (ppo_run(tmp_path), reward_run(tmp_path, name="reward"), sft_run(tmp_path, [3.0])):
        text = written(run)
        for word in ("https://", "src=", "url(", "@import", "<link", "<img", "<iframe", "<object", "fetch(", "import "):
            assert word not in text, word
        assert set(re.findall("http://[^\"']*", text)) == {"http://www.w3.org/2000/svg"}
        file = Elements(text)
        (policy,) = (a["content"] for _, a in file.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
        for kind in ("style", "script"):
            (content,) = re.findall(f"<{kind}(?: type=.module.)?>(.*?)</{kind}>", text, flags=re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
        assert not any(name == "style" or name.startswith("on") for _, attrs in file.tags for name in attrs)


def test_every_word_is_in_use() -> None:
    scripts = [*STATIC.glob("*.js"), STATIC.parents[1] / "web" / "static" / "runs.js"]
    source = "".join(path.read_text(encoding="utf-8") for path in [*scripts, STATIC.parent / "page.py"])
    keys = set(locale("page")["en"])
    asked = set(re.findall(r'\bt\("(\w+)"[,)]', source)) | set(re.findall(r'\b(?:section|tile|unit)\("(\w+)"', source))
    assert asked <= keys
    used = set(re.findall(r'"(\w+)"', source)) | {f"{key}_about" for key in keys} | {"language"}
    assert sorted(key for key in keys - used if not key.startswith(("status_", "title_"))) == []


def test_the_modules_are_one_script(tmp_path: Path) -> None:
    """Their names would collide, and what one takes from another has to come before."""
    names: list[str] = []
    for i, file in enumerate(SCRIPTS):
        source = (STATIC / file).read_text(encoding="utf-8")
        names += re.findall(r"^(?:export )?(?:async )?(?:const|let|function|class) (\w+)", source, flags=re.MULTILINE)
        assert set(re.findall(r'^import .*"\./(\S+)";$', source, flags=re.MULTILINE)) <= set(SCRIPTS[:i])
    assert len(names) == len(set(names))
    assert {path.name for path in STATIC.glob("*.js")} == set(SCRIPTS)


def test_parts_may_be_missing(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    for updates in (0, 1, 2):
        for status in ("running", "failed", "stopped", "finished"):
            run = ppo_run(tmp_path, updates, f"{status}{updates}")
            run.set_status(status, None if status == "finished" else "the KL is above kl_cap")
            page = drawn(run)
            assert dots(page) == (dict.fromkeys(CURVES, updates) if updates else {})
            assert page.locator(f".status-{status}").count() == 1
            text = text_of(page)
            assert ("There are no figures yet." in text) == (updates == 0)
            assert "The before/after has not been made." in text
            assert ("the KL is above kl_cap" in text) == (status != "finished")
            assert not re.search("NaN|undefined|null|Infinity", text.split("run.json")[0].replace("null", "", 2))


def test_rounds_and_their_comparisons(tmp_path: Path, drawn: Callable[..., Page], visit: Callable[..., Page]) -> None:  # noqa: F811
    def a_round(number: int, low: float) -> dict[str, Any]:
        gap = {"mean": low + 0.4, "low": low, "high": low + 0.8}
        sides = {"before": number - 1.0, "after": number + 0.0}
        return {
            "round": number, "won": low > 0, "by": "noise-free", "difference": gap, "score": {**sides, "difference": gap},
            "judges": {"noise-free": {**sides, "difference": gap}}, "kl": sides, "distinct_2": sides, "model": None,
            "learned": {"comparisons": 1200 * number, "accuracy": 0.66, "agreement": None},
            "reports": {"policy": f"round-{number}/policy/report.html"},
        }  # fmt: skip

    write_rounds(tmp_path, {"name": "rounds-ja", "planned": 3, "rounds": [a_round(1, 0.3), a_round(2, -0.1)]})
    page = visit((tmp_path / "report.html").absolute().as_uri(), locale="en-US")
    assert page.locator(".verdict").inner_text().startswith("Round 2 does not win against the one before")
    assert dots(page) == {"round_judge_0": 3, "round_kl": 3, "round_gain": 2}
    rows = cells(page, "rounds")
    assert rows[0] == ["1", "policy", "judge noise-free +0.7 [+0.3, +1.10]", "0 → 1.00", "0 → 1.00", "1,200", "66.0 %", "–"]
    links = page.locator("table a").evaluate_all("all => all.map(each => each.getAttribute('href'))")
    assert links == ["round-1/policy/report.html", "round-2/policy/report.html"]
    page.locator("button[lang=ja]").click()
    assert "ラウンド 2 は前のラウンドに勝っていません" in page.locator(".verdict").inner_text()

    before = (tmp_path / "report.html").stat().st_mtime_ns
    write_rounds(tmp_path, {"name": "rounds-ja", "planned": 3, "rounds": [a_round(1, 0.3), a_round(2, -0.1)]})
    assert (tmp_path / "report.html").stat().st_mtime_ns == before

    config = {"before": "round-1/policy/model", **{key: PPO[key] for key in ("model", "reward")}}
    run = RunDir.create(tmp_path, "verdict", config, seed=0, extra={"verb": "compare"})
    add_compare(run)
    shown = drawn(run)
    assert "round-1/policy/model" in text_of(shown) and cells(shown, "before_after")[0][0].startswith("mean score")
    assert dots(shown) == {} and shown.locator(".pair").count() == 23


def test_guards_and_the_same_prompts_over_time(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    run = ppo_run(tmp_path)
    add_evaluations(run)
    event = Alarm(7, "kl_cap", 41.25, 30.0).event("rolled_back", to=4, rate_factor=0.5, count=1, most=2)
    run.note(guards=[event])
    page = drawn(run)
    chart = page.locator('figure[data-chart="held_out_gain"]')
    assert (chart.locator(".dot").count(), chart.locator(".band").count()) == (4, 1)
    chart.locator("svg").hover(position={"x": 5, "y": 50})
    assert chart.locator(".reading").inner_text() == "update 4: 0.5 [0, 1.5]"
    guards = page.locator('[data-part="guards"] li')
    assert guards.all_inner_texts() == [f"update 7: {event['en']}"]
    first, *rest = page.locator('[data-part="over_time"] article').all()
    assert len(rest) == 4 and page.get_by_text("More texts (2)").count() == 1
    heads = [
        "before · score 0",
        "update 4 · score 1.00",
        "update 8 · score 2.00",
        "update 12 · score 3.00",
        "update 16 · score 4.00",
    ]
    answers = [f"{update}回目の答え0" for update in (0, 4, 8, 12, 16)]
    assert first.locator("p").all_inner_texts() == [
        "prompt",
        "同じ0",
        *(x for pair in zip(heads, answers, strict=True) for x in pair),
    ]
    page.get_by_role("button", name="日本語").click()
    assert guards.all_inner_texts() == [f"更新 7: {event['ja']}"]


def test_the_line_is_a_dial(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    run = judged_run(tmp_path)
    run.write_json("land.json", landed())
    run.write_json("config.json", run.config | {"algorithm": {"kind": "rloo"}})
    page = drawn(run)
    assert page.title().startswith("judged: RLOO of ")
    found = {key: count for key, count in dots(page).items() if key.startswith("dial")}
    assert found == dict.fromkeys(("dial_score", "dial_kl", "dial_judge_0", "dial_variety"), 4)
    part = page.locator('[data-part="landing"]')
    assert part.locator(".mark-landed").count() == 4 and part.locator("line.limit").count() == 1
    assert "At 50.0 % of the way from the initial to the trained weights the KL is 2.00 nats/response" in part.inner_text()
    part.locator('figure[data-chart="dial_kl"] svg').hover(position={"x": 5, "y": 50})
    assert part.locator('figure[data-chart="dial_kl"] .reading').inner_text() == "share of the way 0: 0"
    page.get_by_role("button", name="日本語").click()
    assert "50.0 % の位置で、KL は 1 応答あたり 2.00 ナットです" in part.inner_text()


def test_a_bare_run(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    run = RunDir.create(tmp_path, "bare", {"run": {}}, seed=0)
    run.write_json("run.json", {"version": 1})
    run.append_metrics(1, {"time": 5.0})
    run.append_samples(1, [{}])
    add_compare(run, before={}, after={}, difference={}, texts=[{}])
    page = drawn(run)
    assert "bare" in text_of(page) and "–" in text_of(page)


def test_a_reward_run_of_which_parts_are_missing(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    run = RunDir.create(tmp_path, "bare", {"run": {}}, seed=0, extra={"verb": "reward"})
    run.set_status("failed", "the loss is not a number")
    text = text_of(drawn(run))
    assert "The model has not been evaluated." in text and "There are no figures yet." in text
    assert "the loss is not a number" in text and "bare" in text
    for update, loss in enumerate((0.7, math.nan, 0.6), start=1):
        run.append_metrics(update, {"train/loss": loss})
    for task in ("preference", "classification", "score", "another", None):
        for held_out in ({}, {"accuracy": {"value": None, "low": None, "high": None}}, {"comparisons": 3, "agreement": None}):
            run.write_json("eval.json", {"version": 1, "task": task, "held_out": held_out, "truth": held_out, "texts": [{}]})
            page = drawn(run)
            assert dots(page) == {"train_loss": 2}
            assert not re.search("NaN|None|undefined", text_of(page))
    nothing = {"preference": evaluate_preferences([], []), "classification": evaluate_labels([], [], LABELS),
               "score": evaluate_scores([], [], [])}  # fmt: skip
    for task, empty in nothing.items():
        page = drawn(reward_run(tmp_path, task, f"no-{task}", held_out=empty, truth=evaluate_truth([]), normalisation=None))
        assert "–" in text_of(page) and not re.search("NaN|None|undefined", text_of(page))


def test_gaps_and_axes(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    run = RunDir.create(tmp_path, "gaps", PPO, seed=0)
    for update, score in enumerate([1.0, math.nan, 2.0, 3.0], start=1):
        run.append_metrics(update, {"ppo/mean_scores": score, "ppo/std_scores": 0.5, "objective/kl": math.nan, "own": 1.0})
    page = drawn(run)
    assert dots(page) == {"score_mean": 3}
    line = page.locator("path.line").get_attribute("d") or ""
    bands = [band.get_attribute("d") or "" for band in page.locator("path.band").all()]
    assert (line.count("M"), line.count("L"), line.count("h")) == (2, 1, 1)
    assert len(bands) == 2 and all(band.endswith("Z") for band in bands)
    # ticks are round; a value is where the axis says
    for values, labels in (
        ([0, 10], ["0", "2", "4", "6", "8", "10"]), ([-0.5, 1.7], ["−0.5", "0", "0.5", "1", "1.5"]),
        ([0, 1.41e-5], ["0", "0.000005", "0.00001"]), ([5.0], ["4.6", "4.8", "5", "5.2", "5.4"]),
        ([0.0], ["−0.4", "−0.2", "0", "0.2", "0.4"]),
    ):  # fmt: skip
        run = RunDir.create(tmp_path, f"ticks{labels[-1]}{len(values)}", PPO, seed=0)
        for update, value in enumerate(values, start=1):
            run.append_metrics(update, {"ppo/mean_scores": value})
        page = drawn(run)
        left = page.locator('svg text[text-anchor="end"]')
        assert left.all_text_contents() == labels
        heights = {label: float(left.nth(i).get_attribute("y") or 0) - 4 for i, label in enumerate(labels)}
        first = float(page.locator(".dot").first.get_attribute("cy") or 0)
        assert first == pytest.approx(heights[{-0.5: "−0.5"}.get(values[0], f"{values[0]:g}")])
        assert page.locator('svg text[text-anchor="middle"]').all_text_contents()[: len(values)] in (["1", "2"], ["1"])


def test_samples_of_a_long_run_are_thinned_evenly(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    page = drawn(ppo_run(tmp_path, 100))
    shown = re.findall(r"応答(\d+)", text_of(page))
    assert len(shown) == SAMPLE_UPDATES and shown[0] == "1" and shown[-1] == "100"
    assert page.locator("details[open]").count() == 2
    assert dots(page)["score_mean"] == 100


def test_hostile_texts_are_inert(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    joined = "".join(HOSTILE)

    def ppo(name: str, texts: list[str], all_of_it: str) -> RunDir:
        config = json.loads(json.dumps(PPO))
        config["model"]["name"] = config["reward"]["name"] = all_of_it
        run = ppo_run(tmp_path, 1, name, config, {"name": all_of_it, "git": {"commit": all_of_it, "dirty": True}})
        run.append_metrics(1, {f"judge/{all_of_it.replace('/', '')}/mean": 1.0})
        run.append_samples(1, [{"prompt": t, "response": t, "score": 0.0, "kl": 0.0} for t in texts])
        sides = {"score_before": 0.0, "score_after": 1.0, "held_out": True}
        add_compare(
            run, [{"prompt": t, "before": t, "after": t, **sides} for t in texts], verdict={"en": all_of_it, "ja": all_of_it}
        )
        run.set_status("failed", all_of_it)
        return run

    def reward(name: str, texts: list[str], all_of_it: str) -> RunDir:
        found = preference()
        found["by_source"][0]["source"] = all_of_it
        found |= {"labels": [all_of_it] * 2, "confusion": [[1, 2], [3, 4]], "classes": [{"label": all_of_it}]}
        scored = [{"prompt": t, "response": t, "score": i} for i, t in enumerate(texts)]
        config = REWARD | {"model": {"name": all_of_it}, "data": {"file": all_of_it}}
        return reward_run(tmp_path, name=name, config=config, held_out=found, texts=scored)

    # no text has made an element or an attribute
    attributes = "[...e.attributes].map(a => a.name).filter(name => name != 'lang')"
    skeleton = f"all => all.filter(e => !e.matches('.code, .code *')).map(e => e.tagName + {attributes})"
    for make in (ppo, reward):
        run = make(f"{make.__name__}-hostile", HOSTILE, joined)
        text = written(run)
        assert re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200f\u202e\u2066\u2069\ufeff\ud800]", text) is None
        page = drawn(run)
        elements = page.locator("body *").evaluate_all(skeleton)
        for code in ("U+202E", "U+D800", "U+0000", "{{ 7 * 7 }} {% raw %} $data ${script} &lt;b&gt;", "{reward}"):
            assert code in text_of(page), code
        assert not re.search(
            "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200f\u202e\u2066\u2069\ufeff\ud800]", page.locator("main").inner_text()
        )
        title = page.title()
        assert elements == drawn(make(f"{make.__name__}-plain", ["plain"] * len(HOSTILE), "plain")).locator(
            "body *"
        ).evaluate_all(skeleton)
        if make is ppo:
            expected = flat(f"{joined}: PPO of {joined} toward {joined} (positive)")
            assert title == " ".join(expected.split())


def test_damaged_and_newer_files_are_told(tmp_path: Path) -> None:
    for run, name, again in (
        (ppo_run(tmp_path, 1), "compare.json", "make the before/after again"),
        (ppo_run(tmp_path, 1, "lands"), "land.json", "make the run again, or delete it"),
        (reward_run(tmp_path, name="reward"), "eval.json", "train the model again"),
    ):
        run.write_json(name, {"version": 2})
        with pytest.raises(DataError, match=rf"{name}: format 2, this konomi reads 1; update konomi, or {again}"):
            write_report(run)
        run.write_json(name, [])
        with pytest.raises(DataError, match="format None"):
            write_report(run)
        (run.path / name).write_text("{", encoding="utf-8")
        with pytest.raises(DataError, match="cannot be read as JSON"):
            write_report(run)
        assert not run.report.exists()


def test_damage_that_only_the_page_meets_is_a_sentence(tmp_path: Path, drawn: Callable[..., Page]) -> None:
    run = reward_run(tmp_path)
    result = run.read_json("eval.json")
    run.write_json("eval.json", {**result, "held_out": {**result["held_out"], "by_length": "short"}})
    assert text_of(drawn(run)).endswith("A file of this run is damaged: the page cannot be drawn.")


def test_the_kind_of_page_is_that_of_the_verb(tmp_path: Path) -> None:
    run = reward_run(tmp_path)
    for verb in ("reward", "ppo", "sft", "dpo"):
        run.note(verb=verb)
        answer = CliRunner().invoke(app, ["report", str(run.path)])
        assert answer.exit_code == 0 and answer.stdout.strip() == str(run.report)
        shown = data_of(run, [])
        assert (shown["verb"], shown["evaluation"] is not None, shown["learned"]) == (verb, verb in ("reward", "dpo"), None)
    with pytest.raises(DataError, match="a run of `konomi sample` has no page"):
        write_report(RunDir.create(tmp_path, "candidates", {"sample": {}}, seed=0))
    assert data_of(RunDir.create(tmp_path, "tuned", SFT, seed=0), [])["texts"] == "texts.jsonl"

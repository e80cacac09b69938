"""The page of a run: whole, self-contained, in both languages, and deaf to what texts try to do to it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from konomi.errors import DataError
from konomi.report.advice import change
from konomi.report.page import SAMPLE_UPDATES, TEMPLATES
from konomi.report.report import TEXTS_FIRST, TEXTS_OPEN, charts, write_report
from konomi.runs.directory import RunDir
from konomi.text import flat, number, signed, visible, words

CONFIG = {
    "model": {"name": "embedded:gemma3-270m", "revision": None, "precision": "auto"},
    "reward": {"kind": "classifier", "name": "embedded:asari", "label": "positive", "use": "logit", "text": "both"},
    "ppo": {"episodes": 1024, "batch_size": 64, "kl_target": 6.0, "kl_controller": "adaptive"},
}
CURVES = [
    "score_mean",
    "kl_short",
    "kl_coef",
    "entropy",
    "response_length",
    "policy_loss",
    "value_loss",
    "path",
]
VOID = {"meta", "input", "link", "br", "img", "hr", "base"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; </style></script></textarea><svg onload=alert(1)>",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; &#60;i&#62;",
    "user\u202egnp.exe \u2066isolated\u2069 \u200fmark",
    "nul\x00 bell\x07 escape\x1b[31m lone\ud800 bom\ufeff",
    "javascript:alert(1) https://example.org/x?src=url(y)",
]


class Page(HTMLParser):
    """A strict reader: what is opened is closed, in order; attributes and texts are kept."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag: str, **having: str) -> list[dict[str, str]]:
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in having.items())]

    def everything(self) -> str:
        return "".join(text for tag, texts in self.texts.items() if tag not in ("style", "script") for text in texts)


def make_run(root: Path, updates: int = 16, name: str = "run") -> RunDir:
    rng = random.Random(0)
    run = RunDir.create(root, name, CONFIG, seed=3, extra={"precision": "fp32"})
    for u in range(1, updates + 1):
        f = u / updates
        metrics = {
            "episodes": 64 * u,
            "objective/kl": 6 * f + 0.3 * rng.gauss(0, 1),
            "objective/kl_coef": 0.2 - 0.05 * f,
            "objective/entropy": 60 - 8 * f,
            "ppo/mean_scores": -0.5 + 2.2 * f + 0.1 * rng.gauss(0, 1),
            "ppo/std_scores": 1.5 - 0.5 * f,
            "ppo/loss/policy": 0.01 * rng.gauss(0, 1),
            "ppo/loss/value": 0.5 * math.exp(-2 * f),
            "ppo/learning_rate": 1.41e-5 * (1 - f),
            "tokens/responses_len_mean": 17.0 + u / 8,
        }
        run.append_metrics(u, metrics)
        run.append_samples(u, [{"prompt": f"書き出し{u}", "response": f"応答{u}", "score": 1.25, "kl": 3.5}])
    return run


def add_compare(run: RunDir, texts: list[dict[str, Any]] | None = None, **changed: Any) -> None:
    def figures(score: float, kl: float) -> dict[str, float]:
        rest = {"score_std": 1.4, "length": 17.0, "distinct_1": 0.31, "distinct_2": 0.74, "repetition": 0.03}
        return {"score_mean": score, "kl": kl, "perplexity": 24.0 + kl, **rest}

    pair = {"before": "退屈", "after": "素晴らしい", "score_before": -1.25, "score_after": 2.5}
    if texts is None:
        texts = [{"prompt": f"p{i}", "held_out": i < 20, **pair} for i in range(23)]
    difference = {"mean": 2.03, "low": 1.6, "high": 2.41, "level": 0.95, "wins": 52, "losses": 11, "ties": 1}
    found = {"version": 1, "prompts": 64, "samples": 1, "seed": 1, "temperature": 1.0, "before": figures(-0.48, 0.0)}
    found |= {"after": figures(1.55, 5.8), "difference": difference, "texts": texts}
    run.write_json("compare.json", found | changed)


def read(run: RunDir) -> tuple[str, Page]:
    path = write_report(run)
    assert path == run.report
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def dots(text: str) -> dict[str, int]:
    figures = re.findall(r'<figure data-chart="(\w+)">(.*?)</figure>', text, flags=re.DOTALL)
    return {key: body.count('class="dot"') for key, body in figures}


def test_a_whole_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    add_compare(run)
    run.set_status("finished")
    text, page = read(run)
    assert dots(text) == dict.fromkeys(CURVES, 16)
    assert text.count('class="band"') == 1 and text.count('class="target"') == 1
    assert [a["class"] for a in page.all("circle") if a["class"].startswith("mark")] == [
        f"mark mark-{name}" for name in ("first", "last", "before", "after")
    ]
    shown = page.everything()
    for part in (
        "embedded:gemma3-270m", "classifier embedded:asari (positive, logit, both)", "fp32", "finished",
        "完了", "16 / 16", "−0.48 → 1.55", "+2.03 [+1.60, +2.41]", "95 %", "52 / 64", "29.80", "+3.75",
        "nats/response", "nats/応答",
    ):  # fmt: skip
        assert part in shown, part
    assert len(page.all("article", **{"class": "pair"})) == 23
    assert (
        f"({20 - TEXTS_FIRST - TEXTS_OPEN})" in shown
    )  # of the held-out texts, on a click; the 3 further ones are shown at once
    assert json.loads("".join(page.texts["bdi"][page.texts["bdi"].index(json.dumps(CONFIG, ensure_ascii=False, indent=2))]))


def test_the_page_begins_with_what_was_done_and_what_came_of_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    add_compare(run)
    run.set_status("finished")
    html, page = read(run)
    assert page.texts["title"][:1] == ["run: PPO of embedded:gemma3-270m toward embedded:asari (positive)"]
    order = [
        "PPO of ", "finished", "The mean score rose by 2.03 on 64 held-out prompts (95 % interval +1.60 to +2.41).",
        *(f">p{i}<" for i in range(TEXTS_FIRST)), 'data-chart="score_mean"', f">p{TEXTS_FIRST}<", "Linux",
    ]  # fmt: skip
    body = html.split("</style>")[1]
    places = [body.index(part) for part in order if part != "Linux"] + [body.index(run.info["machine"]["platform"])]
    assert places == sorted(places)
    add_compare(run, prompts=1)
    assert not re.search(r"\b1 [a-z-]*( ?[a-z]+)s\b", Page(read(run)[0]).everything())


def test_a_series_that_does_not_change_is_no_chart(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "fixed", CONFIG, seed=0)
    for update in (1, 2, 3):
        run.append_metrics(update, {"objective/kl": 1.0 * update, "objective/kl_coef": 0.2, "ppo/learning_rate": 1e-5 / update})
    html, _ = read(run)
    assert dots(html) == {"kl_short": 3}
    assert re.search('<p class="soft">.*Did not change.*KL coefficient.* 0.2</p>', html)


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


SFT = {"model": {"name": "embedded:gemma3-270m-ja"}, "data": {"texts": "texts.jsonl"}, "sft": {"epochs": 3}}


def sft_run(root: Path, losses: list[float], name: str = "sft") -> RunDir:
    run = RunDir.create(root, name, SFT, seed=0)
    for i, loss in enumerate(losses):
        if i:
            run.append_metrics(4 * i, {"sft/loss": 3.0 - 0.1 * i, "sft/grad_norm": 1.0, "sft/learning_rate": 1e-4 / i})
        run.append_metrics(4 * i, {"eval/loss": loss, "eval/perplexity": math.exp(loss)})
    return run


def test_a_run_of_sft(tmp_path: Path) -> None:
    run = sft_run(tmp_path, [3.0, 2.0, 2.5])
    run.append_samples(4, [{"prompt": "書き出し", "response": "応答", "score": None, "kl": None}])
    run.set_status("finished")
    html, page = read(run)
    assert dots(html) == {"train_loss": 2, "eval_loss": 3, "held_out_perplexity": 3}
    shown = page.everything()
    for part in (
        "Fine-tuning of ", "embedded:gemma3-270m-ja", "texts.jsonl", "20.09 → 7.39", "3.00 → 2.00", "finished", "応答",
        "the perplexity fell from 20.09 to 7.39: the model after update 4 is the best", "更新 4 回目",
    ):  # fmt: skip
        assert part in shown, part
    assert "before/after" not in shown and "nan" not in shown
    for losses, part in (
        ([3.0, 3.5], "No evaluation was better"), ([3.0, 3.5, 3.4], "3.00 → 3.00"), ([3.0], "No evaluation of the trained"),
        ([], "No evaluation of the trained"),
    ):  # fmt: skip
        assert part in read(sft_run(tmp_path, losses, f"of{len(losses)}"))[1].everything()
    labels = json.loads((TEMPLATES / "sft_report.json").read_text(encoding="utf-8"))
    assert list(labels["ja"]) == list(labels["en"]) == sorted(labels["en"])


def test_a_run_without_a_page_is_refused(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "candidates", {"sample": {}}, seed=0)
    with pytest.raises(DataError, match="a run of `konomi sample` has no page"):
        write_report(run)


def test_judges_and_best_of_n(tmp_path: Path) -> None:
    function = {"kind": "function", "name": "m:f"}
    parts = {"mood": {"kind": "classifier", "name": "embedded:asari", "label": "positive"}, "short": function}
    reward = {"kind": "sum", "parts": parts, "weights": {"short": -0.5}}
    judges = {"strict": function, "遠い": {"kind": "http", "url": "http://host:8000/score?key=geheim"}}
    run = RunDir.create(tmp_path, "judged", CONFIG | {"reward": reward, "judges": judges}, seed=0)
    for update in (1, 2, 3):
        metrics = {"objective/kl": 2.0 * update, "ppo/mean_scores": 1.0 * update, "judge/strict/mean": 0.5 * update}
        run.append_metrics(update, metrics | {"judge/遠い/mean": -1.0 * update, "reward/mood/mean": 0.1})
    gap = {"mean": 0.75, "low": 0.25, "high": 1.25, "level": 0.95, "wins": 3, "losses": 1, "ties": 0}
    row = {"before": 0.5, "after": 1.25, "difference": gap}
    best = [{"n": n, "kl": 0.6 * i, "score": 1.0 + i, "judges": {"strict": 0.1 * i}} for i, n in enumerate((1, 2, 4))]
    text = {"prompt": "p", "before": "b", "after": "a", "score_before": 0.0, "score_after": 1.0, "held_out": True}
    shown = [text | {"judges": {"strict": {"before": 7.25, "after": 8.5}}}]
    add_compare(run, shown, judges={"strict": row, "遠い": {}}, best_of_n=best)
    html, page = read(run)
    found = dots(html)
    assert {key: found[key] for key in ("judge_0", "judge_1", "judge_path_0", "judge_path_1")} == {
        "judge_0": 3, "judge_1": 3, "judge_path_0": 3, "judge_path_1": 3
    }  # fmt: skip
    assert list(found)[:3] == ["score_mean", "judge_0", "judge_1"]
    second = re.findall(r'<figure data-chart="(\w+)">(.*?)</figure>', html, flags=re.DOTALL)
    assert {key: body.count('class="dot beside-dot"') for key, body in second if "beside-dot" in body} == {
        "path": 3, "judge_path_0": 3
    }  # fmt: skip
    words_ = page.everything()
    for part in (
        "sum (1 × mood: classifier embedded:asari (positive), -0.5 × short: function m:f)", "strict: function m:f",
        "遠い: http http://host:8000/score", "0.5 → 1.25", "+0.75 [+0.25, +1.25]", "7.25", "8.50", "ジャッジ", "n = 4: 1.2, 3",
        "n = 4: 1.2, 0.2", "best of n",
    ):  # fmt: skip
        assert part in words_, part
    assert words_.count("geheim") == 1  # in the whole configuration at the end of the page


def test_without_judges_nothing_is_said_of_them(tmp_path: Path) -> None:
    run = make_run(tmp_path, 2)
    add_compare(run)
    html, page = read(run)
    assert "beside" not in html.split("</style>")[1] and "judge" not in page.everything() and "best of n" not in html


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    add_compare(run)
    text, page = read(run)
    for word in ("http://", "https://", "src=", "url(", "@import", "<link", "<img", "<iframe", "<object", "fetch("):
        assert word not in text, word
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for kind in ("style", "script"):
        (content,) = page.texts[kind]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not any(name == "style" or name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_every_word_is_in_both_languages(tmp_path: Path) -> None:
    labels = json.loads((TEMPLATES / "report.json").read_text(encoding="utf-8"))
    assert set(labels) == {"ja", "en"}
    assert list(labels["ja"]) == list(labels["en"]) == sorted(labels["en"])
    assert all(text.strip() for words_ in labels.values() for text in words_.values())
    sources = [*(TEMPLATES / f"{name}.html" for name in ("report", "page", "charts"))]
    sources += [Path(charts.__file__).with_name(name) for name in ("report.py", "page.py")]
    sources += [TEMPLATES / "sft_report.html"]
    source = "".join(path.read_text(encoding="utf-8") for path in sources)
    unused = [key for key in labels["en"] if f'"{key}"' not in source and not key.startswith("status_")]
    assert unused == []

    run = make_run(tmp_path)
    add_compare(run)
    _, page = read(run)
    for tag in ("span", "text"):
        by_language = [[a for a in page.all(tag, lang=lang) if lang in a.get("class", "").split()] for lang in ("ja", "en")]
        assert len(by_language[0]) == len(by_language[1]) > 10
    assert page.all("html")[0]["lang"] == "en"
    assert {a["id"] for a in page.all("input")} == {"show-ja", "show-en"}


@pytest.mark.parametrize("updates", [0, 1, 2])
@pytest.mark.parametrize("status", ["running", "failed", "stopped", "finished"])
def test_parts_may_be_missing(tmp_path: Path, updates: int, status: Any) -> None:
    run = make_run(tmp_path, updates)
    run.set_status(status, None if status == "finished" else "the KL is above kl_cap")
    text, page = read(run)
    assert dots(text) == (dict.fromkeys(CURVES, updates) if updates else {})
    assert page.all("span", **{"class": f"status status-{status}"})
    shown = page.everything()
    assert ("No update has been finished." in shown) == (updates == 0)
    assert "The before/after has not been made." in shown
    assert ("the KL is above kl_cap" in shown) == (status != "finished")
    assert "nan" not in text.lower().replace("nansen", "") and "inf " not in text


def test_a_bare_run_and_another_kind_of_config(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "bare", {"run": {}}, seed=0)
    run.write_json("run.json", {"version": 1})
    run.append_metrics(1, {"time": 5.0})
    run.append_samples(1, [{}])
    add_compare(run, before={}, after={}, difference={}, texts=[{}])
    _, page = read(run)
    assert "bare" in page.everything() and "–" in page.everything()


def test_gaps_and_unknown_metrics(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "gaps", CONFIG, seed=0)
    for update, score in enumerate([1.0, math.nan, 2.0, 3.0], start=1):
        run.append_metrics(update, {"ppo/mean_scores": score, "ppo/std_scores": 0.5, "objective/kl": math.nan, "own": 1.0})
    text, _ = read(run)
    assert dots(text) == {"score_mean": 3}
    (line,) = re.findall(r'<path class="line" d="([^"]*)"', text)
    (band,) = re.findall(r'<path class="band" d="([^"]*)"', text)
    assert line.count("M") == 2 and line.count("L") == 1
    assert band.count("Z") == 2


def test_a_fixed_coefficient_has_no_target_line(tmp_path: Path) -> None:
    config = CONFIG | {"ppo": {"kl_controller": "fixed", "kl_target": 6.0}}
    run = RunDir.create(tmp_path, "fixed", config, seed=0)
    run.append_metrics(1, {"objective/kl": 1.0})
    assert 'class="target"' not in read(run)[0]


def test_samples_of_a_long_run_are_thinned_evenly(tmp_path: Path) -> None:
    text, page = read(make_run(tmp_path, 100))
    shown = re.findall(r"応答(\d+)<", text)
    assert len(shown) == SAMPLE_UPDATES and shown[0] == "1" and shown[-1] == "100"
    assert len(page.all("details", open="")) >= 2
    assert dots(text)["score_mean"] == 100


def test_hostile_texts_are_inert(tmp_path: Path) -> None:
    config = json.loads(json.dumps(CONFIG))
    config["model"]["name"] = config["reward"]["name"] = "".join(HOSTILE)
    run = RunDir.create(
        tmp_path,
        "hostile",
        config,
        seed=0,
        extra={"name": "".join(HOSTILE), "git": {"commit": HOSTILE[0], "dirty": True}},
    )
    plain = RunDir.create(tmp_path, "plain", CONFIG, seed=0, extra={"git": {"commit": "c", "dirty": True}})
    for which, texts in ((run, HOSTILE), (plain, ["plain"] * len(HOSTILE))):
        which.append_metrics(1, {"objective/kl": 1.0, "ppo/mean_scores": 1.0})
        which.append_samples(1, [{"prompt": t, "response": t, "score": 0.0, "kl": 0.0} for t in texts])
        sides = {"score_before": 0.0, "score_after": 1.0, "held_out": True}
        add_compare(which, [{"prompt": t, "before": t, "after": t, **sides} for t in texts])
        which.set_status("failed", texts[0] + texts[1])
    raw = write_report(run).read_bytes()
    text = raw.decode("utf-8", "strict")
    page, usual = Page(text), read(plain)[1]

    def skeleton(of: Page) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(a)) for tag, a in of.tags if a.get("class") != "code"]

    assert skeleton(page) == skeleton(usual)  # no text has made a tag or an attribute
    assert re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200f\u202e\u2066\u2069\ufeff\ud800]", text) is None
    assert "U+202E" in page.everything() and "U+D800" in page.everything() and "U+0000" in page.everything()
    assert "{{ 7 * 7 }} {% raw %} &lt;b&gt;" in page.everything()
    assert page.texts["title"][:1] == [
        flat("".join(HOSTILE) + f": PPO of {''.join(HOSTILE)} toward {''.join(HOSTILE)} (positive)")
    ]


def test_what_is_not_seen_is_shown_as_its_code_and_what_belongs_stays() -> None:
    unseen = "\x00\x1b\x7f\x9b\xad\u034f\u061c\u115f\u180e\u200b\u200c\u200d\u200e\u2028\u202e\u2060\u2066\u2800\u3164"
    unseen += "\ufe0f\ufeff\uffa0\ufffb\U0001d173\U000e0001\U000e0041\U000e0100\ud800"
    for each in unseen:
        for before in ("", "a", "あ"):
            text = f"{before}{each}b"
            assert f'<span class="code">U+{ord(each):04X}</span>' in words(text) and each not in words(text), (
                before,
                hex(ord(each)),
            )
            assert each not in visible(text) and flat(text) == f"{before}b"
    hidden = (
        ("☺\ufe0f", "\ufe0f" * 3), ("葛\U000e0100", "\U000e0101"), ("葛\ufe00", "\ufe01"), ("葛", "\U000e0141"),
        ("☺", "\U000e0100"), ("葛\U000e0100", "\u200d"), ("\u1820\u180b", "\u180b\u200d"), ("☺", "\u2800\ufe0f"),
        ("", "\ufe0f\u200d"), ("☺\ufe0f\u200d", "\u200d"),
    )  # fmt: skip
    for seen, rest in hidden:  # a second selector, one for no such sign, a joiner after one: what else could be written in them
        codes = [f"U+{ord(each):04X}" for each in rest]
        assert visible(seen + rest) == seen + "".join(codes) and flat(seen + rest) == seen
        assert re.findall('"code">([^<]*)', words(seen + rest)) == codes
    belongs = [
        "ℹ\ufe0f",
        "❤\ufe0f\u200d🔥",
        "👨\u200d👩\u200d👧",
        "☺\ufe0f",
        "1\ufe0f\u20e3",
        "葛\U000e0100",
        "می\u200cخواهم",
        "क्\u200dष",
        "\u1820\u180b",
        "a\n\tb",
        "👍🏽\u200d",
    ]
    for each in belongs:
        assert str(words(each)) == f'<bdi lang="">{each}</bdi>' and visible(each) == flat(each) == each


def test_japanese_text_is_marked_as_such() -> None:
    assert str(words("これは")) == '<bdi lang="ja">これは</bdi>'
    assert str(words("a\r\n<b>")) == '<bdi lang="">a\n&lt;b&gt;</bdi>'
    assert str(words(None)) == '<bdi lang="">None</bdi>'


@pytest.mark.parametrize(
    ("value", "plain", "with_sign"),
    [
        (0.0, "0", "0"), (1.234, "1.23", "+1.23"), (-0.01234, "−0.0123", "−0.0123"), (1.41e-5, "1.41e−05", "+1.41e−05"),
        (7, "7", "+7"), (123456.0, "1.23e+05", "+1.23e+05"), (None, "–", "–"), ("x", "–", "–"), (math.nan, "–", "–"),
    ],
)  # fmt: skip
def test_figures(value: Any, plain: str, with_sign: str) -> None:
    assert (number(value), signed(value)) == (plain, with_sign)


def test_damaged_and_newer_files_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    add_compare(run, version=2)
    with pytest.raises(DataError, match=r"compare\.json: format 2, this konomi reads 1; update konomi"):
        write_report(run)
    run.write_json("compare.json", [])
    with pytest.raises(DataError, match="format None"):
        write_report(run)
    run.compare.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        write_report(run)
    assert not run.report.exists()


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 10], ["0", "2", "4", "6", "8", "10"]),
        ([-0.5, 1.7], ["−0.5", "0", "0.5", "1", "1.5"]),
        ([0, 1.41e-5], ["0", "5e−06", "1e−05"]),
        ([5.0, 5.0], ["4.6", "4.8", "5", "5.2", "5.4"]),
        ([0.0, 0.0], ["−0.4", "−0.2", "0", "0.2", "0.4"]),
    ],
)
def test_ticks_are_round_and_inside(values: list[float], labels: list[str]) -> None:
    chart = charts.over_updates([1, 2], values)
    assert chart is not None
    assert [label for _, label in chart.y_ticks] == labels
    assert all(charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM for y, _ in chart.y_ticks)
    assert [label for _, label in chart.x_ticks] == ["1", "2"]


def test_points_are_where_the_axes_say() -> None:
    chart = charts.over_updates([1, 2, 3], [0.0, None, 10.0], spread=[1.0, 1.0, 2.0], target=5.0)
    assert chart is not None
    ticks = {label: y for y, label in chart.y_ticks}
    assert [(dot.y, dot.title) for dot in chart.dots] == [(ticks["0"], "1: 0 ± 1"), (ticks["10"], "3: 10 ± 2")]
    assert chart.target == ticks["5"]
    assert (chart.dots[0].x, chart.dots[1].x) == (charts.LEFT, charts.WIDTH - charts.RIGHT)
    assert charts.over_updates([1], [None]) is None
    epochs = charts.over_updates([0.25, 0.5], [1.0, 2.0], whole=False)
    assert epochs is not None and [dot.title for dot in epochs.dots] == ["0.25: 1", "0.5: 2"]
    assert [label for _, label in epochs.x_ticks][:2] == ["0.25", "0.3"]
    assert charts.path([1], [None], [1.0], {}) is None
    both = charts.path([1], [1.0], [3.0], {}, [("n = 1", 0.0, 1.0), ("n = 2", None, 2.0), ("n = 4", 2.0, 3.0)])
    assert both is not None and both.beside.count("L") == 1 and both.beside_dots[1].y == both.dots[0].y
    assert [dot.title for dot in both.beside_dots] == ["n = 1: 0, 1", "n = 4: 2, 3"]
    assert charts.LEFT < both.beside_dots[0].x < both.dots[0].x < both.beside_dots[1].x < charts.WIDTH - charts.RIGHT
    way = charts.path([1, 2], [1.0, 2.0], [3.0, 1.0], {"after": (4.0, 3.0)})
    assert way is not None and way.dots[0].y == way.marks["after"].y < way.dots[1].y
    assert [dot.title for dot in way.dots] == ["1: 1, 3", "2: 2, 1"]

"""The page of a reward model's run: whole, self-contained, in both languages, and deaf to what texts try to do to it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import HOSTILE, Page, dots
from typer.testing import CliRunner

from konomi.cli import app
from konomi.data.records import Pair, groups
from konomi.errors import DataError
from konomi.report import charts
from konomi.report.page import TEMPLATES
from konomi.report.reward_report import TEXTS_SHOWN, write_reward_report
from konomi.runs.directory import RunDir
from konomi.statistics import evaluate_labels, evaluate_preferences, evaluate_scores, evaluate_truth

CONFIG = {"model": {"name": "embedded:gemma3-270m", "revision": None, "precision": "auto"}, "data": {"file": "pairs.jsonl"}}
LABELS = ["bad", "neutral", "good"]
SCALE = {"mean": 1.5, "std": 0.75, "count": 64}


def preference(train: int | None = 800) -> dict[str, Any]:
    rng = random.Random(0)
    records: list[Pair] = []
    for i in range(120):
        texts = ["x" * rng.randint(1, 40), "y" * rng.randint(1, 40)]
        for rater in ("ann", "bob"):
            one, other = texts if rng.random() < 0.8 else texts[::-1]
            records.append(Pair(f"p{i}", one, other, rater=rater, source="web" if i % 2 else None))
    made = groups(records)
    scores = [[rng.gauss(1 if text[0] == "x" else 0, 0.7) for text in group.responses] for group in made]
    return evaluate_preferences(made, scores, train_comparisons=train)


def classification(labels: list[str] = LABELS) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=90)
    said = rng.dirichlet([1, 1, 1], size=90) + 0.4 * np.eye(3)[truth]
    return evaluate_labels(truth.tolist(), said / said.sum(axis=1, keepdims=True), labels)


def score() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=60)
    return evaluate_scores(truth.tolist(), (truth + 0.5 * rng.normal(size=60)).tolist(), [str(i) for i in range(60)])


def texts(count: int = 14) -> list[dict[str, Any]]:
    return [{"prompt": f"書き出し{i}", "response": f"応答{i}", "score": (5 * i) % count - 3.5} for i in range(count)]


def make_run(root: Path, task: str = "preference", epochs: int = 3, name: str = "run", **changed: Any) -> RunDir:
    run = RunDir.create(root, name, CONFIG, seed=3, extra={"precision": "fp32", "verb": "reward"})
    for step in range(1, 4 * epochs + 1):
        run.append_metrics(step, {"epoch": step / 4, "train/loss": 0.7 - 0.03 * step, "train/learning_rate": 1e-5 / step})
        if step % 4 == 0:
            right = {} if task == "score" else {"eval/accuracy": 0.5 + 0.02 * step}
            run.append_metrics(step, {"epoch": step / 4, "eval/loss": 0.7 - 0.02 * step, **right})
    found = {"preference": preference, "classification": classification, "score": score}[task]()
    result = {"version": 1, "task": task, "held_out": found, "normalisation": SCALE, "texts": texts()}
    run.write_json("eval.json", result | changed)
    return run


def read(run: RunDir) -> tuple[str, Page]:
    path = write_reward_report(run)
    assert path == run.report
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def cells(text: str, part: str) -> list[list[str]]:
    table = text.split(f'data-part="{part}"', 1)[1].split("</table>", 1)[0].split("<tbody>", 1)[1]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.S)
    return [
        [re.sub(r"<[^>]*>", "", cell).strip() for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S)] for row in rows
    ]


def test_a_preference_model(tmp_path: Path) -> None:
    truth = evaluate_truth([(str(i), [0.0, 1.0], [0.0, 0.5 - i % 3 / 4]) for i in range(40)])
    run = make_run(tmp_path, truth=truth, train=preference(None))
    run.set_status("finished")
    text, page = read(run)
    found = run.read_json("eval.json")["held_out"]
    accuracy, agreement = found["accuracy"], found["agreement"]
    shown = page.everything()
    for part in (
        f"{100 * accuracy['value']:.1f} %", f"[{100 * accuracy['low']:.1f} %, {100 * accuracy['high']:.1f} %]",
        f"{100 * agreement['ceiling']['value']:.1f} %", f"{100 * found['longer']['accuracy']['value']:.1f} %",
        "240", "in training:", "学習用:", " 800", found["verdict"]["en"], found["verdict"]["ja"],
        "μ = 1.50, σ = 0.75, n = 64", "embedded:gemma3-270m", "pairs.jsonl", "fp32", "完了", "finished",
        f"{100 * truth['accuracy']['value']:.1f} %", "accuracy against the truth", "ケンドール",
    ):  # fmt: skip
        assert part in shown, part
    curves = {"train_loss": 12, "eval_loss": 3, "eval_accuracy": 3}
    assert dots(text) == curves | {"calibration": len(found["calibration"]["bins"])}
    assert text.count('class="target"') == 1  # where said and observed are equal
    assert len(cells(text, "by_length")) == len(cells(text, "by_length_difference")) == 4
    rows = cells(text, "by_source")
    assert [row[0] for row in rows] == ["web", "記載なしnot named"] or [row[0] for row in rows] == ["web", "not named記載なし"]
    assert [row[1] for row in rows] == ["120", "120"]
    assert re.fullmatch(r"−\d+ – −\d+", cells(text, "by_length_difference")[0][0])
    assert [a["cx"] for a in page.all("circle", **{"class": "here"})][-2:] == [
        str(round(100 * row["accuracy"]["value"], 2)) for row in found["by_source"]
    ]


def test_the_ends_of_the_scored_texts_are_shown(tmp_path: Path) -> None:
    text, _ = read(make_run(tmp_path))
    order = [item["response"] for item in sorted(texts(), key=lambda item: -item["score"])]
    assert re.findall(r"応答\d+", text) == order[:TEXTS_SHOWN] + order[::-1][:TEXTS_SHOWN]
    for count in range(4):
        text, _ = read(make_run(tmp_path, name=f"of{count}", texts=texts(count)))
        assert len(re.findall(r"応答\d+", text)) == count


def test_a_classifier(tmp_path: Path) -> None:
    run = make_run(tmp_path, "classification")
    text, page = read(run)
    found = run.read_json("eval.json")["held_out"]
    assert cells(text, "confusion") == [[label, *map(str, row)] for label, row in zip(LABELS, found["confusion"], strict=True)]
    assert [row[:2] for row in cells(text, "classes")] == [[row["label"], str(row["count"])] for row in found["classes"]]
    assert len(page.all("td", **{"class": "hit"})) == 3
    assert set(dots(text)) == {"train_loss", "eval_loss", "eval_accuracy", "calibration"}
    assert "macro F1" in page.everything() and found["majority"]["label"] in page.everything()


def test_a_regression(tmp_path: Path) -> None:
    run = make_run(tmp_path, "score")
    text, page = read(run)
    found = run.read_json("eval.json")["held_out"]
    assert set(dots(text)) == {"train_loss", "eval_loss"}
    assert f"{found['r2']['value']:.3g}" in page.everything() and "[" in page.everything()


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    text, page = read(make_run(tmp_path))
    for word in ("http://", "https://", "src=", "url(", "@import", "<link", "<img", "<iframe", "<object", "fetch("):
        assert word not in text, word
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for kind in ("style", "script"):
        (content,) = page.texts[kind]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not any(name == "style" or name.startswith("on") for _, attrs in page.tags for name in attrs)


@pytest.mark.parametrize("task", ["preference", "classification", "score"])
def test_every_word_is_in_both_languages(tmp_path: Path, task: str) -> None:
    labels = json.loads((TEMPLATES / "reward_report.json").read_text(encoding="utf-8"))
    shared = json.loads((TEMPLATES / "report.json").read_text(encoding="utf-8"))
    assert set(labels) == {"ja", "en"}
    assert list(labels["ja"]) == list(labels["en"]) == sorted(labels["en"])
    assert all(text.strip() for words in labels.values() for text in words.values())
    assert not set(labels["en"]) & set(shared["en"])
    source = (TEMPLATES / "reward_report.html").read_text(encoding="utf-8")
    source += Path(charts.__file__).with_name("reward_report.py").read_text(encoding="utf-8")
    assert [key for key in labels["en"] if f'"{key}"' not in source and not key.endswith("_about")] == []

    _, page = read(make_run(tmp_path, task, truth=evaluate_truth([("p", [0.0, 1.0], [0.0, 1.0])]), train=preference()))
    for tag in ("span", "text"):
        by_language = [[a for a in page.all(tag, lang=lang) if lang in a.get("class", "").split()] for lang in ("ja", "en")]
        assert len(by_language[0]) == len(by_language[1]) > 1


@pytest.mark.parametrize("status", ["running", "failed"])
def test_parts_may_be_missing(tmp_path: Path, status: Any) -> None:
    run = RunDir.create(tmp_path, "bare", {"run": {}}, seed=0, extra={"verb": "reward"})
    run.set_status(status, None if status == "running" else "the loss is not a number")
    text, page = read(run)
    shown = page.everything()
    assert "The model has not been evaluated." in shown and "No step of the training has been recorded." in shown
    assert ("the loss is not a number" in shown) == (status == "failed")
    run.append_metrics(1, {"train/loss": 0.7})
    run.append_metrics(2, {"train/loss": math.nan})
    run.append_metrics(3, {"train/loss": 0.6})
    for task in ("preference", "classification", "score", "another", None):
        for held_out in ({}, {"accuracy": {"value": None, "low": None, "high": None}}, {"comparisons": 3, "agreement": None}):
            run.write_json("eval.json", {"version": 1, "task": task, "held_out": held_out, "truth": held_out, "texts": [{}]})
            text, page = read(run)
            assert dots(text) == {"train_loss": 2}
            assert not re.search("nan|None", page.everything())
    assert "bare" in page.everything()


@pytest.mark.parametrize("empty", [evaluate_preferences([], []), evaluate_labels([], [], LABELS), evaluate_scores([], [], [])])
def test_an_evaluation_of_nothing(tmp_path: Path, empty: dict[str, Any]) -> None:
    task = "preference" if "verdict" in empty else "classification" if "confusion" in empty else "score"
    _, page = read(make_run(tmp_path, task, held_out=empty, truth=evaluate_truth([]), normalisation=None))
    assert "–" in page.everything() and not re.search("nan|None", page.everything())


def test_hostile_texts_are_inert(tmp_path: Path) -> None:
    all_of_it = "".join(HOSTILE)
    config = CONFIG | {"model": {"name": all_of_it, "revision": None, "precision": "auto"}, "data": {"file": all_of_it}}

    def filled(name: str, words: list[str], joined: str) -> tuple[RunDir, RunDir]:
        made = []
        for kind in ("preference", "classification"):
            run = RunDir.create(
                tmp_path, f"{name}-{kind}", config if joined is all_of_it else CONFIG, seed=0,
                extra={"name": joined, "git": {"commit": joined, "dirty": True}},
            )  # fmt: skip
            found = preference() if kind == "preference" else classification([joined + str(i) for i in range(3)])
            if kind == "preference":
                found["by_source"][0]["source"] = joined
                found["verdict"] |= {"en": joined, "ja": joined}
            result = {"version": 1, "task": kind, "held_out": found, "normalisation": SCALE}
            result["texts"] = [{"prompt": w, "response": w, "score": i} for i, w in enumerate(words)]
            run.write_json("eval.json", result)
            run.set_status("failed", joined)
            made.append(run)
        return made[0], made[1]

    def skeleton(of: Page) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(a)) for tag, a in of.tags if a.get("class") != "code"]

    pairs = zip(filled("hostile", HOSTILE, all_of_it), filled("plain", ["plain"] * len(HOSTILE), "plain"), strict=True)
    for hostile, usual in pairs:
        text, page = read(hostile)
        assert skeleton(page) == skeleton(read(usual)[1])  # no text has made a tag or an attribute
        assert re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200f\u202e\u2066\u2069\ufeff\ud800]", text) is None
        assert "U+202E" in page.everything() and "U+D800" in page.everything()
        assert "{{ 7 * 7 }} {% raw %} &lt;b&gt;" in page.everything()


def test_damaged_and_newer_files_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, version=2)
    with pytest.raises(DataError, match=r"eval\.json: format 2, this konomi reads 1; update konomi, or train the model again"):
        write_reward_report(run)
    run.write_json("eval.json", [])
    with pytest.raises(DataError, match="format None"):
        write_reward_report(run)
    assert not run.report.exists()


def test_report_chooses_the_page_by_the_verb(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for verb, sentence in (("reward", "How far it can be trusted"), ("ppo", "The before/after has not been made.")):
        run.note(verb=verb)
        answer = CliRunner().invoke(app, ["report", str(run.path)])
        assert answer.exit_code == 0 and answer.stdout.strip() == str(run.report)
        assert sentence in run.report.read_text(encoding="utf-8")


def test_the_calibration_chart_is_where_its_axes_say() -> None:
    chart = charts.calibration([(0.55, 0.25, 4), (1.0, 1.0, 2)], 0.5)
    assert chart is not None
    ticks = {label: y for y, label in chart.y_ticks}
    assert chart.dots[1].y == ticks["1"] == charts.TOP and chart.dots[1].x == charts.WIDTH - charts.RIGHT
    assert chart.dots[0].y == charts.HEIGHT - charts.BOTTOM and chart.dots[0].title == "0.55: 0.25 (4)"
    start, end = (tuple(map(float, point.split())) for point in re.findall(r"[ML]([\d.]+ [\d.]+)", chart.guide))
    assert start[0] == charts.LEFT and end == (chart.dots[1].x, chart.dots[1].y)
    assert charts.calibration([], 0.0) is None

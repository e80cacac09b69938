"""The sentences about figures: each grade in both languages, and metrics out of their range."""

from __future__ import annotations

import re

import pytest
from some_runs import landed

from konomi.data.records import Comparison, Group
from konomi.report import advice
from konomi.report.advice import kl_missed
from konomi.report.ranges import HEALTHY, out_of_range, over_the_run
from konomi.statistics import evaluate_preferences
from some_comparisons import many, two_raters


def test_metrics_are_marked_where_they_leave_their_range() -> None:
    for name, healthy in HEALTHY.items():
        unit = 2.0 if healthy.of_max_grad_norm else 1.0
        for end, off in ((healthy.low, -0.001), (healthy.high, 0.001)):
            if end is not None:
                assert out_of_range({name: end * unit}, 2.0) == []
                assert out_of_range({name: end * unit + off}, 2.0) == [name]
                whole = out_of_range({name: end * unit + off}, 2.0, whole_ratio=True)
                assert whole == ([] if name in ("ppo/policy/clipfrac", "ppo/policy/ratio") else [name])
    lines = [{"ppo/policy/ratio": value, "out_of_range": marks} for value, marks in ((0.5, ["ppo/policy/ratio"]), (1.0, []))]
    assert over_the_run(lines) == ["ppo/policy/ratio: 1/2, 0.5 (0.95 to 1.05)"]
    assert over_the_run([{"ppo/policy/ratio": 1.0}]) == []


def test_a_kl_off_its_target_has_its_reason() -> None:
    level, rising = [0.0, 1.0, 1.9, 2.0, 2.0, 2.1, 2.0, 2.0], [0.0, 0.2, 0.8, 1.7, 2.0, 2.8, 3.3]
    for kl, coefficients, course, words in (
        (4.9, (0.2, 0.2), rising, None), (7.1, (0.2, 0.2), level, None),
        (29.0, (0.2, 0.204), rising, "KL ended at 29.0, over the target 6: the coefficient went from 0.2 to 0.204"),
        (0.8, (0.2, 0.2), level, "the coefficient stayed at 0.2"), (4.3, (0.02, 0.0185), rising, "was still rising"),
        (0.8, (0.2, 0.2), [0.0], "was still rising"),
        (2.0, (0.2, 0.19), level, "lower ppo.kl_coef"), (0.5, (0.2, 0.04), level, "the run was too short"),
    ):  # fmt: skip
        sentence = kl_missed(kl, 6.0, coefficients, course)
        assert sentence is None if words is None else sentence is not None and words in sentence
    over = {kind: str(kl_missed(9.0, 6.0, (0.2, 0.9), rising, kind)) for kind in ("adaptive", "pid")}
    assert all("set land.kl = 6 (konomi blend RUN --kl 6 does that for this run)" in sentence for sentence in over.values())
    assert ['kl_controller = "pid"' in sentence for sentence in over.values()] == [True, False]


def test_where_a_model_has_landed_is_said() -> None:
    for share, target, grade, english, japanese in (
        (0.5, 2.0, "landed", "At 50.0 % of the way", "50.0 % の位置で"), 
        (1.25, 12.5, "beyond", "Read the texts.", "学習した範囲の先"),
        (1.5, 50.0, "short", "does not reach a KL of 50.00", "50.00 ナットに届きません"),
        (1.0, 50.0, "short", "the nearest place, at 100.0 % of the way, has 8.00", "最も近い 100.0 % の位置で 8.00"),
        (1.5, 9.0, "missed", "nearest, at 150.0 % of the way, has 18.00", "最も近い 150.0 % の位置"),
        (0.75, None, "share", "the KL is 4.50 nats/response; that of the trained model is 8.00", "学習後のモデルの KL は 8.00"),
    ):  # fmt: skip
        said = landed(share, target)["verdict"]
        assert said["grade"] == grade and english in said["en"] and japanese in said["ja"], said
        assert "by +0.5 (95 % interval +0.25 to +0.75)" in said["en"] and "初期モデルと +0.5 違います" in said["ja"]


def verdict(count: int, right: int, longer: int | None = None, train: int | None = None) -> dict[str, str]:
    of_figures: dict[str, str] = evaluate_preferences(*many(count, right, longer), train_comparisons=train)["verdict"]
    return of_figures


@pytest.mark.parametrize(
    ("grade", "count", "right", "longer", "train", "english", "japanese"),
    [
        ("none", 0, 0, 0, None, "no comparison", "比較がありません"),
        ("few", 20, 20, 10, 5000, "too few prompts", "少なすぎるため"),
        ("worse", 200, 60, 100, 500, "worse than a coin", "偶然（50 %）を下回ります"),
        ("chance", 200, 110, 100, 500, "collect more", "比較を増やしてください"),
        ("chance", 200, 110, 100, 5000, "look at the labels", "ラベルを見直してください"),
        ("length", 400, 270, 280, 500, "not shown to beat the rule that the longer text wins (70.0 %)", "（70.0 %）を上回るとは"),
        ("wide", 200, 140, 100, None, r"about 1\.\d times", "倍必要です"),
        ("wide", 200, 140, 100, 1200, "1,200 comparisons only", "1,200 件と少ないため"),
        ("enough", 1600, 1200, 800, 9000, "75.0 % of 1,600 held-out", "比較 1,600 件"),
        ("enough", 1600, 1200, 800, 1999, "more of them are likely", "見込みがあります"),
        # the interval is judged before the count of what it was trained on
        ("enough", 1600, 1200, 800, 100, "more of them are likely", "見込みがあります"),
        ("chance", 200, 105, 100, 1_000_000, "look at the labels", "ラベルを見直してください"),
    ],
)  # fmt: skip
def test_grades(
    grade: str, count: int, right: int, longer: int, train: int | None, english: str, japanese: str
) -> None:  # fmt: skip
    found = verdict(count, right, longer, train)
    assert found["grade"] == grade
    assert english in found["en"] or re.search(english, found["en"]), found["en"]
    assert japanese in found["ja"], found["ja"]
    if grade not in ("none", "few"):
        assert "No two raters" in found["en"] and "上限は分かりません" in found["ja"]
    if train == 9000:
        assert "trained on" not in found["en"] and "学習に使った" not in found["ja"]


@pytest.mark.parametrize(
    ("prompts", "right", "model", "english", "japanese"),
    [
        (1000, 0.85, 1.0, "more comparisons of this kind will not raise it", "増やしても向上は見込めません"),
        (1000, 0.9, 0.75, "from a coin to there the model has come", "の位置にあります"),
        (60, 0.85, 1.0, "whether the model is there already cannot be said", "この件数では分かりません"),
        (100, 0.55, 1.0, "cannot be told from chance", "偶然と区別できません"),
    ],
)
def test_the_ceiling_is_told(prompts: int, right: float, model: float, english: str, japanese: str) -> None:
    found = evaluate_preferences(*two_raters(prompts, right, model), train_comparisons=300)["verdict"]
    assert english in found["en"] and japanese in found["ja"]
    assert ("trained on" in found["en"]) == ("will not raise" not in english)


@pytest.mark.parametrize(
    ("right", "grade", "english", "japanese"),
    [(280, "text", "counts characters and learns", "文字ベースライン（70.0 %）"), (100, "enough", "also beats", "も上回ります")],
)
def test_the_text_baseline_is_told(right: int, grade: str, english: str, japanese: str) -> None:
    made, scores = many(400, right=280)
    rivals = {"text": many(400, right)[1]}
    found = evaluate_preferences(made, scores, baselines=rivals)["verdict"]
    assert found["grade"] == grade and english in found["en"] and japanese in found["ja"]
    assert ("ensemble.text_weight" in found["en"]) == (grade == "text")
    summed = evaluate_preferences(made, scores, baselines=rivals | {"network": scores})["verdict"]
    assert summed["grade"] == grade and "ensemble.text_weight" not in summed["en"]


def test_a_single_prompt_has_no_interval() -> None:
    made = [Group("p", ("aa", "b"), (Comparison(0, 1), Comparison(0, 1), Comparison(1, 0)))]
    found = evaluate_preferences(made, [[1.0, 0.0]])
    assert found["accuracy"] == {"value": pytest.approx(2 / 3), "low": None, "high": None}
    assert found["verdict"]["grade"] == "few" and "no interval" in found["verdict"]["en"]


def test_both_languages_say_the_same_things() -> None:
    english, japanese = (advice.locale("advice")[lang] for lang in ("en", "ja"))
    for key in english:
        fields = [set(re.findall(r"\{\w+\}", texts[key])) - {"{count}", "{prompts}"} for texts in (english, japanese)]
        assert fields[0] == fields[1], key

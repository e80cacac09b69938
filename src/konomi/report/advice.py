"""Figures as plain sentences, in English and Japanese: is this enough data for a preference model, did a score change?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from konomi.text import interval_words, number, percent, plural, signed

FEW_PROMPTS = 30
"""With fewer prompts an interval is too wide to decide anything, and the prompts themselves may be odd ones."""
WIDE = 0.10
"""An interval of the accuracy that is wider than this (5 points to each side) says little of how good a model is."""
FEW_COMPARISONS = 2_000
"""Trained on fewer, a reward model often barely beats chance."""

_TEXTS = {
    "none": (
        "There is no comparison to judge the model by.",
        "モデルを評価できる比較がありません。",
    ),
    "accuracy": (
        "The model is right in {value} of {comparisons} held-out comparisons ({range}; {prompts} prompts).",
        "評価用の比較 {comparisons} 件（書き出し {prompts} 個）のうち、モデルの判断が正しかったのは {value} です（{range}）。",
    ),
    "range": ("95 % interval {low} to {high}", "95 % 区間は {low} ～ {high}"),
    "no_range": ("no interval", "区間は求められません"),
    "few": (
        "That is too few prompts to judge it by: hold out 30 at least, better some hundreds.",
        "書き出しが少なすぎるため、良し悪しを判断できません。評価用に少なくとも 30 個、できれば数百個を確保してください。",
    ),
    "worse": (
        "That is worse than a coin (50 %): perhaps better and worse were mixed up somewhere.",
        "これは偶然（50 %）を下回ります。どこかで良いほうと悪いほうを取り違えていないか確認してください。",
    ),
    "chance": (
        "That cannot be told from a coin (50 %): the data is not enough, or the labels hold nothing that the model can see.",
        "これは偶然（50 %）と区別できません。データが足りないか、モデルが学べる手がかりがラベルにありません。",
    ),
    "length": (
        "That beats a coin, but is not shown to beat the rule that the longer text wins ({longer}): the data is not enough. "
        "Comparisons of texts of like length help most.",
        "偶然は上回りますが、「長いほうが勝ち」という規則（{longer}）を上回るとは言えず、データが足りません。"
        "長さの近い文どうしの比較を増やすと効果的です。",
    ),
    "wide": (
        "That beats a coin and the rule that the longer text wins ({longer}), but the interval is wide: about {times} times "
        "as many held-out comparisons would bring it to 5 points on each side.",
        "偶然も、「長いほうが勝ち」という規則（{longer}）も上回ります。ただし区間が広く、±5 ポイントに収めるには"
        "評価用の比較がおよそ {times} 倍必要です。",
    ),
    "enough": (
        "That beats a coin and the rule that the longer text wins ({longer}), and the interval is narrow: the data is enough "
        "to rely on this number.",
        "偶然も、「長いほうが勝ち」という規則（{longer}）も上回り、区間も狭くなっています。この数値を信頼できるだけのデータがあります。",
    ),
    "collect": (
        "It was trained on {train} comparisons; below about 2,000 a reward model barely beats chance: collect more.",
        "学習に使った比較は {train} 件です。"
        "2,000 件ほどに満たない報酬モデルは偶然をわずかに上回る程度なので、比較を増やしてください。",
    ),
    "check": (
        "It was trained on {train} comparisons, which is often enough: look at the labels before collecting more.",
        "学習に使った比較は {train} 件で、多くの場合は十分な件数です。さらに集める前に、ラベルを見直してください。",
    ),
    "more": (
        "It was trained on {train} comparisons only; more of them are likely to raise it.",
        "学習に使った比較は {train} 件と少ないため、増やせば正解率が上がる見込みがあります。",
    ),
    "no_overlap": (
        "No two raters judged the same pair, so how good a model can be at best is not known.",
        "同じ組を 2 人以上が評価した例がないため、正解率の上限は分かりません。",
    ),
    "no_ceiling": (
        "Two raters agree in {agreed}, which cannot be told from chance: how good a model can be at best is not known, and may "
        "be little better than a coin.",
        "評価者どうしの一致は {agreed} で、偶然と区別できません。正解率の上限は分からず、50 % に近い可能性もあります。",
    ),
    "unclear": (
        "Two raters agree in {agreed}, which allows about {ceiling} at best; whether the model is there already cannot be said "
        "from so few comparisons.",
        "評価者どうしの一致は {agreed} で、そこから見込まれる正解率の上限は約 {ceiling} です。モデルがすでにそこに達しているか"
        "どうかは、この件数では分かりません。",
    ),
    "below": (
        "Two raters agree in {agreed}, which allows about {ceiling} at best; from a coin to there the model has come {way}.",
        "評価者どうしの一致は {agreed} で、そこから見込まれる正解率の上限は約 {ceiling} です。"
        "偶然からその上限までを 100 % とすると、モデルは {way} の位置にあります。",
    ),
    "reached": (
        "Two raters agree in {agreed}, which allows about {ceiling} at best, and the model is there: more comparisons of this "
        "kind will not raise it.",
        "評価者どうしの一致は {agreed} で、そこから見込まれる正解率の上限は約 {ceiling} です。モデルはすでにそこに達しており、"
        "同じ種類の比較を増やしても向上は見込めません。",
    ),
}

_CHANGES = {
    "better": (
        "The mean score rose by {mean} on {prompts} (95 % interval {low} to {high}).",
        "評価用の書き出し {count} 個で、スコアの平均は {mean} 上がりました（95 % 区間 {low} ～ {high}）。",
    ),
    "worse": (
        "The mean score fell by {mean} on {prompts} (95 % interval of the difference {low} to {high}).",
        "評価用の書き出し {count} 個で、スコアの平均は {mean} 下がりました（差の 95 % 区間 {low} ～ {high}）。",
    ),
    "unclear": (
        "The mean score changed by {mean} on {prompts}; the 95 % interval, {low} to {high}, holds 0: nothing is shown.",
        "評価用の書き出し {count} 個で、スコアの平均の差は {mean} です。95 % 区間（{low} ～ {high}）が 0 を含むため、"
        "変化があったとは言えません。",
    ),
    "same": (
        "The mean score changed by {mean} on {prompts}, by the same on each: how far that holds on others is not shown.",
        "評価用の書き出し {count} 個で、スコアの平均の差は {mean} です。どの書き出しでも差が同じため、"
        "ほかの書き出しにどこまで当てはまるかは分かりません。",
    ),
    "few": (
        "The mean score changed by {mean} on {prompts}: too few to judge by, hold out 30 at least.",
        "スコアの平均の差は {mean} ですが、評価用の書き出しが {count} 個と少なく、判断できません。30 個以上を使ってください。",
    ),
}


def change(difference: Mapping[str, Any], prompts: int) -> dict[str, str]:
    """Say whether the mean score of a before/after has changed.

    Args:
        difference: ``mean``, ``low`` and ``high`` of after - before; the ends of its interval are None where there is none.
        prompts: held-out prompts that it was measured on.

    Returns:
        ``grade``: ``few`` (prompts), ``same`` (all changed alike), ``better``, ``worse`` or ``unclear``;
        ``en`` and ``ja``: the sentence.
    """
    mean, low, high = (difference.get(key) for key in ("mean", "low", "high"))
    grade = "few" if prompts < FEW_PROMPTS else "same"
    if grade == "same" and low is not None and high is not None:
        grade = "better" if low > 0 else "worse" if high < 0 else "unclear"
    facts = {"prompts": plural(prompts, "held-out prompt"), "count": prompts, "low": signed(low), "high": signed(high)}
    facts["mean"] = number(abs(mean)) if grade in ("better", "worse") and mean is not None else signed(mean)
    return {"grade": grade, **{lang: text.format(**facts) for lang, text in zip(("en", "ja"), _CHANGES[grade], strict=True)}}


def too_few(prompts: int) -> str | None:
    """A warning for the start of a run, if so many held-out prompts are too few to judge it by."""
    if prompts >= FEW_PROMPTS:
        return None
    few = f"{plural(prompts, 'held-out prompt')} {'is' if prompts == 1 else 'are'} too few"
    return f"{few} to judge the run by: hold out {FEW_PROMPTS} at least, better some hundreds"


def verdict(result: Mapping[str, Any]) -> dict[str, str]:
    """Say whether the data is enough.

    The interval decides; how many comparisons the model was trained on only says what to do about it.

    Args:
        result: what :func:`konomi.statistics.evaluate_preferences` found.

    Returns:
        ``grade``: ``none`` (nothing to judge by), ``few`` (prompts), ``worse`` or ``chance`` (than, as a coin), ``length``
        (not shown to beat the longer one), ``wide`` (beats both, but the interval is wide) or ``enough``; ``en`` and
        ``ja``: the sentences.
    """
    accuracy = result["accuracy"]
    grade = _grade(result)
    if grade == "none":
        return {"grade": grade, "en": _TEXTS["none"][0], "ja": _TEXTS["none"][1]}
    parts = ["accuracy", grade]
    of_ceiling = _of_ceiling(result)
    train = result["train_comparisons"]
    if train is not None and of_ceiling != "reached":
        if train < FEW_COMPARISONS:
            parts += {"chance": ["collect"], "length": ["collect"], "wide": ["more"], "enough": ["more"]}.get(grade, [])
        elif grade == "chance":
            parts.append("check")
    if grade != "few":
        parts.append(of_ceiling)
    agreement = result["agreement"] or {"share": {}, "ceiling": {}, "of_ceiling": None}
    known = accuracy["low"] is not None
    times = ((accuracy["high"] - accuracy["low"]) / WIDE) ** 2 if known else 1.0
    facts = {
        "value": percent(accuracy["value"]),
        "comparisons": f"{result['comparisons']:,}",
        "prompts": f"{result['prompts']:,}",
        "longer": percent(result["longer"]["accuracy"]["value"]),
        "times": f"{times:.1f}" if times < 10 else f"{times:.0f}",
        "train": "" if train is None else f"{train:,}",
        "agreed": percent(agreement["share"].get("value")),
        "ceiling": percent(agreement["ceiling"].get("value")),
        "way": percent(agreement["of_ceiling"]),
    }
    sentences = []
    for language in (0, 1):
        between = interval_words(accuracy, percent, _TEXTS["range"][language], _TEXTS["no_range"][language])
        sentences.append([_TEXTS[part][language].format(range=between, **facts) for part in parts])
    return {"grade": grade, "en": " ".join(sentences[0]), "ja": "".join(sentences[1])}


def _grade(result: Mapping[str, Any]) -> str:
    accuracy = result["accuracy"]
    if accuracy["value"] is None:
        return "none"
    if result["prompts"] < FEW_PROMPTS or accuracy["low"] is None:
        return "few"
    if accuracy["high"] < 0.5:
        return "worse"
    if accuracy["low"] <= 0.5:
        return "chance"
    if not result["longer"]["beaten"]:
        return "length"
    return "wide" if accuracy["high"] - accuracy["low"] > WIDE else "enough"


def _of_ceiling(result: Mapping[str, Any]) -> str:
    """Where the model stands against the raters: a key of the texts."""
    agreement = result["agreement"]
    if agreement is None:
        return "no_overlap"
    if agreement["share"]["low"] is None or agreement["share"]["low"] <= 0.5:
        return "no_ceiling"
    gap = agreement["below"]
    if gap["low"] is not None and gap["low"] > 0:
        return "below"
    spreads = [each for each in (gap, result["accuracy"]) if each["low"] is not None and each["high"] - each["low"] <= WIDE]
    return "reached" if len(spreads) == 2 else "unclear"

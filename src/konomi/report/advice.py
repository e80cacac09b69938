"""Figures in plain sentences, in English and Japanese."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from konomi.text import interval_words, number, percent, plural, signed

FEW_PROMPTS = 30
"""With fewer prompts an interval is too wide to decide anything, and the prompts may be unusual."""
WIDE = 0.10
"""An interval of the accuracy that is wider than this (5 points to each side) says little of how good a model is."""
FEW_COMPARISONS = 2_000
"""Trained on fewer, a reward model often barely beats chance."""


@cache
def locale(name: str, where: Path = Path(__file__).parent / "locales") -> Mapping[str, Mapping[str, str]]:
    """Language -> key -> words, from ``NAME.LANGUAGE.json`` in ``where``."""
    return {lang: json.loads((where / f"{name}.{lang}.json").read_text(encoding="utf-8")) for lang in ("en", "ja")}


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
    return {"grade": grade, **{lang: words[f"change_{grade}"].format(**facts) for lang, words in locale("advice").items()}}


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
        (not shown to beat the longer one), ``text`` (not shown to beat the text baseline), ``wide`` (beats them, but the
        interval is wide) or ``enough``; ``en`` and ``ja``: the sentences.
    """
    accuracy = result["accuracy"]
    grade = _grade(result)
    if grade == "none":
        return {"grade": grade, **{lang: words["none"] for lang, words in locale("advice").items()}}
    baselines = result.get("baselines") or {}
    parts = ["accuracy", grade]
    if grade == "text":
        parts += [] if "network" in baselines else ["text_member"]
    elif grade in ("wide", "enough") and "text" in baselines:
        parts.append("text_beaten")
    of_ceiling = _of_ceiling(result)
    train = result["train_comparisons"]
    if train is not None and of_ceiling != "reached":
        if train < FEW_COMPARISONS:
            of_few = {"chance": "collect", "length": "collect", "text": "more", "wide": "more", "enough": "more"}
            parts += [of_few[grade]] if grade in of_few else []
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
        "text": percent(baselines.get("text", {}).get("accuracy", {}).get("value")),
        "times": f"{times:.1f}" if times < 10 else f"{times:.0f}",
        "train": "" if train is None else f"{train:,}",
        "agreed": percent(agreement["share"].get("value")),
        "ceiling": percent(agreement["ceiling"].get("value")),
        "way": percent(agreement["of_ceiling"]),
    }
    sentences = {"grade": grade}
    for lang, words in locale("advice").items():
        between = interval_words(accuracy, percent, words["range"], words["no_range"])
        sentences[lang] = ("" if lang == "ja" else " ").join(words[part].format(range=between, **facts) for part in parts)
    return sentences


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
    if not (result.get("baselines") or {}).get("text", {"beaten": True})["beaten"]:
        return "text"
    return "wide" if accuracy["high"] - accuracy["low"] > WIDE else "enough"


def _of_ceiling(result: Mapping[str, Any]) -> str:
    """The model against the raters' ceiling, as a key of the texts."""
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


def guard_words(event: Mapping[str, Any]) -> dict[str, str]:
    """What a guard of `konomi.training.guard` detected, the likely cause, the remedy, and what the run does: ``en``, ``ja``.

    ``event``: one of ``guards`` in run.json, without its words.
    """
    value, threshold, rate = (event.get(key) for key in ("value", "threshold", "rate_factor"))
    facts = {**event, "value": number(value), "threshold": number(threshold), "share": percent(value), "rate": number(rate)}
    action = {"rolled_back": "guard_back", "mend_reward": "guard_same"}.get(event["action"])
    parts = [f"guard_{event['guard']}", *([action] if action else [])]
    return {lang: ("" if lang == "ja" else " ").join(words[part].format(**facts) for part in parts)
            for lang, words in locale("advice").items()}  # fmt: skip


def landing(land: Mapping[str, Any]) -> dict[str, str]:
    """Say where on its line a model was put.

    Args:
        land: what land.json holds (`konomi.jobs.land`), but for this.

    Returns:
        ``grade``: ``landed``, ``beyond`` (landed, but at a share above 1), ``short`` (the line does not reach the KL), ``missed``
        (no place was near it) or ``share`` (that one was asked for); ``en`` and ``ja``: the sentences.
    """
    target, share = land["target"], land["share"]
    grade = "share" if target is None else "missed"
    if land["landed"]:
        grade = "beyond" if share > 1 else "landed"
    elif target is not None and all(point["kl"] < target for point in land["points"]):
        grade = "short"
    gap = next(point["difference"] for point in land["points"] if point["share"] == share)
    facts = {"share": percent(share), "kl": number(land["kl"]), "target": number(target), "end": number(land["end_kl"])}
    sentences = {"grade": grade}
    for lang, words in locale("advice").items():
        between = interval_words(gap, signed, words["range"], words["no_range"])
        parts = words[f"land_{grade}"].format(**facts), words["land_score"].format(mean=signed(gap["mean"]), range=between)
        sentences[lang] = ("" if lang == "ja" else " ").join(parts)
    return sentences


def kl_missed(
    kl: float, target: float, coefficients: tuple[float, float], course: Sequence[float] = (), controller: str = "adaptive"
) -> str | None:
    """Why the KL of the trained model is not within 20 % of its target; None if it is.

    Args:
        kl, target: nats/response.
        coefficients: the KL coefficient of the first and of the last update.
        course: the KL of each update.
        controller: ``ppo.kl_controller``.

    >>> kl_missed(6.5, 6.0, (0.2, 0.3)) is None
    True
    """
    if abs(kl / target - 1) <= 0.2:
        return None
    moved = f"the coefficient went from {coefficients[0]:.3g} to {coefficients[1]:.3g}"
    if f"{coefficients[0]:.3g}" == f"{coefficients[1]:.3g}":
        moved = f"the coefficient stayed at {coefficients[0]:.3g}, as it does in a run of few updates"
    if kl > target:
        steer = "" if controller == "pid" else ', set ppo.kl_controller = "pid"'
        advice = f"too low or too late: raise ppo.kl_coef, lower ppo.learning_rate{steer}, or set land.kl = {target:g}"
        advice += f" (konomi blend RUN --kl {target:g} does that for this run)"
        return f"KL ended at {kl:.1f}, over the target {target:g}: {moved}, {advice}"
    quarter = -(-len(course) // 4)
    if course and (len(course) < 4 or sum(course[-quarter:]) > 1.1 * sum(course[-2 * quarter : -quarter])):
        advice = "and the KL was still rising when the run ended: raise ppo.episodes"
    elif coefficients[1] > 0.5 * coefficients[0]:
        advice = "and still costs more than the reward gives: lower ppo.kl_coef or raise ppo.episodes"
    else:
        advice = "and the run was too short or its steps too small: raise ppo.episodes or ppo.learning_rate"
    return f"KL ended at {kl:.1f}, under the target {target:g}: {moved}, {advice}"

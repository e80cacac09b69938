"""A reward model against comparisons: does it put the preferred response first, and what does that owe to length?

N comparisons, P prompts, M responses of one prompt. The same prompt from two sources is two groups and one prompt: what
is resampled is prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from konomi.data.records import Group
from konomi.report.advice import verdict
from konomi.statistics.bootstrap import LEVEL, VERSION, Array, Interval, Sums, estimate, plain, prompt_places, resample, share
from konomi.statistics.measures import calibration, checked, correlation, ranks, sigmoid, tau_b, top_1
from konomi.statistics.rank_agreement import agreement_columns, agreement_figures

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Decided:
    """Comparisons that prefer one side, flat. "Preferred" is the side whose label is above 0.5.

    Attributes:
        prompt, group: [N], the number of its prompt and of its group.
        gap: [N], score of the preferred response less that of the other.
        longer: [N], characters of the preferred response less those of the other.
        length: [N], mean characters of the two.
        label: [N], probability that the preferred one is the better, above 0.5 to 1.
    """

    prompt: Places
    group: Places
    gap: Array
    longer: Array
    length: Array
    label: Array


def evaluate_preferences(
    groups: Sequence[Group],
    scores: Sequence[Sequence[float]],
    *,
    seed: int = 0,
    train_comparisons: int | None = None,
    scale: float = 1.0,
) -> dict[str, Any]:
    """Judge a reward model by comparisons that it was not trained on.

    Args:
        groups: the comparisons by prompt. A label of 0.5 counts as a tie, and ties are not judged.
        scores: ``scores[i][j]`` is the model's score of ``groups[i].responses[j]``, raw or normalised.
        seed: of the resampling.
        train_comparisons: how many the model was trained on, for the verdict.
        scale: what a difference of scores is multiplied with to be a logit: 1 for raw scores, the saved deviation for
            normalised ones.

    Returns:
        What ``eval.json`` holds under ``held_out``; docs/reward-models.md explains each figure. Intervals are
        ``{"value", "low", "high"}`` with 95 % between low and high, over prompts.

    Raises:
        ValueError: there is not one score for each response, or ``scale`` is not above 0.
        RunError: a score is not a number.
    """
    arrays = _checked(groups, scores, scale)
    prompt = prompt_places([group.key for group in groups])
    prompts = int(prompt.max()) + 1 if len(prompt) else 0
    found = _decided(groups, arrays, prompt)
    parts = {
        "by_length": _quarters(found.length),
        "by_length_difference": _quarters(found.longer),
        "by_source": _sources(groups, found.group),
    }
    columns = _comparison_columns(found, prompts, {name: place for name, (place, _) in parts.items()})
    columns |= _order_columns(groups, arrays, prompt, prompts) | agreement_columns(groups, prompt, prompts)
    sums = resample(columns, seed)
    result: dict[str, Any] = {
        "version": VERSION,
        "level": LEVEL,
        "resamples": len(sums.drawn["count"]),
        "seed": seed,
        "prompts": sums.prompts["count"],
        "comparisons": len(found.gap),
        "train_comparisons": train_comparisons,
        "model_ties": int((found.gap == 0).sum()),
        **_said(groups),
        "accuracy": share(sums, "right", "count"),
        "longer": _longer(sums),
        **{name: _rows(name, sums, place, about) for name, (place, about) in parts.items()},
        "calibration": _calibration(found, scale),
        **_orders(sums),
        "length_correlation": _length_correlation(groups, arrays),
        "agreement": agreement_figures(sums),
    }
    return result | {"verdict": verdict(result)}


def _checked(groups: Sequence[Group], scores: Sequence[Sequence[float]], scale: float) -> list[Array]:
    if [len(each) for each in scores] != [len(group.responses) for group in groups]:
        raise ValueError("scores: there has to be one for each response of each group")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale = {scale}: has to be a number above 0")
    return [checked(each, f"the scores of prompt {number}") for number, each in enumerate(scores, start=1)]


def _said(groups: Sequence[Group]) -> dict[str, int]:
    """Ties of the raters, and how many raters have names."""
    ties = sum(len(group.ties) for group in groups) + sum(c.label == 0.5 for group in groups for c in group.comparisons)
    raters = {c.rater for group in groups for c in group.comparisons} | {rater for group in groups for *_, rater in group.ties}
    return {"ties": ties, "raters": len(raters - {None})}


def _decided(groups: Sequence[Group], scores: Sequence[Array], prompt: Places) -> Decided:
    places: list[tuple[int, int]] = []
    rows: list[tuple[float, float, float, float]] = []
    for number, (group, own) in enumerate(zip(groups, scores, strict=True)):
        lengths = [len(text) for text in group.responses]
        for c in group.comparisons:
            if c.label == 0.5:
                continue
            one, other, label = (c.better, c.worse, c.label) if c.label > 0.5 else (c.worse, c.better, 1 - c.label)
            places.append((int(prompt[number]), number))
            rows.append((own[one] - own[other], lengths[one] - lengths[other], (lengths[one] + lengths[other]) / 2, label))
    where = np.array(places, dtype=np.int64).reshape(-1, 2)
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    return Decided(where[:, 0], where[:, 1], table[:, 0], table[:, 1], table[:, 2], table[:, 3])


def _wins(gap: Array) -> Array:
    """1 where the preferred side is ahead, 0 where the other is, 0.5 for a tie."""
    found: Array = (np.sign(gap) + 1) / 2
    return found


def _quarters(values: Array) -> tuple[Places, list[dict[str, Any]]]:
    """Each value's bucket, of up to four of about equal size, and the smallest and largest value in each bucket."""
    if not len(values):
        return np.zeros(0, dtype=np.int64), []
    raw = np.searchsorted(np.unique(np.quantile(values, [0.25, 0.5, 0.75])), values, side="left")
    _, place = np.unique(raw, return_inverse=True)
    within = [values[place == b] for b in range(int(place.max()) + 1)]
    return place.astype(np.int64), [{"from": float(v.min()), "to": float(v.max())} for v in within]


def _sources(groups: Sequence[Group], group: Places) -> tuple[Places, list[dict[str, Any]]]:
    names = list(dict.fromkeys(groups[number].source for number in group.tolist()))
    names.sort(key=lambda name: (name is None, name or ""))
    place = np.array([names.index(groups[number].source) for number in group.tolist()], dtype=np.int64)
    return place, [{"source": name} for name in names]


def _comparison_columns(found: Decided, prompts: int, parts: dict[str, Places]) -> dict[str, Array]:
    right, longer = _wins(found.gap), _wins(found.longer)
    ones = np.ones(len(right))

    def by_prompt(values: Array) -> Array:
        return np.bincount(found.prompt, weights=values, minlength=prompts).astype(np.float64)

    columns = {"count": by_prompt(ones), "right": by_prompt(right), "longer": by_prompt(longer)}
    columns["longer_ties"] = by_prompt((found.longer == 0).astype(np.float64))
    for name, place in parts.items():
        for bucket in range(int(place.max()) + 1 if len(place) else 0):
            columns[f"{name}/{bucket}/count"] = by_prompt(ones * (place == bucket))
            columns[f"{name}/{bucket}/right"] = by_prompt(right * (place == bucket))
    return columns


def _rows(name: str, sums: Sums, place: Places, about: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            **each,
            "prompts": sums.prompts[f"{name}/{bucket}/count"],
            "comparisons": int((place == bucket).sum()),
            "accuracy": share(sums, f"{name}/{bucket}/right", f"{name}/{bucket}/count"),
        }
        for bucket, each in enumerate(about)
    ]


def _longer(sums: Sums) -> dict[str, Any]:
    """The rule that the longer one wins, and by how much the model is ahead of it in the same resamples."""
    ahead = estimate(sums, lambda s: (s["right"] - s["longer"]) / s["count"], "count", (-1.0, 1.0))
    return {
        "accuracy": share(sums, "longer", "count"),
        "ties": int(sums.whole["longer_ties"]),
        "difference": ahead,
        "beaten": ahead["low"] is not None and ahead["low"] > 0,
    }


def _calibration(found: Decided, scale: float) -> dict[str, Any]:
    """Of the more probable side of each comparison; log loss and Brier score of the preferred one."""
    logits = found.gap * scale
    of_label = np.where(found.gap > 0, found.label, 1 - found.label)
    observed = np.where(found.gap == 0, 0.5, of_label)
    losses = found.label * np.logaddexp(0, -logits) + (1 - found.label) * np.logaddexp(0, logits)
    some = len(logits) > 0
    return {
        **calibration(sigmoid(np.abs(logits)), observed, 0.5),
        "log_loss": plain(losses.mean()) if some else None,
        "brier": plain(((sigmoid(logits) - found.label) ** 2).mean()) if some else None,
    }


def _order_columns(groups: Sequence[Group], scores: Sequence[Array], prompt: Places, prompts: int) -> dict[str, Array]:
    """tau and top-1 of each group, summed by prompt. A response's standing is its wins less its losses."""
    columns = {name: np.zeros(prompts) for name in ("tau", "top_1", "top_1_chance", "orders")}
    for number, (group, own) in enumerate(zip(groups, scores, strict=True)):
        standing = np.zeros(len(own))
        seen = np.zeros(len(own), dtype=bool)
        for c in group.comparisons:
            seen[[c.better, c.worse]] = True
            standing[c.better] += 2 * c.label - 1
            standing[c.worse] -= 2 * c.label - 1
        for one, other, _ in group.ties:
            seen[[one, other]] = True
        truth = standing[seen].round(9)  # sums of soft labels that are equal but for rounding
        tau = tau_b(truth, own[seen])
        if tau is not None:
            hit, chance = top_1(truth, own[seen])
            for name, value in (("tau", tau), ("top_1", hit), ("top_1_chance", chance), ("orders", 1.0)):
                columns[name][prompt[number]] += value
    return columns


def _orders(sums: Sums) -> dict[str, Interval]:
    chance = estimate(sums, lambda s: s["top_1_chance"] / s["orders"], "orders")["value"]
    return {
        "tau": estimate(sums, lambda s: s["tau"] / s["orders"], "orders", (-1.0, 1.0)),
        "top_1": share(sums, "top_1", "orders") | {"chance": chance},
    }


def _length_correlation(groups: Sequence[Group], scores: Sequence[Array]) -> dict[str, dict[str, float | None]]:
    """Score against characters: of all responses, and of what sets the responses of one prompt apart."""
    lengths = [np.array([len(text) for text in group.responses], dtype=np.float64) for group in groups]
    whole = [np.concatenate([np.zeros(0), *side]) for side in (scores, lengths)]
    several = [pair for pair in zip(scores, lengths, strict=True) if len(pair[0]) > 1]
    within, orders = ([np.concatenate([np.zeros(0), *(center(pair[side]) for pair in several)]) for side in (0, 1)]
                      for center in (lambda v: v - v.mean(), lambda v: ranks(v) - (len(v) + 1) / 2))  # fmt: skip
    return {
        "overall": {"pearson": plain(correlation(*whole)), "spearman": plain(correlation(*map(ranks, whole)))},
        "within_prompt": {"pearson": plain(correlation(*within)), "spearman": plain(correlation(*orders))},
    }

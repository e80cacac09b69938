"""A reward model against comparisons: does it put the preferred response first, and how much of that is length?

N comparisons, P prompts, M responses of one prompt. The same prompt from two sources is two groups and one prompt: what
is resampled is prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import expit

from konomi.data.records import Group
from konomi.report.advice import verdict
from konomi.statistics.agreement import agreement_columns, model_and_ceiling
from konomi.statistics.bootstrap import (
    Array,
    Sums,
    finite,
    header,
    lead,
    prompt_numbers,
    resample,
    share,
    sum_by_prompt,
)
from konomi.statistics.classification import calibration
from konomi.statistics.regression import ORDER_FIGURES, checked_scores, correlation, order_figures, order_intervals

Numbers = npt.NDArray[np.int64]
Part = tuple[Numbers, list[dict[str, Any]]]
"""The bucket of each comparison, and what each bucket is."""


@dataclass(frozen=True)
class Decided:
    """Comparisons that prefer one side, the side whose label is above 0.5: all [N]."""

    prompt: Numbers  # the number of its prompt
    group: Numbers
    gap: Array  # score of the preferred response less that of the other
    longer: Array  # characters of the preferred response less those of the other
    length: Array  # mean characters of the two
    label: Array  # probability that the preferred one is the better, above 0.5 to 1


def evaluate_preferences(
    groups: Sequence[Group],
    scores: Sequence[Sequence[float]],
    *,
    seed: int = 0,
    train_comparisons: int | None = None,
    scale: float = 1.0,
    baselines: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> dict[str, Any]:
    """Evaluate a reward model on held-out comparisons.

    Args:
        groups: the comparisons by prompt. A label of 0.5 counts as a tie, and ties are not judged.
        scores: ``scores[i][j]`` is the model's score of ``groups[i].responses[j]``, raw or normalised.
        train_comparisons: how many the model was trained on, for the verdict.
        scale: factor from a difference of scores to a logit: 1 for raw scores, the saved deviation for normalised ones.
        baselines: by name, other scores of the same responses, which the model's are held against.

    Returns:
        What ``eval.json`` holds under ``held_out``; docs/reward-models.md explains each figure.

    Raises:
        ValueError: there is not one score for each response, or ``scale`` is not above 0.
        RunError: a score is not a number.
    """
    arrays = _checked(groups, scores, scale)
    prompt = prompt_numbers([group.key for group in groups])
    prompts = int(prompt.max(initial=-1)) + 1
    decided = _decided(groups, arrays, prompt)
    parts = {
        "by_length": _quarters(decided.length),
        "by_length_difference": _quarters(decided.longer),
        "by_source": _sources(groups, decided.group),
    }
    rivals = {name: _decided(groups, _checked(groups, own, scale), prompt).gap for name, own in (baselines or {}).items()}
    columns = _comparison_columns(decided, prompts, parts, rivals)
    columns |= sum_by_prompt(prompt, list(map(_order_of, groups, arrays)), ORDER_FIGURES) | agreement_columns(groups, prompt)
    sums = resample(columns, seed)
    raters = {c.rater for group in groups for c in group.comparisons} | {rater for group in groups for *_, rater in group.ties}
    result: dict[str, Any] = {
        **header(seed),
        "resamples": len(sums.drawn["count"]),
        "prompts": sums.prompts["count"],
        "comparisons": len(decided.gap),
        "train_comparisons": train_comparisons,
        "model_ties": int((decided.gap == 0).sum()),
        "ties": sum(len(group.ties) + sum(c.label == 0.5 for c in group.comparisons) for group in groups),
        "raters": len(raters - {None}),
        "accuracy": share(sums, "right", "count"),
        "longer": {**lead(sums, "right", "longer", "count"), "ties": int(sums.total["longer_ties"])},
        "baselines": {name: lead(sums, "right", f"baselines/{name}", "count") for name in rivals},
        **{name: _rows(name, sums, about) for name, (_, about) in parts.items()},
        "calibration": _calibration(decided, scale),
        **order_intervals(sums),
        "length_correlation": _length_correlation(groups, arrays),
        "agreement": model_and_ceiling(sums),
    }
    return result | {"verdict": verdict(result)}


def _checked(groups: Sequence[Group], scores: Sequence[Sequence[float]], scale: float) -> list[Array]:
    if [len(each) for each in scores] != [len(group.responses) for group in groups]:
        raise ValueError("scores: there has to be one for each response of each group")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale = {scale}: has to be a number above 0")
    return [checked_scores(each, f"the scores of prompt {number}") for number, each in enumerate(scores, start=1)]


def _decided(groups: Sequence[Group], scores: Sequence[Array], prompt: Numbers) -> Decided:
    numbers: list[tuple[int, int]] = []
    rows: list[tuple[float, float, float, float]] = []
    for number, (group, own) in enumerate(zip(groups, scores, strict=True)):
        lengths = [len(text) for text in group.responses]
        for c in group.comparisons:
            if c.label == 0.5:
                continue
            one, other, label = (c.better, c.worse, c.label) if c.label > 0.5 else (c.worse, c.better, 1 - c.label)
            numbers.append((int(prompt[number]), number))
            rows.append((own[one] - own[other], lengths[one] - lengths[other], (lengths[one] + lengths[other]) / 2, label))
    return Decided(*np.array(numbers, dtype=np.int64).reshape(-1, 2).T, *np.array(rows, dtype=np.float64).reshape(-1, 4).T)


def _wins(gap: Array) -> Array:
    """1 where the preferred side is ahead, 0 where the other is, 0.5 for a tie."""
    wins: Array = (np.sign(gap) + 1) / 2
    return wins


def _quarters(values: Array) -> Part:
    """Each value's bucket, of up to four of about equal size, and the ends of each bucket."""
    if not len(values):
        return np.zeros(0, dtype=np.int64), []
    raw = np.searchsorted(np.unique(np.quantile(values, [0.25, 0.5, 0.75])), values, side="left")
    _, bucket = np.unique(raw, return_inverse=True)
    within = [values[bucket == b] for b in range(int(bucket.max()) + 1)]
    return bucket.astype(np.int64), [{"from": float(v.min()), "to": float(v.max())} for v in within]


def _sources(groups: Sequence[Group], group: Numbers) -> Part:
    own = [groups[number].source for number in group.tolist()]
    names = sorted(dict.fromkeys(own), key=lambda name: (name is None, name or ""))
    return np.array([names.index(name) for name in own], dtype=np.int64), [{"source": name} for name in names]


def _comparison_columns(
    decided: Decided, prompts: int, parts: Mapping[str, Part], rivals: Mapping[str, Array]
) -> dict[str, Array]:
    right, longer = _wins(decided.gap), _wins(decided.longer)
    columns: dict[str, npt.NDArray[Any]] = {"count": np.ones(len(right)), "right": right, "longer": longer}
    columns["longer_ties"] = decided.longer == 0
    columns |= {f"baselines/{name}": _wins(gap) for name, gap in rivals.items()}
    for name, (bucket, about) in parts.items():
        for number in range(len(about)):
            columns[f"{name}/{number}/count"] = bucket == number
            columns[f"{name}/{number}/right"] = right * (bucket == number)
    return {name: np.bincount(decided.prompt, values, prompts).astype(np.float64) for name, values in columns.items()}


def _rows(name: str, sums: Sums, about: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            **each,
            "prompts": sums.prompts[f"{name}/{number}/count"],
            "comparisons": int(sums.total[f"{name}/{number}/count"]),
            "accuracy": share(sums, f"{name}/{number}/right", f"{name}/{number}/count"),
        }
        for number, each in enumerate(about)
    ]


def _calibration(decided: Decided, scale: float) -> dict[str, Any]:
    """Of the more probable side of each comparison; log loss and Brier score of the preferred one."""
    logits, label = decided.gap * scale, decided.label
    observed = np.where(logits == 0, 0.5, np.where(logits > 0, label, 1 - label))
    losses = label * np.logaddexp(0, -logits) + (1 - label) * np.logaddexp(0, logits)
    some = len(logits) > 0
    return {
        **calibration(expit(np.abs(logits)), observed, 0.5),
        "log_loss": finite(losses.mean()) if some else None,
        "brier": finite(((expit(logits) - label) ** 2).mean()) if some else None,
    }


def _order_of(group: Group, scores: Array) -> dict[str, float]:
    """tau and top-1 of one group. A response's standing is its wins less its losses."""
    standing, seen = np.zeros(len(scores)), np.zeros(len(scores), dtype=bool)
    for c in group.comparisons:
        seen[[c.better, c.worse]] = True
        standing[c.better] += 2 * c.label - 1
        standing[c.worse] -= 2 * c.label - 1
    for one, other, _ in group.ties:
        seen[[one, other]] = True
    return order_figures(standing[seen].round(9), scores[seen])  # sums of soft labels that are equal but for rounding


def _length_correlation(groups: Sequence[Group], scores: Sequence[Array]) -> dict[str, dict[str, float | None]]:
    """Score against characters: of all responses, and of what sets the responses of one prompt apart."""
    lengths = [np.array([len(text) for text in group.responses], dtype=np.float64) for group in groups]
    several = [pair for pair in zip(scores, lengths, strict=True) if len(pair[0]) > 1]
    overall, within, orders = (
        [np.concatenate([np.zeros(0), *side]) for side in sides]
        for sides in (
            (scores, lengths),
            [[pair[side] - pair[side].mean() for pair in several] for side in (0, 1)],
            [[stats.rankdata(pair[side]) - (len(pair[side]) + 1) / 2 for pair in several] for side in (0, 1)],
        )
    )
    of_ranks = [stats.rankdata(side) for side in overall]
    return {
        "overall": {"pearson": finite(correlation(*overall)), "spearman": finite(correlation(*of_ranks))},
        "within_prompt": {"pearson": finite(correlation(*within)), "spearman": finite(correlation(*orders))},
    }

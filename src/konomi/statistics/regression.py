"""A reward model against numbers: those that it was trained to predict, or a truth without noise that it was never shown.

N rows, P prompts, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from konomi.errors import RunError
from konomi.statistics.bootstrap import (
    Array,
    Interval,
    Sums,
    bootstrap,
    header,
    interval,
    lead,
    mean_of,
    prompt_numbers,
    resample,
    resample_count,
    share,
    sum_by_prompt,
    without_interval,
)  # fmt: skip
from konomi.statistics.concordance import tau_b

LARGEST = 1e30
"""Larger scores are taken as damaged: their squares would overflow."""
FIGURES = ("pearson", "spearman", "mse", "r2")
ORDER_FIGURES = ("tau", "top_1", "top_1_chance", "orders")
OF_FLOAT32 = 3e-7
"""A few units in the last place of a float32, as a share of the number."""
_WORK = 30_000_000


def beyond_rounding(deviation: float, size: float, relative: float = 1e-12) -> float:
    """The standard deviation of numbers as large as ``size``, or 0 where it is what rounding leaves of equal ones.

    relative: of float64 numbers; `OF_FLOAT32` for scores that a model computed.

    >>> beyond_rounding(float(np.std([0.1] * 50)), 0.1), beyond_rounding(0.5, 3.0)
    (0.0, 0.5)
    """
    return deviation if deviation > relative * size else 0.0


def evaluate_scores(truth: Sequence[float], predicted: Sequence[float], keys: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Evaluate a regression on held-out scores.

    Args:
        truth: the given scores, [N].
        predicted: the model's, in the same unit, [N].
        keys: each row's prompt; rows of one prompt are resampled together.

    Returns:
        ``pearson``, ``spearman``, ``mse`` (mean squared error) and ``r2`` (1 - mse / variance of the truth; 0 is as good
        as the mean), each with its interval, and counts.

    Raises:
        ValueError: the three differ in length.
        RunError: a score is not a number.
    """
    if not len(truth) == len(predicted) == len(keys):
        raise ValueError(f"{len(truth)} true scores, {len(predicted)} predicted, {len(keys)} keys: there have to be as many")
    prompt = prompt_numbers(keys)
    figures = _fits(checked_scores(truth, "true scores"), checked_scores(predicted, "scores"), prompt, seed)
    prompts = int(prompt.max(initial=-1)) + 1
    return {**header(seed), "prompts": prompts, "texts": len(truth), **figures}


def evaluate_truth(
    groups_of_scores: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    seed: int = 0,
    baselines: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> dict[str, Any]:
    """Evaluate a model by a truth that has no noise, such as the judge that simulated raters follow.

    Args:
        groups_of_scores: for each group of responses the key of its prompt, the true scores, and the model's scores of the
            same responses. Groups of one prompt are resampled together.
        baselines: by name, other scores of the same responses, which the model's are held against.

    Returns:
        ``accuracy``: share of all pairs of one group's responses of different truth that the model orders as the truth
        does (a tie of the model counts half); ``baselines``: theirs, and the model's lead; ``tau`` and ``top_1`` within groups;
        ``pearson`` and ``spearman`` over all; each with its interval, and counts.

    Raises:
        ValueError: a group has more scores of one kind than of the other.
        RunError: a score is not a number.
    """
    prompt = prompt_numbers([key for key, _, _ in groups_of_scores])
    sides, rows = [], []
    for number, (_, truth, scores) in enumerate(groups_of_scores, start=1):
        if len(truth) != len(scores):
            raise ValueError(f"group {number}: {len(truth)} true scores and {len(scores)} of the model")
        own = checked_scores(truth, f"true scores of group {number}"), checked_scores(scores, f"the scores of group {number}")
        above = own[0][:, None] > own[0]
        rivals = {name: checked_scores(each[number - 1], f"{name}, group {number}") for name, each in (baselines or {}).items()}
        sides.append(own)
        rows.append({
            "right": _right(own[1], above), "pairs": float(above.sum()), **order_figures(*own),
            **{f"baselines/{name}": _right(each, above) for name, each in rivals.items()},
        })  # fmt: skip
    names = [f"baselines/{name}" for name in baselines or ()]
    sums = resample(sum_by_prompt(prompt, rows, ("right", "pairs", *ORDER_FIGURES, *names)), seed)
    true, predicted = (np.concatenate([np.zeros(0), *(own[side] for own in sides)]) for side in (0, 1))
    return {
        **header(seed),
        "resamples": len(sums.drawn["pairs"]),
        "prompts": sums.prompts["pairs"],
        "pairs": int(sums.total["pairs"]),
        "accuracy": share(sums, "right", "pairs"),
        "baselines": {name: lead(sums, "right", f"baselines/{name}", "pairs") for name in baselines or ()},
        **order_intervals(sums),
        **_fits(true, predicted, np.repeat(prompt, [len(own[0]) for own in sides]), seed, FIGURES[:2]),
    }


def _right(scores: Array, above: npt.NDArray[np.bool_]) -> float:
    """How many of the pairs [M, M] that are ``above`` the scores [M] order so."""
    return float(((np.sign(scores[:, None] - scores) + 1) / 2)[above].sum())


def checked_scores(values: Sequence[float], what: str) -> Array:
    """The values as an array. Raises RunError if one is not a number, or beyond 1e30."""
    array = np.asarray(values, dtype=np.float64)
    for place in np.flatnonzero(~(np.abs(array) <= LARGEST))[:1]:  # NaN is in no order
        raise RunError(
            f"{what}: number {place + 1} is {array[place]:g}, which cannot be judged; if a model gave it, its training "
            "has diverged: try a lower learning rate"
        )
    return array


def order_figures(truth: Array, scores: Array) -> dict[str, float]:
    """How well scores order one prompt's responses; nothing where the truth puts none above another.

    Returns:
        ``tau``: tau-b, 0 where all scores are equal; ``top_1``: whether the best by the scores is among the best by the truth,
        a share where several are the best; ``top_1_chance``: the same of a random one; ``orders``: 1.
    """
    best = truth == truth.max() if len(truth) else truth == 0
    if best.all():
        return {}
    hit = float(best[scores == scores.max()].mean())
    return {"tau": tau_b(truth, scores) or 0.0, "top_1": hit, "top_1_chance": float(best.mean()), "orders": 1.0}


def order_intervals(sums: Sums) -> dict[str, Any]:
    """tau and top-1 of summed :func:`order_figures`, with their intervals, and the chance of a random response."""
    chance = mean_of(sums, "top_1_chance", "orders")["value"]
    top_1 = share(sums, "top_1", "orders") | {"chance": chance}
    return {"tau": mean_of(sums, "tau", "orders", (-1.0, 1.0)), "top_1": top_1}


def correlation(x: Array, y: Array, weights: Array | None = None) -> Array:
    """Pearson's correlation along the last axis, with weights, which scipy's does not take; NaN where one side does not vary.

    >>> round(float(correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))), 9)
    1.0
    """
    w = np.ones(x.shape[-1]) if weights is None else weights
    total = w.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        sides = [(v, v - (w * v).sum(axis=-1, keepdims=True) / total) for v in (x, y)]
        squares = [(w * off * off).sum(axis=-1) for _, off in sides]
        # equal values leave a rest from rounding, which is no variance
        varies = [s > 1e-24 * (w * v * v).sum(axis=-1) for s, (v, _) in zip(squares, sides, strict=True)]
        r = (w * sides[0][1] * sides[1][1]).sum(axis=-1) / (np.sqrt(squares[0]) * np.sqrt(squares[1]))
    result: Array = np.where(varies[0] & varies[1], np.clip(r, -1, 1), np.nan)
    return result


def weighted_ranks(values_N: Array, weights_KN: Array) -> Array:
    """Ranks from 1, [K, N], equal values sharing the mean of theirs, in samples that hold value n weights[k, n] times.

    As ``scipy.stats.rankdata`` of each sample, with one sort for all K of them.

    >>> weighted_ranks(np.array([30.0, 10.0, 30.0]), np.ones((1, 3))).tolist()
    [[2.5, 1.0, 2.5]]
    """
    _, place = np.unique(values_N, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    sizes = np.add.reduceat(weights_KN[:, order], starts, axis=1)
    ranks: Array = (np.cumsum(sizes, axis=1) - sizes / 2 + 0.5)[:, place]
    return ranks


def _fits(
    truth: Array, predicted: Array, prompt: npt.NDArray[np.int64], seed: int,
    names: Sequence[str] = FIGURES,
) -> dict[str, Interval]:  # fmt: skip
    """The first of ``FIGURES``, with their bootstrap over prompts (the number of each row's, [N])."""
    if not len(truth):
        return {name: without_interval(None) for name in names}

    def figures(weights: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            total = weights.sum(axis=-1)
            mse = weights @ (truth - predicted) ** 2 / total
            off = truth - (weights @ truth / total)[:, None]
            variance = (weights * off * off).sum(axis=-1) / total
            r2 = np.where(variance > 1e-24 * (weights @ truth**2 / total), 1 - mse / variance, np.nan)
            spearman = correlation(weighted_ranks(truth, weights), weighted_ranks(predicted, weights), weights)
            return np.stack([correlation(truth, predicted, weights), spearman, mse, r2], axis=-1)

    prompts = int(prompt.max()) + 1
    values = figures(np.ones((1, len(truth))))[0]
    count = resample_count(len(truth), _WORK)
    drawn = bootstrap(lambda times: figures(times[:, prompt]), prompts, count, seed, width=len(truth))
    return {name: interval(float(value), drawn_R, prompts) for name, value, drawn_R in zip(names, values, drawn.T, strict=False)}

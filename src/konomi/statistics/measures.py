"""Figures of scores against a truth: ranks, correlation, Kendall's tau, top-1, calibration. Pure.

N rows, K resamples of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from konomi.errors import RunError
from konomi.statistics.bootstrap import Array, Interval, draws, interval, plain, resample_count

BINS = 10
LARGEST = 1e30
"""Beyond this a score is taken as damaged: squares of it would leave the range of numbers."""
_SPEARMAN_WORK = 30_000_000


def checked(values: Sequence[float], what: str) -> Array:
    """The values as an array. Raises RunError if one is not a number, or beyond 1e30."""
    found = np.asarray(values, dtype=np.float64)
    for place in np.flatnonzero(~(np.abs(found) <= LARGEST))[:1]:  # NaN is in no order
        raise RunError(
            f"{what}: number {place + 1} is {found[place]:g}, which cannot be judged; if a model gave it, its training "
            "has diverged: try a lower learning rate"
        )
    return found


def ranks(values: Array, weights: Array | None = None) -> Array:
    """Ranks from 1, equal values sharing the mean of theirs: [N].

    With ``weights`` [K, N] of whole numbers, [K, N]: row k is of the sample in which value i is there weights[k, i] times.

    >>> ranks(np.array([30.0, 10.0, 30.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, place = np.unique(values, return_inverse=True)
    weights_KN = np.ones((1, len(values))) if weights is None else weights
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    sizes = np.add.reduceat(weights_KN[:, order], starts, axis=1)
    found: Array = (np.cumsum(sizes, axis=1) - sizes / 2 + 0.5)[:, place]
    return found[0] if weights is None else found


def correlation(x: Array, y: Array, weights: Array | None = None) -> Array:
    """Pearson's correlation along the last axis; NaN where one side does not vary.

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
        found = (w * sides[0][1] * sides[1][1]).sum(axis=-1) / (np.sqrt(squares[0]) * np.sqrt(squares[1]))
    result: Array = np.where(varies[0] & varies[1], np.clip(found, -1, 1), np.nan)
    return result


def fits(truth: Array, predicted: Array, place: Any, seed: int, names: Sequence[str]) -> dict[str, Interval]:
    """Figures of numbers against numbers, with intervals by a bootstrap over prompts.

    Args:
        truth, predicted: [N].
        place: [N], the number of each row's prompt, from 0.
        seed: of the resampling.
        names: which of ``pearson``, ``spearman``, ``mse`` (mean squared error) and ``r2`` (1 - mse / variance of truth).
    """
    if not len(truth):
        return {name: {"value": None, "low": None, "high": None} for name in names}
    whole = _fits(truth, predicted, np.ones((1, len(truth))), names)
    prompts = int(place.max()) + 1
    count = resample_count(len(truth), _SPEARMAN_WORK)
    rows = max(1, 1_000_000 // len(truth))
    drawn: dict[str, list[Array]] = {name: [] for name in names}
    for times in draws(prompts, count, seed):
        for start in range(0, len(times), rows):
            piece = _fits(truth, predicted, times[start : start + rows, place], names)
            for name in names:
                drawn[name].append(piece[name])
    return {name: interval(float(whole[name][0]), np.concatenate(drawn[name]), prompts) for name in names}


def _fits(truth: Array, predicted: Array, weights: Array, names: Sequence[str]) -> dict[str, Array]:
    found = {}
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        total = weights.sum(axis=-1)
        mse = weights @ (truth - predicted) ** 2 / total
        if "pearson" in names:
            found["pearson"] = correlation(truth, predicted, weights)
        if "spearman" in names:
            found["spearman"] = correlation(ranks(truth, weights), ranks(predicted, weights), weights)
        if "mse" in names:
            found["mse"] = mse
        if "r2" in names:
            off = truth - (weights @ truth / total)[:, None]
            variance = (weights * off * off).sum(axis=-1) / total
            found["r2"] = np.where(variance > 1e-24 * (weights @ truth**2 / total), 1 - mse / variance, np.nan)
    return found


def tau_b(truth: Array, scores: Array) -> float | None:
    """Kendall's tau-b of two orders; None where the truth puts none above another, 0 where only the scores do not.

    >>> tau_b(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]))
    0.3333333333333333
    """
    orders = [(v[:, None] > v).astype(np.float64) - (v[:, None] < v) for v in (truth, scores)]
    of_truth, of_scores = (np.count_nonzero(order) for order in orders)
    if not of_truth:
        return None
    return float((orders[0] * orders[1]).sum() / np.sqrt(of_truth * of_scores)) if of_scores else 0.0


def top_1(truth: Array, scores: Array) -> tuple[float, float]:
    """Is the best by the scores among the best by the truth? And how likely is it of one drawn by lot?

    Of several that the scores put first, the share that is among the best.
    """
    best = truth == truth.max()
    return float(best[scores == scores.max()].mean()), float(best.mean())


def calibration(predicted: Array, observed: Array, low: float) -> dict[str, Any]:
    """How often what was said with probability p came true.

    Args:
        predicted: probabilities from ``low`` to 1, [N].
        observed: 1 where it came true, 0 where not, or a share between, [N].
        low: the smallest probability that can be said.

    Returns:
        ``bins``: of ten of equal width those with something in them: mean ``predicted`` and ``observed``, ``count``.
        ``ece``: mean distance of the two, weighted by count (Naeini et al. 2015); None of nothing.
    """
    place = np.minimum((predicted - low) / (1 - low) * BINS, BINS - 1).astype(np.int64)
    counts = np.bincount(place, minlength=BINS)
    bins = [
        {"predicted": float(predicted[place == b].mean()), "observed": float(observed[place == b].mean()), "count": int(n)}
        for b, n in enumerate(counts)
        if n
    ]
    gaps = [each["count"] * abs(each["predicted"] - each["observed"]) for each in bins]
    return {"bins": bins, "ece": plain(sum(gaps) / len(predicted)) if len(predicted) else None}


def sigmoid(logits: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    found: Array = np.exp(-np.logaddexp(0, -logits))
    return found

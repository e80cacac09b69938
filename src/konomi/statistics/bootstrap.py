"""95 % intervals over prompts: judgements of one prompt are not independent, so prompts are what is counted and resampled.

- A mean of one number a prompt: Student's t, widened for skewness (:func:`mean_interval`).
- A share of comparisons, from 0 to 1: Jeffreys' interval of as many comparisons as the spread over prompts is worth
  (:func:`share_interval`).
- Any other figure: :func:`bootstrap` (Efron 1979). Prompts are drawn with replacement, each with all that belongs to it. For
  figures that are made of sums, a resample is one row of a matrix product (:func:`resample`).

benchmarks/coverage.py measures how often they hold the truth. N rows, P prompts, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]
Interval = dict[str, float | None]
"""``value`` and its 95 % interval, ``low`` to ``high``; None where it cannot be computed."""

VERSION = 1
LEVEL = 0.95
RESAMPLES, FEWEST = 10_000, 1_000
TAIL = (1 - LEVEL) / 2
_PIECE = 250_000
"""Numbers that are drawn at once."""
_WORK = 50_000_000
"""Numbers that are drawn at most, as long as there are FEWEST resamples: a second or two."""


@dataclass(frozen=True)
class Sums:
    """Columns, summed over all prompts and over the prompts of each resample; each by name."""

    by_prompt: dict[str, Array]  # [P]
    total: dict[str, Array]  # one number
    drawn: dict[str, Array]  # [R]
    prompts: dict[str, int]  # how many prompts have something other than 0 in the column


def header(seed: int) -> dict[str, Any]:
    """How a set of figures begins."""
    return {"version": VERSION, "level": LEVEL, "seed": seed}


def prompt_numbers(keys: Sequence[str]) -> npt.NDArray[np.int64]:
    """The number of each row's prompt, [N], counted from 0 in the order of first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def sum_by_prompt(prompt: npt.NDArray[np.int64], rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, Array]:
    """By name: the values of the rows, 0 where there is none, summed by the number of each row's prompt."""
    return {name: np.bincount(prompt, [row.get(name, 0.0) for row in rows]).astype(np.float64) for name in names}


def resample_count(size: int, work: int = _WORK) -> int:
    """How many resamples of ``size`` draws are worth their time."""
    return min(RESAMPLES, max(FEWEST, work // max(1, size)))


def bootstrap(figure: Callable[[Array], Array], prompts: int, resamples: int, seed: int, *, width: int = 1) -> Array:
    """Figures of resamples of prompts, [R, ...].

    Args:
        figure: from how often each prompt was drawn in some of the resamples, [some, P], to their figures, [some, ...].
        prompts: P.
        resamples: R.
        seed: of the draws.
        width: numbers that ``figure`` holds for each resample, where that is more than P.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, _PIECE // max(prompts, width))
    figures = []
    for start in range(0, resamples, rows):
        here = min(rows, resamples - start)
        picks = generator.integers(prompts, size=(here, prompts)) + prompts * np.arange(here)[:, None]
        times = np.bincount(picks.ravel(), minlength=here * prompts).reshape(here, prompts)
        figures.append(figure(times.astype(np.float64)))
    return np.concatenate(figures)


def resample(columns: Mapping[str, Array], seed: int) -> Sums:
    """Sum columns of [P] over all prompts and over the same resamples of them. Prompts with 0 in every column are left out."""
    table = np.stack(list(columns.values()), axis=1)
    table = table[(table != 0).any(axis=1)]
    drawn = np.empty((0, table.shape[1]))
    if len(table):
        drawn = bootstrap(lambda times: times @ table, len(table), resample_count(len(table)), seed)
    by_prompt, total, of_resample = (dict(zip(columns, each, strict=True)) for each in (table.T, table.sum(axis=0), drawn.T))
    prompts = dict(zip(columns, (table != 0).sum(axis=0).tolist(), strict=True))
    return Sums(by_prompt, total, of_resample, prompts)


def estimate(
    sums: Sums, figure: Callable[[Mapping[str, Array]], Array], over: str, ends: tuple[float, float] | None = None
) -> Interval:
    """A figure that is made of sums, with its interval.

    Args:
        figure: from the sums by name to the figure.
        over: the column that counts what the figure is a mean of.
        ends: the smallest and the largest possible value.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return interval(float(figure(sums.total)), figure(sums.drawn), sums.prompts[over], ends)


def mean_of(sums: Sums, top: str, bottom: str, ends: tuple[float, float] | None = None) -> Interval:
    """One sum divided by another, with its interval."""
    return estimate(sums, lambda s: s[top] / s[bottom], bottom, ends)


def share(sums: Sums, top: str, bottom: str) -> Interval:
    """One sum divided by another, from 0 to 1, with its interval."""
    return share_interval(sums.by_prompt[top], sums.by_prompt[bottom])


def lead(sums: Sums, top: str, other: str, bottom: str) -> dict[str, Any]:
    """The share ``other / bottom`` of a rule, and how far ``top / bottom`` is ahead of it, in the same resamples.

    Returns:
        ``accuracy`` of the rule; ``difference``; ``beaten``: the interval of the difference is above 0.
    """
    ahead = estimate(sums, lambda s: (s[top] - s[other]) / s[bottom], bottom, (-1.0, 1.0))
    return {"accuracy": share(sums, other, bottom), "difference": ahead, "beaten": ahead["low"] is not None and ahead["low"] > 0}


def mean_interval(values_P: Array) -> Interval:
    """The mean of one number a prompt, with its interval.

    Student's t is too short on the side of a long tail; the t that is corrected for skewness (Hall 1992, "On the removal of
    skewness by transformation") is too short on the other side where tails are heavy. So the end that the correction moves out
    is where it puts it, and the end that it moves in goes half as far.

    Returns:
        No interval with fewer than two prompts, or where all values are the same: these do not tell how far off a mean is.

    >>> {name: round(value, 2) for name, value in mean_interval(np.array([1.0, 2.0, 3.0, 4.0, 10.0])).items()}
    {'value': 4.0, 'low': 0.42, 'high': 16.9}
    """
    count = len(values_P)
    value = float(values_P.mean()) if count else None
    spread = float(values_P.std(ddof=1)) if count > 1 else 0.0
    if value is None or spread <= 1e-12 * max(1.0, float(np.abs(values_P).max())):
        return without_interval(value)
    reach, skew = float(stats.t.isf(TAIL, count - 1)) / count**0.5, float(stats.skew(values_P, bias=False))
    low, high = -reach, reach
    if abs(skew) > 1e-6:
        low, high = (3 / skew * float(np.cbrt(1 + skew * (end - skew / (6 * count))) - 1) for end in (-reach, reach))
    low, high = min(low, (low - reach) / 2), max(high, (high + reach) / 2)
    return {"value": value, "low": value - spread * high, "high": value - spread * low}


def share_interval(top_P: Array, count_P: Array, raters: tuple[Array, Array, float] | None = None) -> Interval:
    """The share ``sum(top) / sum(count)``, from 0 to 1, with its interval.

    Jeffreys' interval (Brown, Cai and DasGupta 2001) of an effective number of comparisons, share (1 - share) / variance, at
    most twice as many as there are. The variance is that over prompts (of residuals as Bell and McCaffrey 2002 adjust them);
    that it is estimated from few prompts costs (1.96 / Student's t)^2 of the number (Korn and Graubard 1998), with half a
    degree of freedom less than prompts (or raters, if fewer), which simulation chose. Where each prompt is all, half or none of
    equally many comparisons, it counts as one, the shares of these give the variance, and there is no such cost.

    Args:
        top_P, count_P: sums of each prompt; 0 of 0 is left out.
        raters: the same two sums of each rater, and the variance of the share if all votes were independent: then raters are
            drawn like prompts, and the interval is for people of whom these raters are a sample. The variance is that over
            prompts and that over raters less that of single votes (Cameron, Gelbach and Miller 2011), not below that over raters.

    Returns:
        No interval with fewer than two prompts (or raters), or where all have the same share, unless that is 0 or 1: then the
        exact interval (Clopper and Pearson 1934) of as many draws as prompts (or raters, if fewer).
    """
    top_P, count_P = top_P[count_P > 0], count_P[count_P > 0]
    total, prompts = float(count_P.sum()), len(count_P)
    value = float(top_P.sum()) / total if total else np.nan
    fewest = prompts if raters is None else min(prompts, len(raters[0]))
    if prompts < 1 or value in (0.0, 1.0) or fewest < 2:
        return interval(value, np.zeros(0), fewest, (0.0, 1.0))
    known = raters is None and np.ptp(count_P) == 0 and bool(np.isin(top_P, count_P[0] * np.array((0.0, 0.5, 1.0))).all())
    if known:
        top_P, count_P, total = top_P / count_P, np.ones(prompts), float(prompts)
    variance = _variance(top_P, count_P, value)
    if raters is not None:
        over_raters = _variance(raters[0], raters[1], value)
        variance = max(variance + over_raters - raters[2], over_raters)
    if variance <= 1e-12:
        return without_interval(value)
    factor = prompts / (prompts - 1) if known else float(stats.norm.isf(TAIL) / stats.t.isf(TAIL, fewest - 0.5)) ** 2
    size = min(value * (1 - value) / variance * factor, 2 * total)
    low, high = stats.beta.ppf([TAIL, 1 - TAIL], value * size + 0.5, (1 - value) * size + 0.5)
    return {"value": value, "low": min(float(low), value), "high": max(float(high), value)}


def _variance(top_G: Array, count_G: Array, value: float) -> float:
    """The variance of a share over groups of dependent votes."""
    total = count_G.sum()
    return float((((top_G - value * count_G) / total) ** 2 / (1 - count_G / total)).sum())


def interval(value: float, drawn_R: Array, prompts: int, ends: tuple[float, float] | None = None) -> Interval:
    """The value and the percentiles of its resamples; None for the interval with fewer than two prompts.

    Resamples of few prompts spread too little, by sqrt((n - 1) / n) and as a normal deviate is to Student's t: the percentiles
    are taken so much farther out (Hesterberg 2015, arXiv:1411.5279, "expanded percentiles").

    Where the value is at one of ``ends``, so is each resample. Then the other side is that of the exact interval (Clopper and
    Pearson 1934) of ``prompts`` draws that all came out the same.
    """
    if not np.isfinite(value):
        return without_interval(None)
    if ends is not None and value in ends and prompts > 1:
        reach = (ends[1] - ends[0]) * TAIL ** (1 / prompts)
        low, high = (ends[0] + reach, value) if value == ends[1] else (value, ends[1] - reach)
        return {"value": value, "low": low, "high": high}
    drawn_R = drawn_R[np.isfinite(drawn_R)]
    if prompts < 2 or not len(drawn_R) or np.ptp(drawn_R) <= 1e-12 * max(1.0, abs(value)):
        return without_interval(value)
    tail = float(stats.norm.sf(stats.t.isf(TAIL, prompts - 1) * np.sqrt(prompts / (prompts - 1))))
    low, high = np.quantile(drawn_R, [tail, 1 - tail])
    return {"value": value, "low": float(low), "high": float(high)}


def without_interval(value: float | None) -> Interval:
    """A value whose interval cannot be computed."""
    return {"value": value, "low": None, "high": None}


def finite(value: float | Array) -> float | None:
    """The number, or None where it is NaN or infinite."""
    return float(value) if np.isfinite(value) else None

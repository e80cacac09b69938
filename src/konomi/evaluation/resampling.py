"""Intervals by a bootstrap over prompts (Efron 1979): what is said of one prompt is not independent of itself.

Whole prompts are drawn with replacement, and all that belongs to a prompt goes with it. Figures that are made of sums
need only the sums of each prompt, so that a resample is one row of a matrix product. N rows, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Interval = dict[str, float | None]
"""``value`` and its 95 % interval, ``low`` to ``high``. None where it cannot be told."""

VERSION = 1
LEVEL = 0.95
RESAMPLES = 10_000
FEWEST = 1_000
_PIECE = 250_000
_WORK = 50_000_000
"""Draws that are made at most, as long as there are FEWEST resamples: a second or two."""


@dataclass(frozen=True)
class Sums:
    """Sums of columns: over all prompts, and over the prompts of each resample.

    Attributes:
        whole: name -> one number.
        drawn: name -> [resamples].
        prompts: name -> how many prompts have something other than 0 in the column.
    """

    whole: dict[str, Array]
    drawn: dict[str, Array]
    prompts: dict[str, int]


def prompt_places(keys: Sequence[str]) -> npt.NDArray[np.int64]:
    """The number of each row's prompt, [N], counted from 0 in the order of first appearance."""
    places: dict[str, int] = {}
    return np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.int64)


def resample_count(size: int, work: int = _WORK) -> int:
    """Resamples of ``size`` draws that are worth their time."""
    return min(RESAMPLES, max(FEWEST, work // max(1, size)))


def draws(prompts: int, count: int, seed: int) -> Iterator[Array]:
    """How often each of P prompts was drawn in each of ``count`` resamples: [resamples, P], piece by piece."""
    generator = np.random.default_rng(seed)
    rows = max(1, _PIECE // prompts)
    for start in range(0, count, rows):
        here = min(rows, count - start)
        picks = generator.integers(prompts, size=(here, prompts)) + prompts * np.arange(here)[:, None]
        yield np.bincount(picks.ravel(), minlength=here * prompts).reshape(here, prompts).astype(np.float64)


def resample(columns: Mapping[str, Array], seed: int) -> Sums:
    """Sum columns of [P] over all prompts and over resamples of them, the same resamples for all columns.

    Prompts with 0 in every column are left out.
    """
    table = np.stack(list(columns.values()), axis=1)
    table = table[(table != 0).any(axis=1)]
    pieces = [times @ table for times in draws(len(table), resample_count(len(table)), seed)] if len(table) else []
    drawn = np.concatenate(pieces) if pieces else np.empty((0, table.shape[1]))
    whole, prompts = table.sum(axis=0), (table != 0).sum(axis=0)
    return Sums(
        {name: whole[i] for i, name in enumerate(columns)},
        {name: drawn[:, i] for i, name in enumerate(columns)},
        {name: int(prompts[i]) for i, name in enumerate(columns)},
    )


def estimate(
    sums: Sums, figure: Callable[[Mapping[str, Array]], Array], over: str, ends: tuple[float, float] | None = None
) -> Interval:
    """A figure that is made of sums, with its interval.

    Args:
        figure: from the sums by name to the figure.
        over: the column that counts what the figure is a mean of.
        ends: the smallest and the largest that the figure can be.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value, drawn = float(figure(sums.whole)), figure(sums.drawn)
    return interval(value, drawn, sums.prompts[over], ends)


def share(sums: Sums, top: str, bottom: str) -> Interval:
    """One sum by another, from 0 to 1, with its interval."""
    return estimate(sums, lambda s: s[top] / s[bottom], bottom, (0.0, 1.0))


def interval(value: float, drawn: Array, prompts: int, ends: tuple[float, float] | None = None) -> Interval:
    """The value and the percentiles of what resamples gave.

    Where the value is at an end, each resample is too, and its interval would have no width. Then the other side is
    that of the exact interval (Clopper and Pearson 1934) of ``prompts`` draws that all came out the same.
    """
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None}
    tail = (1 - LEVEL) / 2
    if ends is not None and value in ends:
        reach = (ends[1] - ends[0]) * tail ** (1 / max(1, prompts))
        low, high = (ends[0] + reach, value) if value == ends[1] else (value, ends[1] - reach)
        return {"value": value, "low": low, "high": high}
    drawn = drawn[np.isfinite(drawn)]
    if prompts < 2 or not len(drawn):
        return {"value": value, "low": None, "high": None}
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return {"value": value, "low": float(low), "high": float(high)}


def plain(value: float | Array) -> float | None:
    """The number, or None where it is none."""
    return float(value) if np.isfinite(value) else None

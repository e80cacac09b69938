"""Variety of responses: how often their n-grams of tokens come again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def distinct(ids: Sequence[Sequence[int]], n: int) -> float:
    """Share of different n-grams of tokens among all n-grams of all responses (Li et al. 2016).

    >>> distinct([[1, 2, 1, 2]], 2)
    0.6666666666666666
    """
    grams = [gram for row in ids for gram in _grams(row, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(ids: Sequence[Sequence[int]], n: int = 2) -> float:
    """Share of a response's n-grams that occurred in it before; the mean over responses that have any.

    >>> repetition([[1, 2, 1, 2, 1], [1, 2, 3, 4, 5]])
    0.25
    """
    shares = [repeated_share(row, n) for row in ids if len(row) >= n]
    return float(np.mean(shares)) if shares else 0.0


def repeated_share(row: Sequence[int], n: int = 2) -> float:
    """Share of the n-grams of one response that occurred in it before; 0 where it has none.

    >>> repeated_share([1, 2, 1, 2, 1])
    0.5
    """
    grams = Counter(_grams(row, n))
    return 1 - len(grams) / grams.total() if grams else 0.0


def _grams(row: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]

"""The mathematics of a stand-in for people: scores with noise, so that it agrees with itself a given share of the time. Pure.

Gumbel noise of scale s on each score orders two candidates d apart rightly with probability p = sigmoid(d / s): the
difference of two Gumbel variables is logistic. So a ranking is a draw from the Plackett-Luce model, of which Bradley and
Terry's for pairs is a part. Two independent rankings order the pair alike with probability p^2 + (1 - p)^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from konomi.errors import DataError
from konomi.seeds import stream_seed

Array = npt.NDArray[np.float64]


def score_gaps(tasks: Sequence[Sequence[float]]) -> Array:
    """How far apart the scores of each pair of each task are: [pairs], from 0.

    >>> score_gaps([[1.0, 3.0, 6.0], [2.0, 2.0]]).tolist()
    [2.0, 5.0, 3.0, 0.0]
    """
    gaps = [abs(a - b) for scores in tasks for i, a in enumerate(scores) for b in scores[i + 1 :]]
    return np.asarray(gaps, dtype=np.float64)


def rightly_ordered(gaps: Array, scale: float) -> float:
    """Expected share of the pairs that one ranking puts as the scores do; a pair of equal scores counts half, without noise 1."""
    return 1.0 if scale == 0 else float((1 + np.tanh(gaps / (2 * scale))).mean() / 2)  # sigmoid(x) = (1 + tanh(x / 2)) / 2


def self_agreement(gaps: Array, scale: float) -> float:
    """Expected share of the pairs that two independent rankings put alike; without noise 1.

    >>> self_agreement(np.array([math.log(3.0)]), 1.0)  # p = 3/4, p^2 + (1 - p)^2
    0.625
    """
    return 1.0 if scale == 0 else float((1 + np.tanh(gaps / (2 * scale)) ** 2).mean() / 2)


def noise_scale(gaps: Array, agreement: float) -> float:
    """The scale of the noise with which :func:`self_agreement` is ``agreement``, by bisection; 0 for an agreement of 1.

    Args:
        gaps: [pairs], in units of the score.
        agreement: above 0.5, to 1.

    Raises:
        DataError: so many pairs have equal scores, about which nobody can agree but by chance, that it cannot be reached.
    """
    if agreement == 1:
        return 0.0
    equal = int((gaps == 0).sum())
    most = 1 - 0.5 * equal / len(gaps)
    if agreement >= most:
        raise DataError(
            f"judge.agreement = {agreement:g} cannot be reached: {equal} of the {len(gaps)} pairs of candidates have equal "
            f"scores, so two rankings agree on {most:.2f} of all pairs at most; lower it, or take a reward that tells the "
            "candidates apart"
        )
    low, high = 0.0, float(gaps.max())
    while self_agreement(gaps, high) > agreement:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if self_agreement(gaps, middle) > agreement else (low, middle)
    return high


def gumbel(seed: int, *name: str | int) -> float:
    """The standard Gumbel number that belongs to the stream ``name``."""
    # a hash is as good as a generator for one number; 52 bits, so that it is never 0 and never 1
    uniform = ((stream_seed(seed, *name) >> 11) + 0.5) / 2**52
    return -math.log(-math.log(uniform))


def ranks(scores: Sequence[float]) -> tuple[int, ...]:
    """Places of scores: 1 is the highest, equal ones share a place.

    >>> ranks([2.0, 5.0, 2.0, 1.0])
    (2, 1, 2, 4)
    """
    return tuple(1 + sum(other > score for other in scores) for score in scores)


def pairs_alike(one: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """How many pairs two rankings of the same candidates put alike, and how many pairs there are.

    >>> pairs_alike((1, 2, 3), (1, 3, 2))
    (2, 3)
    """
    pairs = [(i, j) for i in range(len(one)) for j in range(i)]
    alike = sum(np.sign(one[i] - one[j]) == np.sign(other[i] - other[j]) for i, j in pairs)
    return int(alike), len(pairs)

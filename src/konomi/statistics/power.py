"""Shares of independent votes: intervals, the sign test, and how many votes it needs.

Several votes on one prompt are not independent: count prompts then.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import stats

from konomi.statistics.bootstrap import TAIL, Interval, without_interval

ALPHA = 0.05
POWER = 0.8
RATES = (0.55, 0.6, 0.65, 0.7)
"""True win rates in :func:`enough_votes`."""


def wilson(wins: float, votes: int) -> Interval:
    """The share ``wins / votes`` with its 95 % score interval (Wilson 1927).

    With p the share, n votes and z = 1.96: (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n). As that of
    ``scipy.stats.binomtest``, which takes whole wins only.
    A tie may count as half a win; the interval is then somewhat wide, as such votes vary less than wins and losses do.

    Returns:
        ``value``, ``low``, ``high``, 0 to 1; None for all three without a vote.

    >>> {name: round(value, 4) for name, value in wilson(8, 10).items()}
    {'value': 0.8, 'low': 0.4902, 'high': 0.9433}
    """
    if not votes:
        return without_interval(None)
    z, p = float(stats.norm.isf(TAIL)), wins / votes
    middle = p + z * z / (2 * votes)
    reach = z * np.sqrt(p * (1 - p) / votes + z * z / (4 * votes**2))
    low, high = (float((middle + side * reach) / (1 + z * z / votes)) for side in (-1, 1))
    return {"value": p, "low": max(0.0, min(low, p)), "high": min(1.0, max(high, p))}


def sign_test(wins: int, losses: int) -> float | None:
    """Exact two-sided p of the sign test (Dixon and Mood 1946), without ties; chance is one half.

    min(1, 2 P(X <= min(wins, losses))), X binomial with n = wins + losses. None if nothing was decided.

    >>> sign_test(9, 1)
    0.021484375
    """
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else None


def power(votes: int, rate: float, alpha: float = ALPHA) -> float:
    """Probability that the exact two-sided sign test of so many decided votes comes out below ``alpha``.

    P(X <= k) + P(X >= votes - k), X binomial with the true win rate ``rate``, k the most losses at which p is at most alpha.

    >>> round(power(194, 0.6), 2)
    0.76
    """
    wins = np.arange(votes + 1)
    significant = 2 * stats.binom.cdf(np.minimum(wins, votes - wins), votes, 0.5) <= alpha
    return min(1.0, float(np.exp(stats.binom.logpmf(wins[significant], votes, rate)).sum()))


def votes_needed(rate: float, power: float = POWER, alpha: float = ALPHA) -> int | None:
    """Decided votes after which a two-sided test of one half would show a true win rate.

    The normal approximation ((z_a / 2 + z_b sqrt(p (1 - p))) / (p - 1/2))^2, rounded up, with z_a the quantile of
    1 - alpha / 2 and z_b that of the power. This is the number that is usually quoted; the exact test needs some more: see
    :func:`enough_votes`.

    Returns:
        None at a rate of one half, which no number of votes tells from itself.

    >>> [votes_needed(rate) for rate in (0.6, 0.65, 0.7)]
    [194, 85, 47]
    """
    if rate == 0.5:
        return None
    z_a, z_b = float(stats.norm.isf(alpha / 2)), float(stats.norm.ppf(power))
    return int(np.ceil(((z_a / 2 + z_b * np.sqrt(rate * (1 - rate))) / (rate - 0.5)) ** 2))


@lru_cache
def _needed_exact(rate: float) -> int:
    # the power of an exact test is not monotonic: the last number below the target counts
    about = votes_needed(rate) or 0
    return max(votes for votes in range(about // 2, about + about // 4 + 20) if power(votes, rate) < POWER) + 1


def detectable(votes: int) -> float | None:
    """The smallest true win rate, to 0.001, that so many decided votes show with 80 % power; None if not even 1.

    >>> detectable(5), detectable(100)
    (None, 0.646)
    """
    rates = range(501, 1001)
    place = bisect_left(rates, POWER, key=lambda rate: power(votes, rate / 1000))
    return rates[place] / 1000 if place < len(rates) else None


def enough_votes(planned: int) -> dict[str, Any]:
    """What a planned number of votes can show, before any is cast.

    ``planned``: independent votes (prompts, if each gets one vote or several), without the expected ties.

    Returns:
        ``planned``; ``alpha``; ``target``: the wanted power; ``detectable``: see there; ``rates``: for true win rates from 55
        to 70 %: ``rate``; ``power`` of the plan, exact; ``needed`` decided votes by :func:`votes_needed`; ``needed_exact``:
        decided votes from which on the exact test always has the power.

    >>> enough_votes(100)["rates"][1]["needed_exact"]
    210
    """
    rates = [
        {"rate": rate, "power": power(planned, rate), "needed": votes_needed(rate), "needed_exact": _needed_exact(rate)}
        for rate in RATES
    ]
    return {"planned": planned, "alpha": ALPHA, "target": POWER, "detectable": detectable(planned), "rates": rates}

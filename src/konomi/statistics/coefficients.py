"""Coefficients of agreement of any numbers: Kendall's tau-b and W, Krippendorff's ordinal alpha.

What cannot be told (one rater, one item, nothing but ties) is None, of alpha NaN.
M raters, U units that they judge, V different values, R resamples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from konomi.statistics import measures
from konomi.statistics.bootstrap import Array


def tau_b(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Kendall's tau-b of two orders of the same items (Kendall 1945): -1 to 1, 1 the same order.

    (concordant - discordant) / sqrt((n0 - ties in x) (n0 - ties in y)), n0 = n (n - 1) / 2. None where one side puts no
    item above another.

    >>> tau_b([1, 2, 3], [1, 3, 2])
    0.3333333333333333
    """
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return measures.tau_b(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))


def kendall_w(table_MU: Sequence[Sequence[float]]) -> float | None:
    """Kendall's coefficient of concordance W with the correction for ties (Kendall and Smith 1939; Siegel 1956).

    12 S / (M^2 (U^3 - U) - M T), S the squared deviations of the items' rank sums from their mean, T the sum of t^3 - t
    over each rater's groups of t equal items. It is 0 to 1: 1 all the same order; about 1/M by chance.

    Args:
        table_MU: a row for each rater, a value for each item; only the order within a row counts.

    Returns:
        None with fewer than two raters or two items, or where every rater calls all items equal.

    >>> kendall_w([[1, 2, 3], [1, 2, 3], [1, 3, 2]])
    0.7777777777777778
    """
    if len(table_MU) < 2 or len(table_MU[0]) < 2:
        return None
    ranks_MU = np.stack([measures.ranks(np.asarray(row, dtype=np.float64)) for row in table_MU])
    raters, items = ranks_MU.shape
    ties = sum(count**3 - count for row in table_MU for count in Counter(row).values())
    most = raters**2 * (items**3 - items) - raters * ties
    sums_U = ranks_MU.sum(axis=0)
    return float(12 * ((sums_U - sums_U.mean()) ** 2).sum() / most) if most else None


def coincidences(unit: Sequence[float]) -> dict[tuple[float, float], float]:
    """How often each value meets each other one within a unit: ordered pairs, by the number of values less one."""
    found: dict[tuple[float, float], float] = defaultdict(float)
    for i, one in enumerate(unit):
        for j, other in enumerate(unit):
            if i != j:
                found[one, other] += 1 / (len(unit) - 1)
    return found


def alphas(coincidences_RVV: Array) -> Array:
    """Krippendorff's alpha for ordinal values (Krippendorff 2011), of each of R matrices of coincidences: [R].

    1 - D_o / D_e, observed by expected disagreement. Two values differ by the square of the values that lie between them in
    all the data, their own by half. 1 is full agreement, 0 what chance gives, below 0 worse.

    Args:
        coincidences_RVV: sums over the units of :func:`coincidences`, values in ascending order.

    Returns:
        NaN where no unit has two values, or all are the same.
    """
    count_RV = coincidences_RVV.sum(axis=2)
    # the values between two, their own by half, are the difference of their middle ranks
    middle_RV = np.cumsum(count_RV, axis=1) - count_RV / 2
    total_R = count_RV.sum(axis=1)
    squares_R = (count_RV * middle_RV**2).sum(axis=1)
    observed_R = squares_R - np.einsum("rv,rvw,rw->r", middle_RV, coincidences_RVV, middle_RV, optimize=True)
    expected_R = total_R * squares_R - (count_RV * middle_RV).sum(axis=1) ** 2
    varies_R = (count_RV > 0).sum(axis=1) > 1
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(varies_R, 1 - (total_R - 1) * np.maximum(observed_R, 0) / expected_R, np.nan)
    return found

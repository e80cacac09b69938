"""Coefficients of agreement between orders: Kendall's tau-b and W, Krippendorff's ordinal alpha.

M raters, U units that they judge, V different values, P prompts, R resamples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.sparse import coo_array

from konomi.data.convert import normalised_ranks
from konomi.data.records import Ranking
from konomi.statistics.bootstrap import Array, Interval, bootstrap, interval, mean_of, prompt_numbers, resample, sum_by_prompt

ALPHA_RESAMPLES = 1_000

Task = tuple[str, tuple[str, ...]]
"""A prompt's key and the responses to it that were ranked, sorted."""


def concordance(rankings: Sequence[Ranking], seed: int = 0) -> dict[str, Any] | None:
    """Agreement of the orders of people who ranked the same responses.

    Returns:
        ``tau_b``: mean over prompts' couples of people; ``w``: Kendall's W, mean over tasks; ``alpha``: ordinal alpha of
        the normalised ranks (-1 to 1) of all responses; each with its interval. ``tasks``: the same responses to a prompt,
        ranked by two people at least; ``prompts`` of these; ``people`` who ranked them. None if there is no such task.
    """
    tasks = [(key, by_rater) for (key, _), by_rater in _tables(rankings).items() if len(by_rater) > 1]
    if not tasks:
        return None
    prompt = prompt_numbers([key for key, _ in tasks])
    rows = []
    for _, by_rater in tasks:
        tables = list(by_rater.values())
        taus = [tau for x, y in combinations(tables, 2) if (tau := tau_b(x, y)) is not None]
        w = kendall_w(tables)
        rows.append({"tau": sum(taus), "tau_count": len(taus), "w": w or 0.0, "w_count": w is not None})
    columns = sum_by_prompt(prompt, rows, ("tau", "tau_count", "w", "w_count"))
    sums = resample(columns, seed)
    return {
        "tasks": len(tasks),
        "prompts": len(columns["w"]),
        "people": len({rater for _, by_rater in tasks for rater in by_rater}),
        "tau_b": mean_of(sums, "tau", "tau_count", (-1.0, 1.0)),
        "w": mean_of(sums, "w", "w_count", (0.0, 1.0)),
        "alpha": _alpha_interval([by_rater for _, by_rater in tasks], prompt, seed),
    }


def _tables(rankings: Iterable[Ranking]) -> dict[Task, dict[str, list[float]]]:
    """By task and rater: the normalised ranks of the task's responses, averaged over repeats."""
    ranks: dict[Task, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for ranking in rankings:
        if ranking.rater is not None:
            pairs = sorted(zip(ranking.responses, normalised_ranks(ranking.ranks), strict=True))
            task = (ranking.key, tuple(text for text, _ in pairs))
            ranks[task][ranking.rater].append([score for _, score in pairs])
    # rounded, so that equal places stay ties
    return {
        task: {rater: [round(sum(values) / len(values), 9) for values in zip(*rows, strict=True)] for rater, rows in by.items()}
        for task, by in ranks.items()
    }


def tau_b(x: Sequence[float] | Array, y: Sequence[float] | Array) -> float | None:
    """Kendall's tau-b of two orders of the same items (Kendall 1945): -1 to 1, 1 the same order.

    (concordant - discordant) / sqrt((n0 - ties in x) (n0 - ties in y)), n0 = n (n - 1) / 2. As ``scipy.stats.kendalltau``,
    which takes 20 times as long for the few responses of a prompt.

    Returns:
        None where one side puts no item above another.

    >>> tau_b([1, 2, 3], [1, 3, 2])
    0.3333333333333333
    """
    x, y = (np.sign(np.subtract.outer(v, v)) for v in (np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)))
    size = np.count_nonzero(x) * np.count_nonzero(y)
    return float((x * y).sum() / np.sqrt(size)) if size else None


def kendall_w(table_MU: Sequence[Sequence[float]]) -> float | None:
    """Kendall's coefficient of concordance W with the correction for ties (Kendall and Smith 1939; Siegel 1956).

    12 S / (M^2 (U^3 - U) - M T), S the squared deviations of the items' rank sums from their mean, T the sum of t^3 - t
    over each rater's groups of t equal items. It is 0 to 1: 1 all the same order; about 1/M by chance.

    ``table_MU`` has a row for each rater, a value for each item; only the order within a row counts.

    Returns:
        None with fewer than two raters or two items, or where every rater calls all items equal.

    >>> kendall_w([[1, 2, 3], [1, 2, 3], [1, 3, 2]])
    0.7777777777777778
    """
    if len(table_MU) < 2 or len(table_MU[0]) < 2:
        return None
    ranks_MU = stats.rankdata(table_MU, axis=1)
    raters, items = ranks_MU.shape
    ties = sum(count**3 - count for row in table_MU for count in Counter(row).values())
    most = raters**2 * (items**3 - items) - raters * ties
    sums_U = ranks_MU.sum(axis=0)
    return float(12 * ((sums_U - sums_U.mean()) ** 2).sum() / most) if most else None


def coincidences(unit: Sequence[float]) -> dict[tuple[float, float], float]:
    """How often each value meets each other one within a unit: ordered pairs, divided by the number of values less one."""
    counts: dict[tuple[float, float], float] = defaultdict(float)
    for i, one in enumerate(unit):
        for j, other in enumerate(unit):
            if i != j:
                counts[one, other] += 1 / (len(unit) - 1)
    return counts


def alphas(coincidences_RVV: Array) -> Array:
    """Krippendorff's alpha for ordinal values (Krippendorff 2011), of each of R matrices of coincidences: [R].

    1 - D_o / D_e, observed by expected disagreement. Two values differ by the square of the values that lie between them in
    all the data, their own by half. 1 is full agreement, 0 what chance gives, below 0 worse.

    Each matrix is a sum of those of :func:`coincidences`, values in ascending order. NaN where no unit has two values, or all
    are the same.
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
        alpha_R: Array = np.where(varies_R, 1 - (total_R - 1) * np.maximum(observed_R, 0) / expected_R, np.nan)
    return alpha_R


def _alpha_interval(tasks: Sequence[Mapping[str, list[float]]], prompt: npt.NDArray[np.int64], seed: int) -> Interval:
    """Ordinal alpha of all tasks, with a unit for each response, and its bootstrap over prompts."""
    values = sorted({value for by_rater in tasks for row in by_rater.values() for value in row})
    place = {value: i for i, value in enumerate(values)}
    entries: list[tuple[int, int, float]] = []
    for number, by_rater in zip(prompt, tasks, strict=True):
        for unit in zip(*by_rater.values(), strict=True):
            for (one, other), count in coincidences(unit).items():
                entries.append((int(number), place[one] * len(values) + place[other], count))
    rows, cells, counts = zip(*entries, strict=True)
    prompts, size = int(prompt.max()) + 1, len(values)
    # [V V, P]: few of the values meet on one prompt
    table = coo_array((np.array(counts), (np.array(cells), np.array(rows))), shape=(size * size, prompts)).tocsr()

    def alpha(times_RP: Array) -> Array:
        return alphas((table @ times_RP.T).T.reshape(-1, size, size))

    drawn_R = bootstrap(alpha, prompts, ALPHA_RESAMPLES, seed)
    return interval(float(alpha(np.ones((1, prompts)))[0]), drawn_R, prompts, (-1.0, 1.0))

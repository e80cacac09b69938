"""Strengths of items that met in contests (Bradley and Terry 1952).

Fitted by Newton's method: scikit-learn's logistic regression takes no shares of wins, and a thousand resamples are fitted.
N contests, D coefficients, P prompts, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from konomi.data.records import Prompt
from konomi.statistics.aggregation import PairVotes
from konomi.statistics.bootstrap import Array, Interval, bootstrap, header, interval, prompt_numbers, without_interval

PRIOR = 0.1
"""Precision of the prior of a strength: an item that won its only contest has a chance of about 0.9, not 1."""
COVARIATES = ("length",)
RESAMPLES = 1_000
"""Fewer than for figures that are sums, as each is a fit."""
_STEPS = 100
_DONE = 1e-13
"""Newton's decrement below which the next full step is the last: it squares what is left."""


@dataclass(frozen=True)
class Contest:
    """One item against another, judged on one prompt."""

    prompt: str  # its key: what is resampled
    a: str  # an item: a model, or a setting
    b: str
    share: float  # 1 if ``a`` won, 0 if ``b`` did, 0.5 a tie, or a share of several votes
    weight: float = 1.0  # how many votes this is, from 0
    length: float = 0.0  # characters of a's text less those of b's


def contests(counts: Iterable[PairVotes], name: Callable[[str, str], str | None]) -> list[Contest]:
    """Counted pairs as contests of what wrote the responses.

    ``name`` gives the item of (prompt, response). A pair is left out where it is None, or the same on both sides.
    """
    played = []
    for c in counts:
        a, b = name(c.prompt, c.a), name(c.prompt, c.b)
        if a is not None and b is not None and a != b:
            played.append(Contest(Prompt(c.prompt).key, a, b, c.share, c.votes, len(c.a) - len(c.b)))
    return played


def bradley_terry(
    played: Sequence[Contest], *, covariates: Sequence[str] = (), prior: float = PRIOR, seed: int = 0
) -> dict[str, Any]:
    """The strength of each item (Bradley and Terry 1952).

    P(a beats b) = sigmoid(strength_a - strength_b + sum of coefficient x covariate). Ties are half a win for each side.
    A normal prior with mean 0 and precision ``prior`` on each strength, and on each coefficient per root mean square of
    its covariate, keeps an item finite that always wins (posterior mode; the strengths sum to 0).
    The intervals are from a bootstrap over prompts, 1,000 fits. A fit solves equations in as many unknowns as there are
    items: some hundred are fine.

    Args:
        covariates: out of ``COVARIATES``: with ``length`` the strengths are those at equal length.
        prior: precision, above 0; towards 0 the estimate is that of maximum likelihood.

    Returns:
        ``items``, strongest first: ``item``, ``strength`` (logits, with its 95 % interval), ``error`` (standard error),
        ``wins`` (ties half) and ``votes``. Interval and error are None with fewer than two prompts, and for an item that
        always won or always lost: only the prior bounds its lead. ``covariates``: for each name, logits per
        character, with interval; None where the covariate is 0 everywhere.
        Also ``contests``, ``prompts``, ``prior``, ``resamples``, ``level``, ``seed``, ``version``.

    Raises:
        ValueError: ``prior`` is not above 0, or the name of a covariate is unknown.
    """
    if not prior > 0:
        raise ValueError(f"prior is {prior}: it has to be above 0, or an item that always wins has no finite strength")
    for other in set(covariates) - set(COVARIATES):
        raise ValueError(f"covariate {other!r}: one of {', '.join(COVARIATES)} is needed")
    names = sorted({name for c in played for name in (c.a, c.b)})
    values, errors, prompts = _estimates(played, names, covariates, prior, seed)
    wins, votes = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for c in played:
        for name, share in ((c.a, c.share), (c.b, 1 - c.share)):
            wins[name] += c.weight * share
            votes[name] += c.weight
    for i, name in enumerate(names):
        if wins[name] in (0.0, votes[name]):  # as in every resample
            values[i], errors[i] = without_interval(values[i]["value"]), None
    items = [
        {"item": name, "strength": values[i], "error": errors[i], "wins": wins[name], "votes": votes[name]}
        for i, name in enumerate(names)
    ]
    coefficients = dict(zip(covariates, values[len(names) :], strict=True))
    return {
        **header(seed),
        "resamples": RESAMPLES,
        "prior": prior,
        "contests": len(played),
        "prompts": prompts,
        "items": sorted(items, key=lambda each: -each["strength"]["value"]),
        "covariates": {name: coefficients[name] if any(getattr(c, name) for c in played) else None for name in covariates},
    }


def _estimates(
    played: Sequence[Contest], names: Sequence[str], covariates: Sequence[str], prior: float, seed: int
) -> tuple[list[Interval], list[float | None], int]:
    """Strengths, then coefficients, with their intervals; their standard errors; the number of prompts."""
    if not played:
        return [without_interval(None) for _ in covariates], [], 0
    design_ND, unit_D = _design(played, names, covariates)
    share_N, weight_N = (np.array([getattr(c, name) for c in played], dtype=np.float64) for name in ("share", "weight"))
    precision_D = np.full(len(unit_D), prior)
    b_D = fit(design_ND, share_N, weight_N, precision_D)
    prompt_N = prompt_numbers([c.prompt for c in played])
    prompts = int(prompt_N.max()) + 1
    # rows that look the same are one row that counts more often
    table, row_N = np.unique(np.column_stack([design_ND, share_N]), axis=0, return_inverse=True)
    row_N, rows_D, rows_share = row_N.reshape(-1), table[:, :-1], table[:, -1]

    def refit(times_RP: Array) -> Array:
        fits = []
        for times_P in times_RP:
            weight = np.bincount(row_N, weights=weight_N * times_P[prompt_N], minlength=len(table)).astype(np.float64)
            # NaN where a coefficient has no data: its item was not drawn
            there_D = weight @ (rows_D != 0) > 0
            fits.append(np.where(there_D, fit(rows_D, rows_share, weight, precision_D, b_D), np.nan))
        return np.array(fits)

    drawn_RD = bootstrap(refit, prompts, RESAMPLES if prompts > 1 else 1, seed) / unit_D
    values: list[Interval] = []
    errors: list[float | None] = []
    for d, value in enumerate(b_D / unit_D):
        drawn_R = drawn_RD[np.isfinite(drawn_RD[:, d]), d]
        values.append(interval(float(value), drawn_R, prompts))
        errors.append(None if values[-1]["low"] is None else float(drawn_R.std(ddof=1)))
    return values, errors, prompts


def _design(played: Sequence[Contest], names: Sequence[str], covariates: Sequence[str]) -> tuple[Array, Array]:
    """The design [N, D], covariates in units of their root mean square, and the units [D]."""
    place = {name: i for i, name in enumerate(names)}
    rows = np.arange(len(played))
    design_ND = np.zeros((len(played), len(names) + len(covariates)))
    design_ND[rows, [place[c.a] for c in played]] += 1.0
    design_ND[rows, [place[c.b] for c in played]] -= 1.0
    unit_D = np.ones(design_ND.shape[1])
    for i, name in enumerate(covariates, start=len(names)):
        column_N = np.array([getattr(c, name) for c in played], dtype=np.float64)
        unit_D[i] = np.sqrt(np.mean(column_N**2)) or 1.0
        design_ND[:, i] = column_N / unit_D[i]
    return design_ND, unit_D


def fit(design_ND: Array, share_N: Array, weight_N: Array, precision_D: Array, start_D: Array | None = None) -> Array:
    """The coefficients b, [D], that minimise

    sum_n w_n (log(1 + exp(z_n)) - y_n z_n) + 1/2 sum_d precision_d b_d^2,  z = design b:

    a logistic regression with shares y from 0 to 1 as answers and a normal prior of variance 1 / precision on each
    coefficient (its posterior mode). With precision > 0 there is one minimum, and it is finite.

    Args:
        design_ND: [N, D].
        share_N: [N], 1 where the first side won, 0 where it lost, 0.5 a tie.
        weight_N: [N], how often each row counts.
        precision_D: [D], above 0.
        start_D: [D], 0 by default.

    >>> fit(np.ones((1, 1)), np.array([0.75]), np.array([8.0]), np.array([1e-9])).round(4).tolist()  # log(0.75 / 0.25)
    [1.0986]
    """
    b_D: Array = np.zeros(design_ND.shape[1]) if start_D is None else start_D
    loss = _loss(b_D, design_ND, share_N, weight_N, precision_D)
    for _ in range(_STEPS):
        p_N = expit(design_ND @ b_D)
        gradient_D = design_ND.T @ (weight_N * (p_N - share_N)) + precision_D * b_D
        curvature_DD = (design_ND * (weight_N * p_N * (1 - p_N))[:, None]).T @ design_ND + np.diag(precision_D)
        step_D = np.linalg.solve(curvature_DD, gradient_D)
        last = float(gradient_D @ step_D) <= _DONE
        length = 1.0
        while not last and _loss(b_D - length * step_D, design_ND, share_N, weight_N, precision_D) > loss:
            length /= 2
            last = length < 1e-6  # only rounding is left
        b_D = b_D - length * step_D
        if last:
            break
        loss = _loss(b_D, design_ND, share_N, weight_N, precision_D)
    return b_D


def _loss(b_D: Array, design_ND: Array, share_N: Array, weight_N: Array, precision_D: Array) -> float:
    z_N = design_ND @ b_D
    return float(weight_N @ (np.logaddexp(0, z_N) - share_N * z_N) + precision_D @ b_D**2 / 2)

"""Logistic models of who wins: fitted by Newton's method, their uncertainty by a bootstrap over prompts.

N contests, D coefficients, P prompts, R resamples.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from konomi.statistics.bootstrap import Array, draws

RESAMPLES = 1_000
"""Each is a fit of its own, hence fewer than for figures that are sums."""
_STEPS = 100
_DONE = 1e-13
"""Newton's decrement below which the next full step is the last: it squares what is left."""


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
        start_D: where to begin, [D]; else 0.

    >>> fit(np.ones((1, 1)), np.array([0.75]), np.array([8.0]), np.array([1e-9])).round(4).tolist()  # log(0.75 / 0.25)
    [1.0986]
    """
    found_D: Array = np.zeros(design_ND.shape[1]) if start_D is None else start_D
    loss = _loss(found_D, design_ND, share_N, weight_N, precision_D)
    for _ in range(_STEPS):
        p_N = expit(design_ND @ found_D)
        gradient_D = design_ND.T @ (weight_N * (p_N - share_N)) + precision_D * found_D
        curvature_DD = (design_ND * (weight_N * p_N * (1 - p_N))[:, None]).T @ design_ND + np.diag(precision_D)
        step_D = np.linalg.solve(curvature_DD, gradient_D)
        last = float(gradient_D @ step_D) <= _DONE
        length = 1.0
        while not last and _loss(found_D - length * step_D, design_ND, share_N, weight_N, precision_D) > loss:
            length /= 2
            last = length < 1e-6  # only rounding is left
        found_D = found_D - length * step_D
        if last:
            break
        loss = _loss(found_D, design_ND, share_N, weight_N, precision_D)
    return found_D


def _loss(b_D: Array, design_ND: Array, share_N: Array, weight_N: Array, precision_D: Array) -> float:
    z_N = design_ND @ b_D
    return float(weight_N @ (np.logaddexp(0, z_N) - share_N * z_N) + precision_D @ b_D**2 / 2)


def refit(
    design_ND: Array,
    share_N: Array,
    weight_N: Array,
    precision_D: Array,
    prompt_N: npt.NDArray[np.int64],
    whole_D: Array,
    seed: int,
) -> Array:
    """What :func:`fit` finds in resamples of whole prompts: [R, D].

    NaN where a coefficient has nothing to go by in a resample: its item was not drawn.

    Args:
        prompt_N: [N], the number of each row's prompt, from 0.
        whole_D: [D], what was found in all rows.
        seed: of the resampling.
    """
    # rows that look the same are one row that counts more often
    table, row_N = np.unique(np.column_stack([design_ND, share_N]), axis=0, return_inverse=True)
    row_N = row_N.reshape(-1)
    design, share = table[:, :-1], table[:, -1]
    found = []
    for times_RP in draws(int(prompt_N.max()) + 1, RESAMPLES, seed):
        for times_P in times_RP:
            weight = np.bincount(row_N, weights=weight_N * times_P[prompt_N], minlength=len(table)).astype(np.float64)
            here = fit(design, share, weight, precision_D, whole_D)
            found.append(np.where(weight @ (design != 0) > 0, here, np.nan))
    return np.array(found)

"""Coefficients of agreement, held against scipy, the package krippendorff, and numbers that were published."""

from __future__ import annotations

from collections.abc import Sequence

import krippendorff
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from konomi.statistics.concordance import alphas, coincidences, kendall_w, tau_b

values = st.integers(1, 4)


@st.composite
def tables(draw: st.DrawFn, missing: bool = False) -> list[list[int | None]]:
    """Raters by items."""
    items = draw(st.integers(1, 6))
    cell = st.one_of(st.none(), values) if missing else values
    return draw(st.lists(st.lists(cell, min_size=items, max_size=items), min_size=1, max_size=5))


@settings(deadline=None)
@given(st.lists(st.tuples(values, values), max_size=8))
def test_tau_b_is_that_of_scipy(both: list[tuple[int, int]]) -> None:
    x, y = [a for a, _ in both], [b for _, b in both]
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert tau_b(x, y) is None
    else:
        assert tau_b(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
        assert tau_b(x, y) == tau_b(y, x)
        assert tau_b(x, [-b for b in y]) == pytest.approx(-float(tau_b(x, y) or 0.0))


@settings(deadline=None)
@given(tables())
def test_w_is_that_of_the_friedman_test(table: list[list[int]]) -> None:
    """Friedman's statistic, with its correction for ties, is M (U - 1) W."""
    raters, items = len(table), len(table[0])
    found = kendall_w(table)
    if raters < 2 or items < 2 or all(len(set(row)) == 1 for row in table):
        assert found is None
        return
    assert found is not None and 0 <= found <= 1 + 1e-12
    assume(items > 2)
    assert found * raters * (items - 1) == pytest.approx(stats.friedmanchisquare(*zip(*table, strict=True)).statistic)


def test_w_published() -> None:
    """Siegel (1956), table 9.2: three executives, six applicants, without ties; table 9.3: students, with ties."""
    executives = [[1, 6, 3, 2, 5, 4], [1, 5, 6, 4, 2, 3], [6, 3, 2, 5, 4, 1]]
    assert kendall_w(executives) == pytest.approx(0.16, abs=0.005)
    tied = [
        [1, 4.5, 2, 4.5, 3, 7.5, 6, 9, 7.5, 10],
        [2.5, 1, 2.5, 4.5, 4.5, 8, 9, 6.5, 10, 6.5],
        [2, 1, 4.5, 4.5, 4.5, 4.5, 8, 8, 8, 10],
    ]
    assert kendall_w(tied) == pytest.approx(0.828, abs=0.0005)


def ordinal_alpha(table: Sequence[Sequence[float | None]]) -> float | None:
    """Of a row for each rater, a value for each unit, None where there is none."""
    units = [[value for value in unit if value is not None] for unit in zip(*table, strict=True)]
    values = sorted({value for unit in units if len(unit) > 1 for value in unit})
    found = np.zeros((1, len(values), len(values)))
    for unit in units:
        for (one, other), count in coincidences(unit).items():
            found[0, values.index(one), values.index(other)] += count
    alpha = float(alphas(found)[0])
    return alpha if np.isfinite(alpha) else None


def of_package(table: Sequence[Sequence[float | None]]) -> float:
    data = np.array(table, dtype=np.float64)
    return float(krippendorff.alpha(reliability_data=data, level_of_measurement="ordinal"))


@settings(deadline=None)
@given(tables(missing=True))
def test_alpha_is_that_of_the_package(table: list[list[int | None]]) -> None:
    units = [[v for v in unit if v is not None] for unit in zip(*table, strict=True)]
    paired = [v for unit in units if len(unit) > 1 for v in unit]
    if len(set(paired)) < 2:
        assert ordinal_alpha(table) is None
        return
    assert ordinal_alpha(table) == pytest.approx(of_package(table))


def test_alpha_published() -> None:
    """Krippendorff (2011), the example of section C with missing data: ordinal alpha is .815."""
    a = [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None]
    b = [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3]
    c = [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None]
    d = [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None]
    assert ordinal_alpha([a, b, c, d]) == pytest.approx(0.815, abs=0.0005)


def test_too_little() -> None:
    assert tau_b([], []) is None and tau_b([1], [1]) is None
    assert kendall_w([]) is None and kendall_w([[1, 2]]) is None and kendall_w([[1], [1]]) is None
    assert kendall_w([[1, 1], [2, 2]]) is None
    assert ordinal_alpha([]) is None and ordinal_alpha([[1, 2]]) is None
    assert ordinal_alpha([[1, None], [None, 2]]) is None and ordinal_alpha([[3, 3], [3, 3]]) is None
    assert ordinal_alpha([[1, 2, 3], [1, 2, 3]]) == 1.0
    assert kendall_w([[1, 2, 3], [1, 2, 3]]) == 1.0

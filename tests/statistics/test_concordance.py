"""Coefficients of agreement, held against scipy, the package krippendorff, and numbers that were published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import krippendorff
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from konomi.data.records import Ranking
from konomi.statistics.concordance import alphas, coincidences, concordance, kendall_w, tau_b
from some_comparisons import TEXTS, noisy_rankings

values = st.integers(1, 4)


@st.composite
def tables(draw: st.DrawFn, missing: bool = False) -> list[list[int | None]]:
    """Raters by items."""
    items = draw(st.integers(1, 6))
    cell = st.one_of(st.none(), values) if missing else values
    return draw(st.lists(st.lists(cell, min_size=items, max_size=items), min_size=1, max_size=5))


@given(st.lists(st.tuples(values, values), max_size=8))
def test_tau_b_is_that_of_scipy(both: list[tuple[int, int]]) -> None:
    x, y = [a for a, _ in both], [b for _, b in both]
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert tau_b(x, y) is None
    else:
        assert tau_b(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
        assert tau_b(x, y) == tau_b(y, x)
        assert tau_b(x, [-b for b in y]) == pytest.approx(-float(tau_b(x, y) or 0.0))


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


def slow_concordance(rankings: Sequence[Ranking]) -> tuple[float, float, float]:
    taus, alphas = [], []
    ws = []
    raters = sorted({str(r.rater) for r in rankings})
    for prompt in sorted({r.prompt for r in rankings}):
        tables = {}
        for rater in raters:
            own = [r for r in rankings if (r.prompt, r.rater) == (prompt, rater)]
            if own:
                # less is better in ranks, so turned round
                middle = [-stats.rankdata([dict(zip(r.responses, r.ranks, strict=True))[t] for t in TEXTS]) for r in own]
                tables[rater] = np.round(np.mean(middle, axis=0), 9)
        if len(tables) < 2:
            continue
        for x, y in combinations(tables.values(), 2):
            if len(set(x)) > 1 and len(set(y)) > 1:
                taus.append(stats.kendalltau(x, y).statistic)
        if any(len(set(x)) > 1 for x in tables.values()):
            columns = list(zip(*tables.values(), strict=True))
            ws.append(stats.friedmanchisquare(*columns).statistic / (len(tables) * 3))
        alphas.append(np.array([tables.get(rater, np.full(4, np.nan)) for rater in raters]))
    alpha = krippendorff.alpha(reliability_data=np.concatenate(alphas, axis=1), level_of_measurement="ordinal")
    return float(np.mean(taus)), float(np.mean(ws)), float(alpha)


@pytest.mark.parametrize("seed", range(3))
def test_concordance_is_that_of_the_packages(seed: int) -> None:
    rankings = noisy_rankings(seed)
    found = concordance(rankings)
    assert found is not None
    tau, w, alpha = slow_concordance(rankings)
    for name, expected in (("tau_b", tau), ("w", w), ("alpha", alpha)):
        assert found[name]["value"] == pytest.approx(expected), name
        assert found[name]["low"] < expected < found[name]["high"], name
    assert found["people"] == 3
    assert found["tasks"] == found["prompts"] <= 40


def test_intervals_of_alpha_are_those_of_slow_resamples() -> None:
    rankings = noisy_rankings(7, prompts=12)
    by_prompt: dict[str, list[Ranking]] = {}
    for r in rankings:
        by_prompt.setdefault(r.prompt, []).append(r)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(100):
        picks = rng.choice(list(by_prompt), size=len(by_prompt))
        made = [replace(r, prompt=f"{i}") for i, name in enumerate(picks) for r in by_prompt[str(name)]]
        values.append(slow_concordance(made)[2])
    found = concordance(rankings)
    assert found is not None
    low, high = np.quantile(values, [0.025, 0.975])
    assert (found["alpha"]["low"], found["alpha"]["high"]) == pytest.approx((low, high), abs=0.06)


def test_tasks_of_several_sizes_and_of_one_prompt() -> None:
    rankings = [
        *(Ranking("p", ("a", "b"), (1, 2), rater) for rater in "xy"),
        *(Ranking("p", ("c", "a", "b"), (1, 2, 3), rater) for rater in "xy"),
        Ranking("p", ("a", "c"), (1, 2), "x"),
    ]
    found = concordance(rankings)
    assert found is not None
    assert (found["tasks"], found["prompts"], found["people"]) == (2, 1, 2)
    for name in ("tau_b", "w", "alpha"):
        assert found[name]["value"] == pytest.approx(1)


def test_one_person_nothing_but_ties_and_nothing() -> None:
    assert concordance([Ranking("p", ("a", "b"), (1, 2), "x"), Ranking("p", ("a", "b"), (1, 2))]) is None
    assert concordance([]) is None
    found = concordance([Ranking("p", ("a", "b"), (1, 1), rater) for rater in "xy"])
    assert found is not None
    assert [found[name] for name in ("tau_b", "w", "alpha")] == [{"value": None, "low": None, "high": None}] * 3

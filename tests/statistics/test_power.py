"""Intervals and tests of shares of votes, held against scipy and against counting."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from konomi.statistics.power import POWER, RATES, detectable, enough_votes, power, sign_test, votes_needed, wilson

NOTHING = {"value": None, "low": None, "high": None}


@given(st.integers(0, 300), st.integers(0, 300))
def test_wilson_and_sign_test_are_those_of_scipy(wins: int, losses: int) -> None:
    votes = wins + losses
    if not votes:
        assert wilson(0, 0) == NOTHING and sign_test(0, 0) is None
        return
    known = stats.binomtest(wins, votes)
    interval = known.proportion_ci(method="wilson")
    found = wilson(wins, votes)
    assert found["value"] == wins / votes
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    assert sign_test(wins, losses) == pytest.approx(known.pvalue, rel=1e-9)


def test_a_tie_is_half_a_win() -> None:
    """By hand: 3 wins, 2 ties, 5 losses: p = 0.4 of 10, z = 1.959964."""
    found = wilson(3 + 2 / 2, 10)
    assert found["value"] == 0.4
    assert found["low"] == pytest.approx(0.168180, abs=1e-6)
    assert found["high"] == pytest.approx(0.687326, abs=1e-6)


def slow_power(votes: int, rate: float) -> float:
    """Of all outcomes, vote by vote, those in which the test says something."""
    total = 0.0
    for outcome in itertools.product((0, 1), repeat=votes):
        wins = sum(outcome)
        if stats.binomtest(wins, votes).pvalue <= 0.05:
            total += rate**wins * (1 - rate) ** (votes - wins)
    return total


@pytest.mark.parametrize(("votes", "rate"), [(5, 0.9), (6, 1.0), (9, 0.8), (9, 0.0), (10, 0.5)])
def test_power_is_the_sum_over_all_outcomes(votes: int, rate: float) -> None:
    assert power(votes, rate) == pytest.approx(slow_power(votes, rate), abs=1e-12)


@given(st.integers(0, 400), st.floats(0, 1))
def test_power_knows_no_side(votes: int, rate: float) -> None:
    assert power(votes, rate) == pytest.approx(power(votes, 1 - rate), abs=1e-9)
    assert power(votes, 0.5) <= 0.05  # the test is wrong in no more cases than it says


def test_no_vote_shows_anything() -> None:
    assert power(0, 0.9) == 0
    assert detectable(0) is None
    assert enough_votes(0)["detectable"] is None


def test_votes_for_80_percent_power() -> None:
    assert [votes_needed(rate) for rate in (0.6, 0.65, 0.7)] == [194, 85, 47]
    assert votes_needed(0.4) == 194
    assert votes_needed(0.5) is None
    assert votes_needed(0.6, power=0.9) == 259  # ((0.979982 + 1.281552 * 0.489898) / 0.1)^2 = 258.26


def test_a_plan() -> None:
    plan = enough_votes(150)
    assert plan["planned"] == 150
    assert [each["rate"] for each in plan["rates"]] == list(RATES)
    assert [each["needed"] for each in plan["rates"]] == [783, 194, 85, 47]
    assert [each["power"] for each in plan["rates"]] == [power(150, rate) for rate in RATES]
    assert plan["detectable"] == detectable(150)


def test_the_exact_test_has_its_power_from_there_on() -> None:
    for each in enough_votes(1)["rates"]:
        rate, needed = each["rate"], each["needed_exact"]
        assert power(needed - 1, rate) < POWER
        assert all(power(votes, rate) >= POWER for votes in range(needed, needed + needed // 2))


@pytest.mark.parametrize("votes", [6, 30, 500])
def test_detectable_is_the_first_rate_that_is_shown(votes: int) -> None:
    found = detectable(votes)
    assert found is not None
    assert power(votes, found) >= POWER > power(votes, found - 0.001)

"""Intervals: against closed forms, scipy, and data whose truth is known."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from konomi.statistics.bootstrap import bootstrap, estimate, mean_interval, resample, share_interval


def load_benchmark(name: str) -> Any:
    """A file of benchmarks/, under a name that no package has."""
    file = Path(__file__).resolve().parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


coverage = load_benchmark("coverage")


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 300 intervals 95 %, with five prompts too, where percentiles of a bootstrap hold it in 80 to 85 %."""
    for figure, size in (("paired difference", 5), ("win rate", 10), ("accuracy", 5), ("verdict of people in general", 20)):
        cells = [cell for cell in coverage.CELLS if (cell.figure, cell.size) == (figure, size)]
        for cell in cells[:3]:
            found = coverage.measure(cell, runs=300)
            assert found.held > 0.9 and found.none < 0.01, cell  # 0.9: three standard errors below 0.94
            assert found.held <= max(0.99, cell.least), cell
            if found.prompts_only is not None:
                assert found.prompts_only < found.held - 0.03, cell  # raters that differ


def test_there_is_no_interval_without_two_prompts_or_without_a_difference() -> None:
    for values in ([], [3.0], [0.0] * 24, [0.1 + 0.2, 0.3, 0.3]):
        found = mean_interval(np.array(values))
        assert (found["low"], found["high"]) == (None, None)
        assert found["value"] == (pytest.approx(np.mean(values)) if values else None)
    assert share_interval(np.array([1.0]), np.array([2.0])) == {"value": 0.5, "low": None, "high": None}
    assert share_interval(np.ones(3), np.full(3, 2.0)) == {"value": 0.5, "low": None, "high": None}
    for all_right in (0.0, 3.0):  # 3 of 3 of one prompt, and of two
        assert share_interval(np.array([all_right]), np.array([3.0])) == {"value": all_right / 3, "low": None, "high": None}
        assert share_interval(np.full(2, all_right), np.full(2, 3.0))["low"] is not None
    assert share_interval(np.zeros(0), np.zeros(0)) == {"value": None, "low": None, "high": None}


def test_a_mean_without_skewness_has_students_interval() -> None:
    values = np.array([-3.0, -1.0, 0.0, 1.0, 3.0]) + 2
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 4, loc=values.mean(), scale=stats.sem(values))
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))


def test_a_long_tail_moves_its_end_as_far_as_hall_says_and_the_other_half_as_far() -> None:
    values = [0.0, 0, 1, 1, 9]
    mean, spread, skew = 2.2, np.std(values, ddof=1), stats.skew(values, bias=False)
    students = stats.t.interval(0.95, 4, loc=mean, scale=stats.sem(values))
    halls = []
    for end in students:  # Hall's transformation of t / sqrt(n), turned round by a search for its zero
        wanted = (mean - end) / spread
        moved = brentq(lambda t: t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 30 - wanted, -50, 50)  # noqa: B023
        halls.append(mean - spread * moved)
    tail = mean_interval(np.array(values))
    assert tail["high"] == pytest.approx(halls[1]) and halls[1] > students[1] + 2
    assert tail["low"] == pytest.approx((students[0] + halls[0]) / 2) and halls[0] > students[0] + 0.5


def test_wins_and_losses_have_jeffreys_interval_and_prompts_of_several_that_of_fewer() -> None:
    found = share_interval(np.array([1.0] * 7 + [0.0] * 3), np.ones(10))
    assert (found["low"], found["high"]) == tuple(pytest.approx(stats.beta(7.5, 3.5).ppf(q)) for q in (0.025, 0.975))
    rng = np.random.default_rng(0)
    share = rng.beta(2, 2, size=30)  # prompts that differ: 10 comparisons of one say less than 10 of ten
    top = rng.binomial(10, share).astype(float)
    alone = share_interval(np.repeat([1.0, 0.0], [int(top.sum()), 300 - int(top.sum())]), np.ones(300))
    several = share_interval(top, np.full(30, 10.0))
    assert several["value"] == alone["value"]
    assert several["high"] - several["low"] > 1.5 * (alone["high"] - alone["low"])
    spread = np.std(top / 10, ddof=1) / math.sqrt(30)
    assert several["high"] - several["low"] == pytest.approx(2 * 2.045 * spread, rel=0.05)


def test_resamples_draw_as_many_prompts_as_there_are() -> None:
    for prompts in (1, 3, 700):
        times = bootstrap(lambda some: some, prompts, 5000, seed=0)
        assert times.shape == (5000, prompts)
        assert (times.sum(axis=1) == prompts).all() and (times >= 0).all()
        assert times.mean() == 1
    assert times.var() == pytest.approx(1, abs=0.02)  # about Poisson
    assert (bootstrap(lambda some: some, 700, 5000, seed=0, width=10_000) == times).all()  # in smaller pieces


def test_prompts_without_anything_are_left_out() -> None:
    column = np.array([1.0, 0, 0, 2, 0])
    sums = resample({"top": column, "bottom": column * 2}, seed=0)
    assert (sums.total["top"], sums.prompts["top"]) == (3.0, 2)
    found = estimate(sums, lambda s: s["top"] / s["bottom"], "bottom")
    assert found == {"value": 0.5, "low": None, "high": None}

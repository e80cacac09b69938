"""A reward model against numbers: scipy, scikit-learn, slow loops and a slow bootstrap."""

from __future__ import annotations

import itertools
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from konomi.errors import RunError
from konomi.statistics import evaluate_scores, evaluate_truth
from konomi.statistics.regression import correlation, weighted_ranks


def test_ranks_and_correlations_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for size in (2, 5, 40):
        x, y = rng.integers(0, 6, size=size).astype(float), rng.normal(size=size)
        x[:2] = [0, 1]
        assert float(correlation(x, y)) == pytest.approx(float(stats.pearsonr(x, y).statistic))
        times = rng.integers(0, 3, size=(7, size)).astype(float)
        times[:, :2] += 1
        found = weighted_ranks(x, times)
        for k, row in enumerate(times.astype(int)):
            again = np.repeat(np.arange(size), row)
            assert found[k][again].tolist() == stats.rankdata(x[again]).tolist()
            oracle = stats.pearsonr(x[again], y[again]).statistic if len(set(x[again])) > 1 else math.nan
            assert float(correlation(x, y, times)[k]) == pytest.approx(oracle, nan_ok=True)


def test_equal_numbers_have_no_correlation() -> None:
    assert math.isnan(float(correlation(np.full(7, 0.1), np.arange(7.0))))
    assert math.isnan(float(correlation(np.full(7, 1e20), np.arange(7.0))))


def test_regression_against_sklearn_and_a_slow_bootstrap() -> None:
    rng = np.random.default_rng(0)
    keys = [f"p{i // 3}" for i in range(150)]
    truth = rng.normal(size=150) + np.repeat(rng.normal(size=50), 3)
    predicted = 0.7 * truth + rng.normal(size=150)
    found = evaluate_scores(truth.tolist(), predicted.tolist(), keys)
    figures = {
        "pearson": lambda t, s: stats.pearsonr(t, s).statistic,
        "spearman": lambda t, s: stats.spearmanr(t, s).statistic,
        "mse": metrics.mean_squared_error,
        "r2": metrics.r2_score,
    }
    picks = [np.concatenate([3 * k + np.arange(3) for k in rng.integers(50, size=50)]) for _ in range(300)]
    for name, figure in figures.items():
        assert found[name]["value"] == pytest.approx(float(figure(truth, predicted)))
        slow = np.quantile([figure(truth[rows], predicted[rows]) for rows in picks], [0.025, 0.975])
        width = found[name]["high"] - found[name]["low"]
        assert [found[name]["low"], found[name]["high"]] == pytest.approx(slow.tolist(), abs=0.25 * width)
    assert (found["prompts"], found["texts"]) == (50, 150)
    alone = evaluate_scores(truth.tolist(), predicted.tolist(), [str(i) for i in range(150)])
    assert alone["pearson"]["value"] == found["pearson"]["value"] and alone["pearson"] != found["pearson"]


def test_truth_without_noise_against_a_slow_loop() -> None:
    rng = random.Random(0)
    both = [tuple([rng.choice([0.0, 1.0, rng.gauss(0, 1)]) for _ in range(k)] for _ in range(2)) for k in (1, 2, 5, 3, 4) * 9]
    right, pairs, taus = 0.0, 0, []
    for truth, predicted in both:
        for i, j in itertools.combinations(range(len(truth)), 2):
            if truth[i] != truth[j]:
                pairs += 1
                right += 0.5 if predicted[i] == predicted[j] else float((predicted[i] > predicted[j]) == (truth[i] > truth[j]))
        if len(set(truth)) > 1:
            taus.append(stats.kendalltau(truth, predicted).statistic if len(set(predicted)) > 1 else 0.0)
    named = [(f"p{i}", truth, predicted) for i, (truth, predicted) in enumerate(both)]
    found = evaluate_truth(named)
    assert found["pairs"] == pairs and found["prompts"] <= 36
    assert found["accuracy"]["value"] == pytest.approx(right / pairs)
    assert found["accuracy"]["low"] < right / pairs < found["accuracy"]["high"]
    assert found["tau"]["value"] == pytest.approx(sum(taus) / len(taus))
    flat = [list(itertools.chain(*side)) for side in zip(*both, strict=True)]
    assert found["spearman"]["value"] == pytest.approx(stats.spearmanr(*flat).statistic)
    perfect = evaluate_truth([(key, truth, [3 * t + 1 for t in truth]) for key, truth, _ in named])
    against = evaluate_truth(named, baselines={"truth": [truth for truth, _ in both], "itself": [own for _, own in both]})
    assert against["baselines"]["truth"]["accuracy"] == perfect["accuracy"] and not against["baselines"]["truth"]["beaten"]
    assert against["baselines"]["itself"]["accuracy"] == against["accuracy"] == found["accuracy"]
    twice = evaluate_truth([each for each in named for _ in range(2)])
    assert twice["accuracy"] == found["accuracy"] and twice["prompts"] == found["prompts"]  # groups of a prompt go together
    assert perfect["accuracy"]["value"] == perfect["tau"]["value"] == perfect["top_1"]["value"] == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e300])
def test_a_score_that_is_no_number_is_told(bad: float) -> None:
    with pytest.raises(RunError, match=r"scores: number 1 is"):
        evaluate_scores([1.0], [bad], ["p"])
    with pytest.raises(RunError, match=r"true scores of group 1: number 1 is"):
        evaluate_truth([("p", [bad], [1.0])])


def test_what_does_not_fit_together_is_told() -> None:
    with pytest.raises(ValueError, match="1 true scores, 2 predicted, 1 keys"):
        evaluate_scores([1.0], [1.0, 2.0], ["p"])
    with pytest.raises(ValueError, match="group 1: 1 true scores and 2 of the model"):
        evaluate_truth([("p", [1.0], [1.0, 2.0])])


FINITE = st.floats(-1e30, 1e30) | st.sampled_from([0.0, 1.0, -1.0, 5e-324, 1e-200, 1e30])


@given(st.lists(st.lists(FINITE, min_size=1, max_size=4), max_size=5))
def test_whatever_comes_in_json_comes_out(scores: list[list[float]]) -> None:
    both = [(f"p{i % 3}", own, own[::-1]) for i, own in enumerate(scores)]
    flat = [x for own in scores for x in own]
    for found in (evaluate_truth(both), evaluate_scores(flat, flat[::-1], [str(i % 3) for i in range(len(flat))])):
        assert json.loads(json.dumps(found, allow_nan=False)) == found

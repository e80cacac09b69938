"""How far a reward model can be trusted: against slow loops, closed forms, scipy and scikit-learn."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq
from sklearn import metrics

from konomi.data.records import Comparison, Group, Pair, Ranking, groups
from konomi.errors import RunError
from konomi.report import advice as verdicts
from konomi.report.advice import HEALTHY, kl_missed, out_of_range, over_the_run, verdict
from konomi.statistics import evaluate_labels, evaluate_preferences, evaluate_scores, evaluate_truth
from konomi.statistics.agreement import ceiling
from konomi.statistics.bootstrap import bootstrap, estimate, mean_interval, resample, share_interval
from konomi.statistics.regression import correlation, weighted_ranks
from konomi.statistics.win_rate import Vote, judge


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


def pair(prompt: str, chosen: str = "aa", rejected: str = "b", label: float = 1.0, rater: str | None = None) -> Pair:
    return Pair(prompt, chosen, rejected, label, rater=rater)


def many(count: int, right: int, longer: int | None = None) -> tuple[list[Group], list[list[float]]]:
    """``count`` prompts with one comparison; the model is right in the first ``right``, the longer text in ``longer``."""
    made, scores = [], []
    for i in range(count):
        is_longer = i < (count // 2 if longer is None else longer)
        made += groups([pair(f"p{i}", "long" if is_longer else "s", "s" if is_longer else "long")])
        scores.append([1.0, 0.0] if i < right else [0.0, 1.0])
    return made, scores


def ragged(seed: int, prompts: int = 40) -> tuple[list[Group], list[list[float]]]:
    """Prompts with 1 to 5 responses, rankings with ties of up to three raters, soft pairs, two sources, tied scores."""
    rng = random.Random(seed)
    records: list[Ranking | Pair] = []
    for p in range(prompts):
        texts = tuple(f"{j}" * rng.randint(1, 30) for j in range(rng.randint(1, 5)))
        for rater in rng.sample(["ann", "bob", "eve", None], rng.randint(1, 3)):  # type: ignore[list-item]
            source = rng.choice([None, "web", "lab"])
            if len(texts) > 1 and rng.random() < 0.7:
                records.append(Ranking(f"p{p}", texts, tuple(rng.randint(1, 4) for _ in texts), rater, source))
            elif len(texts) > 1:
                one, other = rng.sample(texts, 2)
                records.append(Pair(f"p{p}", one, other, rng.choice([0.0, 0.25, 0.5, 0.9, 1.0]), rater=rater, source=source))
    made = groups(records)
    return made, [[rng.choice([-1.0, 0.0, 0.5, 2.0, rng.gauss(0, 1)]) for _ in group.responses] for group in made]


# comparisons


def test_a_few_comparisons_by_hand() -> None:
    made = groups([pair("p", "aaaa", "b"), pair("q", "aa", "bbb"), pair("r", "aa", "bb"), pair("s", "a", "b", 0.5)])
    found = evaluate_preferences(made, [[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [0.0, 9.0]])
    assert found["accuracy"]["value"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["longer"]["accuracy"]["value"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert (found["prompts"], found["comparisons"], found["ties"], found["model_ties"], found["raters"]) == (3, 3, 1, 1, 0)
    assert found["longer"]["ties"] == 1 and found["agreement"] is None and not found["longer"]["beaten"]
    losses = [math.log1p(math.exp(-1)), math.log1p(math.exp(2)), math.log(2)]
    assert found["calibration"]["log_loss"] == pytest.approx(sum(losses) / 3)
    p = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2)), 0.5]
    assert found["calibration"]["brier"] == pytest.approx(sum((x - 1) ** 2 for x in p) / 3)
    assert found["tau"]["value"] == pytest.approx((1 - 1 + 0) / 3)
    assert found["top_1"]["value"] == found["top_1"]["chance"] == pytest.approx(0.5)
    assert found["calibration"]["bins"][0] == {"predicted": 0.5, "observed": 0.5, "count": 1}  # of a tie neither side is likelier


def test_the_order_of_raters_by_hand() -> None:
    tie = Group("p", ("a", "b", "c"), (Comparison(0, 1),), ((1, 2, None),))  # 1, -1 and, from a tie alone, 0
    assert evaluate_preferences([tie], [[1.0, 0.0, 5.0]])["tau"]["value"] == pytest.approx(1 / 3)
    soft = (Comparison(0, 2, 0.55), Comparison(0, 2, 0.6), Comparison(1, 2, 0.65))  # .1 + .2 for one, .3 for the other
    found = evaluate_preferences([Group("p", ("a", "b", "c"), soft)], [[2.0, 1.0, 0.0]])
    assert found["tau"]["value"] == pytest.approx(stats.kendalltau([3, 3, -6], [2, 1, 0]).statistic)


def slow_preferences(made: Sequence[Group], scores: Sequence[Sequence[float]], keep: Any = lambda *_: True) -> list[float]:
    """Accuracy and that of the longer one, over the comparisons that ``keep(group, preferred, other)``."""
    right, longer, count = 0.0, 0.0, 0
    for group, own in zip(made, scores, strict=True):
        for c in group.comparisons:
            first, second = (c.better, c.worse) if c.label > 0.5 else (c.worse, c.better)
            if c.label == 0.5 or not keep(group, group.responses[first], group.responses[second]):
                continue
            count += 1
            right += 1.0 if own[first] > own[second] else 0.5 if own[first] == own[second] else 0.0
            a, b = len(group.responses[first]), len(group.responses[second])
            longer += 1.0 if a > b else 0.5 if a == b else 0.0
    return [right / count, longer / count, count]


@pytest.mark.parametrize("seed", range(4))
def test_shares_are_those_of_a_slow_loop(seed: int) -> None:
    made, scores = ragged(seed)
    found = evaluate_preferences(made, scores, seed=seed)
    right, longer, count = slow_preferences(made, scores)
    assert found["accuracy"]["value"] == pytest.approx(right)
    assert found["longer"]["accuracy"]["value"] == pytest.approx(longer)
    assert found["longer"]["difference"]["value"] == pytest.approx(right - longer)
    assert found["comparisons"] == count
    assert found["accuracy"]["low"] < right < found["accuracy"]["high"]
    for row in found["by_source"]:
        right, _, count = slow_preferences(made, scores, lambda group, *_, name=row["source"]: group.source == name)
        assert (row["accuracy"]["value"], row["comparisons"]) == (pytest.approx(right), count)
    measures = {"by_length": lambda a, b: (len(a) + len(b)) / 2, "by_length_difference": lambda a, b: len(a) - len(b)}
    for key, length in measures.items():
        for row in found[key]:
            inside = lambda _, a, b, row=row, length=length: row["from"] <= length(a, b) <= row["to"]  # noqa: E731
            right, _, count = slow_preferences(made, scores, inside)
            assert (row["accuracy"]["value"], row["comparisons"]) == (pytest.approx(right), count)
        counts = [row["comparisons"] for row in found[key]]
        assert sum(counts) == found["comparisons"] and 1 < len(counts) <= 4


@pytest.mark.parametrize("seed", range(4))
def test_orders_are_those_of_scipy(seed: int) -> None:
    made, scores = ragged(seed)
    taus, hits, chances = [], [], []
    for group, own in zip(made, scores, strict=True):
        wins = [0.0] * len(own)
        judged = set()
        for c in group.comparisons:
            wins[c.better] += 2 * c.label - 1
            wins[c.worse] -= 2 * c.label - 1
            judged |= {c.better, c.worse}
        judged |= {place for one, other, _ in group.ties for place in (one, other)}
        truth, said = [round(wins[j], 6) for j in sorted(judged)], [own[j] for j in sorted(judged)]
        if len(set(truth)) < 2:
            continue
        taus.append(stats.kendalltau(truth, said).statistic if len(set(said)) > 1 else 0.0)
        first = [t == max(truth) for t, s in zip(truth, said, strict=True) if s == max(said)]
        hits.append(sum(first) / len(first))
        chances.append(truth.count(max(truth)) / len(truth))
    found = evaluate_preferences(made, scores)
    assert found["tau"]["value"] == pytest.approx(sum(taus) / len(taus))
    assert found["top_1"]["value"] == pytest.approx(sum(hits) / len(hits))
    assert found["top_1"]["chance"] == pytest.approx(sum(chances) / len(chances))


def test_length_correlation_is_that_of_scipy() -> None:
    made, scores = ragged(5)
    lengths = [[len(text) for text in group.responses] for group in made]
    found = evaluate_preferences(made, scores)["length_correlation"]
    flat = [list(itertools.chain(*side)) for side in (scores, lengths)]
    assert found["overall"]["pearson"] == pytest.approx(stats.pearsonr(*flat).statistic)
    assert found["overall"]["spearman"] == pytest.approx(stats.spearmanr(*flat).statistic)
    centered = [np.concatenate([np.array(v) - np.mean(v) for v in side]) for side in (scores, lengths)]
    assert found["within_prompt"]["pearson"] == pytest.approx(stats.pearsonr(*centered).statistic)
    ranked = [np.concatenate([stats.rankdata(v) - (len(v) + 1) / 2 for v in side]) for side in (scores, lengths)]
    assert found["within_prompt"]["spearman"] == pytest.approx(stats.pearsonr(*ranked).statistic)


def test_a_model_of_length_alone_is_found_out() -> None:
    rng = random.Random(0)
    made = groups([pair(f"p{i}", "x" * rng.randint(1, 50), "y" * rng.randint(1, 50)) for i in range(200)])
    found = evaluate_preferences(made, [[float(len(text)) for text in group.responses] for group in made])
    rows = found["by_length_difference"]
    assert [rows[0]["accuracy"]["value"], rows[-1]["accuracy"]["value"]] == [0.0, 1.0]
    assert found["longer"]["difference"] == {"value": 0.0, "low": None, "high": None}  # no width is no interval
    assert found["length_correlation"]["overall"]["pearson"] == pytest.approx(1)


@pytest.mark.parametrize("seed", range(3))
def test_a_constant_added_to_the_scores_of_one_prompt_changes_no_pairwise_number(seed: int) -> None:
    made, scores = ragged(seed)
    scores = [[round(8 * s) / 8 for s in own] for own in scores]  # sums of such numbers are exact
    moved = [[s + shift for s in own] for shift, own in zip(itertools.cycle([0.0, 64.0, -3.5]), scores, strict=False)]
    before, after = evaluate_preferences(made, scores), evaluate_preferences(made, moved)
    for found in (before, after):
        del found["length_correlation"]["overall"]
        assert found["length_correlation"]["within_prompt"]["pearson"] is not None
        found["length_correlation"]["within_prompt"]["pearson"] = round(
            found["length_correlation"]["within_prompt"]["pearson"], 9
        )
    assert before == after


def test_normalised_scores_with_their_scale_are_the_raw_ones() -> None:
    made, scores = ragged(7)
    normalised = [[(s - 4) / 2 for s in own] for own in scores]
    raw, found = evaluate_preferences(made, scores), evaluate_preferences(made, normalised, scale=2.0)
    assert found["calibration"]["log_loss"] == pytest.approx(raw["calibration"]["log_loss"])
    assert found["calibration"]["brier"] == pytest.approx(raw["calibration"]["brier"])
    assert found["accuracy"] == raw["accuracy"]
    assert evaluate_preferences(made, normalised)["calibration"]["log_loss"] != pytest.approx(raw["calibration"]["log_loss"])


def test_the_side_of_a_comparison_does_not_matter() -> None:
    group = Group("p", ("aa", "b"), (Comparison(0, 1, 0.9), Comparison(0, 1, 0.2)))
    turned = Group("p", ("aa", "b"), (Comparison(1, 0, 0.1), Comparison(1, 0, 0.8)))
    one, other = (evaluate_preferences([each], [[1.0, 0.0]]) for each in (group, turned))
    assert json.dumps(one) == json.dumps(other)
    assert one["accuracy"]["value"] == 0.5


# intervals


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


def test_metrics_are_marked_where_they_leave_their_range() -> None:
    for name, healthy in HEALTHY.items():
        unit = 2.0 if healthy.of_max_grad_norm else 1.0
        for end, off in ((healthy.low, -0.001), (healthy.high, 0.001)):
            if end is not None:
                assert out_of_range({name: end * unit}, 2.0) == []
                assert out_of_range({name: end * unit + off}, 2.0) == [name]
    lines = [{"ppo/policy/ratio": value, "out_of_range": marks} for value, marks in ((0.5, ["ppo/policy/ratio"]), (1.0, []))]
    assert over_the_run(lines) == ["ppo/policy/ratio: 1/2, 0.5 (0.95 to 1.05)"]
    assert over_the_run([{"ppo/policy/ratio": 1.0}]) == []


def test_a_kl_off_its_target_has_its_reason() -> None:
    for kl, coefficients, words in (
        (4.9, (0.2, 0.2), None), (7.1, (0.2, 0.2), None),
        (29.0, (0.2, 0.204), "KL ended at 29.0, over the target 6: the coefficient went from 0.2 to 0.204"),
        (0.8, (0.2, 0.2), "the coefficient stayed at 0.2"),
        (2.0, (0.2, 0.19), "lower ppo.kl_coef"), (0.5, (0.2, 0.04), "the run was too short"),
    ):  # fmt: skip
        said = kl_missed(kl, 6.0, coefficients)
        assert said is None if words is None else said is not None and words in said


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


def test_comparisons_of_one_prompt_are_not_taken_as_independent() -> None:
    """Ten equal comparisons a prompt say no more than one; drawn as if independent, the interval would be 3.2 times smaller."""
    made, scores = many(60, right=40)
    tenfold = [Group(g.prompt, g.responses, g.comparisons * 10) for g in made]
    one, ten = (evaluate_preferences(each, scores)["accuracy"] for each in (made, tenfold))
    assert one == pytest.approx(ten, rel=1e-12)
    lone = [Group(f"{g.prompt}/{i}", g.responses, g.comparisons) for g in made for i in range(10)]
    naive = evaluate_preferences(lone, [own for own in scores for _ in range(10)])["accuracy"]
    assert naive["value"] == one["value"]
    assert (one["high"] - one["low"]) / (naive["high"] - naive["low"]) == pytest.approx(math.sqrt(10), rel=0.15)


def test_the_same_prompt_of_two_sources_is_drawn_together() -> None:
    records = [Pair(f"p{i}", "aa", "b", source=source) for i in range(40) for source in ("web", "lab")]
    made = groups(records)
    assert len(made) == 80
    found = evaluate_preferences(made, [[1.0, 0.0] if int(g.prompt[1:]) < 25 else [0.0, 1.0] for g in made])
    single = evaluate_preferences(*many(40, 25))
    assert found["accuracy"] == single["accuracy"]
    assert (found["prompts"], found["comparisons"]) == (40, 80)


@pytest.mark.parametrize("count", [2, 5, 60])
def test_where_all_are_right_the_interval_is_exact(count: int) -> None:
    found = evaluate_preferences(*many(count, count))["accuracy"]
    low, high = stats.binomtest(count, count).proportion_ci(method="exact")
    assert (found["low"], found["high"]) == (pytest.approx(low), high)
    found = evaluate_preferences(*many(count, 0))["accuracy"]
    low, high = stats.binomtest(0, count).proportion_ci(method="exact")
    assert (found["low"], found["high"]) == (low, pytest.approx(high))


def test_the_lead_over_length_is_paired() -> None:
    """Where the model says what length says but for a few prompts, the lead is known far better than both accuracies."""
    made, scores = many(200, right=110, longer=100)
    found = evaluate_preferences(made, scores)["longer"]
    assert found["difference"]["value"] == pytest.approx(0.05)
    assert found["difference"]["high"] - found["difference"]["low"] < 0.07
    assert found["beaten"]
    assert found["accuracy"]["high"] - found["accuracy"]["low"] > 0.12
    three = evaluate_preferences(*many(200, right=103, longer=100))["longer"]  # one resample in 20 has none of the three
    assert three["difference"] == {"value": pytest.approx(0.015), "low": 0.0, "high": pytest.approx(0.0325, abs=0.006)}
    assert not three["beaten"]


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


def test_the_seed_names_the_draws() -> None:
    made, scores = ragged(1)
    votes = [Vote(f"p{i}", "b" * (i % 7 + 1), "a", float(i % 3 > 0), "x") for i in range(30)]
    for figures in (lambda seed: evaluate_preferences(made, scores, seed=seed)["tau"],
                    lambda seed: judge(votes, seed)["length_controlled"]["win_rate"]):  # fmt: skip
        assert figures(1) == figures(1) != figures(2)


# calibration


def simulated(prompts: int, factor: float) -> tuple[list[Group], list[list[float]]]:
    """Comparisons that come out with the probability that the scores give, and scores ``factor`` times as large."""
    rng = np.random.default_rng(0)
    made, scores = [], []
    for i in range(prompts):
        a, b = rng.normal(0, 1.2, size=2)
        wins = rng.random() < 1 / (1 + math.exp(b - a))
        made.append(Group(f"p{i}", ("a", "b"), (Comparison(0, 1) if wins else Comparison(1, 0),)))
        scores.append([factor * a, factor * b])
    return made, scores


def test_a_calibrated_model_has_next_to_no_calibration_error() -> None:
    good = evaluate_preferences(*simulated(8_000, 1.0))["calibration"]
    assert good["ece"] < 0.02
    assert len(good["bins"]) == 10 and sum(each["count"] for each in good["bins"]) == 8_000
    bold, shy = (evaluate_preferences(*simulated(3_000, factor))["calibration"] for factor in (4.0, 0.2))
    assert bold["ece"] > 0.1 and all(each["observed"] < each["predicted"] for each in bold["bins"][5:])
    assert shy["ece"] > 0.08 and all(each["observed"] > each["predicted"] for each in shy["bins"][1:])
    assert good["log_loss"] < min(bold["log_loss"], shy["log_loss"], math.log(2))


def test_soft_labels_are_observed_as_what_they_say() -> None:
    logit = math.log(0.8 / 0.2)
    made = [Group("p", ("a", "b"), (Comparison(0, 1, 0.8), Comparison(1, 0, 0.2)))]
    found = evaluate_preferences(made, [[logit, 0.0]])["calibration"]
    assert found["bins"] == [{"predicted": pytest.approx(0.8), "observed": pytest.approx(0.8), "count": 2}]
    assert found["ece"] == pytest.approx(0, abs=1e-12) and found["brier"] == pytest.approx(0, abs=1e-12)
    assert found["log_loss"] == pytest.approx(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)))


# agreement


def test_the_ceiling_of_an_agreement() -> None:
    assert float(ceiling(0.75)) == pytest.approx(0.8536, abs=5e-5)
    assert [float(x) for x in ceiling(np.array([0.0, 0.5, 1.0]))] == [0.5, 0.5, 1.0]
    for a in (0.5, 0.6, 0.85, 1.0):
        assert float(ceiling(a**2 + (1 - a) ** 2)) == pytest.approx(a)


def test_agreement_by_hand() -> None:
    records: list[Ranking | Pair] = [
        pair("p", "a", "b", rater="ann"), pair("p", "a", "b", rater="bob"), pair("p", "b", "a", rater="eve"),
        Ranking("q", ("a", "b", "c"), (1, 1, 2), "ann"), Ranking("q", ("c", "b", "a"), (3, 2, 1), "bob"),
        pair("r", "a", "b", rater="ann"), pair("r", "a", "b", rater="ann"), pair("r", "a", "b"), pair("r", "b", "a"),
        pair("s", "a", "b", 0.8, rater="ann"), pair("s", "b", "a", 0.4, rater="bob"),
    ]  # fmt: skip
    made = groups(records)
    found = evaluate_preferences(made, [[0.0] * len(g.responses) for g in made])
    # p: 1 of 3 couples; q: a tie against a word, half, and two that agree; r: no second name; s: .8 x .6 + .2 x .4
    assert found["agreement"]["couples"] == 3 + 3 + 1
    assert found["agreement"]["share"]["value"] == pytest.approx((1 + 0.5 + 1 + 1 + 0.56) / 7)
    assert found["agreement"]["prompts"] == 3
    assert found["raters"] == 3


def test_the_same_texts_from_two_sources_are_one_pair() -> None:
    made = groups([Pair("p", "a", "b", rater="ann", source="web"), Pair(" p", "b", "a", rater="bob", source="lab")])
    found = evaluate_preferences(made, [[0.0, 1.0]] * 2)
    assert found["agreement"]["share"]["value"] == 0.0 and found["agreement"]["couples"] == 1
    assert found["agreement"]["ceiling"]["value"] == 0.5 and found["agreement"]["of_ceiling"] is None


def raters(prompts: int, right: float, model: float, seed: int = 0) -> tuple[list[Group], list[list[float]]]:
    """Two raters who are each right with probability ``right`` of a pair, and a model that is with ``model``."""
    rng = random.Random(seed)
    records, scores = [], []
    for i in range(prompts):
        better, worse = rng.choice([("long", "s"), ("s", "long")])
        sides = [(better, worse) if rng.random() < right else (worse, better) for _ in range(2)]
        records += [Pair(f"p{i}", *side, rater=name) for side, name in zip(sides, ("ann", "bob"), strict=True)]
        ahead = (better if rng.random() < model else worse) == sides[0][0]
        scores.append([1.0, 0.0] if ahead else [0.0, 1.0])
    return groups(records), scores


def test_independent_raters_show_how_often_they_are_right() -> None:
    made, scores = raters(3000, right=0.85, model=1.0)
    found = evaluate_preferences(made, scores)
    agreement = found["agreement"]
    assert agreement["ceiling"]["low"] < 0.85 < agreement["ceiling"]["high"]
    assert agreement["share"]["value"] == pytest.approx(0.85**2 + 0.15**2, abs=0.025)
    assert found["accuracy"]["value"] == pytest.approx(0.85, abs=0.02)  # a model that knows the truth is at the ceiling
    assert agreement["of_ceiling"] == pytest.approx(1, abs=0.05)
    assert agreement["below"]["low"] < 0 < agreement["below"]["high"]


# the verdict


def judged(count: int, right: int, longer: int | None = None, train: int | None = None) -> dict[str, str]:
    verdict_of: dict[str, str] = evaluate_preferences(*many(count, right, longer), train_comparisons=train)["verdict"]
    return verdict_of


@pytest.mark.parametrize(
    ("grade", "count", "right", "longer", "train", "english", "japanese"),
    [
        ("none", 0, 0, 0, None, "no comparison", "比較がありません"),
        ("few", 20, 20, 10, 5000, "too few prompts", "少なすぎるため"),
        ("worse", 200, 60, 100, 500, "worse than a coin", "偶然（50 %）を下回ります"),
        ("chance", 200, 110, 100, 500, "collect more", "比較を増やしてください"),
        ("chance", 200, 110, 100, 5000, "look at the labels", "ラベルを見直してください"),
        ("length", 400, 270, 280, 500, "not shown to beat the rule that the longer text wins (70.0 %)", "（70.0 %）を上回るとは"),
        ("wide", 200, 140, 100, None, "3.", "倍必要です"),
        ("wide", 200, 140, 100, 1200, "1,200 comparisons only", "1,200 件と少ないため"),
        ("enough", 1600, 1200, 800, 9000, "75.0 % of 1,600 held-out", "比較 1,600 件"),
        ("enough", 1600, 1200, 800, 1999, "more of them are likely", "見込みがあります"),
    ],
)  # fmt: skip
def test_grades(
    grade: str, count: int, right: int, longer: int, train: int | None, english: str, japanese: str
) -> None:  # fmt: skip
    found = judged(count, right, longer, train)
    assert found["grade"] == grade
    if english == "3.":
        english = re.search(r"about \d\.\d times", found["en"])[0]  # type: ignore[index]
        assert 1.2 <= float(english.split()[1]) <= 2.0
    assert english in found["en"] and japanese in found["ja"]
    if grade not in ("none", "few"):
        assert "No two raters" in found["en"] and "上限は分かりません" in found["ja"]
    if train == 9000:
        assert "trained on" not in found["en"] and "学習に使った" not in found["ja"]


def test_the_interval_is_judged_before_the_count() -> None:
    """A few comparisons that are clearly learned are enough; a million that are not are not."""
    assert judged(1600, 1200, 800, train=100)["grade"] == "enough"
    assert judged(200, 105, 100, train=1_000_000)["grade"] == "chance"


@pytest.mark.parametrize(
    ("prompts", "right", "model", "english", "japanese"),
    [
        (1000, 0.85, 1.0, "more comparisons of this kind will not raise it", "増やしても向上は見込めません"),
        (1000, 0.9, 0.75, "from a coin to there the model has come", "の位置にあります"),
        (60, 0.85, 1.0, "whether the model is there already cannot be said", "この件数では分かりません"),
        (100, 0.55, 1.0, "cannot be told from chance", "偶然と区別できません"),
    ],
)
def test_the_ceiling_is_told(prompts: int, right: float, model: float, english: str, japanese: str) -> None:
    found = evaluate_preferences(*raters(prompts, right, model), train_comparisons=300)["verdict"]
    assert english in found["en"] and japanese in found["ja"]
    assert ("trained on" in found["en"]) == ("will not raise" not in english)


def test_a_single_prompt_has_no_interval() -> None:
    made = [Group("p", ("aa", "b"), (Comparison(0, 1), Comparison(0, 1), Comparison(1, 0)))]
    found = evaluate_preferences(made, [[1.0, 0.0]])
    assert found["accuracy"] == {"value": pytest.approx(2 / 3), "low": None, "high": None}
    assert found["verdict"]["grade"] == "few" and "no interval" in found["verdict"]["en"]


def test_both_languages_say_the_same_things() -> None:
    english, japanese = (verdicts.locale("advice")[lang] for lang in ("en", "ja"))
    for key in english:
        fields = [set(re.findall(r"\{\w+\}", texts[key])) - {"{count}", "{prompts}"} for texts in (english, japanese)]
        assert fields[0] == fields[1], key


# numbers


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
    said = 0.7 * truth + rng.normal(size=150)
    found = evaluate_scores(truth.tolist(), said.tolist(), keys)
    figures = {
        "pearson": lambda t, s: stats.pearsonr(t, s).statistic,
        "spearman": lambda t, s: stats.spearmanr(t, s).statistic,
        "mse": metrics.mean_squared_error,
        "r2": metrics.r2_score,
    }
    picks = [np.concatenate([3 * k + np.arange(3) for k in rng.integers(50, size=50)]) for _ in range(300)]
    for name, figure in figures.items():
        assert found[name]["value"] == pytest.approx(float(figure(truth, said)))
        slow = np.quantile([figure(truth[rows], said[rows]) for rows in picks], [0.025, 0.975])
        width = found[name]["high"] - found[name]["low"]
        assert [found[name]["low"], found[name]["high"]] == pytest.approx(slow.tolist(), abs=0.25 * width)
    assert (found["prompts"], found["texts"]) == (50, 150)
    alone = evaluate_scores(truth.tolist(), said.tolist(), [str(i) for i in range(150)])
    assert alone["pearson"]["value"] == found["pearson"]["value"] and alone["pearson"] != found["pearson"]


def test_truth_without_noise_against_a_slow_loop() -> None:
    rng = random.Random(0)
    both = [tuple([rng.choice([0.0, 1.0, rng.gauss(0, 1)]) for _ in range(k)] for _ in range(2)) for k in (1, 2, 5, 3, 4) * 9]
    right, pairs, taus = 0.0, 0, []
    for truth, said in both:
        for i, j in itertools.combinations(range(len(truth)), 2):
            if truth[i] != truth[j]:
                pairs += 1
                right += 0.5 if said[i] == said[j] else float((said[i] > said[j]) == (truth[i] > truth[j]))
        if len(set(truth)) > 1:
            taus.append(stats.kendalltau(truth, said).statistic if len(set(said)) > 1 else 0.0)
    named = [(f"p{i}", truth, said) for i, (truth, said) in enumerate(both)]
    found = evaluate_truth(named)
    assert found["pairs"] == pairs and found["prompts"] <= 36
    assert found["accuracy"]["value"] == pytest.approx(right / pairs)
    assert found["accuracy"]["low"] < right / pairs < found["accuracy"]["high"]
    assert found["tau"]["value"] == pytest.approx(sum(taus) / len(taus))
    flat = [list(itertools.chain(*side)) for side in zip(*both, strict=True)]
    assert found["spearman"]["value"] == pytest.approx(stats.spearmanr(*flat).statistic)
    perfect = evaluate_truth([(key, truth, [3 * t + 1 for t in truth]) for key, truth, _ in named])
    twice = evaluate_truth([each for each in named for _ in range(2)])
    assert twice["accuracy"] == found["accuracy"] and twice["prompts"] == found["prompts"]  # groups of a prompt go together
    assert perfect["accuracy"]["value"] == perfect["tau"]["value"] == perfect["top_1"]["value"] == 1.0


# labels


def test_labels_against_sklearn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice(4, p=[0.3, 0.5, 0.2, 0.0], size=300)
    said = rng.dirichlet([0.7] * 5, size=300)
    said[np.arange(300), truth] += rng.exponential(0.5, size=300)
    said[:, 4] = 0
    said /= said.sum(axis=1, keepdims=True)
    names = ["very bad", "bad", "good", "very good", "never"]
    found = evaluate_labels(truth.tolist(), said, names)
    word = said.argmax(axis=1)
    assert found["accuracy"]["value"] == pytest.approx(metrics.accuracy_score(truth, word))
    assert found["macro_f1"]["value"] == pytest.approx(metrics.f1_score(truth, word, average="macro"))
    assert found["confusion"] == metrics.confusion_matrix(truth, word, labels=list(range(5))).tolist()
    each = metrics.precision_recall_fscore_support(truth, word, labels=list(range(5)), zero_division=0)
    for key, oracle in zip(("precision", "recall", "f1", "count"), each, strict=True):
        assert [row[key] for row in found["classes"]] == pytest.approx(oracle.tolist())
    assert found["calibration"]["log_loss"] == pytest.approx(metrics.log_loss(truth, said, labels=list(range(5))))
    assert found["calibration"]["brier"] == pytest.approx(((said - np.eye(5)[truth]) ** 2).sum(axis=1).mean())
    assert found["majority"]["label"] == "bad"
    assert found["majority"]["accuracy"] == pytest.approx((truth == 1).mean())
    ahead = (word == truth).mean() - (truth == 1).mean()
    assert found["majority"]["difference"]["value"] == pytest.approx(ahead)
    assert found["majority"]["difference"]["low"] < ahead < found["majority"]["difference"]["high"]
    assert found["majority"]["beaten"] and found["texts"] == 300 and found["labels"] == names


def test_intervals_of_labels_are_those_of_rows_drawn_again() -> None:
    rng = np.random.default_rng(1)
    truth, word = rng.integers(3, size=200), rng.integers(3, size=200)
    word[:120] = truth[:120]
    found = evaluate_labels(truth.tolist(), np.eye(3)[word], ["a", "b", "c"])
    rows = rng.integers(200, size=(2000, 200))
    f1 = np.quantile([metrics.f1_score(truth[r], word[r], average="macro") for r in rows[:300]], [0.025, 0.975])
    right = np.quantile((truth == word)[rows].mean(axis=1), [0.025, 0.975])
    assert [found["accuracy"][key] for key in ("low", "high")] == pytest.approx(right.tolist(), abs=0.01)
    assert [found["macro_f1"][key] for key in ("low", "high")] == pytest.approx(f1.tolist(), abs=0.02)


def test_a_classifier_that_always_says_the_same_is_no_better_than_the_most_frequent_class() -> None:
    found = evaluate_labels([0, 0, 1, 0], [[0.6, 0.4]] * 4, ["a", "b"])
    assert found["majority"]["difference"]["value"] == 0.0 and not found["majority"]["beaten"]
    assert found["calibration"]["ece"] == pytest.approx(0.15)


# bad input


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e300])
def test_a_score_that_is_no_number_is_told(bad: float) -> None:
    made, scores = many(3, 3)
    scores[1][1] = bad
    with pytest.raises(RunError, match=r"the scores of prompt 2: number 2 is (nan|inf|-1e\+300), .* lower learning rate"):
        evaluate_preferences(made, scores)
    with pytest.raises(RunError, match=r"scores: number 1 is"):
        evaluate_scores([1.0], [bad], ["p"])
    with pytest.raises(RunError, match=r"true scores of group 1: number 1 is"):
        evaluate_truth([("p", [bad], [1.0])])


def test_what_does_not_fit_together_is_told() -> None:
    made, scores = many(3, 3)
    for call, message in (
        (lambda: evaluate_preferences(made, scores[:2]), "one for each response of each group"),
        (lambda: evaluate_preferences(made, [[1.0]] * 3), "one for each response of each group"),
        *((lambda scale=scale: evaluate_preferences(made, scores, scale=scale), r"scale = .*: has to be a number above 0")
          for scale in (0.0, -1.0, math.nan, math.inf)),
        (lambda: evaluate_scores([1.0], [1.0, 2.0], ["p"]), "1 true scores, 2 predicted, 1 keys"),
        (lambda: evaluate_truth([("p", [1.0], [1.0, 2.0])]), "group 1: 1 true scores and 2 of the model"),
        *((lambda truth=truth: evaluate_labels(truth, [[0.5, 0.5]], ["a", "b"]), "labels from 0 to 1 are needed")
          for truth in ([2], [-1], [0, 1])),
        *((lambda row=row: evaluate_labels([0], [row], ["a", "b"]), "probabilities with the sum 1")
          for row in ([0.5, 0.6], [-0.5, 1.5], [math.nan, 1.0])),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


# anything at all

FINITE = st.floats(-1e30, 1e30) | st.sampled_from([0.0, 1.0, -1.0, 5e-324, 1e-200, 1e30])
TEXTS = st.lists(st.text(max_size=4), min_size=1, max_size=4, unique=True)


@st.composite
def any_groups(draw: Any) -> tuple[list[Group], list[list[float]]]:
    made, scores = [], []
    for _ in range(draw(st.integers(0, 5))):
        texts = tuple(draw(TEXTS))
        place = st.integers(0, len(texts) - 1)
        who = st.sampled_from([None, "ann", "bob"])
        label = st.sampled_from([0.0, 0.3, 0.5, 1.0])
        comparisons = st.lists(st.builds(Comparison, place, place, label, st.just(0.0), who), max_size=5)
        ties = st.lists(st.tuples(place, place, who), max_size=2)
        source = st.sampled_from([None, "web"])
        prompt = draw(st.sampled_from(["p", "q", "r"]))
        made.append(Group(prompt, texts, tuple(draw(comparisons)), tuple(draw(ties)), draw(source)))
        scores.append(draw(st.lists(FINITE, min_size=len(texts), max_size=len(texts))))
    return made, scores


@settings(max_examples=40, deadline=None)
@given(any_groups(), st.sampled_from([1.0, 1e-3, 1e6]))
def test_whatever_comes_in_json_comes_out(given_: tuple[list[Group], list[list[float]]], scale: float) -> None:
    made, scores = given_
    found = evaluate_preferences(made, scores, scale=scale, train_comparisons=3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == set(evaluate_preferences([], []))
    assert verdict(found) == found["verdict"]
    for name in ("accuracy", "top_1"):
        assert all(x is None or 0 <= x <= 1 for x in found[name].values())
    assert all(x is None or -1 - 1e-9 <= x <= 1 + 1e-9 for x in found["tau"].values())
    both = [(group.key, own, own[::-1]) for group, own in zip(made, scores, strict=True)]
    flat = [x for own in scores for x in own]
    for other in (evaluate_truth(both), evaluate_scores(flat, flat[::-1], [str(i % 3) for i in range(len(flat))])):
        assert json.loads(json.dumps(other, allow_nan=False)) == other


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.floats(1e-9, 1), min_size=3, max_size=3)), max_size=6))
def test_whatever_is_classified_json_comes_out(rows: list[tuple[int, list[float]]]) -> None:
    said = [[p / sum(row) for p in row] for _, row in rows]
    found = evaluate_labels([t for t, _ in rows], said, ["a", "b", "c"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found

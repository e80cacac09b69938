"""A reward model against comparisons: by hand, against slow loops and scipy, and where nothing can be computed."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from konomi.data.records import Comparison, Group, Pair, groups
from konomi.errors import RunError
from konomi.report.advice import verdict
from konomi.statistics import evaluate_preferences
from konomi.statistics.agreement import inter_rater
from some_comparisons import many, pair, ragged, ragged_records, two_raters

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
        truth, predicted = [round(wins[j], 6) for j in sorted(judged)], [own[j] for j in sorted(judged)]
        if len(set(truth)) < 2:
            continue
        taus.append(stats.kendalltau(truth, predicted).statistic if len(set(predicted)) > 1 else 0.0)
        first = [t == max(truth) for t, s in zip(truth, predicted, strict=True) if s == max(predicted)]
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


def test_comparisons_of_one_prompt_are_not_taken_as_independent() -> None:
    """Ten equal comparisons a prompt say no more than one; drawn as if independent, the interval would be 3.2 times smaller."""
    made, scores = many(60, right=40)
    tenfold = [Group(g.prompt, g.responses, g.comparisons * 10) for g in made]
    one, ten = (evaluate_preferences(each, scores)["accuracy"] for each in (made, tenfold))
    assert one == ten
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


def test_the_lead_over_other_scores_is_that_over_the_rule_that_they_follow() -> None:
    made, scores = ragged(3)
    length = [[float(len(text)) for text in group.responses] for group in made]
    found = evaluate_preferences(made, scores, baselines={"text": length, "itself": scores})
    rule = {key: value for key, value in found["longer"].items() if key != "ties"}
    assert found["baselines"]["text"] == rule
    assert found["baselines"]["itself"]["accuracy"] == found["accuracy"] and not found["baselines"]["itself"]["beaten"]
    plain = evaluate_preferences(made, scores)
    assert {key: value for key, value in found.items() if key not in ("baselines", "verdict")} == {
        key: value for key, value in plain.items() if key not in ("baselines", "verdict")
    }


def test_the_seed_names_the_draws() -> None:
    one, again, other = (evaluate_preferences(*ragged(1), seed=seed)["tau"] for seed in (1, 1, 2))
    assert one == again != other


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


@pytest.mark.parametrize("seed", range(3))
def test_agreement_is_that_of_the_records(seed: int) -> None:
    """And a model that guesses is below the ceiling by the difference."""
    records = ragged_records(seed)
    made, scores = ragged(seed)
    found, expected = evaluate_preferences(made, scores), inter_rater(records)
    assert expected is not None and expected["couples"] > 20
    assert {name: found["agreement"][name] for name in expected} == expected
    below = expected["ceiling"]["value"] - found["accuracy"]["value"]
    assert found["agreement"]["below"]["value"] == pytest.approx(below)
    assert found["raters"] == 3


def test_the_same_texts_from_two_sources_are_one_pair() -> None:
    made = groups([Pair("p", "a", "b", rater="ann", source="web"), Pair(" p", "b", "a", rater="bob", source="lab")])
    found = evaluate_preferences(made, [[0.0, 1.0]] * 2)
    assert found["agreement"]["share"]["value"] == 0.0 and found["agreement"]["couples"] == 1
    assert found["agreement"]["ceiling"]["value"] == 0.5 and found["agreement"]["of_ceiling"] is None


def test_independent_raters_show_how_often_they_are_right() -> None:
    made, scores = two_raters(3000, right=0.85, model=1.0)
    found = evaluate_preferences(made, scores)
    agreement = found["agreement"]
    assert agreement["ceiling"]["low"] < 0.85 < agreement["ceiling"]["high"]
    assert agreement["share"]["value"] == pytest.approx(0.85**2 + 0.15**2, abs=0.025)
    assert found["accuracy"]["value"] == pytest.approx(0.85, abs=0.02)  # a model that knows the truth is at the ceiling
    assert agreement["of_ceiling"] == pytest.approx(1, abs=0.05)
    assert agreement["below"]["low"] < 0 < agreement["below"]["high"]


# bad input and any input


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e300])
def test_a_score_that_is_no_number_is_told(bad: float) -> None:
    made, scores = many(3, 3)
    scores[1][1] = bad
    with pytest.raises(RunError, match=r"the scores of prompt 2: number 2 is (nan|inf|-1e\+300), .* lower learning rate"):
        evaluate_preferences(made, scores)


def test_what_does_not_fit_together_is_told() -> None:
    made, scores = many(3, 3)
    for wrong in (scores[:2], [[1.0]] * 3):
        with pytest.raises(ValueError, match="one for each response of each group"):
            evaluate_preferences(made, wrong)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"scale = .*: has to be a number above 0"):
            evaluate_preferences(made, scores, scale=scale)


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


@settings(max_examples=40)
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

"""Scores, counts and strengths from rankings, held against the packages choix and evalica and against slow loops."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import choix
import evalica
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from scipy.special import expit

from konomi.data.records import Pair, Prompt, Ranking, Score
from konomi.statistics.aggregation import PairVotes, count_votes, mean_scores, soft_pairs
from konomi.statistics.bradley_terry import Contest, bradley_terry, contests, fit

TEXTS = ("a", "b", "c", "d", "e")


@st.composite
def rankings(draw: st.DrawFn) -> list[Ranking]:
    """Several people's, of several prompts; some twice, some of fewer responses."""

    def ranking() -> Ranking:
        texts = draw(st.permutations(TEXTS))[: draw(st.integers(2, 5))]
        ranks = tuple(draw(st.integers(1, 4)) for _ in texts)
        return Ranking(draw(st.sampled_from("pq")), tuple(texts), ranks, draw(st.sampled_from(["x", "y", "z", None])))

    return [ranking() for _ in range(draw(st.integers(0, 8)))]


def renamed(given: Sequence[Ranking]) -> list[Ranking]:
    other = {"x": "y", "y": "z", "z": "w", None: None}
    return [Ranking(r.prompt, r.responses, r.ranks, other[r.rater], r.source) for r in given]


# -- scores ------------------------------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    given = [
        Ranking("p", ("a", "b", "c", "d"), (1, 2, 2, 4), "x"),  # 1, 0, 0, -1
        Ranking("p", ("b", "a"), (1, 2), "y"),  # b 1, a -1
        Ranking("p", ("b", "a"), (2, 1), "y"),  # once more, the other way: y's mean is 0 for both
    ]
    assert mean_scores(given) == [Score("p", "a", 0.5), Score("p", "b", 0.0), Score("p", "c", 0.0), Score("p", "d", -1.0)]


def test_scores_of_one_person_of_ties_and_of_nobody() -> None:
    assert [s.score for s in mean_scores([Ranking("p", ("a", "b", "c"), (3, 1, 2), "x")])] == [-1, 1, 0]
    assert [s.score for s in mean_scores([Ranking("p", ("a", "b", "c"), (7, 7, 7))])] == [0, 0, 0]
    assert [s.score for s in mean_scores([Ranking("p", ("a",), (1,))])] == [0]
    assert mean_scores([]) == []


def test_sources_stay_apart() -> None:
    given = [Ranking("p", ("a", "b"), (1, 2), "x", source) for source in ("one", "two")]
    assert [(s.response, s.source) for s in mean_scores(given)] == [("a", "one"), ("b", "one"), ("a", "two"), ("b", "two")]
    assert [c.source for c in count_votes(given)] == ["one", "two"]


@given(rankings(), st.randoms(use_true_random=False))
def test_scores_ask_for_no_names_and_no_order(given: list[Ranking], random: object) -> None:
    expected = {(s.prompt, s.response): s.score for s in mean_scores(given)}
    moved = renamed(given)
    random.shuffle(moved)  # type: ignore[attr-defined]
    found = {(s.prompt, s.response): s.score for s in mean_scores(moved)}
    assert found == pytest.approx(expected)
    assert all(-1 <= score <= 1 for score in found.values())


# -- counts ------------------------------------------------------------------------------------------------------------


def slow_counts(given: Sequence[Ranking]) -> dict[tuple[str, str, str], Counter[str]]:
    """By prompt and two texts in alphabetical order: for the first, for the second, ties; a person has one vote."""
    words: dict[tuple[str, str, str, object], list[int]] = defaultdict(list)
    for number, r in enumerate(given):
        rank = dict(zip(r.responses, r.ranks, strict=True))
        for one in rank:
            for other in rank:
                if one < other:
                    sign = (rank[one] < rank[other]) - (rank[one] > rank[other])
                    words[r.prompt, one, other, r.rater or number].append(sign)
    found: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for (prompt, one, other, _), signs in words.items():
        total = sum(signs)
        found[prompt, one, other]["tie" if total == 0 else one if total > 0 else other] += 1
    return found


@given(rankings())
def test_counts_are_those_of_slow_loops(given: list[Ranking]) -> None:
    found = {}
    for c in count_votes(given):
        one, other = sorted((c.a, c.b))
        votes = {c.a: c.in_favour, c.b: c.against, "tie": c.ties}
        found[c.prompt, one, other] = Counter({name: number for name, number in votes.items() if number})
        assert c.votes == c.in_favour + c.against + c.ties
    assert found == slow_counts(given)


def test_a_person_has_one_vote() -> None:
    records = [Ranking("p", ("a", "b"), ranks, "x") for ranks in [(1, 2), (1, 2), (2, 1)]]
    assert count_votes(records) == [PairVotes("p", "a", "b", 1, 0)]
    assert count_votes(records[1:]) == [PairVotes("p", "a", "b", 0, 0, 1)]
    assert count_votes([Ranking("p", r.responses, r.ranks) for r in records]) == [PairVotes("p", "a", "b", 2, 1)]
    assert count_votes([Pair("p", "b", "a", rater="y"), *records]) == [PairVotes("p", "b", "a", 1, 1)]
    assert count_votes([]) == []


@given(rankings())
def test_soft_pairs_say_what_the_counts_say(given: list[Ranking]) -> None:
    counts = count_votes(given)
    pairs = soft_pairs(counts)
    assert len(pairs) == len(counts)
    for c, pair in zip(counts, pairs, strict=True):
        assert {pair.chosen, pair.rejected} == {c.a, c.b}
        assert 0.5 <= pair.label <= 1 and pair.rater is None
        wins = c.in_favour if pair.chosen == c.a else c.against
        assert pair.label * c.votes == pytest.approx(wins + c.ties / 2)


# -- Bradley-Terry -----------------------------------------------------------------------------------------------------


def strengths(found: dict) -> dict[str, float]:
    return {item["item"]: item["strength"]["value"] for item in found["items"]}


def games(seed: int, ties: bool, count: int = 400) -> tuple[list[Contest], list[str]]:
    rng = np.random.default_rng(seed)
    truth = {"a": 1.0, "b": 0.3, "c": 0.0, "d": -0.4, "e": -0.9}
    played = []
    for i in range(count):
        a, b = rng.choice(list(truth), size=2, replace=False)
        share = 0.5 if ties and rng.random() < 0.2 else float(rng.random() < expit(truth[a] - truth[b]))
        played.append(Contest(f"p{i // 4}", str(a), str(b), share))
    return played, sorted(truth)


@pytest.mark.parametrize("seed", range(3))
def test_without_ties_and_prior_it_is_choix(seed: int) -> None:
    played, names = games(seed, ties=False)
    data = [(names.index(w), names.index(lose)) for c in played for w, lose in [(c.a, c.b) if c.share else (c.b, c.a)]]
    expected = choix.opt_pairwise(len(names), data, alpha=1e-9, tol=1e-10)
    found = strengths(bradley_terry(played, prior=1e-9))
    assert [found[name] for name in names] == pytest.approx(expected.tolist(), abs=1e-5)
    # choix counts the squares whole, a normal prior by half
    with_prior = strengths(bradley_terry(played, prior=4.0))
    expected = choix.opt_pairwise(len(names), data, alpha=2.0, tol=1e-10)
    assert [with_prior[name] for name in names] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_with_ties_and_weights_it_is_evalica(seed: int) -> None:
    played, _ = games(seed, ties=True)
    weights = np.random.default_rng(seed).integers(1, 4, size=len(played)).astype(float)
    played = [Contest(c.prompt, c.a, c.b, c.share, weight=w) for c, w in zip(played, weights, strict=True)]
    word = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
    result = evalica.bradley_terry(
        [c.a for c in played], [c.b for c in played], [word[c.share] for c in played],
        weights=weights.tolist(), tie_weight=0.5, tolerance=1e-12, limit=10_000,
    )  # fmt: skip
    expected = np.log(result.scores)
    found = strengths(bradley_terry(played, prior=1e-9))
    assert found == pytest.approx((expected - expected.mean()).to_dict(), abs=1e-5)


def test_one_contest_by_hand() -> None:
    """With strengths t and -t: sigmoid(-2t) = prior t; and a certain winner stays finite."""
    found = strengths(bradley_terry([Contest("p", "a", "b", 1.0)], prior=0.1))
    assert found["a"] == -found["b"]
    assert expit(-2 * found["a"]) == pytest.approx(0.1 * found["a"])
    assert expit(2 * found["a"]) == pytest.approx(0.893, abs=0.001)
    many = bradley_terry([Contest(str(i), "a", "b", 1.0) for i in range(100)])
    for item in many["items"]:
        assert math.isfinite(item["strength"].pop("value"))
        assert item["strength"] == {"low": None, "high": None} and item["error"] is None


def test_votes_and_the_limit_of_a_share() -> None:
    """Two items, 30 of 40 votes: the strengths differ by log(30 / 10)."""
    found = bradley_terry([Contest("p", "a", "b", 0.75, 40.0)], prior=1e-9)
    assert found["items"][0]["strength"]["value"] * 2 == pytest.approx(math.log(3))
    assert [(i["item"], i["wins"], i["votes"]) for i in found["items"]] == [("a", 30, 40), ("b", 10, 40)]
    assert found["items"][0]["strength"]["low"] is None and found["items"][0]["error"] is None


def test_covariates_are_those_of_a_general_optimiser() -> None:
    rng = np.random.default_rng(3)
    played = []
    for i in range(300):
        a, b = rng.choice(["a", "b", "c"], size=2, replace=False)
        length = float(rng.integers(-80, 80))
        chance = expit({"a": 0.5, "b": 0.0, "c": -0.5}[a] - {"a": 0.5, "b": 0.0, "c": -0.5}[b] + 0.02 * length)
        played.append(Contest(f"p{i}", str(a), str(b), float(rng.random() < chance), length=length))
    unit = math.sqrt(sum(c.length**2 for c in played) / len(played))

    def loss(x: np.ndarray) -> float:
        strength = dict(zip("abc", x, strict=False))
        total = 0.1 / 2 * float((x**2).sum())
        for c in played:
            z = strength[c.a] - strength[c.b] + x[3] * c.length / unit
            total -= c.share * math.log(expit(z)) + (1 - c.share) * math.log(expit(-z))
        return total

    best = optimize.minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-6}).x
    found = bradley_terry(played, covariates=["length"], prior=0.1)
    assert [strengths(found)[name] for name in "abc"] == pytest.approx(best[:3].tolist(), abs=1e-4)
    assert found["covariates"]["length"]["value"] == pytest.approx(best[3] / unit, abs=1e-6)
    assert 0 < found["covariates"]["length"]["low"] < 0.02 < found["covariates"]["length"]["high"]


def test_what_only_length_wins_is_not_strength() -> None:
    """Item a writes 100 characters more and wins for that alone."""
    rng = np.random.default_rng(0)
    played = []
    for i in range(600):
        length = float(rng.normal(60, 60))
        played.append(Contest(str(i), "a", "b", float(rng.random() < expit(0.02 * length)), length=length))
    raw, controlled = bradley_terry(played), bradley_terry(played, covariates=["length"])
    assert strengths(raw)["a"] > 0.4
    inside = controlled["items"][0]["strength"] if controlled["items"][0]["item"] == "a" else controlled["items"][1]["strength"]
    assert inside["low"] < 0 < inside["high"]


def test_the_error_is_that_of_independent_prompts() -> None:
    """One contest a prompt, two items: the variance of a logit is 1 / (n p (1 - p)), a strength is half of it."""
    played = [Contest(str(i), "a", "b", float(i % 10 < 7)) for i in range(400)]
    found = bradley_terry(played, prior=1e-6)["items"][0]
    expected = math.sqrt(1 / (400 * 0.7 * 0.3)) / 2
    assert found["error"] == pytest.approx(expected, rel=0.1)
    assert found["strength"]["high"] - found["strength"]["low"] == pytest.approx(2 * 1.96 * expected, rel=0.15)


def test_prompts_are_resampled_whole() -> None:
    """Each prompt four times over: nothing is known better for it."""
    once = [Contest(str(i), "a", "b", float(i % 3 > 0)) for i in range(60)]
    single, fourfold = (bradley_terry(list(played), prior=1e-6)["items"][0] for played in (once, once * 4))
    assert fourfold["error"] == pytest.approx(single["error"], rel=1e-3)


def test_names_do_not_count() -> None:
    played, names = games(0, ties=True, count=60)
    found = bradley_terry(played, seed=5)
    other = dict(zip(names, reversed(names), strict=True))
    swapped = bradley_terry([Contest(c.prompt, other[c.b], other[c.a], 1 - c.share) for c in played], seed=5)
    for a, b in zip(found["items"], swapped["items"], strict=True):
        assert (other[a["item"]], a["wins"], a["votes"]) == (b["item"], b["wins"], b["votes"])
        assert b["strength"] == pytest.approx(a["strength"], abs=1e-8)


def test_no_contest_and_covariates_that_do_not_vary() -> None:
    nothing = bradley_terry([], covariates=["length"])
    assert (nothing["items"], nothing["contests"], nothing["prompts"]) == ([], 0, 0)
    assert nothing["covariates"] == {"length": None}
    played = [Contest(str(i), "a", "b", 0.5) for i in range(9)]
    ties = bradley_terry(played, covariates=["length"])
    assert ties["covariates"] == {"length": None}
    assert [item["strength"] for item in ties["items"]] == [{"value": 0.0, "low": None, "high": None}] * 2


def test_an_item_of_few_prompts_is_judged_by_resamples_that_have_it() -> None:
    played = [Contest(str(i), "a", "b", 0.5) for i in range(6)] + [Contest("last", "c", "a", share) for share in (1.0, 1.0, 0.0)]
    found = {item["item"]: item for item in bradley_terry(played)["items"]}
    assert found["c"]["strength"]["low"] > 0  # not drawn: no word, rather than 0


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match=r"prior is 0: it has to be above 0"):
        bradley_terry([], prior=0)
    with pytest.raises(ValueError, match="prior is nan"):
        bradley_terry([], prior=math.nan)
    with pytest.raises(ValueError, match="covariate 'width': one of length is needed"):
        bradley_terry([], covariates=["width"])


def test_counts_as_contests_of_what_wrote_them() -> None:
    counts = [PairVotes(" p", "long text", "short", 2, 1, 1), PairVotes("p", "x", "y", 1, 0), PairVotes("p", "x", "who", 1, 0)]
    model = {"long text": "after", "short": "before", "x": "after", "y": "after"}
    assert contests(counts, lambda prompt, text: model.get(text)) == [
        Contest(Prompt("p").key, "after", "before", 0.625, 4, length=4)
    ]


# -- the fit -----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 4))
def test_the_fit_is_a_minimum(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    design, share = rng.normal(scale=5, size=(rows, columns)), rng.choice([0.0, 0.25, 0.5, 1.0], size=rows)
    weight, precision = rng.exponential(size=rows) * (rng.random(rows) < 0.8), rng.exponential(size=columns) + 0.01
    found = fit(design, share, weight, precision)
    gradient = design.T @ (weight * (expit(design @ found) - share)) + precision * found
    assert np.abs(gradient).max() < 1e-6
    elsewhere = fit(design, share, weight, precision, rng.normal(scale=3, size=columns))
    assert elsewhere == pytest.approx(found, abs=1e-5)


def test_intervals_hold_the_truth() -> None:
    """95 % of them should; 25 runs in which each misses with probability 0.05 miss 6 or more times in 1 of 800."""
    assert stats.binom.sf(5, 25, 0.05) < 0.00125
    missed, truth = 0, float(np.mean(expit(0.6 + np.random.default_rng(1).normal(0, 1, size=200_000))))
    for seed in range(25):
        rng = np.random.default_rng(seed)
        tastes = rng.normal(0, 1, size=60)  # what a prompt's four votes have in common
        chance = expit(0.6 + tastes)
        votes = rng.random((60, 4)) < chance[:, None]
        played = [Contest(str(i), "a", "b", float(v)) for i in range(60) for v in votes[i]]
        strength = next(i for i in bradley_terry(played, prior=1e-6, seed=seed)["items"] if i["item"] == "a")["strength"]
        missed += not strength["low"] < math.log(truth / (1 - truth)) / 2 < strength["high"]
    assert missed < 6

"""Agreement of people, held against slow loops, numbers by hand, and the package krippendorff."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import krippendorff
import numpy as np
import pytest
from scipy import stats

from konomi.data.records import Pair, Ranking
from konomi.statistics.agreement import enough_comparisons, inter_rater, intra_rater, people
from konomi.statistics.concordance import concordance

TEXTS = ("a", "b", "c", "d")


def drawn(seed: int, prompts: int = 40, raters: Sequence[str] = "xyz", noise: float = 1.0, twice: float = 0.3) -> list[Ranking]:
    """People who see the same truth with noise, skip some tasks, do some twice, and call close ones equal."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(prompts):
        truth = rng.normal(size=4)
        for rater in raters:
            for _ in range(int(rng.random() < 0.8) + int(rng.random() < twice)):
                seen = np.round(truth + noise * rng.normal(size=4))
                ranks = tuple(int(1 + (seen > value).sum()) for value in seen)
                order = rng.permutation(4)
                texts = tuple(TEXTS[k] for k in order)
                found.append(Ranking(f"prompt {i}", texts, tuple(ranks[k] for k in order), rater))
    return found


def sign(ranking: Ranking, one: str, other: str) -> float:
    rank = dict(zip(ranking.responses, ranking.ranks, strict=True))
    return 1.0 if rank[one] < rank[other] else 0.0 if rank[one] > rank[other] else 0.5


def alike(x: float, y: float) -> float | None:
    """None: two ties say nothing of the order."""
    return None if x == y == 0.5 else x * y + (1 - x) * (1 - y)


def slow_inter_rater(rankings: Sequence[Ranking]) -> tuple[float, int]:
    """Every couple of people on every pair of texts of every prompt, each person's word being its mean."""
    said = []
    for prompt in {r.prompt for r in rankings}:
        for one, other in combinations(TEXTS, 2):
            words: dict[str, list[float]] = {}
            for r in rankings:
                if r.prompt == prompt and {one, other} <= set(r.responses):
                    words.setdefault(str(r.rater), []).append(sign(r, one, other))
            said += [alike(x, y) for x, y in combinations([float(np.mean(w)) for w in words.values()], 2)]
    counted = [each for each in said if each is not None]
    assert len(counted) < len(said)
    return float(np.mean(counted)), len(counted)


def twice(rankings: Sequence[Ranking]) -> list[tuple[Ranking, Ranking]]:
    return [(r, s) for r, s in combinations(rankings, 2) if r.prompt == s.prompt and r.rater == s.rater]


def slow_intra_rater(rankings: Sequence[Ranking]) -> tuple[float, int]:
    words = [alike(sign(r, *pair), sign(s, *pair)) for r, s in twice(rankings) for pair in combinations(TEXTS, 2)]
    counted = [each for each in words if each is not None]
    return float(np.mean(counted)), len(counted)


@pytest.mark.parametrize("seed", range(3))
def test_agreement_is_that_of_slow_loops(seed: int) -> None:
    rankings = drawn(seed)
    for found, (expected, couples) in [
        (inter_rater(rankings), slow_inter_rater(rankings)),
        (intra_rater(twice(rankings)), slow_intra_rater(rankings)),
    ]:
        assert found is not None
        assert found["share"]["value"] == pytest.approx(expected)
        assert found["couples"] == couples
        assert found["share"]["low"] < expected < found["share"]["high"]
    ceiling = inter_rater(rankings)["ceiling"]  # type: ignore[index]
    share = inter_rater(rankings)["share"]  # type: ignore[index]
    assert {k: (2 * v - 1) ** 2 for k, v in ceiling.items()} == pytest.approx({k: 2 * v - 1 for k, v in share.items()})


def test_each_person_beside_all_the_others() -> None:
    rankings = [*drawn(4), Ranking("prompt 0", ("a", "b"), (1, 2))]
    found = people(rankings, twice(rankings[:-1]))
    assert [each["rater"] for each in found] == ["x", "y", "z"]
    assert sum(each["records"] for each in found) == len(rankings) - 1 + len(twice(rankings[:-1]))
    named = rankings[:-1]
    whole, couples = slow_inter_rater(named)
    assert sum(each["others"]["couples"] for each in found) == 2 * couples
    weights = [each["others"]["couples"] for each in found]
    assert np.average([each["others"]["share"]["value"] for each in found], weights=weights) == pytest.approx(whole)
    for each in found:
        own = [r for r in rankings if r.rater == each["rater"]]
        assert each["oneself"] == intra_rater(twice(own))
        assert each["oneself"]["share"]["value"] == pytest.approx(slow_intra_rater(own)[0])


def test_nobody_is_left_out() -> None:
    """One who always says the opposite counts like all others."""
    same = [Ranking(f"p{i}", ("a", "b"), (1, 2), rater) for i in range(20) for rater in "xy"]
    against = [Ranking(f"p{i}", ("a", "b"), (2, 1), "z") for i in range(20)]
    found = inter_rater(same + against)
    assert found is not None and found["share"]["value"] == pytest.approx(1 / 3)
    assert found["ceiling"]["value"] == 0.5
    shown = {each["rater"]: each["others"]["share"]["value"] for each in people(same + against)}
    assert shown == {"x": 0.5, "y": 0.5, "z": 0.0}
    assert enough_comparisons(same + against)["comparisons"] == 60


def test_by_hand() -> None:
    """x and y share four pairs: alike, opposite, a tie of one: (1 + 0 + 1/2) / 3; ties of both do not count."""
    pairs = [("p", 1.0, 1.0), ("q", 1.0, 0.0), ("r", 0.5, 1.0), ("s", 0.5, 0.5)]
    said = [Pair(p, "a", "b", label, rater=r) for p, x, y in pairs for r, label in (("x", x), ("y", y))]
    found = inter_rater(said)
    assert found is not None
    assert (found["share"]["value"], found["couples"], found["prompts"]) == (0.5, 3, 3)
    own = [replace(pair, rater="x") for pair in said]
    alone = intra_rater(list(zip(own[::2], own[1::2], strict=True)))
    assert alone is not None and alone["share"] == found["share"] and "ceiling" not in alone
    assert set(alone) == {"share", "couples", "prompts"}


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
    rankings = drawn(seed)
    found = concordance(rankings)
    assert found is not None
    tau, w, alpha = slow_concordance(rankings)
    for name, expected in (("tau_b", tau), ("w", w), ("alpha", alpha)):
        assert found[name]["value"] == pytest.approx(expected), name
        assert found[name]["low"] < expected < found[name]["high"], name
    assert found["people"] == 3
    assert found["tasks"] == found["prompts"] <= 40


def test_intervals_of_alpha_are_those_of_slow_resamples() -> None:
    rankings = drawn(7, prompts=12)
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
    alone = [Ranking("p", ("a", "b"), (1, 2), "x"), Ranking("q", ("a", "b"), (1, 2), "x"), Ranking("p", ("a", "b"), (1, 2))]
    assert inter_rater(alone) is None and concordance(alone) is None
    assert people(alone) == [{"rater": "x", "records": 2, "others": None, "oneself": None}]
    assert inter_rater([]) is None and intra_rater([]) is None and concordance([]) is None and people([]) == []
    ties = [Ranking("p", ("a", "b"), (1, 1), rater) for rater in "xy"]
    nothing = {"value": None, "low": None, "high": None}
    found = concordance(ties)
    assert found is not None and [found[name] for name in ("tau_b", "w", "alpha")] == [nothing] * 3
    assert inter_rater(ties) is None


def test_when_it_is_enough() -> None:
    assert enough_comparisons([]) == {"comparisons": 0, "ties": 0, "needed": 2000, "share": 0.0, "agreement": None}
    rankings = [Ranking(f"p{i}", ("a", "b", "c", "d"), (1, 2, 2, 4), "x") for i in range(200)]
    found = enough_comparisons(rankings)
    assert (found["comparisons"], found["ties"], found["share"], found["agreement"]) == (1000, 200, 0.5, None)
    both = [replace(r, rater=rater) for r in rankings for rater in "xyz"]
    found = enough_comparisons(both)
    assert (found["comparisons"], found["share"]) == (3000, 1.0)
    assert found["agreement"] == inter_rater(both)

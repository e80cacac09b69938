"""Agreement of people, against slow loops and numbers by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from konomi.data.records import Pair, Ranking
from konomi.statistics.agreement import ceiling, enough_comparisons, inter_rater, intra_rater, people
from some_comparisons import TEXTS, noisy_rankings, pair


def sign(ranking: Ranking, one: str, other: str) -> float:
    rank = dict(zip(ranking.responses, ranking.ranks, strict=True))
    return 1.0 if rank[one] < rank[other] else 0.0 if rank[one] > rank[other] else 0.5


def alike(x: float, y: float) -> float | None:
    """None: two ties say nothing of the order."""
    return None if x == y == 0.5 else x * y + (1 - x) * (1 - y)


def slow_inter_rater(rankings: Sequence[Ranking]) -> tuple[float, int]:
    """Every couple of people on every pair of texts of every prompt, each person's word being its mean."""
    agreed = []
    for prompt in {r.prompt for r in rankings}:
        for one, other in combinations(TEXTS, 2):
            words: dict[str, list[float]] = {}
            for r in rankings:
                if r.prompt == prompt and {one, other} <= set(r.responses):
                    words.setdefault(str(r.rater), []).append(sign(r, one, other))
            agreed += [alike(x, y) for x, y in combinations([float(np.mean(w)) for w in words.values()], 2)]
    counted = [each for each in agreed if each is not None]
    assert len(counted) < len(agreed)
    return float(np.mean(counted)), len(counted)


def twice(rankings: Sequence[Ranking]) -> list[tuple[Ranking, Ranking]]:
    return [(r, s) for r, s in combinations(rankings, 2) if r.prompt == s.prompt and r.rater == s.rater]


def slow_intra_rater(rankings: Sequence[Ranking]) -> tuple[float, int]:
    words = [alike(sign(r, *both), sign(s, *both)) for r, s in twice(rankings) for both in combinations(TEXTS, 2)]
    counted = [each for each in words if each is not None]
    return float(np.mean(counted)), len(counted)


@pytest.mark.parametrize("seed", range(3))
def test_agreement_is_that_of_slow_loops(seed: int) -> None:
    rankings = noisy_rankings(seed)
    for found, (expected, couples) in [
        (inter_rater(rankings), slow_inter_rater(rankings)),
        (intra_rater(twice(rankings)), slow_intra_rater(rankings)),
    ]:
        assert found is not None
        assert found["share"]["value"] == pytest.approx(expected)
        assert found["couples"] == couples
        assert found["share"]["low"] < expected < found["share"]["high"]
    of_all = inter_rater(rankings)
    assert of_all is not None
    assert of_all["ceiling"] == pytest.approx({name: float(ceiling(value)) for name, value in of_all["share"].items()})


def test_each_person_beside_all_the_others() -> None:
    rankings = [*noisy_rankings(4), Ranking("prompt 0", ("a", "b"), (1, 2))]
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
    """A pair counts once a couple of people; a tie agrees by half with a preference, two ties are not counted."""
    records: list[Ranking | Pair] = [
        pair("p", "a", "b", rater="ann"), pair("p", "a", "b", rater="bob"), pair("p", "b", "a", rater="eve"),
        Ranking("q", ("a", "b", "c"), (1, 1, 2), "ann"), Ranking("q", ("c", "b", "a"), (3, 2, 1), "bob"),
        pair("r", "a", "b", rater="ann"), pair("r", "a", "b", rater="ann"), pair("r", "a", "b"), pair("r", "b", "a"),
        pair("s", "a", "b", 0.8, rater="ann"), pair("s", "b", "a", 0.4, rater="bob"),
        pair("t", "a", "b", 0.5, rater="ann"), pair("t", "a", "b", 0.5, rater="bob"),
    ]  # fmt: skip
    found = inter_rater(records)
    assert found is not None
    # p: 1 of 3 couples; q: a tie against a word, half, and two that agree; r: no second name; s: .8 x .6 + .2 x .4; t: two ties
    assert found["share"]["value"] == pytest.approx((1 + 0.5 + 1 + 1 + 0.56) / 7)
    assert (found["couples"], found["prompts"]) == (3 + 3 + 1, 3)


def test_oneself_by_hand() -> None:
    """Alike, opposite, a tie once: (1 + 0 + 1/2) / 3; a tie both times does not count."""
    labels = [("p", 1.0, 1.0), ("q", 1.0, 0.0), ("r", 0.5, 1.0), ("s", 0.5, 0.5)]
    found = intra_rater([(pair(p, label=first, rater="x"), pair(p, label=again, rater="x")) for p, first, again in labels])
    assert found is not None and set(found) == {"share", "couples", "prompts"}
    assert (found["share"]["value"], found["couples"], found["prompts"]) == (0.5, 3, 3)


def test_the_ceiling_of_an_agreement() -> None:
    assert float(ceiling(0.75)) == pytest.approx(0.8536, abs=5e-5)
    assert [float(x) for x in ceiling(np.array([0.0, 0.5, 1.0]))] == [0.5, 0.5, 1.0]
    for a in (0.5, 0.6, 0.85, 1.0):
        assert float(ceiling(a**2 + (1 - a) ** 2)) == pytest.approx(a)


def test_one_person_nothing_but_ties_and_nothing() -> None:
    alone = [Ranking("p", ("a", "b"), (1, 2), "x"), Ranking("q", ("a", "b"), (1, 2), "x"), Ranking("p", ("a", "b"), (1, 2))]
    assert inter_rater(alone) is None
    assert people(alone) == [{"rater": "x", "records": 2, "others": None, "oneself": None}]
    assert inter_rater([]) is None and intra_rater([]) is None and people([]) == []
    assert inter_rater([Ranking("p", ("a", "b"), (1, 1), rater) for rater in "xy"]) is None


def test_when_it_is_enough() -> None:
    assert enough_comparisons([]) == {"comparisons": 0, "ties": 0, "needed": 2000, "share": 0.0, "agreement": None}
    rankings = [Ranking(f"p{i}", ("a", "b", "c", "d"), (1, 2, 2, 4), "x") for i in range(200)]
    found = enough_comparisons(rankings)
    assert (found["comparisons"], found["ties"], found["share"], found["agreement"]) == (1000, 200, 0.5, None)
    both = [replace(r, rater=rater) for r in rankings for rater in "xyz"]
    found = enough_comparisons(both)
    assert (found["comparisons"], found["share"]) == (3000, 1.0)
    assert found["agreement"] == inter_rater(both)

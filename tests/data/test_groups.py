"""Rankings and pairs as comparisons by prompt."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from konomi.data.records import Comparison, Group, Pair, Prompt, Ranking, groups


@pytest.mark.parametrize("k", [2, 3, 4, 9])
def test_a_ranking_of_k_has_all_pairs_the_better_one_first(k: int) -> None:
    ranks = tuple(range(k, 0, -1))  # the last is the best
    (group,) = groups([Ranking("p", tuple("abcdefghi"[:k]), ranks)])
    assert len(group.comparisons) == k * (k - 1) // 2
    assert {(c.better, c.worse) for c in group.comparisons} == {(j, i) for i, j in itertools.combinations(range(k), 2)}
    assert group.ties == ()


def test_ties_give_no_comparison() -> None:
    (group,) = groups([Ranking("p", ("a", "b", "c", "d"), (2, 1, 2, 7), "r")])
    assert group.comparisons == (
        Comparison(1, 0, rater="r"),
        Comparison(0, 3, rater="r"),
        Comparison(1, 2, rater="r"),
        Comparison(1, 3, rater="r"),
        Comparison(2, 3, rater="r"),
    )
    assert group.ties == ((0, 2, "r"),)
    (tied,) = groups([Ranking("p", ("a", "b"), (3, 3))])
    assert (tied.comparisons, tied.ties) == ((), ((0, 1, None),))


def test_only_the_order_of_ranks_counts() -> None:
    first, second = (groups([Ranking("p", ("a", "b", "c"), ranks)]) for ranks in ((1, 2, 2), (4, 9, 9)))
    assert first == second


def test_pairs_keep_label_margin_and_rater() -> None:
    (group,) = groups([Pair("p", "a", "b", 0.7, 0.2, "r"), Pair("p", "c", "a")])
    assert group.responses == ("a", "b", "c")
    assert group.comparisons == (Comparison(0, 1, 0.7, 0.2, "r"), Comparison(2, 0, 1.0, 0.0, None))


def test_records_of_one_prompt_come_together() -> None:
    records = [
        Ranking(" caf\u00e9", ("a", "b"), (1, 2), "r1"),
        Pair("q", "x", "y"),
        Pair("cafe\u0301", "b", "c", rater="r2"),  # the same prompt, its accent written another way
        Ranking("caf\u00e9", ("b", "a"), (1, 2), "r2"),
    ]
    assert groups(records) == [
        Group(
            " caf\u00e9",
            ("a", "b", "c"),
            (Comparison(0, 1, rater="r1"), Comparison(1, 2, rater="r2"), Comparison(1, 0, rater="r2")),
        ),
        Group("q", ("x", "y"), (Comparison(0, 1),)),
    ]
    assert groups(records)[0].key == Prompt("caf\u00e9").key


def test_sources_are_kept_apart() -> None:
    found = groups([Pair("p", "a", "b", source="s"), Pair("p", "b", "a", source="t"), Pair("p", "a", "c", source="s")])
    assert [(g.source, g.responses, len(g.comparisons)) for g in found] == [("s", ("a", "b", "c"), 2), ("t", ("b", "a"), 1)]
    assert found[0].key == found[1].key


def test_nothing_gives_nothing() -> None:
    assert groups([]) == []


texts = st.sampled_from("abcde")
some_rankings = st.lists(texts, min_size=2, max_size=5, unique=True).flatmap(
    lambda responses: st.builds(
        Ranking,
        st.sampled_from(["p", "q"]),
        st.just(tuple(responses)),
        st.tuples(*[st.integers(1, 3)] * len(responses)),
        st.sampled_from(["r", None]),
    )
)
some_pairs = st.lists(texts, min_size=2, max_size=2, unique=True).flatmap(
    lambda two: st.builds(Pair, st.sampled_from(["p", "q"]), st.just(two[0]), st.just(two[1]), st.floats(0, 1))
)


@given(st.lists(some_rankings | some_pairs, max_size=6))
def test_what_was_said_is_what_comes_out(records: list[Ranking | Pair]) -> None:
    said, tied = [], []
    for record in records:
        if isinstance(record, Pair):
            said.append((record.prompt, record.chosen, record.rejected, record.label))
            continue
        for (a, rank_a), (b, rank_b) in itertools.permutations(zip(record.responses, record.ranks, strict=True), 2):
            if rank_a < rank_b:
                said.append((record.prompt, a, b, 1.0))
            elif rank_a == rank_b:
                tied.append((record.prompt, a, b))
    found = groups(records)
    assert sorted(said) == sorted(
        (g.prompt, g.responses[c.better], g.responses[c.worse], c.label) for g in found for c in g.comparisons
    )
    both_ways = [(g.prompt, g.responses[x], g.responses[y]) for g in found for i, j, _ in g.ties for x, y in ((i, j), (j, i))]
    assert sorted(tied) == sorted(both_ways)
    assert all(len(set(g.responses)) == len(g.responses) for g in found)

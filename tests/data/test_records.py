"""Keys of prompts; rankings and pairs as comparisons by prompt, and what is held out of them."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from konomi.data.convert import convert
from konomi.data.messages import Conversation
from konomi.data.prompts import split_held_out
from konomi.data.records import Comparison, Group, Pair, Prompt, Ranking, Score, groups, split_by_key
from konomi.statistics.aggregation import mean_scores


def test_a_key_is_of_the_text_alone_and_stable() -> None:
    assert Prompt("今日は", {"topic": "weather"}).key == Prompt("今日は").key != Prompt("今日も").key
    for one, other in (("が", "か\u3099"), (" a\n", "a"), ("\u3000今日", "今日")):
        assert Prompt(one).key == Prompt(other).key
    # held-out sets and query cuts of runs already made depend on it: typed here, not computed
    assert Prompt("今日の天気は").key == "dd75a5200332089209eb8848e30bfe9f"


def test_a_ranking_gives_all_pairs_but_ties_the_better_one_first() -> None:
    (group,) = groups([Ranking("p", ("a", "b", "c", "d"), (2, 1, 2, 7), "r")])
    assert group.comparisons == tuple(Comparison(i, j, rater="r") for i, j in ((1, 0), (0, 3), (1, 2), (1, 3), (2, 3)))
    assert group.ties == ((0, 2, "r"),)
    (tied,) = groups([Ranking("p", ("a", "b"), (3, 3))])
    assert (tied.comparisons, tied.ties) == ((), ((0, 1, None),))
    first, second = (groups([Ranking("p", ("a", "b", "c"), ranks)]) for ranks in ((1, 2, 2), (4, 9, 9)))
    assert first == second  # only the order of ranks counts
    assert groups([]) == []


def test_a_strength_becomes_a_margin_toward_the_better_one() -> None:
    records = [
        Ranking("p", ("a", "b"), (2, 1), strength=3),
        Pair("p", "a", "b", 0.9, 0.5, strength=1),
        Pair("p", "a", "b", 0.0, strength=2),
    ]
    (group,) = groups(records, strength_margin=1.5)
    assert [(c.better, c.worse, c.margin) for c in group.comparisons] == [(1, 0, 1.5), (0, 1, 1.0), (0, 1, -1.0)]
    (plain,) = groups(records)
    assert [c.margin for c in plain.comparisons] == [0.0, 0.5, 0.0]
    assert convert(convert(records[2:], "rankings", Counter()), "pairs", Counter()) == [Pair("p", "b", "a", strength=2)]


def test_records_of_one_prompt_and_source_come_together() -> None:
    records = [
        Ranking(" caf\u00e9", ("a", "b"), (1, 2), "r1"),
        Pair("q", "x", "y"),
        Pair("cafe\u0301", "b", "c", 0.7, 0.2, rater="r2"),  # the same prompt, its accent written another way
        Ranking("caf\u00e9", ("b", "a"), (1, 2), "r2"),
        Pair("q", "y", "x", source="other"),
    ]
    first = Comparison(0, 1, rater="r1"), Comparison(1, 2, 0.7, 0.2, "r2"), Comparison(1, 0, rater="r2")
    found = groups(records)
    assert found == [
        Group(" caf\u00e9", ("a", "b", "c"), first),
        Group("q", ("x", "y"), (Comparison(0, 1),)),
        Group("q", ("y", "x"), (Comparison(0, 1),), source="other"),
    ]
    assert found[0].key == Prompt("caf\u00e9").key and found[1].key == found[2].key


def test_one_text_under_two_system_messages_is_two_prompts() -> None:
    talks = [Conversation([{"role": "system", "content": each}, {"role": "user", "content": "p"}]) for each in "ST"]
    rankings = [Ranking("p", ("a", "b"), ranks, messages=t) for t, ranks in zip(talks, ((1, 2), (2, 1)), strict=True)]
    again = replace(rankings[0], messages=Conversation([dict(each) for each in talks[0]]))
    found = groups([*rankings, again, Ranking("p", ("a", "b"), (1, 2))])
    assert [(group.messages, len(group.comparisons)) for group in found] == [(talks[0], 2), (talks[1], 1), (None, 1)]
    assert [(s.messages, s.response, s.score) for s in mean_scores(rankings)] == [
        (talk, text, score if text == "a" else -score) for talk, score in zip(talks, (1.0, -1.0), strict=True) for text in "ab"
    ]
    scores = [Score("p", text, value, messages=talk) for talk in talks for text, value in (("a", 1.0), ("b", 0.0))]
    for to, records in (("candidates", rankings), ("rankings", scores)):
        made = convert(records, to, Counter())
        assert [each.messages for each in made] == talks and all(each.responses == ("a", "b") for each in made)


texts = st.lists(st.sampled_from("abcde"), min_size=2, max_size=5, unique=True)
prompts = st.sampled_from(["p", "q"])
some_rankings = texts.flatmap(
    lambda t: st.builds(
        Ranking, prompts, st.just(tuple(t)), st.tuples(*[st.integers(1, 3)] * len(t)), st.sampled_from(["r", None])
    )
)
some_pairs = texts.flatmap(lambda t: st.builds(Pair, prompts, st.just(t[0]), st.just(t[1]), st.floats(0, 1)))


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


def some(count: int) -> list[Group]:
    return groups(Pair(f"text {i}", "a", "b", source=source) for i in range(count) for source in ("web", "lab"))


def test_a_prompt_is_on_one_side_whatever_its_source_and_on_that_of_ppo() -> None:
    train, held_out = split_by_key(some(500), 0.2)
    keys = {g.key for g in held_out}
    assert len(train) + len(held_out) == 1000
    assert not {g.key for g in train} & keys
    assert abs(len(held_out) - 200) < 4 * 2 * (500 * 0.2 * 0.8) ** 0.5
    turned = [Group(f"  {g.prompt}\n", g.responses, g.comparisons) for g in reversed(some(500))]
    assert {g.key for g in split_by_key(turned, 0.2)[1]} == keys
    assert {p.key for p in split_held_out([Prompt(f"text {i}") for i in range(500)], 0.2)[1]} == keys
    assert split_by_key(some(5), 0.0) == (some(5), [])


def test_what_is_held_out_may_be_given() -> None:
    given = [Group(" text 1 ", ("a", "b"), ()), Group("other", ("a", "b"), ())]
    assert split_by_key(some(3), 0.9, given) == ([group for group in some(3) if group.prompt != "text 1"], given)

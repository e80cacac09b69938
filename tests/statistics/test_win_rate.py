"""Before/after by people: numbers by hand, slow loops, and people whose habits are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit

from konomi.labelling.blind import line
from konomi.statistics.power import wilson
from konomi.statistics.win_rate import Vote, evaluate_votes, reward_verdict, same_model, side_bias

NOTHING = {"value": None, "low": None, "high": None}


def cast(
    seed: int,
    prompts: int = 200,
    taste: float = 0.0,
    longer: float = 0.0,
    side: float = 0.0,
    same: float = 0.0,
    people: str = "x",
) -> list[Vote]:
    """Votes of people with known habits: logits for ``after``, per 10 characters more, and for what is shown first."""
    rng = np.random.default_rng(seed)
    votes = []
    for i in range(prompts):
        before, after = "b" * int(rng.integers(20, 60)), "a" * int(rng.integers(30, 80))
        is_same = bool(rng.random() < same)
        for rater in people:
            first = bool(rng.random() < 0.5)
            logit = (0 if is_same else taste) + longer * (len(after) - len(before)) / 10 + (side if first else -side)
            share = 0.5 if rng.random() < 0.1 else float(rng.random() < expit(logit))
            votes.append(Vote(f"p{i}", before, after, share, rater, first, float(rng.normal() + taste), is_same))
    return votes


def test_by_hand() -> None:
    """Seven prompts, one person: 4 wins, 1 tie, 2 losses."""
    votes = [Vote(f"p{i}", "before", "after", share, "x") for i, share in enumerate([1, 1, 1, 1, 0.5, 0, 0])]
    found = evaluate_votes(votes)
    assert (found["wins"], found["ties"], found["losses"]) == (4, 1, 2)
    assert (found["votes"], found["prompts"], found["people"]) == (7, 7, 1)
    assert found["win_rate"]["value"] == pytest.approx(4.5 / 7)
    assert found["wilson"] == wilson(4.5, 7)
    # (C(6,0) + C(6,1) + C(6,2)) / 2^6, twice
    assert found["sign_test"] == {"for": 4, "against": 2, "even": 1, "p": pytest.approx(2 * (1 + 6 + 15) / 64)}
    assert found["length_controlled"]["difference"] == -1
    assert [found[name] for name in ("side", "same", "reward_model", "agreement", "oneself")] == [None] * 5


def test_no_votes() -> None:
    found = evaluate_votes([])
    assert (found["votes"], found["win_rate"], found["wilson"], found["length_controlled"]) == (0, NOTHING, NOTHING, None)
    assert found["sign_test"] == {"for": 0, "against": 0, "even": 0, "p": None}
    only_same = evaluate_votes([Vote("p", "a", "b", 1, same=True)])
    assert only_same["votes"] == 0 and only_same["same"]["votes"] == 1


def test_all_win_all_tie_and_one_prompt() -> None:
    won = evaluate_votes([Vote(str(i), "b", "a", 1) for i in range(10)])
    assert won["win_rate"] == {"value": 1.0, "low": pytest.approx(stats.binomtest(10, 10).proportion_ci().low), "high": 1.0}
    assert won["length_controlled"]["win_rate"]["value"] > 0.9
    assert won["length_controlled"]["win_rate"]["low"] is None
    even = evaluate_votes([Vote(str(i), "b", "a", 0.5) for i in range(10)])
    assert even["win_rate"] == {"value": 0.5, "low": None, "high": None} and even["sign_test"]["p"] is None
    one = evaluate_votes([Vote("p", "b", "a", 1, "x"), Vote("p", "b", "a", 0, "y")])
    assert one["win_rate"] == {"value": 0.5, "low": None, "high": None}
    assert one["agreement"]["share"]["value"] == 0
    for found in (won, even, one, evaluate_votes([])):
        json.dumps(found, allow_nan=False)


def test_votes_of_one_prompt_count_as_one_in_the_test() -> None:
    votes = [Vote(f"p{i}", "b", "a", share, rater) for i in range(6) for rater, share in [("x", 1), ("y", 1), ("z", 0)]]
    found = evaluate_votes(votes)
    assert (found["wins"], found["losses"]) == (12, 6)
    assert found["sign_test"] == {"for": 6, "against": 0, "even": 0, "p": pytest.approx(2 / 64)}
    # all prompts say the same: of these nothing can be resampled
    assert found["win_rate"] == {"value": pytest.approx(2 / 3), "low": None, "high": None}


def test_what_one_said_twice_counts_once() -> None:
    once = [Vote(f"p{i}", "b", "a", float(i % 3 > 0), "x") for i in range(9)]
    twice = evaluate_votes([*once, *once])
    assert {name: twice[name] for name in ("votes", "wins", "win_rate", "sign_test")} == {
        name: evaluate_votes(once)[name] for name in ("votes", "wins", "win_rate", "sign_test")
    }
    assert twice["oneself"]["share"]["value"] == 1
    changed = evaluate_votes([Vote("p", "b", "a", 1, "x"), Vote("p", "b", "a", 0, "x")])
    assert (changed["votes"], changed["ties"], changed["oneself"]["share"]["value"]) == (1, 1, 0)
    nameless = evaluate_votes([Vote("p", "b", "a", 1), Vote("p", "b", "a", 0)])
    assert (nameless["votes"], nameless["wins"], nameless["losses"]) == (2, 1, 1)


def test_one_rule_for_what_was_said_twice() -> None:
    """A win and two losses, each of which was a tie when it came again: 1 win, 2 losses."""
    votes = [Vote(f"p{i}", "b", "a", share, "x") for i, word in enumerate((1, 0, 0)) for share in (word, 0.5)]
    found = evaluate_votes(votes)
    assert (found["wins"], found["ties"], found["losses"]) == (1, 0, 2)
    assert found["win_rate"]["value"] == found["wilson"]["value"] == pytest.approx(1 / 3)
    assert found["oneself"]["couples"] == 3


def test_few_wins_without_a_difference_in_length_stay_wins() -> None:
    found = evaluate_votes([Vote(str(i), "b", "a", 1.0, "x") for i in range(5)])
    assert found["win_rate"]["value"] == 1.0
    assert found["length_controlled"]["win_rate"]["value"] == pytest.approx(1.0, abs=1.5e-3)


def test_what_length_alone_wins_is_found_out() -> None:
    found = evaluate_votes(cast(2, prompts=600, longer=0.8))
    assert found["win_rate"]["low"] > 0.55
    controlled = found["length_controlled"]["win_rate"]
    assert controlled["low"] < 0.5 < controlled["high"]
    assert found["length_controlled"]["per_character"]["low"] > 0


def test_without_a_difference_in_length_control_changes_nothing() -> None:
    votes = [Vote(str(i), "same", "size", float(i % 5 < 3)) for i in range(100)]
    found = evaluate_votes(votes)
    assert found["length_controlled"]["win_rate"]["value"] == pytest.approx(found["win_rate"]["value"], abs=1e-3)
    assert found["length_controlled"]["per_character"] is None


def test_the_seed_names_the_draws() -> None:
    votes = [Vote(f"p{i}", "b" * (i % 7 + 1), "a", float(i % 3 > 0), "x") for i in range(30)]
    one, again, other = (evaluate_votes(votes, seed)["length_controlled"]["win_rate"] for seed in (1, 1, 2))
    assert one == again != other


def test_side_bias() -> None:
    found = evaluate_votes(cast(3, prompts=400, side=0.8, same=0.2))["side"]
    assert found["votes"] == 400
    assert found["first"]["low"] > 0.55
    assert 0.4 < found["after_first"] < 0.6
    fair = side_bias(cast(4, prompts=400))
    assert fair is not None and fair["first"]["low"] < 0.5 < fair["first"]["high"]
    by_hand = [Vote("p", "b", "a", 1, "x", True), Vote("q", "b", "a", 0.5, "x", False), Vote("r", "b", "a", 1, "x", False)]
    assert side_bias(by_hand)["first"]["value"] == pytest.approx(1.5 / 3)  # type: ignore[index]
    assert side_bias([replace(vote, after_first=None) for vote in by_hand]) is None


def test_samples_of_the_same_model() -> None:
    votes = cast(5, prompts=400, taste=1.5, same=0.5)
    found = evaluate_votes(votes)
    same = found["same"]
    assert same["votes"] + found["votes"] == 400
    assert same["second"]["low"] < 0.5 < same["second"]["high"]
    assert 0.85 < same["told_apart"]["value"] < 0.95
    assert found["win_rate"]["low"] > 0.6
    assert evaluate_votes([vote for vote in votes if not vote.same])["win_rate"] == found["win_rate"]
    by_hand = [Vote(str(i), "b", "a", share, "x", same=True) for i, share in enumerate([1, 0.5, 0.5, 0])]
    told = same_model(by_hand)
    assert told is not None and (told["told_apart"]["value"], told["second"]["value"]) == (0.5, 0.5)


def test_the_reward_model_beside_people() -> None:
    """Alike, a tie of people, a tie of the model, opposite; one vote without a score."""
    gaps: list[float | None] = [2.0, 1.0, 0.0, 3.0, None]
    votes = [
        Vote(f"p{i}", "b", "a", share, "x", gap=gap) for i, (share, gap) in enumerate(zip([1, 0.5, 1, 0, 1], gaps, strict=True))
    ]
    found = reward_verdict(votes)
    assert found is not None
    assert found["votes"] == 4
    assert found["people"]["value"] == pytest.approx(2.5 / 4)
    assert found["model"]["value"] == pytest.approx(3.5 / 4)
    assert found["agreement"]["value"] == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)


def turned(votes: Sequence[Vote]) -> list[Vote]:
    """Before and after change places."""
    return [
        replace(
            v, before=v.after, after=v.before, share=1 - v.share,
            after_first=None if v.after_first is None else not v.after_first, gap=None if v.gap is None else -v.gap,
        )
        for v in votes
    ]  # fmt: skip


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.integers(1, 40), st.randoms(use_true_random=False))
def test_turned_round_everything_is_turned_round(seed: int, prompts: int, random: Any) -> None:
    votes = cast(seed, prompts, taste=0.5, longer=0.3, side=0.2, same=0.3, people="xy")
    there = [replace(v, rater={"x": "y", "y": "x"}[str(v.rater)]) for v in turned(votes)]
    random.shuffle(there)
    a, b = evaluate_votes(votes), evaluate_votes(there)
    assert (a["wins"], a["ties"], a["losses"]) == (b["losses"], b["ties"], b["wins"])
    assert a["sign_test"]["p"] == b["sign_test"]["p"]
    if not a["votes"]:
        return
    assert a["win_rate"]["value"] == pytest.approx(1 - b["win_rate"]["value"])
    assert a["wilson"]["low"] == pytest.approx(1 - b["wilson"]["high"])
    assert a["length_controlled"]["win_rate"]["value"] == pytest.approx(1 - b["length_controlled"]["win_rate"]["value"])
    assert a["side"]["first"]["value"] == pytest.approx(b["side"]["first"]["value"])
    assert a["reward_model"]["agreement"]["value"] == pytest.approx(b["reward_model"]["agreement"]["value"])
    json.dumps(a, allow_nan=False)


def test_an_interval_for_people_in_general_counts_raters() -> None:
    """Five raters of one mind say as much of people as their prompts do; five who differ say less, however many prompts."""
    one_mind = [Vote(f"p{i}", "b", "a", float(i % 10 < 7), rater) for i in range(60) for rater in "vwxyz"]
    differ = [
        Vote(f"p{i}", "b", "a", float(share > 0), r) for i in range(60) for r, share in zip("vwxyz", (1, 1, 1, 0, 0), strict=True)
    ]
    for votes, wider in ((one_mind, False), (differ, True)):
        found = evaluate_votes(votes)
        own, people = found["win_rate"], found["win_rate_over_raters"]
        assert people["value"] == own["value"]
        if wider:  # the prompts all say 3 of 5: of these raters nothing is uncertain that prompts could show
            assert own["low"] is None and people["low"] < 0.15 and people["high"] > 0.9
        else:
            assert people["low"] <= own["low"] and people["high"] - people["low"] < 2.2 * (own["high"] - own["low"])
    noisy = [replace(vote, share=1 - vote.share) if i % 11 == 0 else vote for i, vote in enumerate(differ)]
    found = evaluate_votes(noisy)
    own, people = (found[name]["high"] - found[name]["low"] for name in ("win_rate", "win_rate_over_raters"))
    assert people > 4 * own
    for alone in ([replace(vote, rater="x") for vote in noisy], noisy[:1], []):
        assert evaluate_votes(alone)["win_rate_over_raters"]["low"] is None


def test_without_an_interval_for_people_in_general_the_line_says_why() -> None:
    one_prompt = [Vote("p", "b", "a", float(i < 6), f"r{i}") for i in range(10)]
    one_rater = [Vote(f"p{i}", "b", "a", float(i < 6), "x") for i in range(10)]
    alike = [Vote(f"p{i}", "b", "a", float((i + k) % 2), f"r{k}") for i in range(10) for k in range(2)]
    differ = [Vote(f"p{i}", "b", "a", float(k < 3), f"r{k}") for i in range(20) for k in range(5)]
    for votes, words in (
        (one_prompt, "cannot be said: all votes are on one prompt"), (one_rater, "cannot be said: it takes two raters"),
        (one_rater[:1], "(no interval), for these raters: 1 win, 0 ties, 0 losses in 1 vote; how far"),
        (alike, "cannot be said: no difference between the raters"), (differ, "of whom the 5 raters are a sample: 10 to 96 %"),
    ):  # fmt: skip
        said = line({**evaluate_votes(votes), "unchanged": {"texts": 0}})
        assert words in said, said

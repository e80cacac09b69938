"""Blind comparisons of before and after training: win rates, and the effects of length, of the side, and of chance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit

from konomi.data.records import Pair, Prompt
from konomi.statistics.agreement import inter_rater, intra_rater
from konomi.statistics.bootstrap import Array, Interval, header, prompt_numbers, share_interval
from konomi.statistics.bradley_terry import Contest, bradley_terry
from konomi.statistics.power import sign_test, wilson

PRIOR = 1e-3
"""Precision of the prior on strengths and on the weight of the length: it matters only where all votes are alike."""


@dataclass(frozen=True)
class Vote:
    """One person's blind comparison of a text from before training and one from after."""

    prompt: str
    before: str  # of an A/A item, two samples of the same model in a random order
    after: str
    share: float  # 1 if ``after`` is the better, 0 if ``before`` is, 0.5 a tie
    rater: str | None = None  # a pseudonym; None: the vote is a person's of its own
    after_first: bool | None = None  # whether ``after`` was shown first (left, above)
    gap: float | None = None  # the reward model's score of ``after`` less that of ``before``
    same: bool = False  # this is an A/A item


def evaluate_votes(votes: Sequence[Vote], seed: int = 0) -> dict[str, Any]:
    """Whether people find the texts better after training.

    A person has one vote on two texts: what they said more often, a tie if they said both equally often. A tie is half a win.
    Votes on one prompt are dependent: intervals are over prompts, and the sign test counts prompts. They are for these
    raters; only ``win_rate_over_raters`` is for people in general.

    Returns:
        ``votes``, ``prompts``, ``people``; ``wins``, ``ties``, ``losses`` of ``after``, in votes.
        ``win_rate``: (wins + ties / 2) / votes, with interval. ``win_rate_over_raters``: see there. ``wilson``: the same with
        Wilson's interval, which takes votes as independent and is right where each prompt has one.
        ``sign_test``: prompts that are for ``after``, against it, and ``even``, by the mean of their votes; ``p``, exact
        and two-sided, even ones dropped; None if all are even.
        ``length_controlled``: ``win_rate`` at equal length, sigmoid(c) of sigmoid(c + d x difference in characters), a
        fit that a prior of precision ``PRIOR`` keeps finite: 5 wins of 5 are 99.9 %; ``per_character``: d, logits;
        ``difference``: mean characters of ``after`` less ``before``. None without votes.
        ``side``: see :func:`side_bias`; ``same``: see :func:`same_model`; ``reward_model``: see :func:`reward_verdict`;
        ``agreement`` and ``oneself``: see :mod:`konomi.statistics.agreement`; each may be None.
        ``version``, ``level``, ``seed``.
    """
    repeated = [vote for vote in votes if not vote.same]
    real = one_vote_each(repeated)
    signs = np.sign([vote.share - 0.5 for vote in real])
    counts = {name: int((signs == sign).sum()) for name, sign in (("wins", 1), ("ties", 0), ("losses", -1))}
    pairs = [Pair(v.prompt, v.after, v.before, v.share, rater=v.rater) for v in repeated]
    return {
        **header(seed),
        "votes": len(real),
        "prompts": len({Prompt(vote.prompt).key for vote in real}),
        "people": len({vote.rater for vote in repeated if vote.rater is not None}),
        **counts,
        "win_rate": win_rate(real),
        "win_rate_over_raters": win_rate_over_raters(real),
        "wilson": wilson(counts["wins"] + counts["ties"] / 2, len(real)),
        "sign_test": sign_test_by_prompt(real),
        "length_controlled": _at_equal_length(real, seed),
        "side": side_bias(votes),
        "same": same_model(votes),
        "reward_model": reward_verdict(votes),
        "agreement": inter_rater(pairs),
        "oneself": intra_rater(_repeats(pairs)),
    }


def side_bias(votes: Sequence[Vote]) -> dict[str, Any] | None:
    """How often the text that was shown first wins: one half if the side has no effect.

    All votes count, repeats and A/A items included: each was shown in a random order.

    Returns:
        ``votes``; ``first``: the share, ties half, with interval; ``after_first``: share of votes in which ``after`` was
        shown first, about one half. None if no vote says what was shown first.
    """
    known = [vote for vote in votes if vote.after_first is not None]
    if not known:
        return None
    first = _mean(known, lambda vote: vote.share if vote.after_first else 1 - vote.share)
    return {"votes": len(known), "first": first, "after_first": sum(bool(v.after_first) for v in known) / len(known)}


def same_model(votes: Sequence[Vote]) -> dict[str, Any] | None:
    """Votes on two samples of the same model (A/A items).

    Returns:
        ``votes``; ``told_apart``: share that are no ties; ``second``: how often the sample in the place of ``after`` wins,
        ties half: an interval without one half shows that something other than the text is judged. None without A/A items.
    """
    same = one_vote_each([vote for vote in votes if vote.same])
    if not same:
        return None
    apart = _mean(same, lambda vote: float(vote.share != 0.5))
    return {"votes": len(same), "told_apart": apart, "second": win_rate(same)}


def reward_verdict(votes: Sequence[Vote]) -> dict[str, Any] | None:
    """The reward model's preference beside the people's, on the votes with known scores.

    Returns:
        ``votes``; ``people`` and ``model``: how often each prefers ``after``, ties half, one vote each; ``agreement``:
        share of votes that the model would have cast alike: a tie on either side agrees by half. With intervals. Where
        ``model`` is well above ``people``, training has exploited the reward model. None if no score is known.
    """
    known = [vote for vote in one_vote_each([vote for vote in votes if not vote.same]) if vote.gap is not None]
    if not known:
        return None

    def model(vote: Vote) -> float:
        return (float(np.sign(vote.gap or 0.0)) + 1) / 2

    def alike(vote: Vote) -> float:
        return vote.share * model(vote) + (1 - vote.share) * (1 - model(vote))

    return {
        "votes": len(known),
        "people": win_rate(known),
        "model": _mean(known, model),
        "agreement": _mean(known, alike),
    }


def one_vote_each(votes: Sequence[Vote]) -> list[Vote]:
    """One vote for each person and pair of texts: what they said more often, a tie if they said both equally often."""
    by_person: dict[Any, list[Vote]] = defaultdict(list)
    for number, vote in enumerate(votes):
        person = number if vote.rater is None else vote.rater
        by_person[Prompt(vote.prompt).key, vote.before, vote.after, person].append(vote)
    return [replace(own[0], share=_more_often([each.share for each in own]), after_first=None) for own in by_person.values()]


def _repeats(pairs: Sequence[Pair]) -> list[tuple[Pair, Pair]]:
    """The first and each further record of one person on the same two texts."""
    first: dict[tuple[str, str, str, str], Pair] = {}
    repeats = []
    for pair in pairs:
        if pair.rater is not None:
            own = first.setdefault((Prompt(pair.prompt).key, pair.chosen, pair.rejected, pair.rater), pair)
            if own is not pair:
                repeats.append((own, pair))
    return repeats


def _more_often(shares: Sequence[float]) -> float:
    return (1 + float(np.sign(2 * sum(shares) - len(shares)))) / 2


def win_rate(votes: Sequence[Vote]) -> Interval:
    """The mean share of the votes, its interval over prompts: for these raters."""
    return _mean(votes, lambda vote: vote.share)


def win_rate_over_raters(votes: Sequence[Vote]) -> Interval:
    """The same, its interval over prompts and raters: for people of whom these raters are a sample.

    It is never narrower than that of :func:`win_rate`, and may exist where that does not, as all prompts have the same share.
    None for fewer than two raters, or where all raters have the same share.
    """
    names = [f"{number}" if vote.rater is None else f"rater {vote.rater}" for number, vote in enumerate(votes)]
    shares = np.array([vote.share for vote in votes], dtype=np.float64)
    own = win_rate(votes)
    if own["value"] is None or len(set(names)) < 2:
        return own | {"low": None, "high": None}
    rater = prompt_numbers(names)
    raters = np.bincount(rater, weights=shares).astype(np.float64), np.bincount(rater).astype(np.float64)
    alone = float(((shares - own["value"]) ** 2).sum()) / len(votes) / max(1, len(votes) - 1)
    wide = share_interval(*_sums(votes, shares), (*raters, alone))
    if wide["low"] is None or wide["high"] is None or own["low"] is None or own["high"] is None:
        return wide
    return own | {"low": min(own["low"], wide["low"]), "high": max(own["high"], wide["high"])}


def _mean(votes: Sequence[Vote], figure: Callable[[Vote], float]) -> Interval:
    """The mean of a figure from 0 to 1 over votes, with its interval over prompts."""
    return share_interval(*_sums(votes, np.array([figure(vote) for vote in votes], dtype=np.float64)))


def _sums(votes: Sequence[Vote], values: Array) -> tuple[Array, Array]:
    """By prompt: the sum of the values of its votes, and their number."""
    prompt = prompt_numbers([Prompt(vote.prompt).key for vote in votes])
    return np.bincount(prompt, weights=values).astype(np.float64), np.bincount(prompt).astype(np.float64)


def sign_test_by_prompt(votes: Sequence[Vote]) -> dict[str, Any]:
    """The sign test: prompts ``for`` after, ``against`` it, and ``even``, by the mean of their votes; ``p``."""
    off: dict[str, float] = defaultdict(float)
    for vote in votes:
        off[Prompt(vote.prompt).key] += vote.share - 0.5
    signs = [round(value, 9) for value in off.values()]
    won, lost = sum(value > 0 for value in signs), sum(value < 0 for value in signs)
    return {"for": won, "against": lost, "even": len(signs) - won - lost, "p": sign_test(won, lost)}


def _at_equal_length(votes: Sequence[Vote], seed: int) -> dict[str, Any] | None:
    """The win rate at equal length: a Bradley-Terry model of two items with the length as covariate."""
    if not votes:
        return None
    longer = [len(vote.after) - len(vote.before) for vote in votes]
    played = [
        Contest(Prompt(vote.prompt).key, "after", "before", vote.share, length=more)
        for vote, more in zip(votes, longer, strict=True)
    ]
    model = bradley_terry(played, covariates=["length"], prior=PRIOR, seed=seed)
    strength = next(item["strength"] for item in model["items"] if item["item"] == "after")
    # the two strengths sum to 0: their difference is twice the one
    rate = {name: None if value is None else float(expit(2 * value)) for name, value in strength.items()}
    return {"win_rate": rate, "per_character": model["covariates"]["length"], "difference": sum(longer) / len(longer)}

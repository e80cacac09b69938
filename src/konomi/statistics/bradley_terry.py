"""From what several people say to scores, to counts for and against, and to strengths (Bradley and Terry 1952)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from konomi.data.convert import normalised_ranks
from konomi.data.records import Pair, Prompt, Ranking, Score, groups
from konomi.statistics.bootstrap import LEVEL, VERSION, Interval, interval, prompt_places
from konomi.statistics.fitting import RESAMPLES, fit, refit

PRIOR = 0.1
"""Precision of the prior of a strength: one that won its only contest comes out with a chance of about 0.9, not 1."""
COVARIATES = ("length",)


def mean_scores(rankings: Iterable[Ranking]) -> list[Score]:
    """One score a response, from -1 (the worst) to 1 (the best): the mean over people of its normalised rank.

    The normalised rank is that of :func:`konomi.data.convert.normalised_ranks`, ties at the middle of their places (Kendall
    1945), so that a ranking counts the same with many responses and with few. What one person said several times counts
    once, with its mean; rankings without a name are each a person's of their own.

    Returns:
        In the order of first appearance, by prompt (key) and source; ``rater`` is None.

    >>> both = [Ranking("p", ("a", "b", "c"), (1, 2, 3), "x"), Ranking("p", ("a", "b", "c"), (1, 3, 1), "y")]
    >>> [(s.response, s.score) for s in mean_scores(both)]
    [('a', 0.75), ('b', -0.5), ('c', -0.25)]
    """
    found: dict[tuple[str, str | None], tuple[str, dict[str, dict[Any, list[float]]]]] = {}
    for number, ranking in enumerate(rankings):
        _, given = found.setdefault((Prompt(ranking.prompt).key, ranking.source), (ranking.prompt, {}))
        for text, score in zip(ranking.responses, normalised_ranks(ranking.ranks), strict=True):
            person = number if ranking.rater is None else ranking.rater
            given.setdefault(text, {}).setdefault(person, []).append(score)
    return [
        Score(prompt, text, _mean([_mean(own) for own in by_person.values()]), source=source)
        for (_, source), (prompt, given) in found.items()
        for text, by_person in given.items()
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Counted:
    """Two responses to a prompt, and how many people preferred which.

    Attributes:
        prompt: the text that both go on from.
        a, b: the responses.
        in_favour, against: people who say that ``a`` is better, and that ``b`` is.
        ties: people who say that they are equal, or who said both.
        source: as in :class:`konomi.data.records.Ranking`.
    """

    prompt: str
    a: str
    b: str
    in_favour: int
    against: int
    ties: int = 0
    source: str | None = None

    @property
    def votes(self) -> int:
        """How many people judged the two."""
        return self.in_favour + self.against + self.ties

    @property
    def share(self) -> float:
        """Share of the people that is in favour of ``a``; a tie is half a vote for each."""
        return (self.in_favour + self.ties / 2) / self.votes


def counted(records: Iterable[Ranking | Pair]) -> list[Counted]:
    """All pairs of responses that somebody judged, with the votes for and against.

    A person has one vote on a pair: what they said more often, a tie if they said both equally often. Records without a
    name are each a person's of their own.

    Returns:
        In the order of first appearance, by prompt (key) and source.

    >>> counted([Ranking("p", ("a", "b"), (1, 2), "x"), Ranking("p", ("b", "a"), (1, 2), "y")])
    [Counted(prompt='p', a='a', b='b', in_favour=1, against=1, ties=0, source=None)]
    """
    found = []
    for group in groups(records):
        said: dict[tuple[int, int], dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
        for number, (one, other, label, rater) in enumerate(group.judgements()):
            person = number if rater is None else rater
            said[min(one, other), max(one, other)][person].append(label if one < other else 1 - label)
        for one, other in sorted(said):
            means = [_mean(labels) for labels in said[one, other].values()]
            votes = sum(m > 0.5 for m in means), sum(m < 0.5 for m in means), sum(m == 0.5 for m in means)
            found.append(Counted(group.prompt, group.responses[one], group.responses[other], *votes, group.source))
    return found


def soft_pairs(counts: Iterable[Counted]) -> list[Pair]:
    """One pair for each couple of responses: ``chosen`` is what more people prefer, ``label`` the share of them.

    >>> soft_pairs([Counted("p", "a", "b", 1, 2, 1)])[0]
    Pair(prompt='p', chosen='b', rejected='a', label=0.625, margin=0.0, rater=None, source=None)
    """
    pairs = []
    for c in counts:
        sides, label = ((c.a, c.b), c.share) if c.share >= 0.5 else ((c.b, c.a), 1 - c.share)
        pairs.append(Pair(c.prompt, *sides, label, source=c.source))
    return pairs


@dataclass(frozen=True)
class Contest:
    """One item against another, judged on one prompt.

    Attributes:
        prompt: whatever names the prompt: what is resampled as a whole.
        a, b: names of the items, which may occur in many prompts: models, or settings.
        share: 1 if ``a`` won, 0 if ``b`` did, 0.5 a tie (half a win for each), or a share of several votes.
        weight: how many votes this is, from 0.
        length: characters of a's text less those of b's.
    """

    prompt: str
    a: str
    b: str
    share: float
    weight: float = 1.0
    length: float = 0.0


def contests(counts: Iterable[Counted], name: Callable[[str, str], str | None]) -> list[Contest]:
    """Counted pairs as contests of what wrote the responses.

    Args:
        name: from (prompt, response) to the name of the item. Where it is None, or the same on both sides, the pair
            says nothing and is left out.
    """
    found = []
    for c in counts:
        a, b = name(c.prompt, c.a), name(c.prompt, c.b)
        if a is not None and b is not None and a != b:
            found.append(Contest(Prompt(c.prompt).key, a, b, c.share, c.votes, len(c.a) - len(c.b)))
    return found


def bradley_terry(
    played: Sequence[Contest], *, covariates: Sequence[str] = (), prior: float = PRIOR, seed: int = 0
) -> dict[str, Any]:
    """How strong each item is, whoever it met (Bradley and Terry 1952).

    P(a beats b) = sigmoid(strength_a - strength_b + sum of coefficient x covariate). Ties are half a win for each side.
    A normal prior with mean 0 and precision ``prior`` on each strength, and on each coefficient per root mean square of
    its covariate, keeps an item finite that always wins (posterior mode; the strengths sum to 0).
    The uncertainty is a bootstrap over prompts (Efron 1979), 1,000 fits. A fit solves equations in as many unknowns as
    there are items: some hundred are fine.

    Args:
        played: all contests.
        covariates: names out of ``COVARIATES`` to hold constant: with ``length`` strengths are those at equal length.
        prior: precision, above 0; towards 0 the estimate goes to that of maximum likelihood.
        seed: of the resampling.

    Returns:
        ``items``, strongest first: ``item``, ``strength`` (logits, with its 95 % interval), ``error`` (standard error),
        ``wins`` (ties half) and ``votes``. Interval and error are None with fewer than two prompts, and for an item that
        always won or always lost: how far it is ahead only the prior says. ``covariates``: for each name, logits per
        character, with interval; None where the covariate is 0 everywhere.
        Also ``contests``, ``prompts``, ``prior``, ``resamples``, ``level``, ``seed``, ``version``.

    Raises:
        ValueError: ``prior`` is not above 0, or the name of a covariate is unknown.
    """
    if not prior > 0:
        raise ValueError(f"prior is {prior}: it has to be above 0, or an item that always wins has no finite strength")
    for other in set(covariates) - set(COVARIATES):
        raise ValueError(f"covariate {other!r}: one of {', '.join(COVARIATES)} is needed")
    names = sorted({name for c in played for name in (c.a, c.b)})
    values, errors, prompts = _estimates(played, names, covariates, prior, seed)
    wins, votes = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for c in played:
        for name, share in ((c.a, c.share), (c.b, 1 - c.share)):
            wins[name] += c.weight * share
            votes[name] += c.weight
    for i, name in enumerate(names):
        if wins[name] in (0.0, votes[name]):  # so it is in every resample: they do not tell how far it might be otherwise
            values[i], errors[i] = {"value": values[i]["value"], "low": None, "high": None}, None
    items = [
        {"item": name, "strength": values[i], "error": errors[i], "wins": wins[name], "votes": votes[name]}
        for i, name in enumerate(names)
    ]
    coefficients = dict(zip(covariates, values[len(names) :], strict=True))
    return {
        "version": VERSION,
        "level": LEVEL,
        "seed": seed,
        "resamples": RESAMPLES,
        "prior": prior,
        "contests": len(played),
        "prompts": prompts,
        "items": sorted(items, key=lambda each: -each["strength"]["value"]),
        "covariates": {name: coefficients[name] if any(getattr(c, name) for c in played) else None for name in covariates},
    }


def _estimates(
    played: Sequence[Contest], names: Sequence[str], covariates: Sequence[str], prior: float, seed: int
) -> tuple[list[Interval], list[float | None], int]:
    """Strengths, then coefficients, with their intervals; their standard errors; the number of prompts."""
    if not played:
        return [{"value": None, "low": None, "high": None} for _ in covariates], [], 0
    place = {name: i for i, name in enumerate(names)}
    rows = np.arange(len(played))
    design_ND = np.zeros((len(played), len(names) + len(covariates)))
    design_ND[rows, [place[c.a] for c in played]] += 1.0
    design_ND[rows, [place[c.b] for c in played]] -= 1.0
    unit_D = np.ones(design_ND.shape[1])
    for i, name in enumerate(covariates, start=len(names)):
        column_N = np.array([getattr(c, name) for c in played], dtype=np.float64)
        unit_D[i] = np.sqrt(np.mean(column_N**2)) or 1.0
        design_ND[:, i] = column_N / unit_D[i]
    share_N, weight_N = (np.array([getattr(c, name) for c in played], dtype=np.float64) for name in ("share", "weight"))
    precision_D = np.full(len(unit_D), prior)
    found_D = fit(design_ND, share_N, weight_N, precision_D)
    prompt_N = prompt_places([c.prompt for c in played])
    prompts = int(prompt_N.max()) + 1
    drawn_RD = np.full((0, len(unit_D)), np.nan)
    if prompts > 1:
        drawn_RD = refit(design_ND, share_N, weight_N, precision_D, prompt_N, found_D, seed) / unit_D
    values: list[Interval] = []
    errors: list[float | None] = []
    for d, value in enumerate(found_D / unit_D):
        drawn_R = drawn_RD[np.isfinite(drawn_RD[:, d]), d]
        values.append(interval(float(value), drawn_R, prompts))
        errors.append(None if values[-1]["low"] is None else float(drawn_R.std(ddof=1)))
    return values, errors, prompts

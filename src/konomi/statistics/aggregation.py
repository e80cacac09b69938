"""Several people's records of the same responses: as scores, votes for and against, and soft labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from konomi.data.convert import normalised_ranks
from konomi.data.messages import Conversation, identity
from konomi.data.records import Pair, Ranking, Score, groups


def mean_scores(rankings: Iterable[Ranking]) -> list[Score]:
    """One score a response, from -1 (the worst) to 1 (the best): the mean over people of its normalised rank.

    The normalised rank is that of :func:`konomi.data.convert.normalised_ranks`, ties at the middle of their places (Kendall
    1945), so that a ranking counts the same with many responses and with few. A person's repeats count once, with their mean;
    each ranking without a name is a person's of its own.

    Returns:
        In the order of first appearance, by prompt (key), messages and source; ``rater`` is None.

    >>> both = [Ranking("p", ("a", "b", "c"), (1, 2, 3), "x"), Ranking("p", ("a", "b", "c"), (1, 3, 1), "y")]
    >>> [(s.response, s.score) for s in mean_scores(both)]
    [('a', 0.75), ('b', -0.5), ('c', -0.25)]
    """
    by_prompt: dict[tuple[str, str, str | None], tuple[Ranking, dict[str, dict[Any, list[float]]]]] = {}
    for number, ranking in enumerate(rankings):
        _, by_text = by_prompt.setdefault((ranking.key, identity(ranking.messages), ranking.source), (ranking, {}))
        for text, score in zip(ranking.responses, normalised_ranks(ranking.ranks), strict=True):
            person = number if ranking.rater is None else ranking.rater
            by_text.setdefault(text, {}).setdefault(person, []).append(score)
    return [
        Score(first.prompt, text, _mean(list(map(_mean, by_person.values()))), source=first.source, messages=first.messages)
        for first, by_text in by_prompt.values()
        for text, by_person in by_text.items()
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class PairVotes:
    """Two responses to a prompt, and how many people prefer which."""

    prompt: str
    a: str
    b: str
    in_favour: int  # people who prefer ``a``
    against: int  # people who prefer ``b``
    ties: int = 0  # people who find them equal, or who said both equally often
    source: str | None = None
    messages: Conversation | None = field(default=None, repr=False, compare=False)  # that the prompt stands for

    @property
    def votes(self) -> int:
        """People who judged the two."""
        return self.in_favour + self.against + self.ties

    @property
    def share(self) -> float:
        """Share of them in favour of ``a``; a tie is half a vote for each."""
        return (self.in_favour + self.ties / 2) / self.votes


def count_votes(records: Iterable[Ranking | Pair]) -> list[PairVotes]:
    """All pairs of responses that somebody judged, with the votes for and against.

    A person has one vote on a pair: what they said more often, a tie if they said both equally often. Each record without a
    name is a person's of its own.

    Returns:
        In the order of first appearance, by prompt (key), messages and source.

    >>> count_votes([Ranking("p", ("a", "b"), (1, 2), "x"), Ranking("p", ("b", "a"), (1, 2), "y")])
    [PairVotes(prompt='p', a='a', b='b', in_favour=1, against=1, ties=0, source=None)]
    """
    result = []
    for group in groups(records):
        labels: dict[tuple[int, int], dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
        for number, (one, other, label, rater) in enumerate(group.judgements()):
            person = number if rater is None else rater
            labels[min(one, other), max(one, other)][person].append(label if one < other else 1 - label)
        for one, other in sorted(labels):
            means = [_mean(own) for own in labels[one, other].values()]
            votes = sum(m > 0.5 for m in means), sum(m < 0.5 for m in means), sum(m == 0.5 for m in means)
            texts = group.responses[one], group.responses[other]
            result.append(PairVotes(group.prompt, *texts, *votes, group.source, group.messages))
    return result


def soft_pairs(counts: Iterable[PairVotes]) -> list[Pair]:
    """One pair for each couple of responses: ``chosen`` is what more people prefer, ``label`` the share of them.

    >>> soft_pairs([PairVotes("p", "a", "b", 1, 2, 1)])[0]
    Pair(prompt='p', chosen='b', rejected='a', label=0.625, margin=0.0, rater=None, source=None)
    """
    pairs = []
    for c in counts:
        sides, label = ((c.a, c.b), c.share) if c.share >= 0.5 else ((c.b, c.a), 1 - c.share)
        pairs.append(Pair(c.prompt, *sides, label, source=c.source, messages=c.messages))
    return pairs

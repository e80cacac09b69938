"""How often raters order two responses alike: with one another, and with themselves when a task is repeated.

If a rater is right with probability a, whoever the rater and independently of the others, two raters agree with probability
p = a^2 + (1 - a)^2, so that a = (1 + sqrt(2p - 1)) / 2. A model that knew the truth would be right in a share a of such raters'
comparisons: that is the ceiling. Where pairs differ in difficulty it lies lower.

Only records with a rater's name count. All intervals are over prompts, for these raters. A figure that cannot be computed (one
person, only ties) is None. Nobody is left out because of these figures.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from konomi.data.records import Group, Pair, Prompt, Ranking, groups
from konomi.report.advice import FEW_COMPARISONS
from konomi.statistics.aggregation import count_votes
from konomi.statistics.bootstrap import Array, Sums, estimate, prompt_numbers, share_interval

Couple = tuple[Ranking | Pair, Ranking | Pair]
"""A person's first record of a task, and its repeat."""


def inter_rater(records: Sequence[Ranking | Pair]) -> dict[str, Any] | None:
    """How often two people order the same two responses alike.

    A tie agrees by half with a preference, as if a coin were thrown. Two ties are not counted. What one person said several
    times of a pair counts once, with its mean.

    Returns:
        ``share`` with its interval, 0.5 by chance; ``ceiling``: the accuracy of one person, and so of the best reward model,
        that this implies, (1 + sqrt(2 share - 1)) / 2; ``couples``: of people on a pair; ``prompts`` that these are from.
        None where no two people judged the same pair, or called all such pairs equal.
    """
    by_prompt = groups(records)
    return _figures(agreement_columns(by_prompt, prompt_numbers([group.key for group in by_prompt])))


def intra_rater(couples: Sequence[Couple]) -> dict[str, Any] | None:
    """How often people order two responses as they did before, by the rule of :func:`inter_rater`.

    Returns:
        As :func:`inter_rater`, without ``ceiling``; ``couples``: of a person's labels of a pair. None without repeats.
    """
    rows: list[tuple[int, float, float]] = []
    for number, couple in zip(prompt_numbers([Prompt(first.prompt).key for first, _ in couples]), couples, strict=True):
        both = groups([replace(each, rater=str(time)) for time, each in enumerate(couple)])  # as if of two people
        rows += [(number, *agreements(list(labels.values()))[0]) for _, labels in _labels(both, [number] * len(both))]
    figures = _figures(_columns(rows))
    return None if figures is None else {name: value for name, value in figures.items() if name != "ceiling"}


def people(records: Sequence[Ranking | Pair], couples: Sequence[Couple] = ()) -> list[dict[str, Any]]:
    """Figures of each person, in the order of their names.

    ``records`` are the first of each task, ``couples`` those of :func:`intra_rater`.

    Returns:
        ``rater``; ``records`` of theirs, repeats included; ``others``: :func:`inter_rater` of this person and everybody else;
        ``oneself``: :func:`intra_rater`; either may be None.
    """
    count = Counter(record.rater for record in [*records, *(again for _, again in couples)] if record.rater is not None)
    by_prompt = groups(records)
    rows: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for number, labels in _labels(by_prompt, prompt_numbers([group.key for group in by_prompt])):
        for rater, (agree, others) in zip(labels, agreements(list(labels.values())), strict=True):
            rows[rater].append((number, agree, others))
    return [
        {
            "rater": rater,
            "records": count[rater],
            "others": _figures(_columns(rows[rater])),
            "oneself": intra_rater([couple for couple in couples if couple[0].rater == rater]),
        }
        for rater in sorted(count)
    ]


def enough_comparisons(records: Sequence[Ranking | Pair]) -> dict[str, Any]:
    """Whether the data is enough for a reward model.

    Returns:
        ``comparisons``: one person, one pair, decided; ``ties``; ``needed``: about 2,000, below which a reward model barely
        beats chance; ``share`` of them that is there, at most 1; ``agreement``: see :func:`inter_rater`: its ``ceiling`` is
        the accuracy that more data cannot pass.
    """
    counts = count_votes(records)
    decided = sum(c.in_favour + c.against for c in counts)
    return {
        "comparisons": decided,
        "ties": sum(c.ties for c in counts),
        "needed": FEW_COMPARISONS,
        "share": min(1.0, decided / FEW_COMPARISONS),
        "agreement": inter_rater(records),
    }


def agreement_columns(by_prompt: Sequence[Group], prompt: npt.NDArray[np.int64]) -> dict[str, Array]:
    """Couples of raters who judged the same two responses, and how often they agreed, by prompt.

    ``prompt``: of each group in ``by_prompt``, the number of its prompt.
    """
    return _columns(
        [
            (number, agree / 2, count / 2)  # each couple is seen from either side
            for number, labels in _labels(by_prompt, prompt)
            for agree, count in agreements(list(labels.values()))
        ],
        int(prompt.max(initial=-1)) + 1,
    )


def agreements(labels: Sequence[float]) -> list[tuple[float, int]]:
    """For each rater of two responses: how often the others agree, and how many others count.

    A tie agrees by half with a preference. Two ties say nothing of the order and are not counted: they would count as half
    right, however sure both are.

    >>> agreements([1.0, 1.0, 0.5])
    [(1.5, 2), (1.5, 2), (1.0, 2)]
    >>> agreements([0.5, 0.5])
    [(0.0, 0), (0.0, 0)]
    """
    total, others, ties = sum(labels), len(labels) - 1, sum(own == 0.5 for own in labels)
    result = []
    for own in labels:
        rest, both = total - own, ties - 1 if own == 0.5 else 0
        result.append((own * rest + (1 - own) * (others - rest) - both / 2, others - both))
    return result


def ceiling(agreement: Array | float) -> Array:
    """The accuracy of one rater that an agreement of two implies; 0.5 where they agree less than by chance.

    >>> float(ceiling(0.75).round(4))
    0.8536
    """
    return np.asarray((1 + np.sqrt(np.maximum(0, 2 * np.asarray(agreement) - 1))) / 2)


def model_and_ceiling(sums: Sums) -> dict[str, Any] | None:
    """The agreement of raters, the ceiling, and where the model stands; None where no two raters judged the same pair."""
    figures = _figures(sums.by_prompt)
    if figures is None:
        return None
    below = estimate(sums, lambda s: ceiling(s["agree"] / s["agree_count"]) - s["right"] / s["count"], "agree_count")
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracy = float(sums.total["right"] / sums.total["count"])
    room = (figures["ceiling"]["value"] or 0.5) - 0.5
    of_ceiling = (accuracy - 0.5) / room if room > 0 and np.isfinite(accuracy) else None
    order = {name: figures[name] for name in ("couples", "prompts", "share", "ceiling")}
    return {**order, "below": below, "of_ceiling": of_ceiling}


def _figures(columns: dict[str, Array]) -> dict[str, Any] | None:
    agree_P, count_P = columns["agree"], columns["agree_count"]
    if not count_P.any():
        return None
    share = share_interval(agree_P, count_P)
    limit = {name: None if value is None else float(ceiling(value)) for name, value in share.items()}
    return {"share": share, "ceiling": limit, "couples": int(count_P.sum()), "prompts": int(np.count_nonzero(count_P))}


def _labels(by_prompt: Sequence[Group], prompt: Iterable[int]) -> list[tuple[int, dict[str, float]]]:
    """For each two responses that somebody judged: the number of their prompt, and each rater's label, 1 for the first response,
    0.5 a tie."""
    labels: dict[tuple[int, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, group in zip(prompt, by_prompt, strict=True):
        for one, other, label, rater in group.judgements():
            if rater is not None:
                first, second = sorted((group.responses[one], group.responses[other]))
                labels[number, first, second][rater].append(label if first == group.responses[one] else 1 - label)
    return [
        (number, {rater: sum(own) / len(own) for rater, own in by_rater.items()}) for (number, *_), by_rater in labels.items()
    ]


def _columns(rows: Sequence[tuple[int, float, float]], prompts: int = 0) -> dict[str, Array]:
    """The number of a prompt, how often raters agree and how many couples count: summed by prompt."""
    number, *values = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    place = number.astype(np.int64)
    sums = (np.bincount(place, weights=each, minlength=prompts).astype(np.float64) for each in values)
    return dict(zip(("agree", "agree_count"), sums, strict=True))

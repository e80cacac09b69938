"""How far people agree with one another, and so how good a model can be at best.

If a rater's word is right with probability a, whoever the rater and independent of the others, two raters agree with
probability p = a^2 + (1 - a)^2, so that a = (1 + sqrt(2p - 1)) / 2. A model that knew the truth would be found right in a
share a of such raters' comparisons: that is the ceiling. Where pairs differ in difficulty it lies lower.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from konomi.data.records import Group
from konomi.statistics.bootstrap import Array, Sums, estimate, share


def agreement_columns(groups: Sequence[Group], prompt: npt.NDArray[np.int64], prompts: int) -> dict[str, Array]:
    """By prompt: how many times two named raters judged the same two responses, and how often they agreed.

    Args:
        groups: what was said.
        prompt: the number of each group's prompt.
        prompts: how many there are.
    """
    columns = {"agree": np.zeros(prompts), "agree_count": np.zeros(prompts)}
    for (place, _, _), by_rater in words(groups, prompt).items():
        for agree, count in with_the_others(list(by_rater.values())):  # each couple from either side
            columns["agree"][place] += agree / 2
            columns["agree_count"][place] += count / 2
    return columns


def words(groups: Sequence[Group], prompt: npt.NDArray[np.int64]) -> dict[tuple[int, str, str], dict[str, float]]:
    """By the number of a prompt and two responses to it: what each named rater says, 1 the first response, 0.5 a tie.

    What one rater said several times of a pair counts once, with its mean.
    """
    said: dict[tuple[int, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, group in enumerate(groups):
        for one, other, label, rater in group.judgements():
            if rater is not None:
                first, second = sorted((group.responses[one], group.responses[other]))
                own = label if first == group.responses[one] else 1 - label
                said[int(prompt[number]), first, second][rater].append(own)
    return {key: {rater: sum(own) / len(own) for rater, own in by_rater.items()} for key, by_rater in said.items()}


def with_the_others(said: Sequence[float]) -> list[tuple[float, int]]:
    """Of each rater of two responses: how often the others agree, and of how many others that is counted.

    A tie agrees by half with a word for one side, as if a coin had been thrown. Two ties say nothing of the order, and are
    not counted: they would count as half right, however sure both are.

    >>> with_the_others([1.0, 1.0, 0.5])
    [(1.5, 2), (1.5, 2), (1.0, 2)]
    >>> with_the_others([0.5, 0.5])
    [(0.0, 0), (0.0, 0)]
    """
    total, others, ties = sum(said), len(said) - 1, sum(own == 0.5 for own in said)
    found = []
    for own in said:
        rest, both = total - own, ties - 1 if own == 0.5 else 0
        found.append((own * rest + (1 - own) * (others - rest) - both / 2, others - both))
    return found


def ceiling(agreement: Array | float) -> Array:
    """The accuracy of one rater that an agreement of two implies; 0.5 where they agree less than by chance.

    >>> float(ceiling(0.75).round(4))
    0.8536
    """
    return np.asarray((1 + np.sqrt(np.maximum(0, 2 * np.asarray(agreement) - 1))) / 2)


def agreement_figures(sums: Sums) -> dict[str, Any] | None:
    """Agreement, the ceiling, and where the model stands; None where no two raters judged the same pair."""
    if not sums.whole["agree_count"]:
        return None
    agreed = share(sums, "agree", "agree_count")
    limit = {name: None if value is None else float(ceiling(value)) for name, value in agreed.items()}
    below = estimate(sums, lambda s: ceiling(s["agree"] / s["agree_count"]) - s["right"] / s["count"], "agree_count")
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracy = float(sums.whole["right"] / sums.whole["count"])
    room = (limit["value"] or 0.5) - 0.5
    return {
        "couples": int(sums.whole["agree_count"]),
        "prompts": sums.prompts["agree_count"],
        "share": agreed,
        "ceiling": limit,
        "below": below,
        "of_ceiling": (accuracy - 0.5) / room if room > 0 and np.isfinite(accuracy) else None,
    }

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

from konomi.data.groups import Group
from konomi.evaluation.resampling import Array, Sums, estimate, share


def agreement_columns(groups: Sequence[Group], prompt: npt.NDArray[np.int64], prompts: int) -> dict[str, Array]:
    """By prompt: how many times two named raters judged the same two responses, and how often they agreed.

    A tie agrees by half with whatever another says: it is taken as a coin thrown between the two. What one rater said
    several times of a pair counts once, with its mean.
    """
    said: dict[tuple[int, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, group in enumerate(groups):
        for one, other, label, rater in group.words():
            if rater is None:
                continue
            first, second = sorted((group.responses[one], group.responses[other]))
            own = label if first == group.responses[one] else 1 - label
            said[int(prompt[number]), first, second][rater].append(own)
    columns = {"agree": np.zeros(prompts), "agree_count": np.zeros(prompts)}
    for (place, _, _), by_rater in said.items():
        first_wins = np.array([np.mean(labels) for labels in by_rater.values()])
        # over all couples of raters: the square of a sum has each product twice, and each square once
        agree = sum((side.sum() ** 2 - (side**2).sum()) / 2 for side in (first_wins, 1 - first_wins))
        columns["agree"][place] += agree
        columns["agree_count"][place] += len(by_rater) * (len(by_rater) - 1) / 2
    return columns


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

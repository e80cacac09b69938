"""A reward model against numbers: those it was taught (a regression), or a truth without noise that it was never shown.

N rows, P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from konomi.statistics.bootstrap import LEVEL, VERSION, estimate, prompt_places, resample, share
from konomi.statistics.measures import checked, fits, tau_b, top_1


def evaluate_scores(truth: Sequence[float], predicted: Sequence[float], keys: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Judge a regression on scores that it was not trained on.

    Args:
        truth: the given scores, [N].
        predicted: the model's, in the same unit, [N].
        keys: each row's prompt; rows of one prompt are drawn together.
        seed: of the resampling.

    Returns:
        ``pearson``, ``spearman``, ``mse`` (mean squared error) and ``r2`` (1 - mse / variance of the truth; 0 is as good
        as the mean), each with its interval, and counts.

    Raises:
        ValueError: the three differ in length.
        RunError: a score is not a number.
    """
    if not len(truth) == len(predicted) == len(keys):
        raise ValueError(f"{len(truth)} true scores, {len(predicted)} predicted, {len(keys)} keys: there have to be as many")
    place = prompt_places(keys)
    found = fits(checked(truth, "true scores"), checked(predicted, "scores"), place, seed, ("pearson", "spearman", "mse", "r2"))
    prompts = int(place.max()) + 1 if len(place) else 0
    return {"version": VERSION, "level": LEVEL, "seed": seed, "prompts": prompts, "texts": len(truth), **found}


def evaluate_truth(groups_of_scores: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, seed: int = 0) -> dict[str, Any]:
    """Judge a model by a truth that has no noise, such as the judge that the raters' words were made from.

    Args:
        groups_of_scores: for each group of responses the key of its prompt, the true scores, and the model's scores of the
            same responses. Groups of one prompt are drawn together.
        seed: of the resampling.

    Returns:
        ``accuracy``: share of all pairs of one group's responses of different truth that the model orders as the truth
        does (a tie of the model counts half); ``tau`` and ``top_1`` within groups; ``pearson`` and ``spearman`` over all;
        each with its interval, and counts.

    Raises:
        ValueError: a group has more scores of one kind than of the other.
        RunError: a score is not a number.
    """
    place = prompt_places([key for key, _, _ in groups_of_scores])
    prompts = int(place.max()) + 1 if len(place) else 0
    columns = {name: np.zeros(prompts) for name in ("right", "pairs", "tau", "top_1", "chance", "orders")}
    sides = []
    for number, (_, truth, scores) in enumerate(groups_of_scores):
        if len(truth) != len(scores):
            raise ValueError(f"group {number + 1}: {len(truth)} true scores and {len(scores)} of the model")
        own = checked(truth, f"true scores of group {number + 1}"), checked(scores, f"the scores of group {number + 1}")
        sides.append(own)
        above = own[0][:, None] > own[0]
        right = (np.sign(own[1][:, None] - own[1]) + 1) / 2
        found = {"right": right[above].sum(), "pairs": above.sum()}
        tau = tau_b(*own)
        if tau is not None:
            hit, chance = top_1(*own)
            found |= {"tau": tau, "top_1": hit, "chance": chance, "orders": 1.0}
        for name, value in found.items():
            columns[name][place[number]] += value
    sums = resample(columns, seed)
    whole = [np.concatenate([np.zeros(0), *(own[side] for own in sides)]) for side in (0, 1)]
    rows = np.repeat(place, [len(own[0]) for own in sides])
    return {
        "version": VERSION,
        "level": LEVEL,
        "resamples": len(sums.drawn["pairs"]),
        "seed": seed,
        "prompts": sums.prompts["pairs"],
        "pairs": int(sums.whole["pairs"]),
        "accuracy": share(sums, "right", "pairs"),
        "tau": estimate(sums, lambda s: s["tau"] / s["orders"], "orders", (-1.0, 1.0)),
        "top_1": share(sums, "top_1", "orders")
        | {"chance": estimate(sums, lambda s: s["chance"] / s["orders"], "orders")["value"]},
        **fits(whole[0], whole[1], rows, seed, ("pearson", "spearman")),
    }

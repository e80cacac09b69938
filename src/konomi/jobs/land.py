"""Landing: bring the trained model to the KL that was asked for, along the line between the initial weights and its own.

Reward and KL are measured at a few places of `konomi.models.line.Line`, on prompts that the before/after does not use and with
the same random numbers everywhere; what differs between two places is the model. The KL rises with about the square of the
share, so a power law through two places finds the third.

land.json has ``version``; ``target`` (nats/response; None where a share was asked for), ``share``, ``kl`` and ``end_kl``, that of
share 1; ``landed``: whether the KL is within `TOLERANCE` of the target; ``most``, ``samples``, and ``prompts``: how many of them
were held out, how many trained on; ``points``, a row for each place (:meth:`Dial.measure`); ``verdict``, in ``en`` and ``ja``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from konomi.config import LandConfig, PPOJob
from konomi.data.records import Prompt
from konomi.jobs.compare import Item, Questions, exact_kl, first_of, paired_difference
from konomi.jobs.prepare import Prepared
from konomi.models.line import Line
from konomi.models.policy import Policy
from konomi.report.advice import landing
from konomi.runs import processes
from konomi.statistics.variety import distinct, repetition

TOLERANCE = 0.1
"""How far from its target, as a share of it, a KL may be."""
NEAR = 0.02
"""How near the search tries to come."""
TRIES = 8
"""Places at most that it looks at, beside those where it begins."""
WHOLE_DIAL = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares that are measured in any case, for the page."""

Point = Mapping[str, Any]
Measure = Callable[[float], Point]


class Dial:
    """Measures a policy along its line.

    Args:
        policy, reference: at the trained weights, and what it began as.
        job: its settings.
        ready: prompts, rewards and tokens.
        land: how many prompts and samples.
        autocast: the context for calls of models.
        progress: gets what is written, how many, of how many.
        failed_texts: file for the texts at which the reward failed.
    """

    def __init__(
        self, policy: Policy, reference: PreTrainedModel, job: PPOJob, ready: Prepared, land: LandConfig,
        autocast: Callable[[], AbstractContextManager[Any]], progress: Callable[[str, int, int], None],
        failed_texts: Path | None = None,
    ) -> None:  # fmt: skip
        self.policy, self.reference, self.land = policy, reference, land
        self.line = Line(policy, reference)
        self.prompts, self.apart = prompts_of(ready.held_out, ready.prompts, job.compare.prompts, land.prompts)
        self.items: list[Item] = [(prompt, i) for prompt in self.prompts for i in range(land.samples)]
        cut = ready.tokens.queries(self.prompts, job.data.query_tokens, job.compare.seed, 0, job.data.max_query_tokens)
        self.queries = [query for query in cut for _ in range(land.samples)]
        self.ask = Questions(
            ready.tokens, ready.reward, ready.judges, job.rollout, job.compare.seed, autocast, failed_texts, progress
        )
        self._first: tuple[list[float], list[list[int]]] | None = None
        """Scores and responses at share 0."""

    def measure(self, share: float) -> dict[str, Any]:
        """Move the policy to a share and evaluate it. Measure share 0 first.

        Returns:
            ``share``; ``kl``, nats/response; ``score``, its ``difference`` to share 0 with the interval over prompts, ``judges``
            (name -> mean score), ``length`` in tokens, ``distinct_2`` and ``repetition`` (both of responses cut to the length of
            those at share 0).
        """
        self.line.move(share)
        name = f"the model at {share:g} of its way"

        def answered(asked: Sequence[tuple[Item, Sequence[int]]]) -> list[tuple[list[int], float]]:
            rows: list[tuple[list[int], float]] = []
            for rollout in self.ask.rollouts(self.policy.lm, name, "land", *zip(*asked, strict=True)):
                kl_B = [0.0] * len(rollout) if share == 0 else exact_kl(self.policy.lm, self.reference, rollout, self.ask)
                rows += zip(rollout.response_ids(), kl_B, strict=True)
            return rows

        ids, kl = (list(each) for each in zip(*processes.divided(self._asked(), answered), strict=True))
        scores, judged = self.ask.scores(self.items, *self.ask.texts(self.items, self.queries, ids))
        first_scores, first_ids = self._first = self._first or (scores, ids)
        cut = [own[: len(beside)] for own, beside in zip(ids, first_ids, strict=True)]
        gap = paired_difference(first_scores, scores, self.land.samples)
        return {
            "share": share, "kl": float(np.mean(kl)), "score": float(np.mean(scores)),
            "difference": {end: gap[end] for end in ("mean", "low", "high")},
            "judges": {judge: float(np.mean(each)) for judge, each in judged.items()},
            "length": float(np.mean([len(each) for each in ids])), "distinct_2": distinct(cut, 2), "repetition": repetition(cut),
        }  # fmt: skip

    def _asked(self) -> list[tuple[Item, Sequence[int]]]:
        return list(zip(self.items, self.queries, strict=True))

    def land_at(self, target: float, shares: Sequence[float] = WHOLE_DIAL) -> dict[str, Any]:
        """Move the policy to where its KL is nearest to ``target``; returns the content of land.json. ``shares``: always
        measured, including 0 and 1."""
        points = search(self.measure, target, self.land.most, shares)
        return self._result(points, nearest(points, target), target)

    def put_at(self, share: float) -> dict[str, Any]:
        """Move the policy to a share of its line; returns the same."""
        points = [self.measure(each) for each in sorted({0.0, 1.0, share})]
        return self._result(points, next(point for point in points if point["share"] == share), None)

    def _result(self, points: Sequence[Point], point: Point, target: float | None) -> dict[str, Any]:
        self.line.move(point["share"])
        end = next(each for each in points if each["share"] == 1.0)
        result = {
            "version": 1, "target": target, "share": point["share"], "kl": point["kl"], "end_kl": end["kl"],
            "landed": target is not None and abs(point["kl"] / target - 1) <= TOLERANCE, "most": self.land.most,
            "samples": self.land.samples, "prompts": self.apart, "points": [*points],
        }  # fmt: skip
        return result | {"verdict": landing(result)}


def landing_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """What land.json holds as metrics; the score is that of the place where the model is."""
    score = next(point["score"] for point in result["points"] if point["share"] == result["share"])
    return {"land/score": score, **{f"land/{name}": result[name] for name in ("share", "kl", "end_kl")}}


def prompts_of(
    held_out: Sequence[Prompt], trained: Sequence[Prompt], compared: int, count: int
) -> tuple[list[Prompt], dict[str, int]]:
    """``count`` prompts at most that judge nothing: held-out ones beyond the ``compared`` of the before/after, then training
    ones; and how many of each."""
    spare = first_of(held_out, compared + count)[compared:]
    rest = first_of(trained, count - len(spare))
    return [*spare, *rest], {"held_out": len(spare), "training": len(rest)}


def search(measure: Measure, target: float, most: float, shares: Sequence[float] = WHOLE_DIAL) -> list[Point]:
    """Measure at ``shares``, then where the KL may be ``target``, until it is within `NEAR` or `TRIES` places were looked at;
    all points, by share. None is beyond ``most``."""
    points = [measure(share) for share in shares]
    for _ in range(TRIES):
        near = abs(nearest(points, target)["kl"] / target - 1) <= NEAR
        share = None if near else next_share([(each["share"], each["kl"]) for each in points], target, most)
        if share is None or any(each["share"] == share for each in points):
            break
        points = sorted([*points, measure(share)], key=lambda each: float(each["share"]))
    return points


def nearest(points: Sequence[Point], target: float) -> Point:
    """The point whose KL is nearest to ``target``."""
    return min(points, key=lambda each: abs(each["kl"] - target))


def next_share(places: Sequence[tuple[float, float]], target: float, most: float) -> float | None:
    """Where to look next, four decimals: between the places (share, KL) around ``target``, or beyond the last one up to ``most``;
    None: there is nowhere.

    Between two places, and beyond them, the KL is taken as a power of the share; where one of them has none, as its square.

    >>> next_share([(0.0, 0.0), (1.0, 8.0)], target=2.0, most=1.5), next_share([(0.5, 2.0), (1.0, 8.0)], target=18.0, most=2.0)
    (0.5, 1.5)
    >>> next_share([(0.0, 0.0), (1.0, 8.0)], target=50.0, most=1.5), next_share([(0.0, 0.0), (1.5, 8.0)], 50.0, 1.5)
    (1.5, None)
    """
    over = next((i for i, (_, kl) in enumerate(places) if kl >= target), None)
    end = len(places) - 1 if over is None else over
    (low, _), (high, high_kl) = places[end - 1 : end + 1]
    if over is None and (high >= most or high_kl <= 0):
        return most if high < most else None
    power = _power(places[end - 1 : end + 1]) or _power(places[end : end + 2]) or 2.0
    share = float(high * (target / high_kl) ** (1 / power))
    if over is None:
        return round(min(share, most), 4)
    room = 0.05 * (high - low)  # a place at an end teaches nothing
    return round(min(max(share, low + room), high - room), 4) if high - low > 1e-3 else None


def _power(places: Sequence[tuple[float, float]]) -> float | None:
    """The exponent of the power law through two places; None if there is none."""
    if len(places) < 2 or not 0 < places[0][1] < places[1][1]:
        return None
    (low, low_kl), (high, high_kl) = places
    return min(max(math.log(high_kl / low_kl) / math.log(high / low), 0.5), 8.0)

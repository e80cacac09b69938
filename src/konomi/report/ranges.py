"""Healthy ranges of the metrics of a PPO run, and the updates that leave them.

The ranges are rules of thumb for short responses; docs/metrics.md has the same table, and a test compares them. A run marks what
is out of its range, in ``out_of_range`` of metrics.jsonl, and goes on: guards (`konomi.training.guard`) decide what it does when
it goes wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """The healthy values of a metric; None: no limit on that side."""

    low: float | None
    high: float | None
    reason: str
    of_max_grad_norm: bool = False
    """The limits are in multiples of ``ppo.max_grad_norm``."""
    of_token_ratios: bool = False
    """It holds for ratios of single tokens. That of a whole response, the product over its tokens, leaves it with the length of
    the response alone: 32 tokens that are each 2 % more probable make 1.9."""

    def __str__(self) -> str:
        """In words: "up to 0.2", "0.95 to 1.05"."""
        unit = " times `max_grad_norm`" if self.of_max_grad_norm else ""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}{unit}"
        return f"up to {self.high:g}{unit}" if self.high is not None else f"from {self.low:g}{unit}"


HEALTHY = {
    "ppo/scores_clipped": Range(None, 0.05, "what is beyond the clip teaches nothing: raise `ppo.score_clip`"),
    "ppo/policy/approxkl": Range(None, 0.03, "the objective holds only near the policy that drew the texts: steps are too large"),
    "ppo/policy/clipfrac": Range(
        None, 0.2, "a clipped token teaches nothing: steps are too large. 0 throughout: too small", of_token_ratios=True
    ),
    "ppo/policy/ratio": Range(
        0.95, 1.05, "the mean over tokens of the old policy is 1: off by more, steps are too large", of_token_ratios=True
    ),
    "ppo/policy/entropy": Range(0.1, None, "near 0 the model says one thing only"),
    "ppo/policy/grad_norm": Range(
        None, 10.0, "far above it every step is cut to one length, and the learning rate does not mean what it says", True
    ),
    "ppo/val/var_explained": Range(-0.1, None, "0 in update 1, then rising; below 0 the critic harms"),
    "ppo/val/clipfrac": Range(None, 0.3, "a clipped value learns nothing: the critic cannot follow the returns"),
}


def out_of_range(metrics: Mapping[str, float], max_grad_norm: float, whole_ratio: bool = False) -> list[str]:
    """The metrics of an update that are out of their healthy range. ``whole_ratio``: ratios are those of whole responses.

    >>> out_of_range({"ppo/policy/ratio": 1.2, "ppo/policy/grad_norm": 15.0}, max_grad_norm=2.0)
    ['ppo/policy/ratio']
    """
    names = []
    for name, healthy in HEALTHY.items():
        unit = max_grad_norm if healthy.of_max_grad_norm else 1.0
        value = metrics.get(name, None)
        low, high = (None if end is None else end * unit for end in (healthy.low, healthy.high))
        if whole_ratio and healthy.of_token_ratios:
            continue
        if value is not None and ((low is not None and value < low) or (high is not None and value > high)):
            names.append(name)
    return names


def excursions(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The metrics that were out of their range, the most frequent first, from the lines of metrics.jsonl.

    Returns:
        ``name``; ``count`` of updates out of range; ``worst`` value; ``low``, ``high`` and ``of_max_grad_norm`` of the range.
    """
    values: dict[str, list[float]] = {}
    for line in lines:
        for name in line.get("out_of_range") or ():
            if name in HEALTHY and isinstance(line.get(name), (int, float)):
                values.setdefault(name, []).append(line[name])
    rows = []
    for name, own in sorted(values.items(), key=lambda item: -len(item[1])):
        low, high, of_max_grad_norm = HEALTHY[name].low, HEALTHY[name].high, HEALTHY[name].of_max_grad_norm
        worst = min(own) if low is not None and min(own) < low else max(own)
        limits = {"low": low, "high": high, "of_max_grad_norm": of_max_grad_norm}
        rows.append({"name": name, "count": len(own), "worst": worst, **limits})
    return rows


def over_the_run(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """:func:`excursions` in words.

    >>> over_the_run([{"ppo/policy/ratio": 1.5, "out_of_range": ["ppo/policy/ratio"]}, {"ppo/policy/ratio": 1.0}])
    ['ppo/policy/ratio: 1/2, 1.5 (0.95 to 1.05)']
    """
    return [
        f"{each['name']}: {each['count']}/{len(lines)}, {each['worst']:.2g} ({str(HEALTHY[each['name']]).replace('`', '')})"
        for each in excursions(lines)
    ]

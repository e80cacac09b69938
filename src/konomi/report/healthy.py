"""Where a metric of a PPO run should be, and for what reason; docs/metrics.md has the same table, and a test compares them.

Rules of thumb for short responses. A run marks what is out of its range, in ``out_of_range`` of metrics.jsonl, and goes on.
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

    def __str__(self) -> str:
        """In words: "up to 0.2", "0.95 to 1.05"."""
        unit = " times `max_grad_norm`" if self.of_max_grad_norm else ""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}{unit}"
        return f"up to {self.high:g}{unit}" if self.high is not None else f"from {self.low:g}{unit}"


HEALTHY = {
    "ppo/scores_clipped": Range(None, 0.05, "what is beyond the clip teaches nothing: raise `ppo.score_clip`"),
    "ppo/policy/approxkl": Range(None, 0.03, "the objective holds only near the policy that drew the texts: steps are too large"),
    "ppo/policy/clipfrac": Range(None, 0.2, "a clipped token teaches nothing: steps are too large. 0 throughout: too small"),
    "ppo/policy/ratio": Range(0.95, 1.05, "the mean over tokens of the old policy is 1: off by more, steps are too large"),
    "ppo/policy/entropy": Range(0.1, None, "near 0 the model says one thing only"),
    "ppo/policy/grad_norm": Range(
        None, 10.0, "far above it every step is cut to one length, and the learning rate does not mean what it says", True
    ),
    "ppo/val/var_explained": Range(-0.1, None, "0 in update 1, then rising; below 0 the critic harms"),
    "ppo/val/clipfrac": Range(None, 0.3, "a clipped value learns nothing: the critic cannot follow the returns"),
}


def out_of_range(metrics: Mapping[str, float], max_grad_norm: float) -> list[str]:
    """The metrics of an update that are out of their healthy range.

    >>> out_of_range({"ppo/policy/ratio": 1.2, "ppo/policy/grad_norm": 15.0}, max_grad_norm=2.0)
    ['ppo/policy/ratio']
    """
    found = []
    for name, healthy in HEALTHY.items():
        unit = max_grad_norm if healthy.of_max_grad_norm else 1.0
        value = metrics.get(name, None)
        low, high = (None if end is None else end * unit for end in (healthy.low, healthy.high))
        if value is not None and ((low is not None and value < low) or (high is not None and value > high)):
            found.append(name)
    return found


def over_the_run(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was out of its range how often, the most frequent first: from the lines of metrics.jsonl.

    >>> over_the_run([{"ppo/policy/ratio": 1.5, "out_of_range": ["ppo/policy/ratio"]}, {"ppo/policy/ratio": 1.0}])
    ['ppo/policy/ratio: 1/2, 1.5 (0.95 to 1.05)']
    """
    values: dict[str, list[float]] = {}
    for line in lines:
        for name in line.get("out_of_range") or ():
            if name in HEALTHY and isinstance(line.get(name), (int, float)):
                values.setdefault(name, []).append(line[name])
    found = []
    for name, own in sorted(values.items(), key=lambda item: -len(item[1])):
        low = HEALTHY[name].low
        worst = min(own) if low is not None and min(own) < low else max(own)
        found.append(f"{name}: {len(own)}/{len(lines)}, {worst:.2g} ({str(HEALTHY[name]).replace('`', '')})")
    return found


def kl_missed(kl: float, target: float, coefficients: tuple[float, float]) -> str | None:
    """Why the KL of the trained model is not within 20 % of its target; None if it is.

    Args:
        kl, target: nats/response.
        coefficients: the KL coefficient of the first and of the last update.

    >>> kl_missed(6.5, 6.0, (0.2, 0.3)) is None
    True
    """
    if abs(kl / target - 1) <= 0.2:
        return None
    moved = f"the coefficient went from {coefficients[0]:.3g} to {coefficients[1]:.3g}"
    if f"{coefficients[0]:.3g}" == f"{coefficients[1]:.3g}":
        moved = f"the coefficient stayed at {coefficients[0]:.3g}, as it does in a run of few updates"
    if kl > target:
        advice = "too low or too late for these steps: raise ppo.kl_coef, or lower ppo.learning_rate or ppo.kl_horizon"
        return f"KL ended at {kl:.1f}, over the target {target:g}: {moved}, {advice}"
    advice = "and the run was too short or its steps too small: more ppo.episodes, or a higher ppo.learning_rate"
    if coefficients[1] > 0.5 * coefficients[0]:
        advice = "and still costs more than the reward gives: lower ppo.kl_coef or ppo.kl_horizon, or more ppo.episodes"
    return f"KL ended at {kl:.1f}, under the target {target:g}: {moved}, {advice}"

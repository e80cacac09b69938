"""The figures of a PPO update: sums over processes, metrics, times, and the KL coefficient that follows from them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from konomi import ops
from konomi.config import PPOConfig
from konomi.errors import NotFiniteError
from konomi.runs import processes
from konomi.statistics.variety import repeated_share
from konomi.training.experience import Experience, ScoredRollout


@dataclass
class Sums:
    """Means over the whole batch, each a sum and the count of what was summed; and maxima.

    Tensors are read when the means are asked for, all in one transfer: until then nothing waits for the device.
    """

    totals: dict[str, tuple[float, float]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)
    """Means of which each process has seen its own part; of the others each has seen all."""
    _unread: list[tuple[str, Tensor | float, Tensor | float]] = field(default_factory=list)
    _unread_maxima: list[tuple[str, Tensor | float]] = field(default_factory=list)

    def add(self, name: str, total: Tensor | float, count: Tensor | float, partial: bool = False) -> None:
        """Add to the mean ``name``."""
        self._unread.append((name, total, count))
        if partial:
            self.partial.add(name)

    def most(self, name: str, value: Tensor | float) -> None:
        """Raise the maximum ``name``; a NaN stays."""
        self._unread_maxima.append((name, value))

    def means(self) -> dict[str, float]:
        """The means and the maxima over all processes, the same to the bit in each."""
        self._read()
        merged, parts = self, processes.gather((self.totals, self.maxima))
        if len(parts) > 1:
            merged = Sums()
            for number, (totals, maxima) in enumerate(parts):
                for name, pair in totals.items():
                    if number == 0 or name in self.partial:
                        merged.add(name, *pair)
                for name, value in maxima.items():
                    merged.most(name, value)
            merged._read()
        return {name: total / count if count else 0.0 for name, (total, count) in merged.totals.items()} | merged.maxima

    def _read(self) -> None:
        """Add up what is unread, in float64 and in the order in which it came."""
        unread = [x for _, *pair in self._unread for x in pair] + [x for _, x in self._unread_maxima]
        numbers = iter(numbers_of([x for x in unread if isinstance(x, Tensor)]))
        for name, *pair in self._unread:
            total, count = (next(numbers) if isinstance(x, Tensor) else float(x) for x in pair)
            old_total, old_count = self.totals.get(name, (0.0, 0.0))
            self.totals[name] = (old_total + total, old_count + count)
        for name, most in self._unread_maxima:
            value = next(numbers) if isinstance(most, Tensor) else most
            old = self.maxima.get(name)
            self.maxima[name] = value if old is None or value != value or value > old else old
        self._unread.clear()
        self._unread_maxima.clear()


def numbers_of(scalars: Sequence[Tensor]) -> list[float]:
    """The numbers of tensors without axes, whatever their types, in one transfer for each device."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, x in enumerate(scalars):
        groups.setdefault((x.device, x.dtype), []).append(place)
    numbers = [0.0] * len(scalars)
    for device in dict.fromkeys(device for device, _ in groups):
        here = [places for (other, _), places in groups.items() if other == device]
        read = torch.cat([torch.stack([scalars[place] for place in places]).double() for places in here]).tolist()
        for place, number in zip((place for places in here for place in places), read, strict=True):
            numbers[place] = number
    return numbers


class Clock:
    """Seconds of the phases of an update."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """End a phase."""
        now = time.perf_counter()
        self.seconds |= {phase: now - self.last, "total": now - self.start}
        self.last = now


def describe(e: Experience, scored: ScoredRollout, clipped_B: Tensor, kl_coef: float) -> Sums:
    """The metrics that are known before training. ``clipped_B``: which scores ``ppo.score_clip`` clipped."""
    sums, scores_B, responses, valid = Sums(), scored.scores, len(scored.scores), e.mask.sum()
    for name, total in {
        "objective/kl": e.kl, "square/kl": e.kl.double().sum(1) ** 2, "objective/entropy": e.entropy,
        "ppo/mean_scores": scores_B, "square/scores": scores_B**2,
        "tokens/queries_len_mean": e.rollout.query_lengths, "tokens/responses_len_mean": e.rollout.response_lengths,
        "tokens/ended_share": e.rollout.ended,
    }.items():  # fmt: skip
        sums.add(name, total.sum(), responses)
    for name, total in {
        "ppo/policy/entropy": e.entropy, "ppo/policy/advantages_mean": e.advantages, **_critic(e),
        "mean/initial": e.kl - e.logprobs,
    }.items():  # fmt: skip
        sums.add(name, total.sum(), valid)
    if e.kl_weights is None:
        sums.add("ppo/mean_non_score_reward", -kl_coef * e.penalty.sum(), valid)
    for name, values in scored.figures.items():
        sums.add(name, sum(values), len(values))
        if name.startswith("judge/"):
            sums.add(f"square/{name}", sum(value**2 for value in values), len(values))
    sums.add("tokens/repetition", sum(map(repeated_share, e.rollout.response_ids())), responses)
    sums.add("ppo/scores_clipped", clipped_B.sum(), responses)
    if e.sampler_gap is not None:
        sums.most("ppo/policy/sampler_gap", e.sampler_gap)
    if e.drawn is not None and e.weights is not None:
        gap_BR = ((e.logprobs - e.drawn) * e.mask).abs()
        sums.add("ppo/server/gap_mean", gap_BR.sum(), valid)
        sums.most("ppo/server/gap_max", gap_BR.max())
        sums.add("ppo/server/weight_mean", e.weights.sum(), valid)
    return sums


def _critic(e: Experience) -> dict[str, Tensor]:
    """What the metrics of a critic are made of, if there is one."""
    if e.returns is None:
        return {}
    residual = (e.returns - e.values) * e.mask
    return {
        "ppo/returns/mean": e.returns, "square/returns": e.returns.double() ** 2, "ppo/val/mean": e.values,
        "square/values": e.values.double() ** 2, "mean/residual": residual, "square/residual": residual.double() ** 2,
    }  # fmt: skip


def ends_here(ppo: PPOConfig, epoch: int, sums: Sums) -> bool:
    """Whether an epoch of an update, counted from 0, is its last because of ``ppo.epoch_kl_stop``; the same in all processes.
    Without that nothing is read of a device."""
    if ppo.epoch_kl_stop is None:
        return False
    ends = epoch + 1 == ppo.epochs or sums.means()["ppo/policy/approxkl"] > ppo.epoch_kl_stop
    if ends:
        sums.add("ppo/epochs", epoch + 1, 1)
    return ends


def check_gradient(norm: float, update: int) -> None:
    """Raise NotFiniteError if the norm of an update's gradient is NaN or infinite."""
    if not math.isfinite(norm):
        raise NotFiniteError(
            f"update {update}: the gradient is not finite. The last checkpoint is untouched; try a lower "
            'ppo.learning_rate, or model.precision = "fp32"',
            "gradient",
        )


def finish(means: dict[str, float], vf_coef: float) -> dict[str, float]:
    """Turn means of squares into deviations and variances."""
    critic = "ppo/val/mean" in means
    of = {"scores": "ppo/mean_scores", "kl": "objective/kl"}
    of |= {"returns": "ppo/returns/mean", "values": "ppo/val/mean", "residual": "mean/residual"} if critic else {}
    judges = [name.split("/")[2] for name in means if name.startswith("square/judge/")]
    of |= {f"judge/{judge}/mean": f"judge/{judge}/mean" for judge in judges}
    variance = {name: max(0.0, means.pop(f"square/{name}") - means[mean] ** 2) for name, mean in of.items()}
    means["ppo/std_scores"], means["objective/kl_std"] = variance["scores"] ** 0.5, variance["kl"] ** 0.5
    means |= {f"judge/{judge}/std": variance[f"judge/{judge}/mean"] ** 0.5 for judge in judges}
    means["objective/perplexity"] = math.exp(min(700.0, means.pop("mean/initial")))
    if critic:
        means.pop("mean/residual")
        means["ppo/returns/var"], means["ppo/val/var"] = variance["returns"], variance["values"]
        means["ppo/val/var_explained"] = 1 - variance["residual"] / variance["returns"] if variance["returns"] else 0.0
    if "ppo/loss/policy" in means:
        value, kl = (means.get(name, 0.0) for name in ("ppo/loss/value", "ppo/loss/kl"))
        means["ppo/loss/total"] = means["ppo/loss/policy"] + vf_coef * value + kl
    return means


def kl_horizon(ppo: PPOConfig) -> int:
    """Episodes in which the KL coefficient can change by about a fifth."""
    return ppo.kl_horizon or min(max(ppo.episodes // 16, ppo.batch_size), 4 * ppo.batch_size)


DOUBLINGS = (-2.0, 8.0)
"""The "pid" controller moves the KL coefficient by these powers of two at most: what holds a KL down may have to be far more than
what the run began with, and far less lets go of it at once."""


@dataclass
class KlControl:
    """The KL coefficient and the state of its controller."""

    coef: float
    reached: bool = False
    """The KL has been at its target."""
    errors: tuple[float, float] = (0.0, -1.0)
    """Sum and last of those of `konomi.ops.pid_kl_coef`."""

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> KlControl:
        """That of a checkpoint; older ones lack what was not needed then."""
        total, last = state.get("kl_errors", cls.errors)
        return cls(state["kl_coef"], bool(state.get("kl_reached", False)), (total, last))

    def follow(self, ppo: PPOConfig, kl: float, update: int) -> None:
        """Set the coefficient after an update, counted from 0, of this KL.

        On its way up the KL is below the target whatever the coefficient is. Lowered meanwhile, it would be far too low when the
        target is reached, and could not come back in time: unless a horizon is set it waits, half of the run at most.
        """
        self.reached |= kl >= ppo.kl_target
        under_way = not self.reached and 2 * update < ppo.updates
        if ppo.kl_controller == "pid":
            low, high = 0.0 if under_way else DOUBLINGS[0], DOUBLINGS[1]
            self.coef, total, last = ops.pid_kl_coef(ppo.kl_coef, kl, *self.errors, target=ppo.kl_target, low=low, high=high)
            self.errors = (total, last)
        elif ppo.kl_controller == "adaptive" and not (ppo.kl_horizon is None and under_way):
            horizon = kl_horizon(ppo)
            self.coef = ops.adaptive_kl_coef(self.coef, kl, target=ppo.kl_target, horizon=horizon, episodes=ppo.batch_size)

"""What one update learns from, and the figures that describe it.

Shape suffixes: B sequences, R response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from konomi import ops
from konomi.config import PPOConfig
from konomi.engine.packed import Trunk
from konomi.engine.rollout import Rollout
from konomi.errors import RunError
from konomi.training.accelerator import Engine, Sums

RATIO_TOLERANCE = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 0.02, "sampler": 1e-3}
"""How far the probability ratio may be from 1 before the first optimiser step of an update. In fp32 and fp64 what the
sampler said of a token stands against what the trainer says of it; in bf16 the trainer stands against itself. "sampler": up
to where the sampler's word is the trainer's in bf16 too."""


@dataclass(frozen=True)
class Experience:
    """A rollout with all that the losses need; tensors [B, R], 0 at padding, nats and normalised scores."""

    rollout: Rollout
    mask: Tensor
    logprobs: Tensor
    values: Tensor
    kl: Tensor
    penalty: Tensor
    entropy: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    trunk: Trunk | None = None
    sampler_gap: float | None = None
    """How far the ratio of the sampler's probabilities and the training pass's was off 1 where they were held against each
    other before training."""

    def select(self, rows: Tensor) -> Experience:
        """The given rows, without the padding that they do not need."""
        rollout = self.rollout.select(rows)
        width = rollout.mask.shape[1]
        rest: dict[str, Any] = {k: v[rows, :width] for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, rollout=rollout, **rest, trunk=self.trunk and self.trunk.select(rows))


@dataclass(frozen=True)
class ScoreScale:
    """Mean and deviation of the initial model's scores: normalised score = (score - mean) / std."""

    mean: float = 0.0
    std: float = 1.0
    count: int = 0

    def normalised(self, scores_B: Tensor, clip: float) -> Tensor:
        """Normalised scores, held within +- ``clip``."""
        return ((scores_B - self.mean) / self.std).clamp(-clip, clip)

    def placed(self, placed_BR: Tensor, scores_B: Tensor, clip: float) -> Tensor:
        """Parts of the scores that are given at a token, in normalised units; those of a clipped score shrink as it did."""
        whole_B = self.normalised(scores_B, float("inf"))
        shrunk_B = torch.where(whole_B.abs() > clip, clip / whole_B.abs(), 1.0)
        return placed_BR / self.std * shrunk_B[:, None]

    def clipped(self, scores_B: Tensor, clip: float) -> Tensor:
        """[B] bool: beyond ``clip``."""
        return self.normalised(scores_B, float("inf")).abs() > clip


def kl_horizon(ppo: PPOConfig) -> int:
    """Episodes in which the KL coefficient can change by about a fifth."""
    return ppo.kl_horizon or min(max(ppo.episodes // 16, ppo.batch_size), 4 * ppo.batch_size)


def next_kl_coef(ppo: PPOConfig, coef: float, kl: float, *, reached: bool, update: int) -> float:
    """The KL coefficient after an update, counted from 0, of this KL; ``reached``: the KL has been at its target before.

    On its way up the KL is below the target whatever it costs. A coefficient that is lowered meanwhile is far too low when
    the target is reached, and cannot come back in time: unless a horizon is set it waits, half of the run at most.
    """
    under_way = kl < ppo.kl_target and not reached and 2 * update < ppo.updates
    if ppo.kl_controller == "fixed" or (ppo.kl_horizon is None and under_way):
        return coef
    return ops.adaptive_kl_coef(coef, kl, target=ppo.kl_target, horizon=kl_horizon(ppo), episodes=ppo.batch_size)


def check_state(state: Any) -> None:
    """Raise KeyError, TypeError or ValueError if this is not what :meth:`konomi.PPOTrainer.state_dict` gives."""
    scale = ScoreScale(**state["score_scale"])
    counters = all(type(state[name]) is int and state[name] >= 0 for name in ("update", "seed"))
    if not counters or not all(map(math.isfinite, (state["kl_coef"], scale.mean, scale.std))):
        raise ValueError("trainer.json: not the state of a PPO run")


def check_ratio(ratio_BR: Tensor, mask_BR: Tensor, engine: Engine, update: int) -> float:
    """Make sure that nothing but the optimiser moves the policy: before an update's first step the ratio is 1.

    Returns:
        How far off it is.

    Raises:
        RunError: too far.
    """
    gap = float((ratio_BR - 1.0).abs()[mask_BR].max())
    allowed = RATIO_TOLERANCE[engine.precision]
    if not gap <= allowed:
        raise RunError(
            f"update {update}: before its first step the probability ratio is off 1 by {gap:.2g} (allowed: {allowed:g}). "
            "The model does not give the same log-probabilities twice: is dropout on, or a layer random?"
        )
    return gap


def say_again(
    said: list[Tensor],
    mask_BR: Tensor,
    evaluate: Callable[[list[Tensor]], list[Tensor]],
    plan: list[list[Tensor]],
    engine: Engine,
) -> tuple[list[Tensor], float]:
    """What the policy says in the training pass, where what the sampler said may be off by more than float error; and how far
    off 1 the ratio of both is in the first mini-batch.

    The first mini-batch tells: if both say the same of it, the sampler's word is taken for the others; else they run too.

    Args:
        said: log-probabilities, and whatever else the sampler said, [B, R] each.
        mask_BR: True is a response token.
        evaluate: the same of the training pass, for micro-batches of rows; 0 in other rows.
        plan: micro-batches of each mini-batch.
        engine: knows what other processes found.
    """

    def put(old: list[Tensor], parts: list[Tensor]) -> list[Tensor]:
        rows = torch.cat(parts)
        wide = [functional.pad(new, (0, mask_BR.shape[1] - new.shape[1])) for new in evaluate(parts)]
        return [before.index_copy(0, rows, new[rows].to(before)) for before, new in zip(old, wide, strict=True)]

    first = put(said, plan[0])
    gap = ((first[0] - said[0]).exp() - 1.0).abs()[mask_BR].max()
    if len(plan) > 1 and engine.total((~(gap <= RATIO_TOLERANCE["sampler"])).float()):
        first = put(first, [part for mini_batch in plan[1:] for part in mini_batch])
    return first, float(gap)


def describe(e: Experience, scores_B: Tensor, kl_coef: float) -> Sums:
    """The metrics that are known before training. ``scores_B``: raw."""
    sums, responses, valid = Sums(), len(scores_B), e.mask.sum()
    sums.add("objective/kl", e.kl.sum(), responses)
    sums.add("objective/entropy", e.entropy.sum(), responses)
    sums.add("ppo/policy/entropy", e.entropy.sum(), valid)
    sums.add("ppo/mean_scores", scores_B.sum(), responses)
    sums.add("square/scores", (scores_B**2).sum(), responses)
    sums.add("ppo/mean_non_score_reward", -kl_coef * e.penalty.sum(), valid)
    sums.add("ppo/policy/advantages_mean", e.advantages.sum(), valid)
    sums.add("ppo/returns/mean", e.returns.sum(), valid)
    sums.add("square/returns", (e.returns.double() ** 2).sum(), valid)
    sums.add("ppo/val/mean", e.values.sum(), valid)
    sums.add("square/values", (e.values.double() ** 2).sum(), valid)
    sums.add("mean/residual", ((e.returns - e.values) * e.mask).sum(), valid)
    sums.add("square/residual", (((e.returns - e.values) * e.mask).double() ** 2).sum(), valid)
    sums.add("tokens/queries_len_mean", e.rollout.query_lengths.sum(), responses)
    sums.add("tokens/responses_len_mean", e.rollout.response_lengths.sum(), responses)
    sums.add("tokens/ended_share", e.rollout.ended.sum(), responses)
    if e.sampler_gap is not None:
        sums.most("ppo/policy/sampler_gap", e.sampler_gap)
    return sums


def finish(means: dict[str, float], vf_coef: float) -> dict[str, float]:
    """Turn means of squares into deviations and variances."""
    variance = {
        name: max(0.0, means.pop(f"square/{name}") - means[mean] ** 2)
        for name, mean in (
            ("scores", "ppo/mean_scores"), ("returns", "ppo/returns/mean"), ("values", "ppo/val/mean"),
            ("residual", "mean/residual"),
        )
    }  # fmt: skip
    means.pop("mean/residual")
    means["ppo/std_scores"] = variance["scores"] ** 0.5
    means["ppo/returns/var"], means["ppo/val/var"] = variance["returns"], variance["values"]
    means["ppo/val/var_explained"] = 1 - variance["residual"] / variance["returns"] if variance["returns"] else 0.0
    if "ppo/loss/policy" in means:
        means["ppo/loss/total"] = means["ppo/loss/policy"] + vf_coef * means["ppo/loss/value"]
    return means

"""What one update learns from, and the figures that describe it.

Shape suffixes: B sequences, R response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from konomi.data.batch import Rollout
from konomi.train.loop import Sums


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

    def select(self, rows: Tensor) -> Experience:
        """The given rows, without the padding that they do not need."""
        rollout = self.rollout.select(rows)
        width = rollout.mask.shape[1]
        rest = {k: v[rows, :width] for k, v in vars(self).items() if k != "rollout"}
        return Experience(rollout, **rest)


@dataclass(frozen=True)
class ScoreScale:
    """Mean and deviation of the initial model's scores: normalised score = (score - mean) / std."""

    mean: float = 0.0
    std: float = 1.0
    count: int = 0


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
    return sums


def finish(means: dict[str, float], vf_coef: float) -> dict[str, float]:
    """Turn means of squares into deviations and variances."""
    variance = {
        name: max(0.0, means.pop(f"square/{name}") - means[mean] ** 2)
        for name, mean in (
            ("scores", "ppo/mean_scores"), ("returns", "ppo/returns/mean"), ("values", "ppo/val/mean"), ("residual", "mean/residual"),
        )
    }  # fmt: skip
    means.pop("mean/residual")
    means["ppo/std_scores"] = variance["scores"] ** 0.5
    means["ppo/returns/var"], means["ppo/val/var"] = variance["returns"], variance["values"]
    means["ppo/val/var_explained"] = 1 - variance["residual"] / variance["returns"] if variance["returns"] else 0.0
    if "ppo/loss/policy" in means:
        means["ppo/loss/total"] = means["ppo/loss/policy"] + vf_coef * means["ppo/loss/value"]
    return means

"""From scores to advantages: a function for each kind of `[algorithm]`.

The rest is the same for all: generation, scoring, the KL and its coefficient, clipped steps, guards, checkpoints.

Shape suffixes: B sequences, R response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from konomi import ops
from konomi.config import (
    ActorCriticConfig,
    AlgorithmConfig,
    BondConfig,
    GRPOConfig,
    PPOConfig,
    ReinforceConfig,
    RLOOConfig,
    check_algorithm,
)
from konomi.errors import ConfigError
from konomi.models.policy import Policy
from konomi.training.experience import Comparison, ScoreScale


@dataclass(frozen=True)
class Batch:
    """The responses of an update with their scores, those to a prompt in a row."""

    compared: Comparison
    scores: Tensor
    """[B], raw units."""
    token_rewards: Tensor | None
    """[B, R], raw units: see `konomi.training.experience.ScoredRollout`."""
    scale: ScoreScale
    clip: float
    """Normalised scores are held within +- this."""
    kl_coef: float
    longest: int
    """The most tokens of a response."""

    def rewards(self, *, baseline: int = 1, kl: bool = True) -> Tensor:
        """[B, R]: normalised scores and the KL penalty. ``baseline`` above 1: scores are less the mean of so many others;
        ``kl = False``: without the penalty."""
        penalty_BR, mask_BR, by_token = self.compared.penalty, self.compared.mask, self.token_rewards
        scores_B = self.scale.normalised(self.scores).clamp(-self.clip, self.clip).to(penalty_BR)
        if baseline > 1:
            scores_B = ops.leave_one_out(scores_B, baseline)
        if by_token is not None:
            by_token = self.scale.token_rewards(by_token, self.scores, self.clip).to(penalty_BR)
        return ops.shaped_rewards(penalty_BR, scores_B, mask_BR, self.kl_coef if kl else 0.0, by_token)

    def at_each_token(self, x_B: Tensor) -> Tensor:
        """[B, R]: the value of a response at each of its tokens, 0 at padding."""
        mask_BR = self.compared.mask
        return torch.where(mask_BR, x_B[:, None], 0)

    @property
    def shares(self) -> Tensor:
        """[B, R]: 1 / the length of the response."""
        return self.at_each_token(1 / self.compared.mask.sum(1).to(self.compared.penalty))


@dataclass(frozen=True)
class Targets:
    """What the losses of an update need besides the old policy; [B, R], normalised scores."""

    rewards: Tensor
    advantages: Tensor
    returns: Tensor | None = None
    """For the critic, if there is one."""
    shares: Tensor | None = None
    """What each token counts in the policy's loss, which is then divided by the number of responses; None: 1, and it is divided
    by the number of tokens."""
    kl_weights: Tensor | None = None
    """What the KL of each token counts in the loss, if it is a term of it."""


def check_policy(algorithm: AlgorithmConfig, ppo: PPOConfig, policy: Policy) -> None:
    """Raise ConfigError unless settings and policy fit the algorithm."""
    try:
        check_algorithm(algorithm, ppo)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if algorithm.critic and policy.value_head is None:
        raise ConfigError('algorithm.kind = "ppo" trains a critic, and this policy has no value head: make it with critic=True')


def make_targets(algorithm: AlgorithmConfig, batch: Batch, ppo: PPOConfig) -> Targets:
    """Compute the targets of a batch with the chosen algorithm."""
    if isinstance(algorithm, ActorCriticConfig):
        return actor_critic(batch, ppo)
    if isinstance(algorithm, RLOOConfig):
        return rloo(algorithm, batch, ppo.responses_per_prompt)
    if isinstance(algorithm, GRPOConfig):
        return grpo(algorithm, batch, ppo.responses_per_prompt)
    if isinstance(algorithm, BondConfig):
        return bond(algorithm, batch, ppo.responses_per_prompt)
    assert isinstance(algorithm, ReinforceConfig)
    return reinforce(batch, ppo.responses_per_prompt)


def actor_critic(batch: Batch, ppo: PPOConfig) -> Targets:
    """PPO: advantages against a critic (Schulman et al. 2016, arXiv:1506.02438), whitened over the batch."""
    rewards_BR, mask_BR = batch.rewards(baseline=ppo.responses_per_prompt), batch.compared.mask
    advantages_BR, returns_BR = ops.gae(rewards_BR, batch.compared.values, mask_BR, gamma=ppo.gamma, lam=ppo.lam)
    if ppo.whiten_advantages:
        advantages_BR = ops.whiten(advantages_BR, mask_BR)
    return Targets(rewards_BR, advantages_BR, returns_BR)


def rloo(algorithm: RLOOConfig, batch: Batch, group: int) -> Targets:
    """RLOO: the score less the KL of a whole response, against the mean of the others to its prompt (Ahmadian et al. 2024,
    arXiv:2402.14740, section 3)."""
    rewards_BR = batch.rewards()
    advantages_B = ops.leave_one_out(rewards_BR.sum(1), group)
    shares = batch.shares if algorithm.level == "sequence" else None
    return Targets(rewards_BR, batch.at_each_token(advantages_B), shares=shares)


def grpo(algorithm: GRPOConfig, batch: Batch, group: int) -> Targets:
    """GRPO: scores in deviations of those to the same prompt (Shao et al. 2024, arXiv:2402.03300). Tokens count as there, as in
    DAPO (Yu et al. 2025, arXiv:2503.14476), or as in Dr. GRPO (Liu et al. 2025, arXiv:2503.20783)."""
    in_loss = algorithm.kl == "loss"
    rewards_BR = batch.rewards(kl=not in_loss)
    advantages_B = ops.group_relative(rewards_BR.sum(1), group, scale=algorithm.scale)
    one_BR = batch.at_each_token(torch.ones_like(advantages_B))
    shares_BR = {"grpo": batch.shares, "dapo": one_BR, "dr_grpo": one_BR / batch.longest}[algorithm.loss]
    return Targets(
        rewards_BR, batch.at_each_token(advantages_B), shares=None if algorithm.loss == "dapo" else shares_BR,
        kl_weights=batch.kl_coef * shares_BR if in_loss else None,
    )  # fmt: skip


def reinforce(batch: Batch, group: int) -> Targets:
    """REINFORCE++: the rewards from a token on, whitened over the batch (Hu et al. 2025, arXiv:2501.03262)."""
    rewards_BR, mask_BR = batch.rewards(baseline=group), batch.compared.mask
    to_go_BR, _ = ops.gae(rewards_BR, torch.zeros_like(rewards_BR), mask_BR, gamma=1.0, lam=1.0)
    return Targets(rewards_BR, ops.whiten(to_go_BR, mask_BR))


def bond(algorithm: BondConfig, batch: Batch, group: int) -> Targets:
    """BOND: towards the best of n = ``group`` responses (Sessa et al. 2024, arXiv:2407.14622), less the KL of a response against
    that of the others. The n are the policy's own: as it moves, so does what it imitates, until the KL holds it."""
    penalty_BR, mask_BR = batch.compared.penalty, batch.compared.mask
    towards_B = ops.best_of_n(batch.scores, group, backward=algorithm.backward).to(penalty_BR)
    rewards_BR = ops.shaped_rewards(penalty_BR, towards_B, mask_BR, batch.kl_coef)
    cost_B = ops.leave_one_out(rewards_BR.sum(1) - towards_B, group)
    return Targets(rewards_BR, batch.at_each_token(towards_B + cost_B))

"""How a policy learns from scored responses: `[algorithm]` of a `konomi ppo` file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from konomi.config.section import Section, Share

if TYPE_CHECKING:
    from konomi.config.ppo import PPOConfig

_OF_THE_CRITIC = ("gamma", "lam", "value_clip", "value_learning_rate", "vf_coef")


class _Algorithm(Section):
    """What the loop asks of an algorithm."""

    critic: ClassVar[bool] = False
    """Whether a value head is trained."""
    compares: ClassVar[bool] = False
    """Whether the responses to a prompt are compared with each other."""

    @property
    def whole_ratio(self) -> bool:
        """Whether the probability ratio is that of a whole response."""
        return False

    def unread(self) -> tuple[str, ...]:
        """The settings of `[ppo]` that it does not read."""
        return (*_OF_THE_CRITIC, "whiten_advantages")


class ActorCriticConfig(_Algorithm):
    """PPO (Schulman et al. 2017): a critic, trained beside the policy, says what was to be expected of a text at each token. Its
    settings are in [ppo]."""

    critic: ClassVar[bool] = True

    kind: Literal["ppo"] = "ppo"

    def unread(self) -> tuple[str, ...]:
        """None: it reads them all."""
        return ()


class RLOOConfig(_Algorithm):
    """RLOO (Ahmadian et al. 2024): the score of a response, less its KL, against the mean of the other responses to its prompt.
    No critic."""

    compares: ClassVar[bool] = True

    kind: Literal["rloo"] = "rloo"
    level: Literal["sequence", "token"] = "sequence"
    """Which probability ratio is clipped. sequence: that of a whole response, as in the paper, each response counting the same.
    token: that of each token, as in PPO, each token counting the same; it bears more steps on one batch."""

    @property
    def whole_ratio(self) -> bool:
        """The product over its tokens."""
        return self.level == "sequence"


class GRPOConfig(_Algorithm):
    """GRPO (Shao et al. 2024): scores in deviations from the mean of their prompt. No critic."""

    compares: ClassVar[bool] = True

    kind: Literal["grpo"] = "grpo"
    scale: Literal["group", "batch", "none"] = "group"
    """What a score's distance from the mean of its prompt is divided by. group: the deviation of the scores of its prompt, so
    that easy and hard prompts count the same. batch: that of the whole batch. none: nothing (Dr. GRPO)."""
    loss: Literal["grpo", "dapo", "dr_grpo"] = "dapo"
    """How tokens count. grpo: the mean over each response, then over responses, so that a token of a short response counts more.
    dapo: the mean over all tokens of the mini-batch. dr_grpo: their sum, divided by the number of responses and the most tokens
    of a response."""
    kl: Literal["loss", "reward"] = "loss"
    """Where the KL is held. loss: a term of the loss (k3), weighted by the KL coefficient. reward: in the reward, as PPO has
    it."""

    def unread(self) -> tuple[str, ...]:
        """With the KL in the loss no estimate of it is a penalty."""
        return (*super().unread(), *(["kl_penalty"] if self.kl == "loss" else []))


class ReinforceConfig(_Algorithm):
    """REINFORCE++ (Hu et al. 2025): the score less the KL that is still to come, brought to mean 0 and deviation 1 over the whole
    batch. No critic, and one response a prompt is enough."""

    kind: Literal["reinforce++"] = "reinforce++"


class BondConfig(_Algorithm):
    """Best-of-n distillation, after BOND (Sessa et al. 2024): the policy learns to answer as the best of its own n =
    responses_per_prompt responses. Only the order of the scores of a prompt counts. No critic."""

    compares: ClassVar[bool] = True

    kind: Literal["bond"] = "bond"
    backward: Share = 0.5
    """Share of the backward KL to the best of n, which leaves what scores low; the rest is the forward KL, which imitates the
    best response. Higher: less variety."""

    def unread(self) -> tuple[str, ...]:
        """Nothing depends on the scale of the scores."""
        return (*super().unread(), "normalize_scores", "score_clip")


AlgorithmConfig = Annotated[
    ActorCriticConfig | RLOOConfig | GRPOConfig | ReinforceConfig | BondConfig, Field(discriminator="kind")
]


def check_algorithm(algorithm: AlgorithmConfig, ppo: PPOConfig) -> None:
    """Raise ValueError if a setting of `[ppo]` was changed that the algorithm does not read, or is of no use to it."""
    named = f'algorithm.kind = "{algorithm.kind}"'
    for name in algorithm.unread():
        value, default = getattr(ppo, name), type(ppo).model_fields[name].default
        if value != default:
            shown, usual = json.dumps(value), json.dumps(default)
            raise ValueError(f"ppo.{name} = {shown} with {named}, which does not read it; remove it, or set it to {usual}")
    if algorithm.compares and ppo.responses_per_prompt == 1:
        raise ValueError(
            f"ppo.responses_per_prompt = 1 with {named}, which compares the responses to a prompt with each other; set it to 4"
        )

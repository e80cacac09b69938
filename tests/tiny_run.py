"""A whole PPO run in the tiny world, in milliseconds an update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from konomi.config import (
    BondConfig,
    DataConfig,
    GRPOConfig,
    LoraConfig,
    PPOConfig,
    ReinforceConfig,
    RLOOConfig,
    RolloutConfig,
)
from konomi.data.records import Prompt
from konomi.data.tokens import Tokens
from konomi.engine.forward import pass_full_kl, plan_pass
from konomi.engine.layout import scatter
from konomi.engine.rollout import Rollout
from konomi.engine.sampler import make_draws, sample
from konomi.models.lora import add_adapters
from konomi.models.policy import Policy, make_reference
from konomi.runs.observer import StepResult
from konomi.training.experience import Experience
from konomi.training.ppo import PPOTrainer
from tiny import tiny_model, tiny_tokenizer

PROMPTS = [
    Prompt(text, {"weight": i})
    for i, text in enumerate(["the cat", "a", "once upon a time", "rain", "we saw", "hello there", "q", "zebras run far"])
]


class CountA:
    """The letters "a" of the response, plus noise of some global generator if asked for."""

    def __init__(self, noise: str = "") -> None:
        self.name, self.noise = "count-a", noise

    def __call__(self, texts: Sequence[str], *, prompts: Any, responses: Sequence[str], columns: Any) -> list[float]:
        return [response.count("a") + self._noise() for response in responses]

    def _noise(self) -> float:
        import random

        import numpy as np

        draws = {"torch": lambda: float(torch.randn(())), "numpy": np.random.normal, "python": lambda: random.gauss(0, 1)}
        return float(draws[self.noise]()) if self.noise else 0.0


class Constant:
    """One score for all texts."""

    def __init__(self, value: float) -> None:
        self.name, self.value = "constant", value

    def __call__(self, texts: Sequence[str], **_: Any) -> list[float]:
        return [self.value] * len(texts)


def sharp_model(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """A float64 model whose next token depends much on all tokens before it: random weights of the usual size do not."""
    return tiny_model(family, seed=seed, initializer_range=0.3, **changes).double()


def without_dropout(family: str, **changes: Any) -> Any:
    """A model as `konomi.models.load` hands it on."""
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    return tiny_model(family, **{**rates, **changes})


CRITIC_FREE = {
    "rloo": RLOOConfig(), "rloo-token": RLOOConfig(level="token"), "grpo": GRPOConfig(),
    "grpo-reward": GRPOConfig(kl="reward", loss="grpo", scale="batch"), "reinforce++": ReinforceConfig(), "bond": BondConfig(),
}  # fmt: skip
"""Algorithms without a critic, in the forms that differ."""


def disturbed(model: Any, size: float = 0.05, seed: int = 5) -> None:
    """Move the trained weights of a model a little, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += size * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)


def weights(model: torch.nn.Module) -> torch.Tensor:
    """A copy of all weights in one row, to compare."""
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def tiny_rollout(model: Any, count: int = 9, *, seed: int = 0, **rollout: Any) -> Rollout:
    """Queries of 1 to 20 tokens and responses of 1 to 9."""
    config = RolloutConfig(**{"response_tokens": (1, 9), **rollout})
    names = [("rollout", i) for i in range(count)]
    return sample(model, Tokens(tiny_tokenizer()), ragged_queries(count, seed), make_draws(config, seed, names), config)


def alone(lm: Any, rollout: Rollout, temperature: float = 1.0) -> list[torch.Tensor]:
    """Log-soft-max [R, V], float64, that each response was drawn from, by the model's own forward pass of one sequence.

    Gemma 2's soft-max is float32 in a model of float64, and how many columns it sums decides the last bit: its sequences are as
    wide as the longest, with padding to the right, which causality keeps from them.
    """
    out, width = [], int(rollout.lengths.max()) - 1
    for query, response in zip(rollout.query_ids(), rollout.response_ids(), strict=True):
        ids = (query + response)[:-1]
        ids += [0] * (width - len(ids)) if lm.config.model_type == "gemma2" else []
        logits = lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0, len(query) - 1 :][: len(response)]
        out.append((logits.double() / temperature).log_softmax(-1))
    return out


def taken(logprobs: Sequence[torch.Tensor], rollout: Rollout) -> list[torch.Tensor]:
    """Of rows [R, V] what belongs to the tokens of the responses: [R] each."""
    return [row[range(len(response)), response] for row, response in zip(logprobs, rollout.response_ids(), strict=True)]


def ragged_queries(count: int, seed: int = 0) -> list[list[int]]:
    """Queries of 1 to 20 tokens, the first of them the longest."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [20, 1, *torch.randint(1, 21, (count,), generator=generator).tolist()][:count]
    return [torch.randint(2, 29, (n,), generator=generator).tolist() for n in lengths]


def tiny_trainer(
    family: str = "gpt2", *, model: Any = None, reward: Any = None, freeze: bool = False, top_layers: int | None = None,
    shift: float = 0.0, seed: int = 0, precision: str = "fp32", failed_texts: Path | None = None,
    judges: Mapping[str, Any] | None = None, rollout: Mapping[str, Any] | None = None, lora: int | None = None,
    quantize: Any = "none", algorithm: Any = None, **ppo: Any,
) -> PPOTrainer:  # fmt: skip
    """A trainer of its own model; ``shift``: the policy is that far from the reference already; ``lora``: rank of adapters."""
    model = model if model is not None else without_dropout(family)
    add_adapters(model, LoraConfig(rank=lora, quantize=quantize), seed=seed)
    policy = Policy(model, freeze, top_layers)
    reference = make_reference(policy)
    if shift:
        disturbed(policy, shift)
    settings = {
        "episodes": 64, "batch_size": 16, "mini_batch_size": 8, "micro_batch_tokens": 100, "baseline_samples": 16,
        "learning_rate": 1e-3, "kl_coef": 0.05, **({"value_learning_rate": 1e-2} if algorithm is None else {}),
    }  # fmt: skip
    return PPOTrainer(
        policy, reference, Tokens(tiny_tokenizer()), PROMPTS, reward or CountA(),
        ppo=PPOConfig(**{**settings, **ppo}), rollout=RolloutConfig(**{"response_tokens": (3, 7), **(rollout or {})}),
        data=DataConfig(query_tokens=(2, 6)), seed=seed, precision=precision, failed_texts=failed_texts, judges=judges,
        algorithm=algorithm,
    )  # fmt: skip


def chance(observed: torch.Tensor, shares: torch.Tensor) -> float:
    """Pearson's chi-square test: how likely counts as far off as these are, if the shares are right."""
    counts, expected = observed.double(), shares.double() * observed.sum()
    rare = expected < 5  # taken together: the test is for larger cells
    if rare.any():
        counts, expected = (torch.cat([x[~rare], x[rare].sum(0, keepdim=True)]) for x in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.float64), statistic / 2))


def facts(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics without times and memory."""
    return {k: v for k, v in metrics.items() if not k.startswith(("time/", "memory/")) and not k.endswith("per_second")}


def token_full_kl(lm: Any, reference: Any, rollout: Rollout, temperature: float) -> Any:
    """[B, R] exact KL before each response token."""
    p = plan_pass(lm, rollout)
    return scatter([(p, pass_full_kl(lm, reference, p, temperature)[None])], len(rollout))[0]


def experience_of(trainer: Any, drawn: Any, scores: Any, token_rewards: Any = None) -> Any:
    """What a trainer learns from these responses and scores."""
    passes = trainer._passes(drawn.rollout, epoch=0)
    return trainer._experience(drawn, trainer.models.compare(drawn, passes, first=trainer.update == 0), scores, token_rewards)


def watched(trainer: PPOTrainer) -> tuple[StepResult, Experience]:
    """A step, and the experience that it was made of."""
    made: list[Experience] = []

    class Watched(PPOTrainer):
        def _experience(self, *arguments: Any) -> Experience:
            made.append(super()._experience(*arguments))
            return made[-1]

    trainer.__class__ = Watched
    return trainer.step(), made[0]

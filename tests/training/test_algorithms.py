"""Algorithms without a critic: against TRL, against slow loops, and what is not there without one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import oracles
from konomi.config import BondConfig, GRPOConfig, PPOConfig, ReinforceConfig, RLOOConfig
from konomi.engine.forward import Evaluation
from konomi.engine.layout import Pass
from konomi.engine.rollout import Rollout
from konomi.errors import ConfigError
from konomi.models.policy import Policy
from konomi.training.algorithms import Batch, check_policy, make_targets
from konomi.training.experience import Comparison, Experience, ScoreScale
from konomi.training.gradient import Gradient
from tiny_run import CRITIC_FREE, experience_of, sharp_model, tiny_trainer, watched, without_dropout

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "critic_free.json").read_text("utf-8"))["cases"]
assert len(GOLDEN) == 16  # none of them is skipped


def exact(numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def named(case: dict[str, Any]) -> str:
    return "-".join(str(case[name]) for name in ("kind", "loss", "scale", "kl_coef") if name in case)


def experience_from(case: dict[str, Any], algorithm: Any, ppo: PPOConfig) -> Experience:
    """What the algorithm makes of the scores and log-probabilities of a golden case."""
    old, reference, scores = (exact(case[name]) for name in ("old_logprobs", "reference_logprobs", "scores"))
    mask, kl, zero = torch.tensor(case["mask"]).bool(), old - reference, torch.zeros_like(old)
    compared = Comparison(mask, old, zero, zero, kl, kl, None, None)
    batch = Batch(compared, scores, None, ScoreScale(), math.inf, case["kl_coef"], case.get("longest", 9))
    lengths = mask.sum(1)
    rollout = Rollout(torch.ones(len(mask), mask.shape[1] + 1).long(), torch.ones_like(lengths), lengths, lengths > 0)
    targets = make_targets(algorithm, batch, ppo)
    return Experience(**vars(compared), **vars(targets), rollout=rollout, trunk=None, weights=None)


@pytest.mark.parametrize("case", GOLDEN, ids=named)
def test_advantages_losses_and_gradients_are_those_of_trl(case: dict[str, Any]) -> None:
    """In one micro-batch, and in three whose gradients add up. TRL's n / (n - 1) in a deviation is float32."""
    count, expected = len(case["scores"]), {name: exact(x) for name, x in case["expected"].items()}
    algorithm = RLOOConfig() if case["kind"] == "rloo" else GRPOConfig(scale=case["scale"], loss=case["loss"])
    ppo = PPOConfig(
        episodes=count, batch_size=count, mini_batch_size=count, responses_per_prompt=case["group"], clip=case["clip"]
    )
    made = experience_from(case, algorithm, ppo)
    oracles.close(made.advantages, torch.where(made.mask, expected["advantages"][:, None], 0), 1e-7)
    gradient = Gradient(tiny_trainer().models, algorithm, ppo, 1.0)
    columns, new = torch.stack(list(made.columns.values())), exact(case["logprobs"]).requires_grad_()
    units = torch.tensor(count if made.shares is not None else int(made.mask.sum()))
    for parts in ([torch.arange(count)], [torch.tensor([0]), torch.arange(2, count), torch.tensor([1])]):
        total = torch.zeros(()).double()
        for rows in parts:
            p = Pass(made.rollout, rows, torch.device("cpu"), packs=False)
            new_N: Tensor = p.select(new[None])[0]
            evaluated = Evaluation(new_N, torch.zeros_like(new_N), torch.zeros_like(new_N))
            old = dict(zip(made.columns, p.select(columns), strict=True))
            loss, figures = gradient._loss(evaluated, p, old, units, torch.tensor(False))
            total = total + loss
            assert sum(map(len, figures)) == 6 + (made.kl_weights is not None)
        oracles.close(total, expected["loss"], 1e-7)
        oracles.close(*torch.autograd.grad(total, new), expected["gradient"], 1e-7)


@pytest.mark.parametrize(
    ("algorithm", "group"), [(ReinforceConfig(), 1), (ReinforceConfig(), 4), (BondConfig(), 4), (BondConfig(backward=0.2), 2)]
)  # fmt: skip
def test_advantages_are_those_of_plain_loops(algorithm: Any, group: int) -> None:
    trainer = tiny_trainer(
        model=sharp_model("gpt2"), shift=0.1, precision="fp64", responses_per_prompt=group, kl_coef=0.3, algorithm=algorithm,
        score_clip=2.0 if algorithm.kind == "reinforce++" else 5.0,
    )  # fmt: skip
    trainer.scale = ScoreScale(mean=1.0, std=0.5)
    scores = [float(i * i % 7) - 2 for i in range(16)]
    made = experience_of(trainer, trainer._generate()[1], exact(scores))
    kl = [row[valid].tolist() for row, valid in zip(made.kl, made.mask, strict=True)]
    assert max(map(max, kl)) > 0.1
    if algorithm.kind == "reinforce++":
        normal = [min(max((score - 1.0) / 0.5, -2.0), 2.0) for score in scores]
        normal = oracles.leave_one_out(normal, group) if group > 1 else normal
        rows = oracles.shaped_rewards(kl, normal, 0.3)
        expected = oracles.whiten([[math.fsum(row[t:]) for t in range(len(row))] for row in rows], True, 1e-8)
    else:
        cost = oracles.leave_one_out([-0.3 * math.fsum(row) for row in kl], group)
        towards = oracles.best_of_n(scores, group, algorithm.backward)
        expected = [[a + b] * len(row) for a, b, row in zip(towards, cost, kl, strict=True)]
    for row, valid, wanted in zip(made.advantages, made.mask, expected, strict=True):
        oracles.close(row[valid], exact(wanted))
    assert made.returns is None and not made.advantages[~made.mask].any()


@pytest.mark.parametrize(
    ("algorithm", "unit"),
    [(RLOOConfig(), "response"), (RLOOConfig(level="token"), "token"), (GRPOConfig(kl="reward", loss="dr_grpo"), "constant"),
     (GRPOConfig(kl="reward", loss="grpo"), "mean"), (ReinforceConfig(), "token"), (BondConfig(), "token")],
)  # fmt: skip
@pytest.mark.parametrize("tokens", [30, 10**6])
def test_a_step_is_that_of_the_plain_policy_gradient(algorithm: Any, unit: str, tokens: int) -> None:
    """Whose ratios are 1, in many micro-batches and in one."""
    one, two = (
        tiny_trainer(
            precision="fp64", shift=0.1, episodes=16, epochs=1, mini_batch_size=16, micro_batch_tokens=tokens,
            responses_per_prompt=4, algorithm=algorithm,
        )
        for _ in range(2)
    )  # fmt: skip
    step, e = watched(one)
    gains = two.policy(e.rollout).logprobs * e.advantages
    gain = {
        "response": gains.sum() / 16, "token": gains.sum() / e.mask.sum(), "constant": gains.sum() / (16 * 7),
        "mean": (gains.sum(1) / e.mask.sum(1)).mean(),
    }[unit]  # fmt: skip
    slopes = torch.autograd.grad(-gain, list(two.policy.parameters()))
    assert step.metrics["ppo/policy/grad_norm"] == pytest.approx(float(torch.cat([x.flatten() for x in slopes]).norm()))
    one = e.mask.double()
    shares = {"constant": one / 7, "token": 16 * one / one.sum()}.get(unit, one / one.sum(1, keepdim=True))
    assert step.metrics["ppo/loss/policy"] == pytest.approx(-float((e.advantages * shares).sum()) / 16, abs=1e-9)
    assert step.metrics["ppo/policy/ratio"] == pytest.approx(1.0)


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_ratios_of_whole_responses_have_no_range(level: Any) -> None:
    trainer = tiny_trainer(
        algorithm=RLOOConfig(level=level), responses_per_prompt=4, episodes=16, mini_batch_size=4, learning_rate=0.1
    )
    step = trainer.step()
    assert step.metrics["ppo/policy/clipfrac"] > 0.2 and abs(step.metrics["ppo/policy/ratio"] - 1) > 0.05
    marked = {"ppo/policy/clipfrac", "ppo/policy/ratio"} & set(step.out_of_range)
    assert len(marked) == (2 if level == "token" else 0) and "ppo/policy/approxkl" in step.out_of_range


@pytest.mark.parametrize("name", CRITIC_FREE)
def test_without_a_critic_there_is_no_value_head_and_nothing_is_said_of_one(name: str) -> None:
    trainer = tiny_trainer(algorithm=CRITIC_FREE[name], responses_per_prompt=4, episodes=16, shift=0.05)
    assert trainer.policy.value_head is None
    assert len(trainer.engine.parameters) == len(list(trainer.policy.lm.parameters()))
    metrics = trainer.step().metrics
    assert not [key for key in metrics if key.startswith(("ppo/val/", "ppo/returns/", "ppo/loss/value"))]
    assert ("ppo/loss/kl" in metrics, "ppo/mean_non_score_reward" in metrics) == (name == "grpo", name != "grpo")
    assert metrics["ppo/loss/total"] == pytest.approx(metrics["ppo/loss/policy"] + metrics.get("ppo/loss/kl", 0.0))
    assert metrics["ppo/scores_clipped"] == 0.0 or name != "bond"
    assert all(math.isfinite(value) for value in metrics.values())


def test_what_does_not_fit_an_algorithm_is_refused() -> None:
    policy = Policy(without_dropout("gpt2"), critic=False)
    for algorithm, settings, words in (
        (None, {}, "this policy has no value head: make it with critic=True"),
        (RLOOConfig(), {}, 'ppo.responses_per_prompt = 1 with algorithm.kind = "rloo", which compares'),
        (ReinforceConfig(), {"lam": 0.9}, 'ppo.lam = 0.9 with algorithm.kind = "reinforce++", which does not read it'),
    ):
        trainer = tiny_trainer()
        with pytest.raises(ConfigError, match=words.replace("+", r"\+")):
            check_policy(algorithm or trainer.algorithm, PPOConfig(**settings), policy)

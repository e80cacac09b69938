"""The PPO trainer in the tiny world."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import oracles
from konomi.config import PPOConfig, RolloutConfig
from konomi.engine.sampler import generate, make_draws
from konomi.errors import RunError
from konomi.training.experience import Experience, ScoredRollout, ScoreScale
from konomi.training.metrics import KlControl, Sums, describe, kl_horizon
from konomi.training.ppo import PPOTrainer
from tiny import FAMILIES, tiny_model
from tiny_run import CRITIC_FREE, Constant, CountA, alone, experience_of, facts, sharp_model, tiny_trainer, watched, weights


def critic_free(name: str | None) -> dict[str, Any]:
    """Settings of a trainer with this algorithm; None: PPO."""
    return {"algorithm": CRITIC_FREE[name], "responses_per_prompt": 4} if name else {}


HALF_FROZEN = [(family, number % 2 == 1) for number, family in enumerate(FAMILIES)]
"""Each family, every other one with frozen embeddings."""

# -- it learns ---------------------------------------------------------------------------------------------------------


LEARNING = [
    ("gpt2", False, None, None), ("gemma3", True, None, None), ("gemma3", True, 4, None),
    *(("gpt2", False, None, name) for name in CRITIC_FREE),
]  # fmt: skip


@pytest.mark.parametrize(("family", "freeze", "lora", "algorithm"), LEARNING)
def test_the_reward_rises(family: str, freeze: bool, lora: int | None, algorithm: str | None) -> None:
    trainer = tiny_trainer(
        family, freeze=freeze, lora=lora, model=None if not freeze else tiny_model(family, initializer_range=0.1),
        episodes=15 * 32, batch_size=32, mini_batch_size=16, learning_rate=1e-2, kl_coef=0.02, kl_target=8.0,
        micro_batch_tokens=500, rollout={"stop": "length", "response_tokens": (4, 8)}, **critic_free(algorithm),
    )  # fmt: skip
    steps = list(trainer)
    scores = [step.metrics["ppo/mean_scores"] for step in steps]
    assert len(scores) == 15
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 1.0, scores
    assert steps[-1].metrics["objective/kl"] > 1.0
    assert steps[-1].metrics["objective/entropy"] < steps[0].metrics["objective/entropy"]
    assert [(step.update, step.episodes) for step in steps] == [(i, 32 * i) for i in range(1, 16)]


@pytest.mark.parametrize(("family", "freeze"), HALF_FROZEN)
def test_the_first_update_begins_at_the_reference(family: str, freeze: bool) -> None:
    """Also: the ratio before the first step is 1 to the bit on every family, or the step would have failed."""
    trainer = tiny_trainer(family, freeze=freeze, epochs=1, mini_batch_size=16, episodes=32)
    first, second = trainer
    assert first.metrics["objective/kl"] == 0.0
    assert first.metrics["ppo/val/mean"] == 0.0
    assert first.metrics["ppo/policy/ratio"] == 1.0 and first.metrics["ppo/policy/clipfrac"] == 0.0
    assert second.metrics["objective/kl"] != 0.0


# -- numbers -----------------------------------------------------------------------------------------------------------


def experience(trainer: PPOTrainer, scores: list[float], **rollout: Any) -> Experience:
    config = RolloutConfig(**{"response_tokens": (1, 3), **rollout})
    count = len(scores)
    _, queries = trainer.queries.take(0, count)
    draws = make_draws(config, 0, [("x", i) for i in range(count)])
    drawn = generate(trainer.policy.lm, trainer.tokens, queries, draws, config, values=trainer.policy.values)
    return experience_of(trainer, drawn, torch.tensor(scores, dtype=torch.float64))


@torch.no_grad()
def token_values(trainer: PPOTrainer, query: list[int], response: list[int]) -> list[float]:
    states = trainer.policy.lm.base_model(input_ids=torch.tensor([query + response])).last_hidden_state[0]
    return trainer.policy.value_head(states)[len(query) - 1 : -1, 0].tolist()


@pytest.mark.parametrize("kind", ["k1", "abs", "k2", "full"])
@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_experience_is_that_of_plain_loops(family: str, kind: str) -> None:
    trainer = tiny_trainer(
        family, shift=0.1, precision="fp64", gamma=0.9, lam=0.8, kl_coef=0.3, kl_penalty=kind, whiten_advantages=False,
        rollout={"temperature": 0.7}, micro_batch_tokens=30,
    )  # fmt: skip
    torch.nn.init.normal_(trainer.policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    trainer.scale = ScoreScale(mean=1.5, std=2.0)
    scores = [3.0, -1.0, 0.5, 2.5, 7.0, 0.0, 1.5, 4.0]
    made = experience(trainer, scores, temperature=0.7)
    pairs = list(zip(made.rollout.query_ids(), made.rollout.response_ids(), strict=True))
    logits, others = ([x.tolist() for x in alone(lm, made.rollout, 0.7)] for lm in (trainer.policy.lm, trainer.reference))
    logprobs, reference = (
        [[oracles.log_softmax(x)[y] for x, y in zip(rows, r, strict=True)] for rows, (_, r) in zip(each, pairs, strict=True)]
        for each in (logits, others)
    )
    values = [token_values(trainer, q, r) for q, r in pairs]
    k1 = [[p - q for p, q in zip(a, b, strict=True)] for a, b in zip(logprobs, reference, strict=True)]
    if kind == "full":
        penalty = [[oracles.full_kl(p, q) for p, q in zip(a, b, strict=True)] for a, b in zip(logits, others, strict=True)]
    else:
        penalty = [[oracles.kl_term(d, 0.0, kind) for d in row] for row in k1]
    rewards = [[-0.3 * x for x in row] for row in penalty]
    for row, score in zip(rewards, scores, strict=True):
        row[-1] += (score - 1.5) / 2.0
    advantages, returns = oracles.gae(rewards, values, 0.9, 0.8)
    assert {1, 2} < {len(row) for row in rewards}
    expected = {
        "logprobs": logprobs, "values": values, "kl": k1, "penalty": penalty, "rewards": rewards, "advantages": advantages,
        "returns": returns,
    }  # fmt: skip
    for name, rows in expected.items():
        actual = getattr(made, name)
        for b, row in enumerate(rows):
            oracles.close(actual[b, : len(row)], torch.tensor(row, dtype=torch.float64))
            assert not actual[b, len(row) :].any(), name


def test_several_responses_to_a_prompt_are_compared_with_each_other() -> None:
    trainer = tiny_trainer(precision="fp64", responses_per_prompt=4, episodes=32, kl_coef=0.0)
    prompts, drawn = trainer._generate()
    rollout = drawn.rollout
    again, queries = trainer.queries.take(0, 4)
    assert prompts == [p for p in again for _ in range(4)]
    assert rollout.query_ids() == [q for q in queries for _ in range(4)]
    assert len({tuple(r) for r in rollout.response_ids()}) == 16  # each drawn by itself
    trainer.scale = ScoreScale(mean=1.0, std=2.0)
    scores = [float(i * i % 7) for i in range(16)]
    made = experience_of(trainer, drawn, torch.tensor(scores, dtype=torch.float64))
    for b, score in enumerate(scores):
        others = [scores[i] for i in range(b // 4 * 4, b // 4 * 4 + 4) if i != b]
        assert float(made.rewards[b].sum()) == pytest.approx((score - oracles.mean(others)) / 2.0)
    steps = list(trainer)
    order = [sample["prompt"] for sample in steps[0].samples]
    assert len(set(order[:4])) == 4 and order == order[:4] * 4  # one of every prompt comes first
    assert [step.samples[0]["prompt"] for step in steps] != [steps[0].samples[0]["prompt"]] * 2  # it goes on in the stream


def test_whitening_is_over_all_tokens_of_the_batch() -> None:
    trainer = tiny_trainer(precision="fp64", shift=0.1, micro_batch_tokens=20, mini_batch_size=2)
    trainer.scale = ScoreScale()
    scores = [3.0, -1.0, 0.5, 2.5, 7.0, 0.0]
    white = experience(trainer, scores)
    trainer.ppo = trainer.ppo.model_copy(update={"whiten_advantages": False})
    plain = experience(trainer, scores)
    rows = [row[valid].tolist() for row, valid in zip(plain.advantages, plain.mask, strict=True)]
    for row, valid, wanted in zip(white.advantages, white.mask, oracles.whiten(rows, True, 1e-8), strict=True):
        oracles.close(row[valid], torch.tensor(wanted, dtype=torch.float64))
    assert torch.equal(white.returns, plain.returns)


@pytest.mark.parametrize("kind", ["k1", "abs", "k2", "full"])
def test_metrics_of_an_update_are_those_of_its_experience(kind: str) -> None:
    trainer = tiny_trainer(precision="fp64", shift=0.1, normalize_scores=False, kl_penalty=kind)
    step, seen = watched(trainer)
    m, scores = step.metrics, [s["score"] for s in step.samples]
    mask = seen.mask
    tokens = int(mask.sum())

    def mean(x: torch.Tensor) -> float:
        return oracles.mean(x[mask].tolist())

    def var(x: torch.Tensor) -> float:
        return oracles.variance(x[mask].tolist(), unbiased=False)

    residual = seen.returns - seen.values
    expected = {
        "objective/kl": float(seen.kl.sum()) / 16,
        "objective/entropy": float(seen.entropy.sum()) / 16,
        "ppo/policy/entropy": mean(seen.entropy),
        "ppo/mean_scores": oracles.mean(scores),
        "ppo/std_scores": math.sqrt(oracles.variance(scores, unbiased=False)),
        "ppo/mean_non_score_reward": (float(seen.rewards.sum()) - sum(scores)) / tokens,
        "ppo/returns/mean": mean(seen.returns),
        "ppo/returns/var": var(seen.returns),
        "ppo/val/mean": mean(seen.values),
        "ppo/val/var": var(seen.values),
        "ppo/val/var_explained": 1 - var(residual) / var(seen.returns),
        "tokens/queries_len_mean": oracles.mean(seen.rollout.query_lengths.tolist()),
        "tokens/responses_len_mean": tokens / 16,
        "tokens/ended_share": oracles.mean([float(x) for x in seen.rollout.ended]),
        "objective/kl_coef": 0.05,
    }
    for name, value in expected.items():
        assert m[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
    assert m["ppo/loss/total"] == pytest.approx(m["ppo/loss/policy"] + 0.1 * m["ppo/loss/value"])
    assert [s["kl"] for s in step.samples] == pytest.approx(seen.kl.sum(1).tolist())
    assert all(s["response"].count("a") == s["score"] for s in step.samples)
    assert all(math.isfinite(x) for x in m.values())


@pytest.mark.parametrize("count", [1, 4])
def test_an_update_is_that_of_plain_steps(count: int) -> None:
    """Clipped losses, one optimiser step a mini-batch; the gradient's limit is small beside Adam's eps, so that it shows."""
    one, two = (
        tiny_trainer(
            precision="fp64", shift=0.1, episodes=16, epochs=2, micro_batch_tokens=30, max_grad_norm=1e-4, clip=0.01,
            value_clip=0.01, responses_per_prompt=count, adam_eps=1e-5,
        )
        for _ in range(2)
    )  # fmt: skip
    _, e = watched(one)
    ppo, policy = two.ppo, two.policy
    groups = [(policy.lm.parameters(), ppo.learning_rate), (policy.value_head.parameters(), ppo.value_learning_rate)]
    optimizer = torch.optim.Adam([{"params": list(p), "lr": lr} for p, lr in groups], eps=ppo.adam_eps)
    for epoch in range(2):
        for parts in two._plan(e.rollout, epoch):
            rows = torch.cat(parts)
            new, m = policy(e.rollout.select(rows)), e.mask[rows]
            m = m[:, : new.logprobs.shape[1]]
            names = ("logprobs", "values", "advantages", "returns")
            logprobs, values, old_advantages, returns = (e.columns[name][rows, : m.shape[1]] for name in names)
            ratio, advantages = (new.logprobs - logprobs)[m].exp(), old_advantages[m]
            gain = torch.minimum(advantages * ratio, advantages * ratio.clamp(0.99, 1.01)).mean()
            near = values + (new.values - values).clamp(-0.01, 0.01)
            errors = torch.maximum((new.values - returns) ** 2, (near - returns) ** 2)[m].mean()
            optimizer.zero_grad()
            (-gain + ppo.vf_coef * errors / 2).backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), ppo.max_grad_norm)
            optimizer.step()
    for name, weight in one.policy.named_parameters():
        oracles.close(weight, dict(policy.named_parameters())[name], 1e-8)


def test_draws_and_orders_differ_by_update_and_epoch() -> None:
    trainer, lengths, orders = tiny_trainer(rollout={"stop": "length"}), [], []
    for update in (0, 1):
        trainer.update = update
        rollout = trainer._generate()[1].rollout
        lengths.append(rollout.response_lengths.tolist())
        orders += [[sorted(torch.cat(parts).tolist()) for parts in trainer._plan(rollout, epoch)] for epoch in (0, 1)]
    assert lengths[0] != lengths[1]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


def test_scores_are_normalised_by_the_initial_model() -> None:
    trainer = tiny_trainer(shift=0.3, baseline_samples=16)
    samples = trainer.baseline()
    scores = [s["score"] for s in samples]
    assert trainer.scale == ScoreScale(
        pytest.approx(oracles.mean(scores)), pytest.approx(math.sqrt(oracles.variance(scores))), 16
    )
    assert tiny_trainer(baseline_samples=16).baseline() == samples  # of the reference, not of the policy
    assert max(scores) > 0
    plain = tiny_trainer(normalize_scores=False)
    plain.baseline()
    assert plain.scale == ScoreScale(0.0, 1.0, 16)


def test_the_coefficient_follows_its_controller() -> None:
    trainer = tiny_trainer(kl_coef=0.2, kl_target=0.5, kl_horizon=100, shift=0.05)
    coefficient = 0.2
    for step in trainer:
        assert step.metrics["objective/kl_coef"] == pytest.approx(coefficient)
        error = min(max(step.metrics["objective/kl"] / 0.5 - 1, -0.2), 0.2)
        coefficient *= 1 + error * 16 / 100
    assert coefficient != pytest.approx(0.2)
    fixed = tiny_trainer(kl_coef=0.2, kl_controller="fixed", shift=0.05)
    assert {step.metrics["objective/kl_coef"] for step in fixed} == {0.2}


def test_horizons_and_who_waits() -> None:
    for episodes, horizon in ((64, 64), (1024, 64), (2560, 160), (64_000, 256)):
        assert kl_horizon(PPOConfig(episodes=episodes)) == horizon
    given, fixed, pid = PPOConfig(kl_horizon=1000), PPOConfig(kl_controller="fixed"), PPOConfig(kl_controller="pid")
    assert kl_horizon(given) == 1000
    for ppo, kl, reached, update, wanted in (
        (PPOConfig(), 5.4, False, 7, 0.2), (PPOConfig(), 5.4, False, 8, 0.18), (PPOConfig(), 5.4, True, 1, 0.18),
        (PPOConfig(), 6.6, False, 1, 0.22), (given, 5.4, False, 0, 0.2 * (1 - 0.0064)), (fixed, 9.0, True, 9, 0.2),
        (pid, 3.0, False, 7, 0.2 * 2**0.5), (pid, 0.0, False, 7, 0.2), (pid, 0.0, False, 8, 0.05), (pid, 9.0, False, 0, 51.2),
    ):  # fmt: skip
        control = KlControl(0.2, reached)
        control.follow(ppo, kl, update)
        assert control.coef == pytest.approx(wanted) and control.reached == (reached or kl >= ppo.kl_target)
    control = KlControl(0.2)
    for wanted in (51.2, 0.2):  # it rose to its target at once, and stays there
        control.follow(pid, 6.0, 9)
        assert control.coef == pytest.approx(wanted)


def test_a_pid_controller_brings_the_kl_nearer_to_its_target_within_a_run() -> None:
    """Of 15 updates of large steps, of which the last three count: without it the KL is about 2.7 times its target."""
    off: dict[str, list[float]] = {}
    for kind in ("adaptive", "pid"):
        for seed in (0, 1):
            trainer = tiny_trainer(
                episodes=15 * 32, batch_size=32, mini_batch_size=16, learning_rate=1e-2, kl_coef=0.02, kl_target=4.0, seed=seed,
                micro_batch_tokens=500, rollout={"stop": "length", "response_tokens": (4, 8)}, kl_controller=kind,
            )  # fmt: skip
            kls = [step.metrics["objective/kl"] for step in trainer][-3:]
            off.setdefault(kind, []).append(abs(sum(kls) / 3 / 4.0 - 1))
    assert sum(off["pid"]) < sum(off["adaptive"]) / 3, off


def test_an_update_ends_where_its_steps_have_gone_too_far() -> None:
    settings: dict[str, Any] = {"epochs": 3, "episodes": 16, "learning_rate": 1e-2}
    plain, single = (tiny_trainer(**settings | {"epochs": epochs}) for epochs in (3, 1))
    wide, narrow = (tiny_trainer(**settings, epoch_kl_stop=limit) for limit in (1e3, 1e-6))
    for trainer, same, epochs in ((wide, plain, 3.0), (narrow, single, 1.0)):
        step, other = trainer.step(), same.step()
        assert facts(step.metrics) == facts(other.metrics) | {"ppo/epochs": epochs}
        assert torch.equal(weights(trainer.policy), weights(same.policy)) and step.metrics["ppo/policy/approxkl"] > 1e-6


@pytest.mark.parametrize(("clip", "scores", "share"), [(3.0, (-0.25, 3.0), 1 / 16), (5.0, (-0.25, 3.75), 0.0)])
def test_a_single_hit_does_not_outweigh_the_batch(clip: float, scores: tuple[float, float], share: float) -> None:
    """One of 16 has a mean of 1/16 and a deviation of 1/4: a hit is 3.75 deviations above the others' -0.25."""

    def one_hit(texts: list[str]) -> list[float]:
        return [float(i == 0) for i in range(len(texts))]

    step, made = watched(tiny_trainer(reward=one_hit, score_clip=clip, kl_coef=0.0))
    assert step.metrics["ppo/scores_clipped"] == share
    sums = made.rewards.sum(1)
    assert (float(sums.min()), float(sums.max())) == (pytest.approx(scores[0], abs=1e-5), pytest.approx(scores[1], abs=1e-5))
    raw, made = watched(tiny_trainer(reward=Constant(40.0), score_clip=clip, normalize_scores=False, kl_coef=0.0))
    assert raw.metrics["ppo/scores_clipped"] == 0.0 and float(made.rewards.sum(1).min()) == pytest.approx(40.0)


def test_means_know_how_much_they_are_of() -> None:
    sums = Sums()
    sums.add("a", torch.tensor(6.0), torch.tensor(3))
    sums.add("a", 4.0, 2)
    sums.add("none", 0.0, 0)
    assert sums.means() == {"a": 2.0, "none": 0.0}
    for value in (1.0, 3.0, 2.0):
        sums.most("b", value)
    assert sums.means()["b"] == 3.0
    for value in (float("nan"), 9.0):
        sums.most("b", value)
    assert math.isnan(sums.means()["b"])


@pytest.mark.parametrize(("schedule", "factors"), [("linear", [1, 0.75, 0.5, 0.25]), ("constant", [1, 1, 1, 1])])
def test_learning_rates_follow_the_schedule(schedule: str, factors: list[float]) -> None:
    trainer = tiny_trainer(schedule=schedule, learning_rate=2e-3, value_learning_rate=3e-2)
    for step, factor in zip(trainer, factors, strict=True):
        assert step.metrics["ppo/learning_rate"] == pytest.approx(2e-3 * factor)
        rates = [group["lr"] for group in trainer.engine.optimizer.param_groups]
        assert rates == pytest.approx([2e-3 * factor, 3e-2 * factor])


def test_learning_rates_rise_from_step_to_step() -> None:
    trainer, rates = tiny_trainer(schedule="constant", learning_rate=2e-3, epochs=2, warmup=0.375), []
    trainer.engine.optimizer.optimizer.register_step_pre_hook(lambda adam, *_: rates.append(adam.param_groups[0]["lr"] / 2e-3))
    reported = [step.metrics["ppo/learning_rate"] / 2e-3 for step in trainer]
    assert rates == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, *[1] * 11])  # 4 updates of 2 epochs of 2 steps
    assert reported == pytest.approx([4 / 6, 1, 1, 1])


def test_the_reported_learning_rate_is_that_of_the_last_step_taken() -> None:
    trainer = tiny_trainer(schedule="linear", learning_rate=2e-3, epochs=2, warmup=0.5, epoch_kl_stop=1e-12)
    reported = [step.metrics["ppo/learning_rate"] / 2e-3 for step in trainer]
    assert reported == pytest.approx([2 / 8, 3 / 4 * 6 / 8, 1 / 2, 1 / 4])  # one epoch of two steps each


# -- what changes nothing ----------------------------------------------------------------------------------------------


def test_a_seed_decides_the_run() -> None:
    one, two, other = (tiny_trainer(seed=seed, episodes=32) for seed in (1, 1, 2))
    torch.manual_seed(123)
    first = [facts(step.metrics) for step in one]
    torch.manual_seed(321)
    assert [facts(step.metrics) for step in two] == first
    assert torch.equal(weights(one.policy), weights(two.policy))
    assert [facts(step.metrics) for step in other] != first


RESUMED = [
    ("", False, None, None), ("torch", True, 4, None), ("numpy", False, None, None), ("python", True, None, None),
    ("", False, None, "rloo"), ("torch", True, 4, "grpo"), ("", True, None, "reinforce++"), ("", True, None, "bond"),
]  # fmt: skip


@pytest.mark.parametrize(("noise", "freeze", "lora", "algorithm"), RESUMED)
def test_a_resumed_run_goes_on_to_the_same_bits(
    noise: str, freeze: bool, lora: int | None, algorithm: str | None, tmp_path: Path
) -> None:
    def fresh(seed: int = 0) -> PPOTrainer:
        return tiny_trainer(
            "llama", reward=CountA(noise), freeze=freeze, seed=seed, lora=lora, kl_target=0.05,
            kl_controller="pid" if freeze else "adaptive", **critic_free(algorithm),
        )  # fmt: skip

    def set_seeds(seed: int) -> None:
        import random

        import numpy as np

        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)

    set_seeds(0)
    straight = fresh()
    wanted = [facts(step.metrics) for step in straight]
    set_seeds(0)
    before = fresh()
    got = [facts(before.step().metrics) for _ in range(2)]
    before.save(tmp_path / "checkpoint")
    set_seeds(99)
    after = fresh(seed=1 if noise == "torch" else 0)  # the seed is the checkpoint's
    assert not torch.equal(weights(after.policy), weights(before.policy))
    after.load(tmp_path / "checkpoint")
    got += [facts(step.metrics) for step in after]
    assert got == wanted
    assert torch.equal(weights(after.policy), weights(straight.policy))


# -- what stops it -----------------------------------------------------------------------------------------------------


def test_dropout_is_noticed_by_the_ratio() -> None:
    trainer = tiny_trainer(model=tiny_model("gpt2"))
    trainer.policy.train()
    with pytest.raises(RunError, match=r"update 1: before its first step the probability ratio is off 1 by .* is dropout on"):
        trainer.step()


def test_the_kl_cap_stops_without_training() -> None:
    kl = tiny_trainer(shift=0.5, kl_cap=1e9).step().metrics["objective/kl"]
    under = tiny_trainer(shift=0.5, kl_cap=1.001 * kl, kl_target=kl)
    assert "ppo/loss/policy" in under.step().metrics and under.stop_reason is None and under.kl.reached
    trainer = tiny_trainer(shift=0.5, kl_cap=0.999 * kl, kl_target=0.5 * kl)
    before = weights(trainer.policy)
    (step,) = list(trainer)
    assert trainer.stop_reason == f"the KL of update 1 is {kl:.1f} nats/response, over the cap ppo.kl_cap = {0.999 * kl:g}"
    assert torch.equal(weights(trainer.policy), before) and "ppo/loss/policy" not in step.metrics
    assert trainer.kl.coef == 0.05 and list(trainer) == []


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("baseline", "reward constant: returned nan .* finite number is needed"), ("KL", "update 1: the KL is not finite"),
        ("step", "reward constant: returned nan .* finite number is needed"),
        ("gradient", "update 1: the gradient is not finite"),
    ],
)  # fmt: skip
def test_a_number_that_is_not_finite_stops_before_the_step(at: str, message: str, tmp_path: Path) -> None:
    reward = Constant(math.nan) if at in ("baseline", "step") else CountA()
    trainer = tiny_trainer(reward=reward, failed_texts=tmp_path / "failed.jsonl")
    if at != "baseline":
        trainer.scale = ScoreScale()
    if at == "KL":
        next(trainer.reference.parameters()).data.fill_(math.nan)
    if at == "gradient":
        next(trainer.policy.lm.parameters()).register_hook(lambda gradient: gradient * math.inf)
    before = weights(trainer.policy)
    with pytest.raises(RunError, match=message):
        trainer.step()
    assert torch.equal(weights(trainer.policy), before)
    if at in ("baseline", "step"):  # the texts are saved
        rows = [json.loads(line) for line in (tmp_path / "failed.jsonl").read_text("utf-8").splitlines()]
        assert len(rows) == 16 and rows[0].keys() == {"index", "prompt", "response"}


def test_equal_scores_are_nothing_to_learn_from_and_no_error() -> None:
    first, second = tiny_trainer(reward=Constant(0.1), episodes=32)
    assert first.metrics["ppo/std_scores"] == pytest.approx(0.0, abs=1e-7)
    assert first.metrics["ppo/returns/var"] == 0.0 and first.metrics["ppo/val/var_explained"] == 0.0
    assert all(math.isfinite(x) for x in (*first.metrics.values(), *second.metrics.values()))
    assert abs(second.metrics["objective/kl"]) < 0.1


# -- precisions --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize(("family", "freeze"), HALF_FROZEN)
def test_bf16_runs_and_agrees_roughly(family: str, freeze: bool) -> None:
    trainer = tiny_trainer(family, precision="bf16", freeze=freeze, episodes=16)
    half = trainer.step()
    assert {p.dtype for p in trainer.policy.parameters()} == {torch.float32}
    assert half.metrics["objective/kl"] == pytest.approx(0.0, abs=0.05)
    assert half.metrics["objective/entropy"] == pytest.approx(half.metrics["tokens/responses_len_mean"] * math.log(29), rel=0.1)
    assert half.metrics["ppo/policy/grad_norm"] > 0 and half.metrics["ppo/loss/value"] > 0
    assert all(math.isfinite(x) for x in half.metrics.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_gap_to_the_sampler_is_told_as_it_was_found(precision: str) -> None:
    """Over the first mini-batch, in several micro-batches."""
    trainer = tiny_trainer(model=sharp_model("gpt2").float(), precision=precision, micro_batch_tokens=40)
    trainer.baseline()
    _, drawn = trainer._generate()
    plan = trainer._plan(drawn.rollout, epoch=0)
    with trainer.engine.autocast(), torch.no_grad():
        parts = [trainer.policy(drawn.rollout.select(part)).logprobs for part in plan[0]]
    said = [drawn.logprobs[part, : new.shape[1]] for part, new in zip(plan[0], parts, strict=True)]
    expected = max(float((new - old).exp().sub(1).abs().max()) for new, old in zip(parts, said, strict=True))
    assert len(plan[0]) > 1 and expected > 0
    assert trainer.step().metrics["ppo/policy/sampler_gap"] == pytest.approx(expected, rel=1e-6, abs=0)


def test_a_gap_that_is_mended_is_told() -> None:
    trainer = tiny_trainer(precision="bf16")
    trainer.baseline()
    _, drawn = trainer._generate()
    plan = trainer._plan(drawn.rollout, epoch=0)
    row = int(torch.cat(plan[0])[3])
    drawn.logprobs[row, 0] += 0.03
    made = experience_of(trainer, drawn, torch.zeros(16, dtype=torch.float64))
    scored = ScoredRollout([], [], torch.zeros(16))
    metrics = describe(made, scored, torch.zeros(16), 0.1).means()
    assert metrics["ppo/policy/sampler_gap"] == pytest.approx(-math.expm1(-0.03), rel=1e-2)
    assert float((made.logprobs[row, 0] - drawn.logprobs[row, 0]).abs()) > 0.029

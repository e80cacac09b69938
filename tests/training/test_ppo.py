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
from konomi.engine.sampler import explore, make_draws
from konomi.errors import RunError
from konomi.training.experience import Experience, ScoreScale, describe, kl_horizon, next_kl_coef
from konomi.training.ppo import PPOTrainer
from tiny import EOS_ID, FAMILIES, tiny_model
from tiny_run import Constant, CountA, facts, sharp_model, tiny_trainer, without_dropout


def weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())


HALF_FROZEN = [(family, number % 2 == 1) for number, family in enumerate(FAMILIES)]
"""Each family, every other one with frozen embeddings."""

# -- it learns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "freeze"), [("gpt2", False), ("gemma3", True)])
def test_the_reward_rises(family: str, freeze: bool) -> None:
    trainer = tiny_trainer(
        family, freeze=freeze, model=None if not freeze else tiny_model(family, initializer_range=0.1),
        episodes=15 * 32, batch_size=32, mini_batch_size=16, learning_rate=1e-2, kl_coef=0.02, kl_target=8.0,
        micro_batch_tokens=500, rollout={"stop": "length", "response_tokens": (4, 8)},
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
    drawn = explore(trainer.policy.lm, trainer.tokens, queries, draws, config, values=trainer.policy.values)
    return trainer._experience(drawn, torch.tensor(scores, dtype=torch.float64), trainer._plan(drawn.rollout, epoch=0))


@torch.no_grad()
def token_logprobs(model: Any, query: list[int], response: list[int], temperature: float) -> list[float]:
    logits = model(input_ids=torch.tensor([query + response]), use_cache=False).logits[0, len(query) - 1 : -1]
    return [oracles.log_softmax(row)[token] for row, token in zip((logits / temperature).tolist(), response, strict=True)]


@torch.no_grad()
def token_values(trainer: PPOTrainer, query: list[int], response: list[int]) -> list[float]:
    states = trainer.policy.lm.base_model(input_ids=torch.tensor([query + response])).last_hidden_state[0]
    return trainer.policy.value_head(states)[len(query) - 1 : -1, 0].tolist()


@pytest.mark.parametrize("kind", ["k1", "abs", "k2"])
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
    logprobs = [token_logprobs(trainer.policy.lm, q, r, 0.7) for q, r in pairs]
    reference = [token_logprobs(trainer.reference, q, r, 0.7) for q, r in pairs]
    values = [token_values(trainer, q, r) for q, r in pairs]
    k1 = [[p - q for p, q in zip(a, b, strict=True)] for a, b in zip(logprobs, reference, strict=True)]
    penalty = [[{"k1": d, "abs": abs(d), "k2": d * d / 2}[kind] for d in row] for row in k1]
    rewards = [[-0.3 * x for x in row] for row in penalty]
    for row, score in zip(rewards, scores, strict=True):
        row[-1] += (score - 1.5) / 2.0
    advantages, returns = [], []
    for reward, value in zip(rewards, values, strict=True):
        carried, row = 0.0, []
        for t in reversed(range(len(reward))):
            after = value[t + 1] if t + 1 < len(reward) else 0.0
            carried = reward[t] + 0.9 * after - value[t] + 0.9 * 0.8 * carried
            row.insert(0, carried)
        advantages.append(row)
        returns.append([a + v for a, v in zip(row, value, strict=True)])
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
    for (_, response), row in zip(pairs, rewards, strict=True):
        if len(response) == 1:
            b = rewards.index(row)
            oracles.close(made.advantages[b, 0], row[0] - values[b][0])
            oracles.close(made.returns[b, 0], row[0])


def test_several_responses_to_a_prompt_are_compared_with_each_other() -> None:
    trainer = tiny_trainer(precision="fp64", responses_per_prompt=4, episodes=32, kl_coef=0.0)
    prompts, drawn = trainer._draw()
    rollout = drawn.rollout
    again, queries = trainer.queries.take(0, 4)
    assert prompts == [p for p in again for _ in range(4)]
    assert rollout.query_ids() == [q for q in queries for _ in range(4)]
    assert len({tuple(r) for r in rollout.response_ids()}) == 16  # each drawn by itself
    trainer.scale = ScoreScale(mean=1.0, std=2.0)
    scores = [float(i * i % 7) for i in range(16)]
    made = trainer._experience(drawn, torch.tensor(scores, dtype=torch.float64), trainer._plan(rollout, epoch=0))
    for b, score in enumerate(scores):
        others = [scores[i] for i in range(b // 4 * 4, b // 4 * 4 + 4) if i != b]
        assert float(made.rewards[b].sum()) == pytest.approx((score - oracles.mean(others)) / 2.0)
    steps = list(trainer)
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
    made: list[tuple[Experience, torch.Tensor]] = []

    class Watched(PPOTrainer):
        def _experience(self, rollout: Any, scores_B: torch.Tensor, plan: Any, placed_BR: Any = None) -> Experience:
            made.append((super()._experience(rollout, scores_B, plan, placed_BR), scores_B))
            return made[-1][0]

    trainer = tiny_trainer(precision="fp64", shift=0.1, normalize_scores=False, kl_penalty=kind)
    trainer.__class__ = Watched
    step = trainer.step()
    (seen, scores_B), m = made[0], step.metrics
    scores, mask = scores_B.tolist(), seen.mask
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
    assert [s["score"] for s in step.samples] == scores
    assert [s["kl"] for s in step.samples] == pytest.approx(seen.kl.sum(1).tolist())
    assert all(s["response"].count("a") == s["score"] for s in step.samples)
    assert all(math.isfinite(x) for x in m.values())


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


@pytest.mark.parametrize("missing_eos", ["keep", "subtract", "replace"])
def test_a_missing_end_of_text_costs_what_is_said(missing_eos: str) -> None:
    model = without_dropout("gpt2", tie_word_embeddings=False)
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(1.0)
        model.lm_head.weight[EOS_ID] += 0.03  # about every tenth token
    rollout = {"stop": "eos", "response_tokens": (1, 6), "missing_eos": missing_eos, "missing_eos_score": 1.5}
    step = tiny_trainer(model=model, reward=Constant(4.0), rollout=rollout).step()
    cut = {"keep": 4.0, "subtract": 2.5, "replace": 1.5}[missing_eos]
    share = step.metrics["tokens/ended_share"]
    assert 0.1 < share < 0.9
    scores = sorted(s["score"] for s in step.samples)
    assert scores == sorted([4.0] * round(16 * share) + [cut] * round(16 * (1 - share)))


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


def test_without_a_horizon_the_coefficient_waits_for_its_target_and_then_acts() -> None:
    """A run that drifts far: the price is not lowered on the way up, and rises within updates, not thousands of them."""
    settings = {"episodes": 512, "batch_size": 32, "learning_rate": 3e-3, "kl_coef": 0.2, "kl_target": 1.0, "kl_cap": 1e9}
    ends = {}
    for horizon in (None, 10_000):
        steps = list(tiny_trainer(kl_horizon=horizon, **settings))
        kl, price = ([step.metrics[f"objective/{key}"] for step in steps] for key in ("kl", "kl_coef"))
        reached = next(i for i, each in enumerate(kl) if each >= 1.0)
        assert 1 <= reached < 8
        ends[horizon] = kl[-1], price[-1]
        if horizon is None:
            assert price[: reached + 1] == [0.2] * (reached + 1)
            assert price[reached + 1] == pytest.approx(0.2 * (1 + min(kl[reached] - 1, 0.2)))  # a batch is the horizon
    assert ends[None][1] > 1.5 * 0.2 and abs(ends[10_000][1] / 0.2 - 1) < 0.02
    assert ends[None][0] < ends[10_000][0]


def test_horizons_and_who_waits() -> None:
    for episodes, horizon in ((64, 64), (1024, 64), (2560, 160), (64_000, 256)):
        assert kl_horizon(PPOConfig(episodes=episodes)) == horizon
    given, fixed = PPOConfig(kl_horizon=1000), PPOConfig(kl_controller="fixed")
    assert kl_horizon(given) == 1000
    for ppo, kl, reached, update, wanted in (
        (PPOConfig(), 5.4, False, 7, 0.2), (PPOConfig(), 5.4, False, 8, 0.18), (PPOConfig(), 5.4, True, 1, 0.18),
        (PPOConfig(), 6.6, False, 1, 0.22), (given, 5.4, False, 0, 0.2 * (1 - 0.0064)), (fixed, 9.0, True, 9, 0.2),
    ):  # fmt: skip
        assert next_kl_coef(ppo, 0.2, kl, reached=reached, update=update) == pytest.approx(wanted)


class OneHit:
    """0 for all but one text: a reward that is hardly ever won."""

    name = "one-hit"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, texts: Any, **_: Any) -> list[float]:
        self.calls += 1
        return [float(i == 0) for i in range(len(texts))]


@pytest.mark.parametrize(("clip", "scores", "share"), [(3.0, (-0.25, 3.0), 1 / 16), (5.0, (-0.25, 3.75), 0.0)])
def test_a_single_hit_does_not_outweigh_the_batch(clip: float, scores: tuple[float, float], share: float) -> None:
    """One of 16 has a mean of 1/16 and a deviation of 1/4: a hit is 3.75 deviations above the others' -0.25."""
    told = []

    class Seen(PPOTrainer):
        def _experience(self, *arguments: Any) -> Experience:
            told.append(super()._experience(*arguments))
            return told[-1]

    trainer = tiny_trainer(reward=OneHit(), score_clip=clip, kl_coef=0.0)
    trainer.__class__ = Seen
    metrics = trainer.step().metrics
    assert metrics["ppo/scores_clipped"] == share
    sums = told[0].rewards.sum(1)
    assert (float(sums.min()), float(sums.max())) == (pytest.approx(scores[0], abs=1e-5), pytest.approx(scores[1], abs=1e-5))
    raw = tiny_trainer(reward=Constant(40.0), score_clip=clip, normalize_scores=False, kl_coef=0.0)
    raw.__class__ = Seen
    assert raw.step().metrics["ppo/scores_clipped"] == 0.0
    assert float(told[1].rewards.sum(1).min()) == pytest.approx(40.0)


def test_what_a_clipped_score_gave_at_a_token_shrinks_with_it() -> None:
    scale = ScoreScale(mean=1.0, std=0.5)
    scores, placed = torch.tensor([6.0, 2.0]), torch.tensor([[2.0, 4.0], [2.0, 0.0]])
    assert scale.normalised(scores, 5.0).tolist() == [5.0, 2.0]  # 10 and 2
    assert scale.placed(placed, scores, 5.0).tolist() == [[2.0, 4.0], [4.0, 0.0]]
    assert scale.clipped(scores, 5.0).tolist() == [True, False]


@pytest.mark.parametrize(("schedule", "factors"), [("linear", [1, 0.75, 0.5, 0.25]), ("constant", [1, 1, 1, 1])])
def test_learning_rates_follow_the_schedule(schedule: str, factors: list[float]) -> None:
    trainer = tiny_trainer(schedule=schedule, learning_rate=2e-3, value_learning_rate=3e-2)
    for step, factor in zip(trainer, factors, strict=True):
        assert step.metrics["ppo/learning_rate"] == pytest.approx(2e-3 * factor)
        rates = [group["lr"] for group in trainer.engine.optimizer.param_groups]
        assert rates == pytest.approx([2e-3 * factor, 3e-2 * factor])


def test_the_full_penalty_is_the_exact_kl() -> None:
    trainer = tiny_trainer(precision="fp64", kl_penalty="full", shift=0.1, rollout={"temperature": 0.7})
    trainer.scale = ScoreScale()
    made = experience(trainer, [0.0] * 6, temperature=0.7)
    for b, (query, response) in enumerate(zip(made.rollout.query_ids(), made.rollout.response_ids(), strict=True)):
        with torch.no_grad():
            p, q = (
                lm(input_ids=torch.tensor([query + response])).logits[0, len(query) - 1 : -1] / 0.7
                for lm in (trainer.policy.lm, trainer.reference)
            )
        exact = [oracles.full_kl(*pair) for pair in zip(p.tolist(), q.tolist(), strict=True)]
        assert made.rewards[b, : len(exact)].tolist() == pytest.approx([-0.05 * x for x in exact], rel=1e-6, abs=1e-9)


# -- what changes nothing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_micro_batches_change_nothing(family: str) -> None:
    runs = [
        [facts(step.metrics) for step in tiny_trainer(family, precision="fp64", episodes=32, micro_batch_tokens=tokens)]
        for tokens in (12, 60, 10_000)
    ]
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            # counts whether a square is larger than another that is equal to it but for rounding
            assert two.pop("ppo/val/clipfrac") == pytest.approx(one["ppo/val/clipfrac"], abs=0.03)
            assert two == pytest.approx({k: v for k, v in one.items() if k != "ppo/val/clipfrac"}, rel=1e-6, abs=1e-7)


def test_a_seed_decides_the_run() -> None:
    one, two, other = (tiny_trainer(seed=seed, episodes=32) for seed in (1, 1, 2))
    torch.manual_seed(123)
    first = [facts(step.metrics) for step in one]
    torch.manual_seed(321)
    assert [facts(step.metrics) for step in two] == first
    assert same(weights(one), weights(two))
    assert [facts(step.metrics) for step in other] != first


@pytest.mark.parametrize(("noise", "freeze"), [("", False), ("torch", True), ("numpy", False), ("python", True)])
def test_a_resumed_run_goes_on_to_the_same_bits(noise: str, freeze: bool, tmp_path: Path) -> None:
    def fresh(seed: int = 0) -> PPOTrainer:
        return tiny_trainer("llama", reward=CountA(noise), freeze=freeze, seed=seed)

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
    assert not same(weights(after), weights(before))
    after.load(tmp_path / "checkpoint")
    got += [facts(step.metrics) for step in after]
    assert got == wanted
    assert same(weights(after), weights(straight))


# -- what stops it -----------------------------------------------------------------------------------------------------


def test_dropout_is_noticed_by_the_ratio() -> None:
    trainer = tiny_trainer(model=tiny_model("gpt2"))
    trainer.policy.train()
    with pytest.raises(RunError, match=r"update 1: before its first step the probability ratio is off 1 by .* is dropout on"):
        trainer.step()


def test_the_kl_cap_stops_without_training() -> None:
    trainer = tiny_trainer(shift=0.5, kl_cap=2.0, kl_target=1.0)
    before = weights(trainer)
    steps = list(trainer)
    assert len(steps) == 1
    kl = steps[0].metrics["objective/kl"]
    assert kl > 2.0
    assert trainer.stop_reason == f"the KL of update 1 is {kl:.1f} nats/response, over the cap ppo.kl_cap = 2"
    assert same(weights(trainer), before)
    assert "ppo/loss/policy" not in steps[0].metrics
    assert list(trainer) == []


@pytest.mark.parametrize("at", ["baseline", "step"])
def test_a_score_that_is_no_number_stops_with_the_texts_saved(at: str, tmp_path: Path) -> None:
    trainer = tiny_trainer(reward=Constant(math.nan), failed_texts=tmp_path / "failed.jsonl")
    if at == "step":
        trainer.scale = ScoreScale()
    before = weights(trainer)
    with pytest.raises(RunError, match=r"reward constant: returned nan .* finite number is needed"):
        trainer.step()
    rows = [json.loads(line) for line in (tmp_path / "failed.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 16 and rows[0].keys() == {"index", "prompt", "response"}
    assert same(weights(trainer), before)


def test_a_gradient_that_is_not_finite_stops_before_the_step() -> None:
    trainer = tiny_trainer()
    weight = next(trainer.policy.lm.parameters())
    weight.register_hook(lambda gradient: gradient * math.inf)
    before = weights(trainer)
    with pytest.raises(RunError, match="update 1: the gradient is not finite"):
        trainer.step()
    assert same(weights(trainer), before)


def test_a_kl_that_is_not_finite_stops_before_training() -> None:
    trainer = tiny_trainer()
    trainer.scale = ScoreScale()
    next(trainer.reference.parameters()).data.fill_(math.nan)
    before = weights(trainer)
    with pytest.raises(RunError, match="update 1: the KL is not finite"):
        trainer.step()
    assert same(weights(trainer), before)


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
    half = next(iter(tiny_trainer(family, precision="bf16", freeze=freeze, episodes=16)))
    assert half.metrics["objective/kl"] == pytest.approx(0.0, abs=0.05)
    assert half.metrics["objective/entropy"] == pytest.approx(half.metrics["tokens/responses_len_mean"] * math.log(29), rel=0.1)
    assert half.metrics["ppo/policy/grad_norm"] > 0 and half.metrics["ppo/loss/value"] > 0
    assert all(math.isfinite(x) for x in half.metrics.values())


@pytest.mark.usefixtures("fresh_accelerator")
def test_weights_stay_float32_under_bf16() -> None:
    trainer = tiny_trainer(precision="bf16", episodes=16)
    list(trainer)
    assert {p.dtype for p in trainer.policy.parameters()} == {torch.float32}
    assert trainer.engine.precision == "bf16"


def test_fp64_is_float64_throughout() -> None:
    trainer = tiny_trainer(precision="fp64", episodes=16)
    list(trainer)
    assert {p.dtype for p in (*trainer.policy.parameters(), *trainer.reference.parameters())} == {torch.float64}
    trainer.scale = ScoreScale()
    made = experience(trainer, [1.0, 2.0])
    assert {x.dtype for k, x in vars(made).items() if k not in ("rollout", "mask", "trunk", "sampler_gap")} == {torch.float64}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_gap_to_the_sampler_is_told_as_it_was_found(precision: str) -> None:
    """Over the first mini-batch, in several micro-batches."""
    trainer = tiny_trainer(model=sharp_model("gpt2").float(), precision=precision, micro_batch_tokens=40)
    trainer.baseline()
    _, drawn = trainer._draw()
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
    _, drawn = trainer._draw()
    plan = trainer._plan(drawn.rollout, epoch=0)
    row = int(torch.cat(plan[0])[3])
    drawn.logprobs[row, 0] += 0.03
    made = trainer._experience(drawn, torch.zeros(16, dtype=torch.float64), plan)
    metrics = describe(made, torch.zeros(16), 0.1).means(trainer.engine.accelerator)
    assert metrics["ppo/policy/sampler_gap"] == pytest.approx(-math.expm1(-0.03), rel=1e-2)
    assert float((made.logprobs[row, 0] - drawn.logprobs[row, 0]).abs()) > 0.029

"""Queries, scores and their places, judges, and the old policy where sampler and trainer round differently."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import oracles
from konomi.config import DataConfig, ModelConfig, ModelReward, RolloutConfig
from konomi.data.records import Prompt, Ranking, groups
from konomi.data.tokens import Tokens, pad_right
from konomi.engine.device import autocast, choose_precision
from konomi.engine.layout import Pass
from konomi.engine.rollout import Rollout
from konomi.engine.sampler import generate, make_draws
from konomi.errors import RunError
from konomi.models.policy import Policy
from konomi.models.reward_files import make_reward_model
from konomi.rewards import build_reward
from konomi.rewards.base import WeightedSum
from konomi.training.experience import (
    RATIO_TOLERANCE,
    QueryStream,
    Scorer,
    ScoreScale,
    check_ratio,
    ratio_gap,
    recompute_logprobs,
    token_rewards,
)  # fmt: skip
from tiny import EOS_ID, save_tiny, tiny_tokenizer
from tiny_run import (
    PROMPTS,
    Constant,
    CountA,
    experience_of,
    facts,
    ragged_queries,
    sharp_model,
    tiny_rollout,
    tiny_trainer,
    without_dropout,
)  # fmt: skip

# -- queries -----------------------------------------------------------------------------------------------------------

LETTERS = [Prompt(letter * 9) for letter in "abcdefg"]


def stream(seed: int = 0) -> QueryStream:
    return QueryStream(LETTERS, Tokens(tiny_tokenizer()), DataConfig(query_tokens=(1, 8)), seed)


@pytest.mark.parametrize("size", [1, 3, 7, 10, 40])
def test_a_position_has_its_query_however_it_is_reached(size: int) -> None:
    prompts, queries = stream().take(0, 40)
    parts = [stream().take(start, min(size, 40 - start)) for start in range(0, 40, size)]
    assert [p for part, _ in parts for p in part] == prompts
    assert [q for _, part in parts for q in part] == queries


def test_each_epoch_has_every_prompt_once_in_a_new_order_and_cut_anew() -> None:
    prompts, queries = stream().take(0, 21)
    epochs = [prompts[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(p.text for p in epoch) == [p.text for p in LETTERS] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    cuts = [{p.text: len(q) for p, q in list(zip(prompts, queries, strict=True))[i : i + 7]} for i in (0, 7, 14)]
    assert cuts[0] != cuts[1] != cuts[2]
    tokens = Tokens(tiny_tokenizer())
    assert all(q == tokens.encode(p.text)[: len(q)] for q, p in zip(queries, prompts, strict=True))
    assert stream(1).take(0, 7)[0] != prompts[:7]


# -- where a score is put ----------------------------------------------------------------------------------------------


class Own:
    """A reward made of a function of one response."""

    def __init__(self, name: str, function: Callable[[str], Any]) -> None:
        self.name, self.function = name, function

    def __call__(self, texts: Sequence[str], *, responses: Sequence[str], **_: Any) -> list[Any]:
        return [self.function(response) for response in responses]


def at_each(letters: str) -> Callable[[str], list[tuple[int, float]]]:
    return lambda response: [(i + 1, 1.0) for i, letter in enumerate(response) if letter in letters]


EARLY = at_each("abcdefghijklm")


@pytest.mark.parametrize(
    ("ends", "places", "expected"),
    [
        ([1, 2, 3], [(1, 1.0), (2, 2.0), (3, 4.0)], [1, 2, 4, 0]),
        ([3, 3, 5], [(1, 1.0), (3, 2.0), (4, 4.0)], [3, 0, 4, 0]),
        ([0, 0, 1, 4], [(1, 1.0), (2, 2.0)], [0, 0, 1, 2]),  # a character of three tokens counts at its last
        ([2, 4, 4], [(4, 1.0), (3, 2.0)], [0, 2, 1, 0]),  # the end of the text is the end of the response
        ([2, 4], [(0, 1.0), (4, 2.0), (4, 3.0)], [1, 5, 0, 0]),
        ([0], [(0, 1.0)], [1, 0, 0, 0]),
        ([2], [], [0, 0, 0, 0]),
    ],
)
def test_a_score_is_put_on_the_token_in_whose_text_its_character_falls(
    ends: list[int], places: list[tuple[int, float]], expected: list[float]
) -> None:
    assert token_rewards([ends, [1]], [places, []], 4).tolist() == [expected, [0.0] * 4]


def test_scores_along_a_response_are_those_of_its_tokens() -> None:
    tokens, rollout = Tokens(tiny_tokenizer()), tiny_rollout(without_dropout("gpt2"), 9)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(9)]
    scored = Scorer(tokens, Own("early", EARLY), {}, RolloutConfig(), None)(prompts, rollout, judged=True)
    assert scored.token_rewards is not None and scored.token_rewards.sum() > 0
    for row, ids in zip(scored.token_rewards, rollout.response_ids(), strict=True):
        letters = ["a" <= tokens.decode([token]) <= "m" for token in ids]
        if ids[-1] == EOS_ID and len(ids) > 1 and letters[-2]:  # what is given at the end of the text is the last token's
            letters[-2:] = [False, True]
        assert row[: len(ids)].tolist() == [float(letter) for letter in letters]
        assert not row[len(ids) :].any()
    assert scored.scores.tolist() == scored.token_rewards.sum(1).tolist()


@pytest.mark.parametrize("missing_eos", ["keep", "subtract", "replace"])
def test_a_missing_end_of_text_and_scores_along_the_way(missing_eos: Any) -> None:
    rollout = tiny_rollout(without_dropout("gpt2"), 9)
    price = {} if missing_eos == "keep" else {"missing_eos_score": 3.0}
    config = RolloutConfig(stop="eos", missing_eos=missing_eos, **price)
    scorer = Scorer(Tokens(tiny_tokenizer()), Own("first", lambda text: [(0, 2.0)]), {}, config, None)
    scored = scorer([PROMPTS[0]] * 9, rollout, judged=True)
    assert scored.token_rewards is not None and not bool(rollout.ended.all())
    for row, score, ended in zip(scored.token_rewards, scored.scores.tolist(), rollout.ended.tolist(), strict=True):
        cut = {"keep": 2.0, "subtract": -1.0, "replace": 3.0}[missing_eos]
        assert score == (2.0 if ended else cut)
        assert float(row[0]) == (0.0 if missing_eos == "replace" and not ended else 2.0)


def test_equal_scores_have_no_deviation_but_that_of_rounding() -> None:
    """Sums of rewards may differ in their last bit: the deviation of 3 times 0.1 is 2e-17 and not 0."""
    for count in range(2, 40):
        scores = torch.full((count,), 0.1, dtype=torch.float64)
        scores[-1] = 0.3 - 0.2
        assert ScoreScale.of(scores).std == 1.0, count
    of_a_model = torch.full((8,), 0.7)  # float32: batches of another shape round another way
    of_a_model[-1] = torch.nextafter(of_a_model[-1], torch.tensor(1.0))
    assert ScoreScale.of(of_a_model.double()).std == 1.0


def test_parts_of_a_clipped_score_shrink_with_it() -> None:
    scale = ScoreScale(mean=1.0, std=0.5)
    scores, parts = torch.tensor([6.0, 2.0]), torch.tensor([[2.0, 4.0], [2.0, 0.0]])
    assert scale.normalised(scores).tolist() == [10.0, 2.0]
    assert scale.token_rewards(parts, scores, 5.0).tolist() == [[2.0, 4.0], [4.0, 0.0]]


def test_rewards_of_tokens_add_up_to_the_normalised_score() -> None:
    settings = {"precision": "fp64", "kl_coef": 0.0, "responses_per_prompt": 4, "rollout": {"response_tokens": (3, 9)}}
    trainer = tiny_trainer(reward=Own("early", EARLY), **settings)
    trainer.baseline()
    assert trainer.scale is not None and trainer.scale.std != 1.0
    prompts, drawn = trainer._generate()
    scored = trainer.scorer(prompts, drawn.rollout, judged=True)
    assert scored.token_rewards is not None
    made = experience_of(trainer, drawn, scored.scores, scored.token_rewards)
    normal = [(score - trainer.scale.mean) / trainer.scale.std for score in scored.scores.tolist()]
    oracles.close(made.rewards.sum(1), torch.tensor(oracles.leave_one_out(normal, 4), dtype=torch.float64))
    early = 0
    for row, parts, length in zip(made.rewards, scored.token_rewards, drawn.rollout.response_lengths.tolist(), strict=True):
        oracles.close(row[: length - 1], parts[: length - 1] / trainer.scale.std)
        early += int(parts[: length - 1].count_nonzero())
    assert early > 10


def test_where_a_score_is_given_decides_what_is_learned() -> None:
    """One at the end is a plain score to the bit; the same sum along the way has other returns."""
    at_end = Own("end", lambda response: [(len(response), float(response.count("a")))])
    plain, end, along = (tiny_trainer(reward=reward, episodes=32) for reward in (CountA(), at_end, Own("each", at_each("a"))))
    (a, _), (b, _) = (
        [(facts(step.metrics), step.samples) for step in run] for run in (plain, end)
    )  # fmt: skip
    assert a == b and all(torch.equal(x, y) for x, y in zip(plain.policy.parameters(), end.policy.parameters(), strict=True))
    other = along.step()
    assert other.samples == a[1] and other.metrics["ppo/mean_scores"] == a[0]["ppo/mean_scores"]
    assert other.metrics["ppo/returns/mean"] != a[0]["ppo/returns/mean"]


# -- parts and judges --------------------------------------------------------------------------------------------------


def test_means_of_parts_and_judges_are_metrics() -> None:
    reward = WeightedSum({"a": CountA(), "long": Own("length", lambda text: float(len(text)))}, {"long": -0.25})
    judges = {"b": Own("count-b", lambda text: float(text.count("b"))), "along": Own("each", at_each("a"))}
    step = tiny_trainer(reward=reward, judges=judges).step()
    responses = [sample["response"] for sample in step.samples]
    mean_a, mean_long = (sum(values) / 16 for values in ([r.count("a") for r in responses], list(map(len, responses))))
    assert step.metrics["reward/a/mean"] == step.metrics["judge/along/mean"] == pytest.approx(mean_a)
    assert step.metrics["reward/long/mean"] == pytest.approx(mean_long)
    assert step.metrics["judge/b/mean"] == pytest.approx(sum(r.count("b") for r in responses) / 16) != 0
    assert step.metrics["ppo/mean_scores"] == pytest.approx(mean_a - 0.25 * mean_long)


def test_judges_change_nothing_and_may_fail_only_in_a_step(tmp_path: Path) -> None:
    for one, two in zip(tiny_trainer(episodes=32), tiny_trainer(judges={"b": Constant(3.0)}, episodes=32), strict=True):
        assert facts(two.metrics) == facts(one.metrics) | {"judge/b/mean": 3.0, "judge/b/std": 0.0}
        assert one.samples == two.samples
    bad = tiny_trainer(judges={"bad": Own("bad", lambda text: None)}, failed_texts=tmp_path / "failed.jsonl")
    assert len(bad.baseline()) == 16  # judges are not asked about it
    with pytest.raises(RunError, match=r"reward bad: returned None for text 0 .* The texts are in .*failed\.jsonl"):
        bad.step()
    assert len((tmp_path / "failed.jsonl").read_text("utf-8").splitlines()) == 16


def test_a_reward_model_sees_in_ppo_the_tokens_that_it_was_trained_on(tmp_path: Path) -> None:
    save_tiny(tmp_path / "lm", "llama")
    prompt, responses = "<eos>ab<eos> c", ["de<eos>f", "g"]
    (group,) = groups([Ranking(prompt, tuple(responses), (1, 2))])
    trained_on = [prompt + response for response in group.responses]  # as konomi.jobs.reward_data makes them
    model = make_reward_model(ModelConfig(name=str(tmp_path / "lm")), outputs=1, seed=0, max_length=64).model
    with torch.no_grad():
        model.model.score.weight.normal_(std=30.0, generator=torch.Generator().manual_seed(0))
    model.save(tmp_path / "rm", {})
    reward = build_reward(ModelReward(kind="model", name=str(tmp_path / "rm"), normalized=False, precision="fp32"))
    tokens = Tokens(tiny_tokenizer())
    query = tokens.encode(prompt)
    rows = [[*query, *tokens._plain([response])[0], *end] for response, end in zip(responses, ([EOS_ID], []), strict=True)]
    ids, lengths = pad_right(rows, tokens.pad_id)
    queries = torch.full((2,), len(query))
    rollout = Rollout(ids, queries, lengths - queries, torch.tensor([True, False]))
    scorer = Scorer(tokens, reward, {}, RolloutConfig(), None)
    scored = scorer([Prompt(prompt)] * 2, rollout, False)
    assert [q + r for q, r in zip(scored.queries, scored.responses, strict=True)] == trained_on
    assert scored.scores.tolist() == pytest.approx(torch.cat(model.predict([trained_on]))[:, 0].tolist(), abs=1e-4)
    unmarked = torch.cat(model.predict([[text.replace("<eos>", "") for text in trained_on]]))[:, 0].tolist()
    assert all(abs(a - b) > 1e-2 for a, b in zip(scored.scores.tolist(), unmarked, strict=True))
    assert scored.figures["reward/cut_share"] == [0.0, 0.0]
    reward.readers[0].max_length = len(query) + 3  # type: ignore[attr-defined]
    assert scorer([Prompt(prompt)] * 2, rollout, False).figures["reward/cut_share"] == [0.5, 0.5]


# -- the old policy ----------------------------------------------------------------------------------------------------

PLAN = [[torch.tensor([2]), torch.tensor([0])], [torch.tensor([3, 1])], [torch.tensor([4, 5])]]
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)
LIMIT = RATIO_TOLERANCE["sampler"]


@pytest.mark.parametrize(
    ("off", "row", "asked"),
    [
        (0.0, 0, [[2, 0]]), (0.5 * LIMIT, 0, [[2, 0]]), (2 * LIMIT, 0, [[2, 0], [3, 1, 4, 5]]),
        (float("nan"), 2, [[2, 0], [3, 1, 4, 5]]), (2 * LIMIT, 3, [[2, 0]]),  # not in the first mini-batch: not seen
    ],
)  # fmt: skip
def test_the_first_mini_batch_tells(off: float, row: int, asked: list[list[int]]) -> None:
    sampled = torch.stack([torch.where(MASK, torch.randn(6, 3), -50.0), torch.randn(6, 3) * MASK])
    truth = torch.stack([sampled[0], sampled[1] + MASK])  # of the second nothing is asked
    truth[0][row, 0] += off
    seen = []
    lengths = MASK.sum(1)
    rollout = Rollout(torch.zeros(6, 4, dtype=torch.int64), torch.ones_like(lengths), lengths, lengths > 0)
    plan = [[Pass(rollout, rows, MASK.device) for rows in mini_batch] for mini_batch in PLAN]

    def evaluate(passes: list[Pass]) -> Tensor:
        rows = torch.cat([each.rows for each in passes])
        seen.append(rows.tolist())
        return torch.zeros(2, 6, 3).index_copy(1, rows, (truth * MASK)[:, rows])

    got, gap = recompute_logprobs(sampled, MASK, evaluate, plan, tiny_trainer().engine)
    assert seen == asked
    assert float(gap) == pytest.approx(math.expm1(off) if row in (0, 2) else 0.0, rel=1e-2, abs=1e-6, nan_ok=True)
    rows = [row for rows in asked for row in rows]
    for new, old, true in zip(got, sampled, truth, strict=True):
        for i in range(6):
            chosen = true if i in rows else old
            assert torch.equal(torch.nan_to_num(new[i][MASK[i]]), torch.nan_to_num(chosen[i][MASK[i]]))


def test_a_ratio_off_1_is_an_error() -> None:
    mask = torch.tensor([[True, False]])
    for ratio, broken in ((1.0005, False), (1.01, True), (0.99, True), (math.nan, True)):
        gap = float(ratio_gap(torch.tensor([[ratio, 9.0]]).log(), torch.zeros(1, 2), mask))
        assert gap == pytest.approx(abs(ratio - 1), rel=1e-3, nan_ok=True)
        if broken:
            with pytest.raises(RunError, match="update 3: before its first step the probability ratio is off 1"):
                check_ratio(gap, "fp32", 3)
        else:
            check_ratio(gap, "fp32", 3)


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_bf16_sampler_and_trainer_agree(family: str) -> None:
    """To the last sum where products do not depend on how many rows there are, as on processors with bf16; near on others."""
    policy, config = Policy(sharp_model(family).float()), RolloutConfig(response_tokens=(1, 24), stop="length")
    draws = make_draws(config, 0, [("same", i) for i in range(16)])
    with autocast(torch.device("cpu"), "bf16"), torch.no_grad():
        drawn = generate(policy.lm, Tokens(tiny_tokenizer()), ragged_queries(16, seed=1), draws, config)
        trained = policy(drawn.rollout).logprobs
    rounding = float((trained - policy(drawn.rollout).logprobs.detach()).abs().max())
    assert rounding > 0.01
    assert float((drawn.logprobs - trained).abs().max()) < (1e-4 if choose_precision("auto") == "bf16" else 3 * rounding)

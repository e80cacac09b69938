"""Rewards, their parts, scores along a response, and judges in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import oracles
from konomi.config import ModelConfig, ModelReward, RolloutConfig
from konomi.data.records import Prompt, Ranking, groups
from konomi.data.tokens import Tokens, pad_right
from konomi.engine.rollout import Rollout
from konomi.errors import RunError
from konomi.models.reward_files import make_reward_model
from konomi.rewards import build_reward
from konomi.rewards.sum import SumReward
from konomi.training.ppo import PPOTrainer
from konomi.training.scoring import Scorer, place
from tiny import EOS_ID, save_tiny, tiny_tokenizer
from tiny_run import PROMPTS, Constant, CountA, facts, tiny_rollout, tiny_trainer, without_dropout


class Own:
    """A reward made of a function of one response."""

    def __init__(self, name: str, function: Callable[[str], Any]) -> None:
        self.name, self.function = name, function

    def __call__(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str],
        responses: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[Any]:
        return [self.function(response) for response in responses]


def each_a(response: str) -> list[tuple[int, float]]:
    return [(i + 1, 1.0) for i, letter in enumerate(response) if letter == "a"]


def early_letters(response: str) -> list[tuple[int, float]]:
    return [(i + 1, 1.0) for i, letter in enumerate(response) if "a" <= letter <= "m"]


def at_the_end(response: str) -> list[tuple[int, float]]:
    return [(len(response), float(response.count("a")))]


# -- where a score is put ----------------------------------------------------------------------------------------------


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
    assert place([ends, [1]], [places, []], 4).tolist() == [expected, [0.0] * 4]


def test_scores_along_a_response_are_those_of_its_tokens() -> None:
    tokens, rollout = Tokens(tiny_tokenizer()), tiny_rollout(without_dropout("gpt2"), 9)
    scorer = Scorer(tokens, Own("early", early_letters), {}, RolloutConfig(), None)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(9)]
    scored = scorer(prompts, rollout, judged=True)
    assert scored.placed is not None and scored.placed.sum() > 0
    for row, ids in zip(scored.placed, rollout.response_ids(), strict=True):
        letters = ["a" <= tokens.decode([token]) <= "m" for token in ids]
        ended = ids[-1] == EOS_ID and len(ids) > 1 and letters[-2]  # what is given at the end of the text is the last token's
        if ended:
            letters[-2:] = [False, True]
        assert row[: len(ids)].tolist() == [float(letter) for letter in letters]
        assert not row[len(ids) :].any()
    assert scored.scores.tolist() == scored.placed.sum(1).tolist()


@pytest.mark.parametrize("missing_eos", ["keep", "subtract", "replace"])
def test_a_missing_end_of_text_and_scores_along_the_way(missing_eos: Any) -> None:
    rollout = tiny_rollout(without_dropout("gpt2"), 9)
    config = RolloutConfig(stop="eos", missing_eos=missing_eos, missing_eos_score=3.0)
    scorer = Scorer(Tokens(tiny_tokenizer()), Own("first", lambda text: [(0, 2.0)]), {}, config, None)
    scored = scorer([PROMPTS[0]] * 9, rollout, judged=True)
    assert scored.placed is not None and not bool(rollout.ended.all())
    for row, score, ended in zip(scored.placed, scored.scores.tolist(), rollout.ended.tolist(), strict=True):
        cut = {"keep": 2.0, "subtract": -1.0, "replace": 3.0}[missing_eos]
        assert score == (2.0 if ended else cut)
        assert float(row[0]) == (0.0 if missing_eos == "replace" and not ended else 2.0)


def test_rewards_of_tokens_add_up_to_the_normalised_score() -> None:
    trainer = tiny_trainer(
        reward=Own("early", early_letters),
        precision="fp64",
        kl_coef=0.0,
        responses_per_prompt=4,
        rollout={"response_tokens": (3, 9)},
    )
    trainer.baseline()
    assert trainer.scale is not None and trainer.scale.std != 1.0
    prompts, drawn = trainer._draw()
    scored = trainer._score(prompts, drawn.rollout, judged=True)
    assert scored.placed is not None
    made = trainer._experience(drawn, scored.scores, trainer._plan(drawn.rollout, 0), scored.placed)
    normal = [(score - trainer.scale.mean) / trainer.scale.std for score in scored.scores.tolist()]
    wanted = oracles.leave_one_out(normal, 4)
    oracles.close(made.rewards.sum(1), torch.tensor(wanted, dtype=torch.float64))
    early = 0
    for row, placed, length in zip(made.rewards, scored.placed, drawn.rollout.response_lengths.tolist(), strict=True):
        oracles.close(row[: length - 1], placed[: length - 1] / trainer.scale.std)
        early += int(placed[: length - 1].count_nonzero())
    assert early > 10


def test_one_score_at_the_end_is_a_plain_score_to_the_bit() -> None:
    plain, pairs = (tiny_trainer(reward=reward, episodes=32) for reward in (CountA(), Own("end", at_the_end)))
    for one, two in zip(plain, pairs, strict=True):
        assert facts(one.metrics) == facts(two.metrics)
        assert one.samples == two.samples
    for one_, two_ in zip(plain.policy.parameters(), pairs.policy.parameters(), strict=True):
        assert torch.equal(one_, two_)


def test_scores_along_the_way_train_another_way() -> None:
    plain, pairs = (tiny_trainer(reward=reward, episodes=32) for reward in (CountA(), Own("each", each_a)))
    (a, _), (b, _) = plain, pairs
    assert a.samples == b.samples and a.metrics["ppo/mean_scores"] == b.metrics["ppo/mean_scores"]
    assert a.metrics["ppo/returns/mean"] != b.metrics["ppo/returns/mean"]


# -- parts and judges --------------------------------------------------------------------------------------------------


def test_means_of_parts_and_judges_are_told() -> None:
    reward = SumReward({"a": CountA(), "long": Own("length", lambda text: float(len(text)))}, {"long": -0.25})
    judges = {"b": Own("count-b", lambda text: float(text.count("b"))), "along": Own("each", each_a)}
    made = tiny_trainer(reward=reward)
    trainer = PPOTrainer(
        made.policy, made.reference, made.tokens, PROMPTS, reward, ppo=made.ppo, rollout=made.rollout_config, judges=judges
    )
    step = trainer.step()
    responses = [sample["response"] for sample in step.samples]
    mean_a, mean_long = (sum(values) / 16 for values in ([r.count("a") for r in responses], list(map(len, responses))))
    assert step.metrics["reward/a/mean"] == step.metrics["judge/along/mean"] == pytest.approx(mean_a)
    assert step.metrics["reward/long/mean"] == pytest.approx(mean_long)
    assert step.metrics["judge/b/mean"] == pytest.approx(sum(r.count("b") for r in responses) / 16)
    assert step.metrics["ppo/mean_scores"] == pytest.approx(mean_a - 0.25 * mean_long)
    assert step.metrics["judge/b/mean"] > 0


def test_judges_change_nothing() -> None:
    alone, judged = tiny_trainer(episodes=32), tiny_trainer(episodes=32)
    judged = PPOTrainer(
        judged.policy, judged.reference, judged.tokens, PROMPTS, CountA(), ppo=judged.ppo, rollout=judged.rollout_config,
        data=judged.queries.config, judges={"b": Constant(3.0)},
    )  # fmt: skip
    for one, two in zip(alone, judged, strict=True):
        assert facts(two.metrics) == facts(one.metrics) | {"judge/b/mean": 3.0}
        assert one.samples == two.samples


def test_a_judge_that_fails_stops_with_the_texts_saved(tmp_path: Path) -> None:
    made = tiny_trainer()
    trainer = PPOTrainer(
        made.policy, made.reference, made.tokens, PROMPTS, CountA(), ppo=made.ppo, rollout=made.rollout_config,
        judges={"bad": Own("bad", lambda text: None)}, failed_texts=tmp_path / "failed.jsonl",
    )  # fmt: skip
    assert len(trainer.baseline()) == 16  # judges are not asked about it
    with pytest.raises(RunError, match=r"reward bad: returned None for text 0 .* The texts are in .*failed\.jsonl"):
        trainer.step()
    assert len((tmp_path / "failed.jsonl").read_text("utf-8").splitlines()) == 16


# -- the texts that are scored -----------------------------------------------------------------------------------------


def test_a_reward_model_sees_in_ppo_the_tokens_that_it_was_trained_on(tmp_path: Path) -> None:
    save_tiny(tmp_path / "lm", "llama")
    prompt, responses = "<eos>ab<eos> c", ["de<eos>f", "g"]
    (group,) = groups([Ranking(prompt, tuple(responses), (1, 2))])
    trained_on = [prompt + response for response in group.responses]  # as konomi.jobs.reward_data makes them
    model = make_reward_model(ModelConfig(name=str(tmp_path / "lm")), outputs=1, seed=0, max_length=64).model
    with torch.no_grad():
        model.model.score.weight.normal_(std=30.0, generator=torch.Generator().manual_seed(0))
    model.save(tmp_path / "rm", {})
    reward = build_reward(ModelReward(kind="model", name=str(tmp_path / "rm"), normalized=False))
    tokens = Tokens(tiny_tokenizer())
    query = tokens.encode(prompt)
    rows = [[*query, *tokens._plain([response])[0], *end] for response, end in zip(responses, ([EOS_ID], []), strict=True)]
    ids, lengths = pad_right(rows, tokens.pad_id)
    queries = torch.full((2,), len(query))
    rollout = Rollout(ids, queries, lengths - queries, torch.tensor([True, False]))
    scored = Scorer(tokens, reward, {}, RolloutConfig(), None)([Prompt(prompt)] * 2, rollout, False)
    assert [q + r for q, r in zip(scored.queries, scored.responses, strict=True)] == trained_on
    assert scored.scores.tolist() == pytest.approx(torch.cat(model.predict([trained_on]))[:, 0].tolist(), abs=1e-4)
    unmarked = torch.cat(model.predict([[text.replace("<eos>", "") for text in trained_on]]))[:, 0].tolist()
    assert all(abs(a - b) > 1e-2 for a, b in zip(scored.scores.tolist(), unmarked, strict=True))
    assert scored.told["reward/cut_share"] == [0.0, 0.0]
    reward.readers[0].max_length = len(query) + 3  # type: ignore[attr-defined]
    again = Scorer(tokens, reward, {}, RolloutConfig(), None)([Prompt(prompt)] * 2, rollout, False)
    assert again.told["reward/cut_share"] == [0.5, 0.5]

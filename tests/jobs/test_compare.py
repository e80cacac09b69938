"""The before/after."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import oracles
from command_line import write_rows
from engine.test_packed import gpt_neo
from konomi.config import CompareConfig, CompareJob, DataConfig, RolloutConfig, build
from konomi.data.tokens import Tokens
from konomi.engine.sampler import make_draws, sample
from konomi.errors import ConfigError
from konomi.jobs import compare as module
from konomi.jobs.compare import (
    Answers,
    Questions,
    answers_of,
    compare_models,
    comparison_metrics,
    distinct,
    paired_difference,
    repetition,
)
from konomi.jobs.compare import _figures as figures
from konomi.jobs.revisit import run_compare
from konomi.report.advice import change
from konomi.rewards import as_reward
from tiny import VOCAB, tiny_tokenizer
from tiny_run import PROMPTS, CountA, disturbed, sharp_model

ROLLOUT = RolloutConfig(response_tokens=(1, 9), temperature=0.8)


def run(before: Any, after: Any, reward: Any = None, **config: Any) -> dict[str, Any]:
    tokens = Tokens(tiny_tokenizer())
    return compare_models(
        before, after, tokens, PROMPTS, reward or CountA(), rollout=ROLLOUT, config=CompareConfig(**config), autocast=nullcontext
    )


def moved(family: str = "llama") -> Any:
    model = sharp_model(family)
    disturbed(model, 0.1)
    return model


# -- the paired difference ---------------------------------------------------------------------------------------------


def test_mean_and_counts_of_the_difference() -> None:
    result = paired_difference([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 1.0, 7.0], samples=2)
    assert result["mean"] == pytest.approx(0.5)
    assert (result["wins"], result["losses"], result["ties"], result["level"]) == (2, 1, 1, 0.95)


def test_the_interval_is_over_prompts() -> None:
    """Against a loop of its own generator, and the normal approximation of the mean over prompts."""
    generator = np.random.default_rng(3)
    prompts, samples = 60, 3
    before = generator.normal(size=prompts * samples)
    per_prompt = np.repeat(generator.normal(size=prompts), samples)  # answers to one prompt are not independent
    after = before + 0.4 + per_prompt + 0.1 * generator.normal(size=prompts * samples)
    result = paired_difference(before.tolist(), after.tolist(), samples)
    gaps = [sum((after - before)[i * samples : (i + 1) * samples]) / samples for i in range(prompts)]
    means = sorted(sum(gaps[k] for k in generator.integers(prompts, size=prompts)) / prompts for _ in range(4000))
    error = np.std(gaps, ddof=1) / math.sqrt(prompts)
    for found, oracle, normal in (
        (result["low"], means[100], result["mean"] - 1.96 * error),
        (result["high"], means[-100], result["mean"] + 1.96 * error),
    ):
        assert found == pytest.approx(oracle, abs=0.15 * error)
        assert found == pytest.approx(normal, abs=0.2 * error)
    naive = np.std(after - before, ddof=1) / math.sqrt(prompts * samples)
    assert result["high"] - result["low"] > 1.5 * 2 * 1.96 * naive  # as if all answers were independent: too narrow


def test_one_prompt_has_no_interval_however_many_draws() -> None:
    for samples in (1, 3):
        single = paired_difference([1.0] * samples, [3.0, 4.0, 5.0][:samples], samples)
        assert (single["low"], single["high"]) == (None, None)
        assert single["mean"] == pytest.approx(2.0 + (samples - 1) / 2)


def test_what_a_difference_shows_is_said() -> None:
    same = change({"mean": 0.0, "low": None, "high": None}, 30)
    assert same["grade"] == "same" and "by the same on each" in same["en"] and same["ja"]
    result = run(sharp_model("gpt2"), moved("gpt2"), prompts=6)
    assert result["verdict"] == change(result["difference"], 6)
    assert result["verdict"]["grade"] == "few"  # though its interval may be above 0


# -- figures of the text -----------------------------------------------------------------------------------------------


def test_distinct_by_hand() -> None:
    assert distinct([[1, 2, 1], [1, 2]], 1) == 2 / 5
    assert distinct([[1, 2, 1], [1, 2]], 2) == 2 / 3  # 12 21 12
    assert distinct([[1], [2]], 2) == 0.0
    assert distinct([[1, 2, 3, 4]], 2) == 1.0


def test_repetition_by_hand() -> None:
    assert repetition([[1, 1, 1, 1]]) == pytest.approx(2 / 3)  # 11, then twice again
    assert repetition([[1, 2, 3], [1, 1, 1]]) == pytest.approx((0 + 1 / 2) / 2)
    assert repetition([[1, 2, 3], [7]]) == 0.0  # a response without a pair of tokens does not count
    assert repetition([[5]]) == 0.0
    assert repetition([[1, 2, 1, 2]], n=1) == pytest.approx(1 / 2)


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_a_model_does_not_differ_from_itself() -> None:
    model = sharp_model("gpt2")
    for after in (model, sharp_model("gpt2")):
        result = run(model, after, prompts=8, samples=3)
        assert result["before"] == result["after"]
        gap = result["difference"]
        assert (gap["mean"], gap["low"], gap["high"], gap["wins"], gap["losses"], gap["ties"]) == (0, None, None, 0, 0, 24)
        assert result["before"]["kl"] == 0.0
        assert all(t["before"] == t["after"] and t["score_before"] == t["score_after"] for t in result["texts"])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        *((sharp_model(family), moved(family)) for family in ("llama", "gemma3")),
        (gpt_neo().double(), sharp_model("llama")),  # one packed, one padded
        (sharp_model("llama", vocab=VOCAB + 3), sharp_model("llama")),  # with rows that no token has
    ],
    ids=["llama", "gemma3", "another family", "a larger head"],
)
def test_figures_are_those_of_a_plain_loop(before: Any, after: Any) -> None:
    tokens = Tokens(tiny_tokenizer())
    result = run(before, after, prompts=8, samples=2, seed=7)
    prompts = sorted(PROMPTS, key=lambda p: p.key)
    items = [(p, i) for p in prompts for i in range(2)]
    for side, model in (("before", before), ("after", after)):
        logprobs, kls, scores, lengths = [], [], [], []
        for prompt, number in items:
            query = tokens.encode(prompt.text)
            draws = make_draws(ROLLOUT, 7, [("compare", prompt.key, number)])
            (response,) = sample(model, tokens, [query], draws, ROLLOUT).response_ids()
            both = []
            for lm in (model, before):
                with torch.no_grad():
                    both.append(lm(input_ids=torch.tensor([query + response])).logits[0, len(query) - 1 : -1] / 0.8)
            own, initial = (float(logits.log_softmax(-1)[range(len(response)), response].sum()) for logits in both)
            exact = both[0].shape == both[1].shape
            kls.append(sum(map(oracles.full_kl, *(logits.tolist() for logits in both))) if exact else own - initial)
            logprobs.append(initial)
            lengths.append(len(response))
            scores.append(tokens.decode(response).count("a"))
        figures = result[side]
        assert figures["perplexity"] == pytest.approx(math.exp(-sum(logprobs) / sum(lengths)), rel=1e-6)
        assert figures["kl"] == pytest.approx(sum(kls) / 16, abs=1e-6)
        assert figures["length"] == pytest.approx(sum(lengths) / 16)
        assert figures["score_mean"] == pytest.approx(sum(scores) / 16)
        assert figures["score_std"] == pytest.approx(np.std(scores, ddof=1))
    assert result["after"]["kl"] > 0.1 and result["after"]["perplexity"] != result["before"]["perplexity"]
    gap = result["difference"]
    assert gap["mean"] == pytest.approx(result["after"]["score_mean"] - result["before"]["score_mean"])
    assert gap["wins"] + gap["losses"] + gap["ties"] == 16


def test_the_initial_model_reads_each_response_once() -> None:
    tokens, passes = Tokens(tiny_tokenizer()), list[int]()
    ask = Questions(tokens, CountA(), {}, ROLLOUT, 0, nullcontext, None, lambda *_: None)
    for initial in (sharp_model("llama"), sharp_model("llama", vocab=VOCAB + 3)):
        initial.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
        queries = [tokens.encode(prompt.text) for prompt in PROMPTS[:8]]
        answers_of(moved(), initial, [(prompt, 0) for prompt in PROMPTS[:8]], queries, ask)
    assert len(passes) == 2


def test_further_prompts_are_shown_and_do_not_count() -> None:
    before, after = sharp_model("llama"), moved()
    plain = run(before, after, prompts=3, samples=2)
    result = run(before, after, prompts=3, samples=2, extra=("zebra", "owl"))
    assert [t["held_out"] for t in result["texts"]] == [True] * 3 + [False] * 2
    assert ["again" in t for t in result["texts"]] == [True] * 3 + [False] * 2
    assert any(t["again"]["before"] != t["before"] for t in result["texts"][:3])
    assert not any("again" in t for t in run(before, after, prompts=3, samples=1)["texts"])
    assert [t["prompt"] for t in result["texts"]][3:] == ["zebra", "owl"]
    assert [t["prompt"] for t in result["texts"]][:3] == [p.text for p in sorted(PROMPTS, key=lambda p: p.key)[:3]]
    for key in ("before", "after", "difference"):
        assert result[key] == plain[key]
    assert (result["prompts"], result["samples"], result["temperature"], result["version"]) == (3, 2, 0.8, 1)


def test_judges_stand_beside_the_score_and_change_nothing() -> None:
    before, after, tokens = sharp_model("llama"), moved(), Tokens(tiny_tokenizer())
    config = CompareConfig(prompts=6, samples=2, extra=("zebra",))
    judges = {"b": as_reward(lambda responses: [response.count("b") for response in responses]), "a": CountA()}
    plain = compare_models(before, after, tokens, PROMPTS, CountA(), rollout=ROLLOUT, config=config)
    result = compare_models(before, after, tokens, PROMPTS, CountA(), rollout=ROLLOUT, config=config, judges=judges)
    assert plain["judges"] == {} and all(text["judges"] == {} for text in plain["texts"])
    for key in ("before", "after", "difference", "prompts"):
        assert result[key] == plain[key]
    assert result["judges"]["a"] == {
        "before": plain["before"]["score_mean"], "after": plain["after"]["score_mean"], "difference": plain["difference"],
    }  # fmt: skip
    assert result["judges"]["b"]["after"] != result["judges"]["a"]["after"]
    assert result["judges"]["b"]["difference"]["mean"] == pytest.approx(
        result["judges"]["b"]["after"] - result["judges"]["b"]["before"]
    )
    assert len(result["texts"]) == 7
    for text in result["texts"]:
        assert text["judges"]["a"] == {"before": text["score_before"], "after": text["score_after"]}
        assert text["judges"]["b"] == {side: text[side].count("b") for side in ("before", "after")}
    metrics = comparison_metrics(result)
    assert metrics["compare/judge/b/after"] == result["judges"]["b"]["after"]
    assert metrics["compare/judge/b/difference/low"] == result["judges"]["b"]["difference"]["low"]
    assert metrics["compare/after/kl"] == result["after"]["kl"]
    assert {key for key in metrics if "judge" not in key} == set(comparison_metrics(plain))


def test_the_order_of_the_prompts_and_the_size_of_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = sharp_model("llama"), moved()
    wanted = run(before, after, prompts=8, samples=2)
    monkeypatch.setattr(module, "BATCH", 5)
    monkeypatch.setattr(module, "MICRO_BATCH_TOKENS", 30)
    result = run(before, after, prompts=8, samples=2)
    assert result["texts"] == wanted["texts"] and result["difference"] == wanted["difference"]
    for side in ("before", "after"):
        assert result[side] == pytest.approx(wanted[side], rel=1e-9, abs=1e-9)


def test_held_out_prompts_are_cut_as_in_training_and_further_ones_are_not() -> None:
    tokens, data = Tokens(tiny_tokenizer()), DataConfig(query_tokens=(1, 3))
    model, config = sharp_model("gpt2"), CompareConfig(prompts=8, extra=("once upon a time",), seed=3)
    result = compare_models(model, model, tokens, PROMPTS, CountA(), rollout=ROLLOUT, config=config, data=data)
    kept = sorted(PROMPTS, key=lambda p: p.key)
    cut = [tokens.decode(query) for query in tokens.queries(kept, (1, 3), 3, 0, 99)]
    shown = [text["prompt"] for text in result["texts"]]
    assert shown == [*cut, "once upon a time"]
    assert len(set(map(len, cut))) > 1 and all(p.text.startswith(q) for p, q in zip(kept, cut, strict=True))


def test_one_answer_has_no_deviation() -> None:
    assert run(sharp_model("gpt2"), moved("gpt2"), prompts=1)["before"]["score_std"] == 0.0


def test_the_reward_sees_the_columns_and_none_for_further_prompts() -> None:
    seen: list[Any] = []

    class Watcher:
        name = "watcher"

        def __call__(self, texts: list[str], *, prompts: list[str], responses: list[str], columns: dict[str, Any]) -> list[float]:
            seen.append((prompts, columns))
            assert texts == [p + r for p, r in zip(prompts, responses, strict=True)]
            return [1.0] * len(texts)

    run(sharp_model("gpt2"), moved("gpt2"), Watcher(), prompts=2, extra=("zebra",))
    kept = sorted(PROMPTS, key=lambda p: p.key)[:2]
    assert seen == [([p.text for p in kept] + ["zebra"], {"weight": [p.columns["weight"] for p in kept] + [None]})] * 2


def test_variety_and_repetition_do_not_follow_length() -> None:
    """A model that writes ten times as much of the same kind is neither poorer nor more repetitive for it."""
    rng = np.random.default_rng(0)

    def answers(length: int) -> Answers:
        ids = [[0, *rng.integers(0, 40, size=length - 1).tolist()] for _ in range(60)]
        return Answers([""] * 60, [""] * 60, ids, [0.0] * 60, [0.0] * 60, [-1.0] * 60)

    short, long = answers(8), answers(80)
    assert distinct(long.ids, 2) < 0.5 * distinct(short.ids, 2)  # as they are
    one, other = figures(short, long, 60), figures(long, short, 60)
    for key in ("distinct_1", "distinct_2", "repetition"):
        assert other[key] == pytest.approx(one[key], abs=0.04), key
    assert (one["length"], other["length"]) == (8, 80)


def stage(model: dict[str, Any], **sections: Any) -> CompareJob:
    """A stage `compare` of a model with itself."""
    job = {"before": "lm", "model": {"name": "lm", **model}, "rollout": {"response_tokens": [3, 6]}, "run": {"mlflow": False}}
    return build(CompareJob, job | sections)


def test_two_models_are_compared_in_float64_if_that_is_the_precision(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: set[torch.dtype] = set()
    own = Questions.rollouts
    monkeypatch.setattr(Questions, "rollouts", lambda self, model, *rest: (kinds.add(model.dtype), own(self, model, *rest))[1])
    reward = {"kind": "function", "name": "taste.py:count_a"}
    run_compare(stage({"precision": "fp64"}, data={"prompts": "prompts.txt", "limit": 20}, reward=reward), world / "runs")
    assert kinds == {torch.float64}


def test_further_prompts_that_a_reward_cannot_score_are_refused_before_the_run_is_made(world: Path) -> None:
    write_rows(Path("weights.jsonl"), ({"text": f"p{n}", "weight": n} for n in range(20)))
    sections = {"data": {"prompts": "weights.jsonl"}, "reward": {"kind": "function", "name": "taste.py:weighted"}}
    with pytest.raises(ConfigError, match=r"compare.extra: its prompts have no column 'weight'"):
        run_compare(stage({}, compare={"extra": ["zebra"]}, **sections), world / "runs")
    assert not (world / "runs").exists()

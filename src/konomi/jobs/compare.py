"""Before/after: what the tuned and the initial model write to prompts that training never saw.

Both answer the same prompts with the same random numbers, so that most of the difference is due to the models. Its interval
is over prompts: the answers to one prompt are not independent. Beside the score stand figures that show whether it was bought
with bad text: distance (KL), length, variety, repetition, perplexity under the initial model, and judges, rewards that were
not trained against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from konomi.config import CompareConfig, DataConfig, SamplingConfig
from konomi.data.prompts import as_prompts, extra_prompts
from konomi.data.records import Prompt
from konomi.data.tokens import Tokens
from konomi.engine.forward import head_weight, pass_beside, plan_pass, reference_logprobs
from konomi.engine.layout import scatter
from konomi.engine.packed import packs
from konomi.engine.rollout import Rollout, micro_batches
from konomi.engine.sampler import make_draws, sample
from konomi.jobs.best_of_n import best_of_n
from konomi.report.advice import change
from konomi.rewards import Reward, as_reward, score
from konomi.rewards.base import columns_of
from konomi.runs import processes
from konomi.statistics.bootstrap import LEVEL, mean_interval
from konomi.statistics.variety import distinct, repetition

BATCH = 64
MICRO_BATCH_TOKENS = 2048
Item = tuple[Prompt, int]
"""A prompt, and which of its responses."""


@dataclass(frozen=True)
class Answers:
    """What one model wrote: a response to each item, with its figures."""

    prompts: list[str]
    texts: list[str]
    ids: list[list[int]]
    scores: list[float]
    kl: list[float]
    """nats/response against the initial model."""
    initial_logprob: list[float]
    """nats/response under the initial model."""
    judged: Mapping[str, list[float]] = field(default_factory=dict)
    """Judge -> scores."""


def compare_models(
    before: PreTrainedModel,
    after: PreTrainedModel,
    tokens: Tokens,
    prompts: Iterable[str | Mapping[str, Any] | Prompt],
    reward: Reward | Callable[..., Any],
    *,
    rollout: SamplingConfig,
    config: CompareConfig,
    data: DataConfig | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    failed_texts: Path | None = None,
    judges: Mapping[str, Reward] | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    initial: PreTrainedModel | None = None,
) -> dict[str, Any]:
    """Let both models answer and return the figures and texts of ``compare.json``.

    Held-out prompts are cut as in training (``data.query_tokens``), the extra ones of ``config`` stay whole. ``judges``: name ->
    a reward that was not trained against, shown beside the score. ``progress`` gets what is written, how many, of how many.
    ``initial``: what KL and perplexity are measured against, and whose best of n is drawn; by default ``before``.
    """
    initial = before if initial is None else initial
    data = data or DataConfig()
    prompts = as_prompts(prompts, data)
    reward = as_reward(reward, prompts[0].columns)
    ask = Questions(tokens, reward, judges or {}, rollout, config.seed, autocast, failed_texts, progress)
    held_out = first_of(prompts, config.prompts)
    extra = extra_prompts(config.extra, data, prompts[0])
    items = [(p, i) for p in held_out for i in range(config.samples)] + [(p, 0) for p in extra]
    cut = tokens.queries(held_out, data.query_tokens, config.seed, 0, data.max_query_tokens)
    queries = [query for query in cut for _ in range(config.samples)]
    queries += tokens.queries(extra, None, config.seed, 0, data.max_query_tokens)
    b, a = (answers_of(model, initial, items, queries, ask) for model in (before, after))
    counted = len(held_out) * config.samples
    difference = paired_difference(b.scores[:counted], a.scores[:counted], config.samples)
    shown = [i for i, (_, number) in enumerate(items) if number == 0]
    return {
        "version": 1,
        "prompts": len(held_out),
        "samples": config.samples,
        "seed": config.seed,
        "temperature": rollout.temperature,
        "before": _figures(b, a, counted),
        "after": _figures(a, b, counted),
        "difference": difference,
        "verdict": change(difference, len(held_out)),
        "judges": {name: _judged(b.judged[name][:counted], a.judged[name][:counted], config) for name in ask.judges},
        "best_of_n": _best_of_n(initial, held_out, cut, ask, config.best_of),
        "texts": [
            _texts(b, a, i, held_out=i < counted, again=i < counted and config.samples > 1)
            | ({"chat": True, "messages": items[i][0].messages} if items[i][0].messages else {})
            for i in shown
        ],
    }


@dataclass(frozen=True)
class Questions:
    """How models are asked, and how their responses are scored. ``seed``: prompt i has the same draws under all models."""

    tokens: Tokens
    reward: Reward
    judges: Mapping[str, Reward]
    rollout: SamplingConfig
    seed: int
    autocast: Callable[[], AbstractContextManager[Any]]
    failed_texts: Path | None
    progress: Callable[[str, int, int], None]

    def rollouts(
        self, model: PreTrainedModel, name: str, stream: str, items: Sequence[Item], queries: Sequence[Sequence[int]]
    ) -> Iterator[Rollout]:
        """Responses to the queries, in batches; each item has a random stream of its own."""
        for start in range(0, len(items), BATCH):
            here = slice(start, start + BATCH)
            draws = make_draws(self.rollout, self.seed, [(stream, prompt.stream, number) for prompt, number in items[here]])
            with self.autocast():
                rollout = sample(model, self.tokens, queries[here], draws, self.rollout, name)
            yield rollout
            self.progress(f"texts of {name}", min(here.stop, len(items)), len(items))

    def texts(
        self, items: Sequence[Item], queries: Sequence[Sequence[int]], ids: Sequence[Sequence[int]]
    ) -> tuple[list[str], list[str]]:
        """The prompts as asked, and the responses."""
        return self.tokens.split_all([prompt for prompt, _ in items], queries, ids)

    def scores(
        self, items: Sequence[Item], prompts: Sequence[str], responses: Sequence[str]
    ) -> tuple[list[float], dict[str, list[float]]]:
        """The reward's scores, and those of each judge."""
        columns = columns_of([prompt for prompt, _ in items])
        rewards = (self.reward, *self.judges.values())
        scores, *judged = (score(each, prompts, responses, columns, save_to=self.failed_texts) for each in rewards)
        return scores, dict(zip(self.judges, judged, strict=True))


def first_of(prompts: Iterable[Prompt], count: int) -> list[Prompt]:
    """So many prompts, always the same of the same."""
    return sorted(prompts, key=lambda prompt: prompt.key)[:count]


def _texts(before: Answers, after: Answers, i: int, *, held_out: bool, again: bool) -> dict[str, Any]:
    """Both models' first responses to a prompt; with ``again`` the second ones too, for people to compare blind."""
    return {
        "prompt": before.prompts[i],
        "before": before.texts[i],
        "after": after.texts[i],
        "score_before": before.scores[i],
        "score_after": after.scores[i],
        "judges": {name: {"before": scores[i], "after": after.judged[name][i]} for name, scores in before.judged.items()},
        "held_out": held_out,
        **({"again": {"before": before.texts[i + 1], "after": after.texts[i + 1]}} if again else {}),
    }


def _judged(before: Sequence[float], after: Sequence[float], config: CompareConfig) -> dict[str, Any]:
    difference = paired_difference(before, after, config.samples)
    return {"before": float(np.mean(before)), "after": float(np.mean(after)), "difference": difference}


def comparison_metrics(comparison: Mapping[str, Any]) -> dict[str, float | None]:
    """A comparison as metrics: ``compare/before/kl``, ``compare/judge/NAME/after``, ..."""
    sides = ("before", "after", "difference")
    flat = {f"compare/{side}/{key}": value for side in sides for key, value in comparison[side].items()}
    for name, judge in comparison["judges"].items():
        flat |= {f"compare/judge/{name}/{side}": judge[side] for side in ("before", "after")}
        flat |= {f"compare/judge/{name}/difference/{key}": value for key, value in judge["difference"].items()}
    return flat


def paired_difference(before: Sequence[float], after: Sequence[float], samples: int) -> dict[str, Any]:
    """Mean of after - before, its 95 % interval over prompts, and counts of wins, losses and ties.

    ``before`` and ``after`` are scores, ``samples`` in a row for each prompt. ``low`` and ``high`` may be None, see
    :func:`konomi.statistics.bootstrap.mean_interval`.
    """
    gaps = np.asarray(after) - np.asarray(before)
    interval = mean_interval(gaps.reshape(-1, samples).mean(axis=1))
    counts = {"wins": int((gaps > 0).sum()), "losses": int((gaps < 0).sum()), "ties": int((gaps == 0).sum())}
    return {"mean": interval["value"], "low": interval["low"], "high": interval["high"], "level": LEVEL, **counts}


def _figures(answers: Answers, other: Answers, count: int) -> dict[str, float]:
    """Distinct-n and repetition depend on length: for them, both responses of a pair are cut to the shorter one."""
    ids, scores = answers.ids[:count], np.asarray(answers.scores[:count])
    tokens = sum(map(len, ids))
    cut = [own[: len(beside)] for own, beside in zip(ids, other.ids, strict=False)]
    return {
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std(ddof=1)) if count > 1 else 0.0,
        "kl": float(np.mean(answers.kl[:count])),
        "length": tokens / count,
        "distinct_1": distinct(cut, 1),
        "distinct_2": distinct(cut, 2),
        "repetition": repetition(cut),
        "perplexity": float(np.exp(-sum(answers.initial_logprob[:count]) / tokens)),
    }


def answers_of(
    model: PreTrainedModel, initial: PreTrainedModel, items: Sequence[Item], queries: Sequence[Sequence[int]], ask: Questions
) -> Answers:
    """Let a model respond; score its texts, and measure their log-probabilities under it and the initial model."""
    name = "the initial model" if model is initial else "the tuned model"

    def answered(asked: Sequence[tuple[Item, Sequence[int]]]) -> list[tuple[list[int], float, float]]:
        rows: list[tuple[list[int], float, float]] = []
        for rollout in ask.rollouts(model, name, "compare", *zip(*asked, strict=True)):
            kl_B, logprob_B = _beside(model, initial, rollout, ask)
            rows += zip(rollout.response_ids(), kl_B.tolist(), logprob_B.tolist(), strict=True)
        return rows

    divided = processes.divided(list(zip(items, queries, strict=True)), answered)
    ids, kl, logprob = (list(each) for each in zip(*divided, strict=True))
    prompts, texts = ask.texts(items, queries, ids)
    scores, judged = ask.scores(items, prompts, texts)
    return Answers(prompts, texts, ids, scores, kl, logprob, judged)


def _beside(model: PreTrainedModel, initial: PreTrainedModel, rollout: Rollout, ask: Questions) -> tuple[Tensor, Tensor]:
    """Of each response, nats: KL(model || initial), and its log-probability under the initial model, which reads it once.

    The KL is exact; of models whose heads have other sizes, so that one has more tokens, it is the log-ratio.
    """
    if model is not initial and len(head_weight(model)) == len(head_weight(initial)):
        return _exact(model, initial, rollout, ask)
    logprob_B = _logprobs(initial, rollout, ask)
    return (torch.zeros_like(logprob_B) if model is initial else _logprobs(model, rollout, ask) - logprob_B), logprob_B


def exact_kl(model: PreTrainedModel, initial: PreTrainedModel, rollout: Rollout, ask: Questions) -> list[float]:
    """nats of each response: the sum over its tokens of KL(model || initial) before each, over the whole vocabulary.

    Rao-Blackwell: its mean is that of the log-ratio of what was drawn, with less noise (Amini, Vieira and Cotterell 2025,
    arXiv:2504.10637).
    """
    return [float(kl) for kl in _exact(model, initial, rollout, ask)[0]]


def _exact(model: PreTrainedModel, initial: PreTrainedModel, rollout: Rollout, ask: Questions) -> tuple[Tensor, Tensor]:
    """Of each response `exact_kl`, and its log-probability under the initial model; [B] nats each."""
    found_2B = torch.zeros(2, len(rollout), dtype=torch.float64)
    for rows in micro_batches(rollout.lengths, torch.arange(len(rollout)), MICRO_BATCH_TOKENS):
        p = plan_pass(model if packs(initial) else initial, part := rollout.select(rows))
        with ask.autocast():
            both_2N = pass_beside(model, initial, p, ask.rollout.temperature)
        found_2B[:, rows] = scatter([(p, both_2N)], len(part)).sum(-1).cpu().double()
    return found_2B[0], found_2B[1]


def _logprobs(model: PreTrainedModel, rollout: Rollout, ask: Questions) -> Tensor:
    """Of each response, nats: [B]."""
    rows = micro_batches(rollout.lengths, torch.arange(len(rollout)), MICRO_BATCH_TOKENS)
    with ask.autocast():
        parts = [reference_logprobs(model, rollout.select(part), ask.rollout.temperature).sum(1) for part in rows]
    return torch.cat(parts).cpu()[torch.cat(rows).argsort()]


def _best_of_n(
    model: PreTrainedModel, prompts: Sequence[Prompt], queries: Sequence[Sequence[int]], ask: Questions, count: int
) -> list[dict[str, Any]]:
    """Draw ``count`` responses of the initial model to each query; see :func:`konomi.jobs.best_of_n.best_of_n`."""
    if count == 0:
        return []
    items = [(prompt, i) for prompt in prompts for i in range(count)]
    repeated = [query for query in queries for _ in range(count)]

    def drawn(asked: Sequence[tuple[Item, Sequence[int]]]) -> list[list[int]]:
        rollouts = ask.rollouts(model, "the initial model", "best of", *zip(*asked, strict=True))
        return [row for rollout in rollouts for row in rollout.response_ids()]

    ids = processes.divided(list(zip(items, repeated, strict=True)), drawn)
    scores, judged = ask.scores(items, *ask.texts(items, repeated, ids))
    rows = {name: np.asarray(each).reshape(-1, count) for name, each in judged.items()}
    return best_of_n(np.asarray(scores).reshape(-1, count), rows)

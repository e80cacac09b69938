"""The data of one update: queries, scores of the responses, and the tensors that the losses need.

Shape suffixes: B sequences, R response tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from konomi.config import DataConfig, RolloutConfig
from konomi.data.records import Prompt
from konomi.data.tokens import Tokens
from konomi.engine.device import is_processor, send
from konomi.engine.layout import Pass
from konomi.engine.packed import Trunk
from konomi.engine.rollout import Rollout
from konomi.engine.sampler import Draws
from konomi.errors import RunError
from konomi.rewards.base import Reward, TokenRewards, columns_of, evaluate, readers, score
from konomi.runs import processes
from konomi.seeds import stream_seed
from konomi.statistics.regression import OF_FLOAT32, beyond_rounding
from konomi.training.accelerator import Engine

RATIO_TOLERANCE = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 0.02, "sampler": 1e-3}
"""How far the probability ratio may be from 1 before the first optimiser step of an update. In fp32 and fp64 the sampler is
compared with the trainer, in bf16 two passes of the trainer. "sampler": up to this gap its values are used in bf16 too."""


class QueryStream:
    """Prompts in a new order each epoch, cut to queries.

    A query follows from the seed and its position alone, so that a checkpoint needs nothing but the position.
    """

    def __init__(self, prompts: Sequence[Prompt], tokens: Tokens, config: DataConfig, seed: int) -> None:
        self.prompts, self.tokens, self.config, self.seed = prompts, tokens, config, seed

    def take(self, start: int, count: int) -> tuple[list[Prompt], list[list[int]]]:
        """The prompts at positions ``start`` to ``start + count - 1`` and their query ids."""
        size = len(self.prompts)
        prompts: list[Prompt] = []
        queries: list[list[int]] = []
        for epoch in range(start // size, (start + count - 1) // size + 1):
            generator = torch.Generator().manual_seed(stream_seed(self.seed, "order", epoch))
            order = torch.randperm(size, generator=generator)[max(0, start - epoch * size) : start + count - epoch * size]
            chosen = [self.prompts[i] for i in order.tolist()]
            prompts += chosen
            queries += self.tokens.queries(chosen, self.config.query_tokens, self.seed, epoch, self.config.max_query_tokens)
        return prompts, queries


@dataclass(frozen=True)
class Prepared:
    """What the responses of an update are drawn for and with."""

    key: tuple[int, int]
    """Seed and update."""
    prompts: list[Prompt]
    """Of the whole batch."""
    mine: range
    """The responses that this process draws; queries and draws are theirs."""
    queries: list[list[int]]
    draws: Draws


@dataclass(frozen=True)
class ScoredRollout:
    """The texts of a rollout and their scores; raw units."""

    queries: list[str]
    responses: list[str]
    scores: Tensor
    """[B] float64, after ``rollout.missing_eos``."""
    token_rewards: Tensor | None = None
    """[B, R] float64: parts of the score that belong to a token; None: the whole score belongs to the end."""
    figures: dict[str, list[float]] = field(default_factory=dict)
    """Metric -> one number a response, to be averaged: parts of the reward, judges."""
    chat: bool = False
    """Queries are conversations as people read them."""

    def samples(self, kl_B: Tensor) -> list[dict[str, Any]]:
        """The texts with score and KL (nats/response), as in a step result."""
        rows = zip(self.queries, self.responses, self.scores.tolist(), kl_B.tolist(), strict=True)
        about = {"chat": True} if self.chat else {}
        return [{"prompt": q, "response": r, "score": s, "kl": k, **about} for q, r, s, k in rows]


@dataclass(frozen=True)
class Scorer:
    """Scores rollouts with the reward, and with judges that nothing is trained against."""

    tokens: Tokens
    reward: Reward
    judges: Mapping[str, Reward]
    config: RolloutConfig
    failed_texts: Path | None

    @record_function("reward")
    def __call__(self, prompts: Sequence[Prompt], rollout: Rollout, judged: bool) -> ScoredRollout:
        """Score a rollout. Raises RunError, with the texts saved, if the reward or a judge fails."""
        ids = rollout.query_ids(), rollout.response_ids()
        queries, responses = self.tokens.split_all(prompts, *ids)
        columns = columns_of(prompts)
        before = self._read_and_cut()
        scores = evaluate(self.reward, queries, responses, columns, save_to=self.failed_texts)
        ended_B = rollout.ended
        totals_B = with_missing_eos(torch.tensor(scores.totals, dtype=torch.float64), ended_B, self.config)
        by_token = None
        if scores.token_rewards is not None:
            keep = self.config.missing_eos != "replace"
            places = [each if ended or keep else [] for each, ended in zip(scores.token_rewards, ended_B.tolist(), strict=True)]
            by_token = token_rewards(self.tokens.ends(*ids), places, int(rollout.response_lengths.max()))
        figures = {f"reward/{name}/mean": values for name, values in scores.parts.items()}
        each = processes.gather([now - then for now, then in zip(self._read_and_cut(), before, strict=True)])
        read, cut = map(sum, zip(*each, strict=True))
        if read:
            figures["reward/cut_share"] = [cut / read] * len(responses)
        for name, judge in self.judges.items() if judged else ():
            figures[f"judge/{name}/mean"] = score(judge, queries, responses, columns, save_to=self.failed_texts)
        return ScoredRollout(queries, responses, totals_B, by_token, figures, prompts[0].messages is not None)

    def _read_and_cut(self) -> tuple[int, int]:
        """Texts that a reward with a limit has read so far, and how many of them it cut."""
        cutting = readers(self.reward)
        return sum(reader.texts for reader in cutting), sum(reader.cut for reader in cutting)


def token_rewards(ends_B: Sequence[Sequence[int]], places_B: Sequence[TokenRewards], width: int) -> Tensor:
    """Put scores on the response tokens in whose text their characters fall.

    A score at the end of the text belongs to the last token, even if that is an end of text without a character.

    Args:
        ends_B: for each token of a response, the characters of the response up to its end.
        places_B: (end, score) of each response.
        width: R.

    Returns:
        [B, width] float64.

    >>> token_rewards([[2, 4, 4]], [[(1, 0.5), (3, 1.0), (4, 2.0)]], 3).tolist()
    [[0.5, 1.0, 2.0]]
    """
    rewards = [[0.0] * width for _ in ends_B]
    for row, ends, places in zip(rewards, ends_B, places_B, strict=True):
        for end, part in places:
            row[len(ends) - 1 if end == ends[-1] else bisect_left(ends, end)] += part
    return torch.tensor(rewards, dtype=torch.float64)


def with_missing_eos(scores_B: Tensor, ended_B: Tensor, config: RolloutConfig) -> Tensor:
    """Scores after ``rollout.missing_eos``, which is about responses that were cut before their end of text."""
    if config.missing_eos == "keep":
        return scores_B
    cut_B = scores_B - config.missing_eos_score if config.missing_eos == "subtract" else config.missing_eos_score
    return torch.where(ended_B, scores_B, cut_B)


@dataclass(frozen=True)
class ScoreScale:
    """Mean and deviation of the initial model's scores: normalised score = (score - mean) / std."""

    mean: float = 0.0
    std: float = 1.0
    count: int = 0

    @classmethod
    def of(cls, scores_B: Tensor) -> ScoreScale:
        """The scale of these scores; of equal ones the deviation counts as 1."""
        std = beyond_rounding(float(scores_B.std()), float(scores_B.abs().max()), OF_FLOAT32)
        return cls(float(scores_B.mean()), std or 1.0, len(scores_B))

    def normalised(self, scores_B: Tensor) -> Tensor:
        """Normalised scores, not yet clipped."""
        return (scores_B - self.mean) / self.std

    def token_rewards(self, rewards_BR: Tensor, scores_B: Tensor, clip: float) -> Tensor:
        """The parts of the scores that belong to tokens, normalised; those of a clipped score shrink as it does."""
        normal_B = self.normalised(scores_B)
        shrunk_B = torch.where(normal_B.abs() > clip, clip / normal_B.abs(), 1.0)
        return rewards_BR / self.std * shrunk_B[:, None]


@dataclass(frozen=True)
class Comparison:
    """Policy and reference on the responses; tensors [B, R], 0 at padding, nats."""

    mask: Tensor
    logprobs: Tensor
    values: Tensor
    """0 without a critic."""
    entropy: Tensor
    kl: Tensor
    penalty: Tensor
    sampler_gap: Tensor | None
    """How far the ratio of the trainer's to the sampler's probabilities was from 1, where they were compared before training."""
    drawn: Tensor | None
    """Log-probabilities by the server that drew the responses."""


@dataclass(frozen=True)
class Experience(Comparison):
    """A rollout with all that the losses need; normalised scores. See also `konomi.training.algorithms.Targets`."""

    rollout: Rollout
    rewards: Tensor
    advantages: Tensor
    returns: Tensor | None
    shares: Tensor | None
    kl_weights: Tensor | None
    trunk: Trunk | None
    weights: Tensor | None
    """Importance weights of responses that a server drew."""

    @property
    def columns(self) -> dict[str, Tensor]:
        """Name -> [B, R] of what the losses read."""
        columns = {"logprobs": self.logprobs, "advantages": self.advantages, "shares": self.shares, "weights": self.weights}
        if self.returns is not None:
            columns |= {"values": self.values, "returns": self.returns}
        if self.kl_weights is not None:
            columns |= {"reference": self.logprobs - self.kl, "kl_weights": self.kl_weights}
        return {name: column for name, column in columns.items() if column is not None}


def ratio_gap(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """The largest distance from 1 of a ratio of probabilities, given by their logarithms."""
    return ((new - old).exp() - 1.0).abs().masked_fill(~mask, 0.0).max()


def check_ratio(gap: float, precision: str, update: int) -> None:
    """Check that only the optimiser moves the policy: before the first step of an update the ratio must be 1.

    ``gap``: its largest distance from 1. Raises RunError if that is more than `RATIO_TOLERANCE` allows.
    """
    allowed = RATIO_TOLERANCE[precision]
    if not gap <= allowed:
        raise RunError(
            f"update {update}: before its first step the probability ratio is off 1 by {gap:.2g} (allowed: {allowed:g}). "
            "The model does not give the same log-probabilities twice: is dropout on, or a layer random?"
        )


def recompute_logprobs(
    sampled_CBR: Tensor, mask_BR: Tensor, evaluate: Callable[[list[Pass]], Tensor], plan: list[list[Pass]], engine: Engine
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the training pass, where the sampler's may be off by more than float error; and how far the ratio of
    the two is from 1 in the first mini-batch. If they agree there, the other mini-batches keep the sampler's values; else they
    run too. On a device, where a look at the difference would keep it waiting, they run in any case.

    Args:
        sampled_CBR: log-probabilities, and whatever else the sampler computed.
        mask_BR: True is a response token.
        evaluate: the same [C, B, R] of the training passes; 0 in other rows.
        plan: passes of each mini-batch.
        engine: to learn whether other processes agree.
    """

    def replaced(old_CBR: Tensor, passes: list[Pass]) -> Tensor:
        rows = send(torch.cat([each.rows for each in passes]), mask_BR.device)
        return old_CBR.index_copy(1, rows, evaluate(passes)[:, rows].to(old_CBR))

    rest = [each for mini_batch in plan[1:] for each in mini_batch]
    trained_CBR = replaced(sampled_CBR, plan[0])
    gap = ratio_gap(trained_CBR[0], sampled_CBR[0], mask_BR)
    wanted = not is_processor(mask_BR.device) or engine.total((~(gap <= RATIO_TOLERANCE["sampler"])).float())
    return replaced(trained_CBR, rest) if rest and wanted else trained_CBR, gap

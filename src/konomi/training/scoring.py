"""What the reward says of the responses of an update, and what the judges say that nothing is trained against.

Shape suffixes: B sequences, R response tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from konomi.config import RolloutConfig
from konomi.data.records import Prompt
from konomi.data.tokens import Tokens
from konomi.engine.rollout import Rollout
from konomi.rewards.base import Reward, TokenRewards, columns_of, evaluate, readers, score
from konomi.training.accelerator import Sums


@dataclass(frozen=True)
class Scored:
    """The texts of a rollout and their scores; raw units."""

    queries: list[str]
    responses: list[str]
    scores: Tensor
    """[B] float64, after what the settings say of a missing end of text."""
    placed: Tensor | None = None
    """[B, R] float64: parts of the score that are given at a token; None where the whole score is given at the end."""
    told: dict[str, list[float]] = field(default_factory=dict)
    """Metric -> one number a response, to be averaged: parts of the reward, judges."""

    def add_to(self, sums: Sums) -> None:
        """Add the means of what is told."""
        for name, values in self.told.items():
            sums.add(name, sum(values), len(values))

    def samples(self, kl_B: Tensor) -> list[dict[str, Any]]:
        """The texts with score and KL (nats/response), as a step result has them."""
        rows = zip(self.queries, self.responses, self.scores.tolist(), kl_B.tolist(), strict=True)
        return [{"prompt": q, "response": r, "score": s, "kl": k} for q, r, s, k in rows]


@dataclass(frozen=True)
class Scorer:
    """Asks the reward, and the judges where that is wanted."""

    tokens: Tokens
    reward: Reward
    judges: Mapping[str, Reward]
    config: RolloutConfig
    failed_texts: Path | None

    def __call__(self, prompts: Sequence[Prompt], rollout: Rollout, judged: bool) -> Scored:
        """Score a rollout. Raises RunError, with the texts saved, if the reward or a judge fails."""
        ids = list(zip(rollout.query_ids(), rollout.response_ids(), strict=True))
        pairs = [self.tokens.split(prompt.text, *row) for prompt, row in zip(prompts, ids, strict=True)]
        queries, responses, columns = [q for q, _ in pairs], [r for _, r in pairs], columns_of(prompts)
        before = self._read()
        said = evaluate(self.reward, queries, responses, columns, save_to=self.failed_texts)
        ended = rollout.ended.tolist()
        scores = torch.tensor(with_missing_eos(said.totals, ended, self.config), dtype=torch.float64)
        placed = None
        if said.token_rewards is not None:
            kept = self.config.missing_eos != "replace"
            places = [each if whole or kept else [] for each, whole in zip(said.token_rewards, ended, strict=True)]
            placed = place([self.tokens.ends(*row) for row in ids], places, rollout.mask.shape[1])
        told = {f"reward/{name}/mean": values for name, values in said.parts.items()}
        texts, cut = (now - then for now, then in zip(self._read(), before, strict=True))
        if texts:
            told["reward/cut_share"] = [cut / texts] * len(responses)
        for name, judge in self.judges.items() if judged else ():
            told[f"judge/{name}/mean"] = score(judge, queries, responses, columns, save_to=self.failed_texts)
        return Scored(queries, responses, scores, placed, told)

    def _read(self) -> tuple[int, int]:
        """Texts that a reward which cuts long ones has read so far, and how many of them it cut."""
        cutting = readers(self.reward)
        return sum(reader.texts for reader in cutting), sum(reader.cut for reader in cutting)


def place(ends_B: Sequence[Sequence[int]], places_B: Sequence[TokenRewards], width: int) -> Tensor:
    """Put scores on the response tokens in whose text their characters fall.

    What is given at the end of the text belongs to the last token, even if that is an end of text without a character.

    Args:
        ends_B: characters of the response that stand there after each of its tokens.
        places_B: (end, score) of each response.
        width: R.

    Returns:
        [B, width] float64.

    >>> place([[2, 4, 4]], [[(1, 0.5), (3, 1.0), (4, 2.0)]], 3).tolist()
    [[0.5, 1.0, 2.0]]
    """
    placed_BR = torch.zeros(len(ends_B), width, dtype=torch.float64)
    for row_R, ends, places in zip(placed_BR, ends_B, places_B, strict=True):
        for end, given in places:
            row_R[len(ends) - 1 if end == ends[-1] else bisect_left(ends, end)] += given
    return placed_BR


def with_missing_eos(scores: Sequence[float], ended: Sequence[bool], config: RolloutConfig) -> list[float]:
    """Scores after what the settings say of responses that were cut before their end of text."""
    if config.missing_eos == "keep":
        return list(scores)
    replaced = config.missing_eos == "replace"
    cut = [config.missing_eos_score if replaced else score - config.missing_eos_score for score in scores]
    return [score if whole else other for score, other, whole in zip(scores, cut, ended, strict=True)]

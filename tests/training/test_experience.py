"""Whose word on the old policy is taken where sampler and trainer round differently."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from konomi.config import RolloutConfig
from konomi.data.tokens import Tokens
from konomi.engine.device import autocast, choose_precision
from konomi.engine.sampler import explore, make_draws
from konomi.models.policy import Policy
from konomi.training.experience import RATIO_TOLERANCE, say_again
from tiny import tiny_tokenizer
from tiny_run import ragged_queries, sharp_model, tiny_trainer

PLAN = [[torch.tensor([2]), torch.tensor([0])], [torch.tensor([3, 1])], [torch.tensor([4, 5])]]
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    ("off", "row", "asked"),
    [
        (0.0, 0, [[2, 0]]),
        (0.5 * RATIO_TOLERANCE["sampler"], 0, [[2, 0]]),
        (2 * RATIO_TOLERANCE["sampler"], 0, [[2, 0], [3, 1, 4, 5]]),
        (float("nan"), 2, [[2, 0], [3, 1, 4, 5]]),
        (2 * RATIO_TOLERANCE["sampler"], 3, [[2, 0]]),  # not in the first mini-batch: not seen
    ],
)
def test_the_first_mini_batch_tells(off: float, row: int, asked: list[list[int]]) -> None:
    said = [torch.randn(6, 3) * MASK, torch.randn(6, 3) * MASK]
    truth = [said[0].clone(), said[1] + MASK]  # of the second nothing is asked
    truth[0][row, 0] += off
    seen = []

    def evaluate(parts: list[Tensor]) -> list[Tensor]:
        rows = torch.cat(parts)
        seen.append(rows.tolist())
        width = int(MASK[rows].sum(1).max())  # no wider than these rows need, 0 elsewhere
        found = [torch.zeros(6, width).index_copy(0, rows, x[rows, :width]) for x in truth]
        return found

    got, gap = say_again(said, MASK, evaluate, PLAN, tiny_trainer().engine)
    assert seen == asked
    in_first = row in (0, 2)
    assert gap == pytest.approx(math.expm1(off) if in_first else 0.0, rel=1e-2, abs=1e-6, nan_ok=True)
    rows = [row for rows in asked for row in rows]
    for new, old, true in zip(got, said, truth, strict=True):
        for i in range(6):
            assert torch.equal(torch.nan_to_num(new[i]), torch.nan_to_num((true if i in rows else old)[i]))


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_bf16_sampler_and_trainer_say_the_same(family: str) -> None:
    """To the last sum where products do not depend on how many rows there are, as on processors with bf16; near on others."""
    policy, config = Policy(sharp_model(family).float()), RolloutConfig(response_tokens=(1, 24), stop="length")
    queries = ragged_queries(16, seed=1)
    draws = make_draws(config, 0, [("same", i) for i in range(16)])
    with autocast(torch.device("cpu"), "bf16"), torch.no_grad():
        drawn = explore(policy.lm, Tokens(tiny_tokenizer()), queries, draws, config)
        said = policy(drawn.rollout).logprobs
    rounding = float((said - policy(drawn.rollout).logprobs.detach()).abs().max())
    gap = float((drawn.logprobs - said).abs().max())
    assert rounding > 0.01
    assert gap < (1e-4 if choose_precision("auto") == "bf16" else 3 * rounding)

"""Whose word on the old policy is taken where sampler and trainer round differently."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from konomi.train.experience import RATIO_TOLERANCE, say_again
from tiny_run import tiny_trainer

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

    got = say_again(said, MASK, evaluate, PLAN, tiny_trainer().engine)
    assert seen == asked
    rows = [row for rows in asked for row in rows]
    for new, old, true in zip(got, said, truth, strict=True):
        for i in range(6):
            assert torch.equal(torch.nan_to_num(new[i]), torch.nan_to_num((true if i in rows else old)[i]))


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_bf16_sampler_and_trainer_are_near(family: str) -> None:
    """To the bit where products do not depend on how many rows there are, as on processors with bf16; near on any."""
    from konomi.rollout.sampler import explore, make_draws
    from tiny_run import ragged_queries

    trainer = tiny_trainer(family, precision="bf16", episodes=16)
    queries, config = ragged_queries(16, seed=1), trainer.rollout_config
    with trainer.engine.autocast(), torch.no_grad():
        draws = make_draws(config, 0, [("near", i) for i in range(16)])
        drawn = explore(trainer.policy.lm, trainer.tokens, queries, draws, config)
        said = trainer.policy(drawn.rollout, config.temperature)
    assert float((drawn.logprobs - said.logprobs).abs().max()) < 0.1

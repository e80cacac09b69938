import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from konomi.ops import gae, kl_per_token, leave_one_out, shaped_rewards
from oracles import close, discounts, quick, ragged


def test_closed_form():
    """Lengths 5 and 6, values 0, log-probability gap -1, coefficient 0.2, scores 1 and 2, gamma 1, lambda 0.95."""
    mask = torch.arange(6)[None, :] < torch.tensor([5, 6])[:, None]
    logprobs = torch.full((2, 6), -2.0, dtype=torch.float64)
    scores = torch.tensor([1.0, 2.0], dtype=torch.float64)
    rewards = shaped_rewards(kl_per_token(logprobs, logprobs + 1), scores, mask, 0.2)
    advantages, returns = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=0.95)
    expected = [
        [1.719382, 1.599350, 1.473000, 1.340000, 1.200000, 0.0],
        [2.607194, 2.533889, 2.456725, 2.375500, 2.290000, 2.200000],
    ]
    close(advantages, torch.tensor(expected), 1e-6)
    close(returns, advantages)


@quick
@given(ragged(), discounts, discounts)
def test_is_the_loop(batch, gamma, lam):
    rewards, values = batch.normal(), batch.normal(scale=2, shift=1)
    actual = gae(rewards, values, batch.mask, gamma=gamma, lam=lam)
    expected = oracles.gae(batch.rows(rewards), batch.rows(values), gamma, lam)
    for one, other in zip(actual, expected, strict=True):
        close(one, batch.pad(other))


@quick
@given(ragged(holes=True), discounts, discounts)
def test_a_mask_is_deletion(batch, gamma, lam):
    rewards, values = batch.normal(), batch.normal(shift=1)
    advantages, returns = gae(rewards, values, batch.mask, gamma=gamma, lam=lam)
    for b, valid in enumerate(batch.mask):
        alone = torch.ones(1, int(valid.sum()), dtype=torch.bool)
        expected = gae(rewards[b : b + 1, valid], values[b : b + 1, valid], alone, gamma=gamma, lam=lam)
        close(advantages[b : b + 1, valid], expected[0])
        close(returns[b : b + 1, valid], expected[1])
    assert (advantages[~batch.mask] == 0).all()
    assert (returns[~batch.mask] == 0).all()


@quick
@given(ragged(), discounts)
def test_lambda_1_is_the_discounted_sum_of_rewards_minus_the_value(batch, gamma):
    rewards, values = batch.normal(), batch.normal()
    advantages, returns = gae(rewards, values, batch.mask, gamma=gamma, lam=1.0)
    sums = [[sum(gamma ** (s - t) * row[s] for s in range(t, len(row))) for t in range(len(row))] for row in batch.rows(rewards)]
    close(returns, batch.pad(sums))
    close(advantages, batch.pad(sums) - values.where(batch.mask, 0))


@quick
@given(st.integers(2, 5), st.lists(st.floats(-9, 9), min_size=1, max_size=4), st.integers(0, 99))
def test_leave_one_out_is_the_slow_loop(group, starts, seed):
    scores = torch.rand(group * len(starts), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores = scores + torch.tensor(starts, dtype=torch.float64).repeat_interleave(group)
    close(leave_one_out(scores, group), torch.tensor(oracles.leave_one_out(scores.tolist(), group), dtype=torch.float64))


@pytest.mark.parametrize("group", [1, 0, 4])
def test_leave_one_out_asks_for_whole_groups(group):
    with pytest.raises(ValueError, match=f"group is {group}"):
        leave_one_out(torch.zeros(6), group)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from konomi.ops import gae, leave_one_out
from oracles import close, discounts, quick, ragged


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
@given(st.integers(2, 5), st.lists(st.floats(-9, 9), min_size=1, max_size=4), st.integers(0, 99))
def test_leave_one_out_is_the_slow_loop(group, starts, seed):
    scores = torch.rand(group * len(starts), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores = scores + torch.tensor(starts, dtype=torch.float64).repeat_interleave(group)
    close(leave_one_out(scores, group), torch.tensor(oracles.leave_one_out(scores.tolist(), group), dtype=torch.float64))


@pytest.mark.parametrize("group", [1, 0, 4])
def test_leave_one_out_asks_for_whole_groups(group):
    with pytest.raises(ValueError, match=f"group is {group}"):
        leave_one_out(torch.zeros(6), group)

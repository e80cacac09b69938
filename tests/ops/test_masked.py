import pytest
import torch
from hypothesis import given

import oracles
from konomi.ops import masked_mean, masked_sum, masked_var, whiten
from oracles import close, quick, ragged


@quick
@given(ragged(holes=True))
def test_sum_mean_variance_are_the_loops(batch):
    x = batch.normal(scale=2, shift=3)
    values = oracles.flat(batch.rows(x))
    close(masked_sum(x, batch.mask), sum(values))
    close(masked_mean(x, batch.mask), oracles.mean(values))
    close(masked_var(x, batch.mask), oracles.variance(values))
    close(masked_var(x, batch.mask, unbiased=False), oracles.variance(values, unbiased=False))


@pytest.mark.parametrize("shift_mean", [True, False])
@quick
@given(batch=ragged(holes=True))
def test_whiten_is_the_loop(shift_mean, batch):
    x = batch.normal(scale=2, shift=3)
    for eps in (1e-8, 0.5):
        expected = batch.pad(oracles.whiten(batch.rows(x), shift_mean, eps))
        close(whiten(x, batch.mask, shift_mean=shift_mean, eps=eps), expected)


def test_a_single_valid_token_is_finite():
    x, mask = torch.tensor([[5.0, float("nan")]]), torch.tensor([[True, False]])
    assert masked_var(x, mask) == 0
    assert masked_var(x, mask, unbiased=False) == 0
    assert torch.equal(whiten(x, mask), torch.zeros(1, 2))
    assert torch.equal(whiten(x, mask, shift_mean=False), torch.tensor([[5.0, 0.0]]))


def test_no_valid_token_gives_0():
    x, mask = torch.tensor([1.0, float("inf")]), torch.tensor([False, False])
    for zero in (masked_sum(x, mask), masked_mean(x, mask), masked_var(x, mask)):
        assert zero == 0
    assert torch.equal(whiten(x, mask), torch.zeros(2))


def test_variance_keeps_its_digits_far_from_0():
    x = torch.randn(4, 500, generator=torch.Generator().manual_seed(0)) + 1e4
    mask = torch.ones_like(x, dtype=torch.bool)
    exact = x.double().var()
    close(masked_var(x, mask).double(), exact, 1e-4)

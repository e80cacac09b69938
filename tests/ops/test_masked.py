import pytest
import torch
from hypothesis import given

import oracles
from konomi.ops import Moments, masked_mean, masked_sum, masked_var, merge, merge_all, moments, whiten
from konomi.ops.masked import widen
from oracles import close, quick, ragged

TRUE = torch.tensor(True)


@quick
@given(ragged(holes=True))
def test_sum_mean_variance_are_the_loops(batch):
    x = batch.normal(scale=2, shift=3)
    values = oracles.flat(batch.rows(x))
    close(masked_sum(x, batch.mask), sum(values))
    close(masked_mean(x, batch.mask), oracles.mean(values))
    close(masked_var(x, batch.mask), oracles.variance(values))
    close(masked_var(x, batch.mask, unbiased=False), oracles.variance(values, unbiased=False))


@quick
@given(ragged())
def test_parts_of_a_mean_add_up_when_the_count_is_that_of_the_whole(batch):
    x, count = batch.normal(), batch.mask.sum()
    parts = [masked_mean(row, mask, count) for row, mask in zip(x, batch.mask, strict=True)]
    close(sum(parts), masked_mean(x, batch.mask))
    close(sum(parts), sum(masked_mean(row, mask, int(count)) for row, mask in zip(x, batch.mask, strict=True)))


@pytest.mark.parametrize("shift_mean", [True, False])
@quick
@given(batch=ragged(holes=True))
def test_whiten_is_the_loop(shift_mean, batch):
    x = batch.normal(scale=2, shift=3)
    for eps in (1e-8, 0.5):
        expected = batch.pad(oracles.whiten(batch.rows(x), shift_mean, eps))
        close(whiten(x, batch.mask, shift_mean=shift_mean, eps=eps), expected)


def test_whiten_gives_mean_0_and_unbiased_variance_1():
    x = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    white = whiten(x, mask)
    close(white[mask].mean(), 0.0)
    close(white[mask].var(unbiased=True), 1.0, 1e-8)
    assert (white[~mask] == 0).all()


@quick
@given(ragged(), ragged())
def test_whitening_with_merged_moments_is_whitening_of_the_whole(a, b):
    x, y = a.normal(), b.normal(scale=3, shift=2)
    whole = merge(moments(x, a.mask), moments(y, b.mask))
    together = whiten(torch.cat([x[a.mask], y[b.mask]]), torch.ones(int(whole.count), dtype=torch.bool))
    apart = [whiten(z, batch.mask, mean=whole.mean, var=whole.var()) for z, batch in ((x, a), (y, b))]
    close(torch.cat([apart[0][a.mask], apart[1][b.mask]]), together)


def test_whiten_takes_given_moments_as_numbers_without_losing_digits():
    x = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
    close(whiten(x, torch.ones(1, 2, dtype=torch.bool), mean=0.1, var=0.3, eps=0.0), (x - 0.1) / 0.3**0.5, 1e-14)


def test_a_single_valid_token_is_finite():
    x, mask = torch.tensor([[5.0, float("nan")]]), torch.tensor([[True, False]])
    assert masked_var(x, mask) == 0
    assert masked_var(x, mask, unbiased=False) == 0
    assert torch.equal(whiten(x, mask), torch.zeros(1, 2))
    assert torch.equal(whiten(x, mask, shift_mean=False), torch.tensor([[5.0, 0.0]]))


def test_no_valid_token_gives_0():
    x, mask = torch.tensor([1.0, float("inf")]), torch.tensor([False, False])
    nothing = moments(x, mask)
    for zero in (masked_sum(x, mask), masked_mean(x, mask), masked_var(x, mask), nothing.count, nothing.mean):
        assert zero == 0
    assert torch.equal(whiten(x, mask), torch.zeros(2))


@quick
@given(ragged(holes=True))
def test_moments_are_count_mean_and_squared_deviations(batch):
    x = batch.normal(shift=2)
    values, part = oracles.flat(batch.rows(x)), moments(x, batch.mask)
    close(part.count, float(len(values)))
    close(part.mean, oracles.mean(values))
    close(part.m2, oracles.variance(values, unbiased=False) * len(values))
    close(part.var(), oracles.variance(values))
    close(part.var(unbiased=False), oracles.variance(values, unbiased=False))


@quick
@given(ragged(holes=True))
def test_merged_moments_are_the_moments_of_the_whole(batch):
    x = batch.normal(scale=2, shift=5)
    nothing = moments(x, torch.zeros_like(batch.mask))
    parts = [nothing, *(moments(row, mask) for row, mask in zip(x, batch.mask, strict=True)), nothing]
    whole = moments(x, batch.mask)
    for merged in (merge_all(parts), merge_all(parts[::-1]), merge(parts[0], merge_all(parts[1:]))):
        for actual, expected in zip(merged, whole, strict=True):
            close(actual, expected)


def test_merging_nothing():
    zero = torch.zeros(())
    assert merge(Moments(zero, zero, zero), Moments(zero, zero, zero)) == Moments(zero, zero, zero)
    with pytest.raises(ValueError, match="at least one"):
        merge_all([])


def test_variance_keeps_its_digits_far_from_0():
    x = torch.randn(4, 500, generator=torch.Generator().manual_seed(0)) + 1e4
    mask = torch.ones_like(x, dtype=torch.bool)
    exact = x.double().var()
    close(masked_var(x, mask).double(), exact, 1e-4)
    close(merge_all([moments(row, mask[0]) for row in x]).var().double(), exact, 1e-4)


def test_half_precision_is_summed_in_float32():
    ones, mask = torch.ones(300, dtype=torch.bfloat16), torch.ones(300, dtype=torch.bool)
    assert masked_sum(ones, mask) == 300
    assert masked_sum(ones, mask).dtype == torch.float32
    x = torch.tensor([1.0, 1.0078125, 3.0], dtype=torch.bfloat16)
    close(whiten(x, mask[:3]), whiten(x.float(), mask[:3]), 1e-7)
    assert widen(x.half()).dtype == torch.float32
    assert widen(x.double()).dtype == torch.float64


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("function", [masked_sum, masked_mean, masked_var, whiten])
def test_garbage_under_the_mask_reaches_neither_result_nor_gradient(function, garbage):
    x = torch.tensor([1.0, 2.0, 4.0, garbage], requires_grad=True)
    y = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    result = function(x, torch.tensor([True, True, True, False])).square().sum()
    expected = function(y, TRUE.expand(3)).square().sum()
    result.backward()
    expected.backward()
    close(result, expected, 1e-6)
    close(x.grad, torch.cat([y.grad, torch.zeros(1)]), 1e-6)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from konomi.ops import importance_weights, masked_sum, policy_loss, value_loss
from oracles import close, quick, ragged

LOSSES = [policy_loss, value_loss]
clips = st.floats(0.05, 0.6)


def arguments(batch):
    """New, old and third argument, near enough that about half of the tokens are clipped."""
    old = batch.normal()
    return old + batch.normal(scale=0.4), old, batch.normal()


def gradient(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("function", LOSSES)
@quick
@given(batch=ragged(holes=True), clip=clips)
def test_loss_and_sums_are_the_loop(function, batch, clip):
    new, old, third = arguments(batch)
    loss, sums = function(new, old, third, batch.mask, clip=clip)
    oracle = getattr(oracles, function.__name__)
    expected, expected_sums = oracle(batch.rows(new), batch.rows(old), batch.rows(third), clip)
    close(loss / batch.mask.sum(), expected)
    assert sums.keys() == expected_sums.keys()
    for name, total in expected_sums.items():
        close(sums[name], float(total))


@pytest.mark.parametrize("function", LOSSES)
@quick
@given(batch=ragged(holes=True), clip=clips)
def test_a_mask_is_deletion_also_for_gradients(function, batch, clip):
    new, old, third = arguments(batch)
    new.requires_grad_()
    loss, _ = function(new, old, third, batch.mask, clip=clip)
    kept = [x.detach()[batch.mask].requires_grad_() for x in (new, old, third)]
    alone, _ = function(*kept, torch.ones(len(kept[0]), dtype=torch.bool), clip=clip)
    close(loss, alone)
    (full,), (part,) = gradient(loss, new), gradient(alone, kept[0])
    close(full[batch.mask], part)
    assert (full[~batch.mask] == 0).all()


@quick
@given(ragged())
def test_ratio_1_is_the_policy_gradient(batch):
    old, advantages = batch.normal(), batch.normal()
    new = old.clone().requires_grad_()
    loss, sums = policy_loss(new, old, advantages, batch.mask, clip=0.2)
    plain = -masked_sum(advantages.nan_to_num() * new, batch.mask)
    close(*gradient(loss, new), *gradient(plain, new))
    count = batch.mask.sum()
    close(sums["ratio"], float(count))
    assert not any(total.requires_grad for total in sums.values())
    assert sums["clipped"] == sums["approx_kl"] == sums["policy_kl"] == 0


@quick
@given(batch=ragged(), clip=clips)
def test_ratios_of_whole_responses_are_the_loop(batch, clip):
    """As the flat tokens of a pass too; with a ratio of 1 the gradient is that of log p of the whole response."""
    old, advantages = batch.normal(), batch.normal()[:, :1].nan_to_num().expand(batch.mask.shape)
    rows = torch.arange(len(old))[:, None].expand(old.shape)
    shares = batch.mask.double() / batch.mask.sum(1, keepdim=True)
    new = (old + batch.normal(scale=0.2)).requires_grad_()
    parts = (new, old, advantages, batch.mask, rows, shares)
    loss, sums = policy_loss(*parts[:4], clip=clip, weights_BR=shares, sequences=(rows, len(old)))
    close(loss, oracles.sequence_loss(batch.rows(new), batch.rows(old), advantages[:, 0].tolist(), clip))
    flat = [x[batch.mask] for x in parts]
    alone, flat_sums = policy_loss(*flat[:4], clip=clip, weights_BR=flat[5], sequences=(flat[4] + 3, len(old) + 9))
    close(loss, alone)
    close(*gradient(loss, new), *gradient(alone, new))
    for name, total in policy_loss(*parts[:4], clip=clip)[1].items():
        close(sums[name], flat_sums[name])
        assert name in ("clipped", "ratio") or torch.equal(sums[name], total)
    same = old.clone().requires_grad_()
    close(
        *gradient(policy_loss(same, *parts[1:4], clip=clip, weights_BR=shares, sequences=(rows, len(old)))[0], same),
        -advantages * batch.mask,
    )


BY_HAND = [
    (policy_loss, 2.0, 1.0, -1.2, 0.0),  # a ratio of 2: gain is capped
    (policy_loss, 2.0, -1.0, 2.0, 2.0),  # harm is not
    (policy_loss, 0.5, 1.0, -0.5, -0.5),
    (policy_loss, 0.5, -1.0, 0.8, 0.0),
    (policy_loss, 1.1, 1.0, -1.1, -1.1),
    (value_loss, 2.0, 3.0, 3.125, 0.0),  # moved 2 from old value 0, only 0.5 of it believed
    (value_loss, 2.0, 0.0, 2.0, 2.0),
    (value_loss, -2.0, -3.0, 3.125, 0.0),
    (value_loss, 0.4, 3.0, 3.38, -2.6),
]
"""Function, ratio or value, advantage or return, loss, slope."""


@pytest.mark.parametrize(("function", "x", "target", "loss", "slope"), BY_HAND)
def test_losses_by_hand(function, x, target, loss, slope):
    new = torch.tensor([x], dtype=torch.float64)
    new = (new.log() if function is policy_loss else new).requires_grad_()
    clip = 0.2 if function is policy_loss else 0.5
    actual, sums = function(new, torch.zeros(1).double(), torch.tensor([target]).double(), torch.tensor([True]), clip=clip)
    close(actual, loss)
    close(*gradient(actual, new), torch.tensor([slope], dtype=torch.float64))
    assert sums["clipped"] == (slope == 0)


# -- weights for responses that another program drew ---------------------------------------------------------------------


@pytest.mark.parametrize("level", ["token", "sequence"])
@quick
@given(batch=ragged(holes=True), cap=st.floats(1.1, 4.0), clip=clips)
def test_weights_are_the_loop_and_multiply_the_terms_of_their_tokens(level, batch, cap, clip):
    new, old, advantages = arguments(batch)
    drawn = old + batch.normal(scale=0.5)
    weights = importance_weights(old, drawn, batch.mask, cap=cap, level=level)
    expected = oracles.importance_weights(batch.rows(old), batch.rows(drawn), cap, level)
    close(weights, batch.pad(expected))
    given_weights = torch.where(batch.mask, weights, torch.nan)
    loss, sums = policy_loss(new, old, advantages, batch.mask, clip=clip, weights_BR=given_weights)
    weighted, plain = (oracles.policy_loss(*map(batch.rows, (new, old, advantages)), clip, w) for w in (expected, None))
    close(loss / batch.mask.sum(), weighted[0])
    for name, total in plain[1].items():
        close(sums[name], float(total))


def test_equal_log_probabilities_weigh_1_to_the_bit():
    x, mask = torch.randn(3, 5), torch.ones(3, 5, dtype=torch.bool)
    for level in ("token", "sequence"):
        weights = importance_weights(x, x.clone(), mask, cap=2.0, level=level)
        assert torch.equal(weights, torch.ones(3, 5))
        both = [policy_loss(x, x, x, mask, clip=0.2, weights_BR=w)[0] for w in (weights, None)]
        assert torch.equal(*both)


def test_weights_by_hand():
    """Ratios 3 and 1/2, whose product is 1.5; and 3 alone, above the cap."""
    probabilities = [[[0.6, 0.2], [0.6, 0.9]], [[0.2, 0.4], [0.2, 0.1]]]
    old, drawn = torch.tensor(probabilities, dtype=torch.float64).log()
    mask = torch.tensor([[True, True], [True, False]])
    close(importance_weights(old, drawn, mask, cap=2.0), torch.tensor([[2.0, 0.5], [2.0, 0.0]]).double())
    close(importance_weights(old, drawn, mask, cap=2.0, level="sequence"), torch.tensor([[1.5, 1.5], [0.0, 0.0]]).double())
    loss, _ = policy_loss(old, old, torch.tensor([[1.0, -2.0], [5.0, 7.0]]).double(), mask, clip=0.2,
                          weights_BR=importance_weights(old, drawn, mask, cap=2.0))  # fmt: skip
    close(loss, -(2.0 * 1.0 - 0.5 * 2.0 + 2.0 * 5.0))

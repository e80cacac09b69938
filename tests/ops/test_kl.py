import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from konomi.ops import adaptive_kl_coef, full_kl, kl_loss, kl_per_token, pid_kl_coef, shaped_rewards
from oracles import close, quick, ragged

INF = float("inf")
seeds = st.integers(0, 2**31)


def distributions(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("kind", ["k1", "abs", "k2"])
@quick
@given(seed=seeds)
def test_estimators_are_the_loop(kind, seed):
    p, q = distributions(seed, 2, 3)
    actual = kl_per_token(p, q, kind)
    pairs = zip(p.flatten().tolist(), q.flatten().tolist(), strict=True)
    expected = torch.tensor([oracles.kl_term(x, y, kind) for x, y in pairs], dtype=torch.float64)
    close(actual, expected.reshape(2, 3))


@quick
@given(ragged(holes=True))
def test_the_term_of_the_loss_is_the_loop_and_a_mask_is_deletion(batch):
    new, reference, weights = (batch.normal() for _ in range(3))
    new.requires_grad_()
    loss = kl_loss(new, reference, batch.mask, weights)
    close(loss, oracles.kl_loss(batch.rows(new), batch.rows(reference), batch.rows(weights)))
    kept = [x.detach()[batch.mask].requires_grad_() for x in (new, reference, weights)]
    alone = kl_loss(kept[0], kept[1], torch.ones(len(kept[0]), dtype=torch.bool), kept[2])
    (full,), (part,) = torch.autograd.grad(loss, new), torch.autograd.grad(alone, kept[0])
    close(full[batch.mask], part)
    assert (full[~batch.mask] == 0).all()


def test_the_term_of_the_loss_is_the_kl_and_pulls_as_the_kl_the_other_way_round():
    """In the mean over all tokens of a vocabulary."""
    p, q = distributions(3, 5)
    logprobs, reference, one = p.requires_grad_().log_softmax(-1), q.log_softmax(-1), torch.ones(5, dtype=torch.bool)
    mean = kl_loss(logprobs, reference, one, logprobs.detach().exp())
    close(mean, full_kl(p, q).detach())
    (slope,), (other,) = torch.autograd.grad(mean, p, retain_graph=True), torch.autograd.grad(full_kl(q, p), p)
    close(slope, other)


@quick
@given(seeds, st.integers(1, 6))
def test_full_kl_is_the_loop(seed, vocabulary):
    p, q = distributions(seed, 4, vocabulary)
    expected = [oracles.full_kl(x, y) for x, y in zip(p.tolist(), q.tolist(), strict=True)]
    close(full_kl(p, q), torch.tensor(expected, dtype=torch.float64))


def test_full_kl_where_a_token_is_impossible():
    p, q = torch.tensor([0.0, 1.0, -INF]), torch.tensor([0.5, 0.0, 2.0])
    p.requires_grad_()
    kl = full_kl(p, q)
    close(kl, oracles.full_kl(p.tolist(), q.tolist()), 1e-6)
    (gradient,) = torch.autograd.grad(kl, p)
    assert gradient.isfinite().all()
    assert gradient[2] == 0
    assert full_kl(q, p) == INF
    assert full_kl(p, p) == 0, "impossible for both"
    assert full_kl(torch.tensor([0.0, -800.0]), torch.tensor([0.0, -INF])) == 0, "too rare for a float"


@quick
@given(ragged(holes=True), st.floats(0.01, 2))
def test_shaped_rewards_are_the_loop(batch, kl_coef):
    kl, scores = batch.normal(), batch.normal(scale=2).nansum(1)
    expected = batch.pad(oracles.shaped_rewards(batch.rows(kl), scores.tolist(), kl_coef))
    close(shaped_rewards(kl, scores, batch.mask, kl_coef), expected)
    close(shaped_rewards(kl, scores, batch.mask, torch.tensor(kl_coef, dtype=torch.float64)), expected)


@quick
@given(ragged(holes=True), st.floats(0.01, 2))
def test_placed_scores_are_the_loop(batch, kl_coef):
    kl, scores, placed = batch.normal(), batch.normal(scale=2).nansum(1), batch.normal()
    expected = oracles.shaped_rewards_with_tokens(batch.rows(kl), scores.tolist(), batch.rows(placed), kl_coef)
    close(shaped_rewards(kl, scores, batch.mask, kl_coef, placed), batch.pad(expected))


def test_an_empty_response_has_no_place_for_its_score():
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match="no valid token"):
        shaped_rewards(torch.zeros(2, 2), torch.zeros(2), mask, 0.2)


def test_adaptive_kl_coef_stands_still_at_the_target_and_is_clipped_both_ways():
    def step(kl):
        return adaptive_kl_coef(0.5, kl, target=4.0, horizon=1000, episodes=100)

    assert step(4.0) == 0.5
    assert step(4.4) == pytest.approx(0.5 * 1.01)
    assert step(3.6) == pytest.approx(0.5 * 0.99)
    assert step(4.8) == step(400.0) == pytest.approx(0.5 * 1.02)
    assert step(3.2) == step(-400.0) == pytest.approx(0.5 * 0.98)
    assert math.isnan(step(math.nan)), "not hidden by the clip"


def pid(kls, first=0.1, target=4.0, low=-2.0, high=3.0, **changes):
    """The coefficients after updates of these KLs."""
    coefs, total, last = [], 0.0, -1.0
    for kl in kls:
        coef, total, last = pid_kl_coef(first, kl, total, last, target=target, low=low, high=high, **changes)
        coefs.append(coef)
    return coefs


@quick
@given(st.lists(st.floats(-2, 20), max_size=12), st.floats(-4, 0), st.floats(0.5, 30), st.sampled_from([(4, 1, 8), (1, 2, 1)]))
def test_a_pid_of_the_logarithm_is_that_of_the_textbook(kls, low, high, gains):
    assert pid(kls, low=low, high=high, gains=gains) == pytest.approx(oracles.pid_kl_coefs(0.1, kls, 4.0, low, high, gains))


def test_a_pid_coefficient_knows_where_the_kl_goes_and_does_not_wind_up():
    assert pid([4.0] * 9, gains=(4, 1, 0)) == [0.1] * 9
    assert pid([5.0], gains=(4, 0, 0)) == [0.2], "a quarter over: twice"
    assert pid([3.0, 4.0], gains=(0, 0, 8))[1] == 0.4, "rising by a quarter: four times, before it is over"
    assert pid([5.0] * 4, gains=(0, 1, 0))[3] == 0.2, "a quarter over four times: twice"
    assert pid([400.0]) == [0.8] and pid([0.0] * 9) == [0.025] * 9, "no further than its limits"
    assert pid([0.0, 3.6, 3.6])[2] == pytest.approx(0.05), "at its limit an error that leads back is added"
    short, long = (pid([12.0] * updates + [2.0] * 3)[-3:] for updates in (3, 30))
    assert short == long, "how long it was at its limit is forgotten"
    assert math.isnan(pid([math.nan])[0]), "not hidden by the clip"

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from konomi import ops
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


def grouped_scores(group, starts, seed):
    """Scores of prompts of unlike level; those of the last prompt are equal in part."""
    scores = torch.rand(group * len(starts), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores[-2:] = scores[-1]
    return scores + torch.tensor(starts, dtype=torch.float64).repeat_interleave(group)


GROUPED = [
    ("leave_one_out", {}), *(("group_relative", {"scale": scale}) for scale in ("group", "batch", "none")),
    *(("best_of_n", {"backward": share}) for share in (0.0, 0.3, 1.0)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), GROUPED)
@quick
@given(group=st.integers(2, 5), starts=st.lists(st.floats(-9, 9), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_responses_are_compared_as_the_slow_loop_compares_them(name, settings, group, starts, seed):
    scores = grouped_scores(group, starts, seed)
    expected = getattr(oracles, name)(scores.tolist(), group, **settings)
    actual = getattr(ops, name)(scores, group, **settings)
    close(actual, torch.tensor(expected, dtype=torch.float64))
    close(actual.reshape(-1, group).sum(1), torch.zeros(len(starts)), 1e-6)
    equal = getattr(ops, name)(scores[-1:].expand(2 * group), group, **settings)
    assert equal.abs().max() < 1e-6, "equal scores teach nothing"


@pytest.mark.parametrize("function", [leave_one_out, ops.group_relative, lambda x, k: ops.best_of_n(x, k, backward=0.5)])
@pytest.mark.parametrize("group", [1, 0, 4])
def test_comparing_asks_for_whole_groups(function, group):
    with pytest.raises(ValueError, match=f"group is {group}"):
        function(torch.zeros(6), group)


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="take group, batch or none"):
        ops.group_relative(torch.zeros(4), 2, scale="std")


def test_the_forward_term_is_the_gradient_towards_the_best_of_n():
    """Over all triples of a distribution of four texts, two of which score the same: KL(best || p) differentiated exactly."""
    logits, scores = torch.tensor([0.3, -1.0, 0.8, 0.1]).double().requires_grad_(), torch.tensor([1.0, 3.0, 2.0, 3.0]).double()
    logprobs = logits.log_softmax(0)
    best, mean = torch.zeros(4).double(), 0.0
    for triple in itertools.product(range(4), repeat=3):
        drawn, own = list(triple), scores[list(triple)]
        chance = logprobs[drawn].detach().sum().exp()
        for i in (own == own.max()).nonzero().flatten().tolist():
            best[drawn[i]] += chance / (own == own.max()).sum()
        mean = mean + chance * (ops.best_of_n(own, 3, backward=0.0) * logprobs[drawn]).sum() / 3
    (estimated,) = torch.autograd.grad(mean, logits, retain_graph=True)
    (exact,) = torch.autograd.grad((best * (best.log() - logprobs)).sum(), logits)
    close(best.sum(), 1.0)
    close(estimated, -exact)

"""Passes of sizes that come again: what is added to them changes nothing."""

from __future__ import annotations

import pytest
import torch
from test_packed import brood, gemma2

import oracles
from konomi.engine.forward import plan_pass
from konomi.engine.layout import Layout, Pass, scatter
from konomi.engine.rollout import Rollout
from konomi.models.policy import Policy
from tiny import FAMILIES
from tiny_run import sharp_model, tiny_rollout


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", [*FAMILIES, "gemma2"])
def test_further_tokens_change_no_number_and_no_gradient(name: str, shared: bool) -> None:
    """With queries that several responses share, whose gradients are sums, and without."""
    policy = Policy(gemma2() if name == "gemma2" else sharp_model(name))
    torch.nn.init.normal_(policy.value_head.weight)
    rollout = brood() if shared else tiny_rollout(policy.lm, 9)
    factors = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = []
    for static in (False, True):
        p = plan_pass(policy.lm, rollout, static=static)
        assert p.layout is not None and (len(p.ids) == p.layout.sizes.tokens) and p.layout.plain is False
        assert (len(p.targets) > p.count) == static and p.valid.sum() == p.count
        new = policy(p)
        each = [scatter([(p, x[None])], len(rollout))[0] for x in (new.logprobs, new.values, new.entropy)]
        policy.zero_grad()
        sum((x * factors).sum() for x in each[:2]).backward()
        found.append([*(x.detach() for x in each), *(w.grad.clone() for w in policy.parameters())])
    for one, other in zip(*found, strict=True):
        oracles.close(other, one, 1e-5 * max(1.0, float(one.abs().max())))


def test_few_sizes_and_one_tensor() -> None:
    """Passes over other rows have the same sizes, and one can take the tensor of the other."""
    policy = Policy(sharp_model("gpt2"))
    rollout = tiny_rollout(policy.lm, 12)
    one, other = (Pass(rollout, torch.arange(first, first + 6), torch.device("cpu"), static=True) for first in (0, 6))
    assert one.key == other.key and one.index.shape == other.index.shape
    swapped = one.on(other.index)
    assert torch.equal(policy(swapped).logprobs, policy(other).logprobs)
    assert not torch.equal(policy(one).logprobs, policy(other).logprobs)
    plain = [Pass(rollout, torch.arange(first, first + 6), torch.device("cpu")) for first in (0, 6)]
    assert plain[0].key != plain[1].key


def test_whose_tokens_they_are_is_known_in_a_pass_over_a_narrower_rollout() -> None:
    """A captured pass goes on with the tensor of another update, whose longest response may be of another length."""
    passes = []
    for responses in ([5, 3, 4], [4, 4, 4]):
        lengths, ids = torch.tensor(responses), torch.arange(27).view(3, 9)
        rollout = Rollout(ids[:, : 4 + max(responses)], torch.tensor([4, 4, 4]), lengths, lengths > 0)
        passes.append(Pass(rollout, torch.tensor([2, 0]), torch.device("cpu"), static=True))
    wide, narrow = passes
    assert (wide.key, wide.width, narrow.width) == (narrow.key, 5, 4)
    for one, other, expected in ((wide, narrow, [2] * 4 + [0] * 4), (narrow, wide, [2] * 4 + [0] * 5)):
        rows, count = one.on(other.index).sequences
        assert rows[: other.count].tolist() == expected and count == 4
        assert len(rows) > other.count and set(rows[other.count :].tolist()) == {3}


def test_rows_are_put_back_and_filled_up_with_zero() -> None:
    rollout = brood(2, 2)
    passes = [Pass(rollout, torch.tensor(rows), torch.device("cpu"), static=True) for rows in ([3, 0], [1])]
    figures = torch.arange(rollout.mask.numel(), dtype=torch.float64).view(1, *rollout.mask.shape) + 1
    out = scatter(((p, p.select(figures)) for p in passes), len(rollout))
    expected = torch.where(rollout.mask, figures[0], 0.0)
    expected[2] = 0.0
    assert torch.equal(out[0], expected) and out.dtype == torch.float64


def test_a_layout_of_the_sizes_of_another() -> None:
    one, other = (Layout(torch.tensor(lengths), static=True) for lengths in ([3, 5], [5, 2]))
    assert one.sizes == other.sizes
    x_T = torch.arange(one.sizes.tokens)
    assert torch.equal(one.on(other.index).pad(x_T), other.pad(x_T))

"""Weights that stand in for a model's own: nothing but speed may change."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from test_packed import brood
from transformers.pytorch_utils import Conv1D

from konomi.engine.forward import reference_logprobs
from konomi.engine.shared_weights import cast_once, copies_as_leaves, head_copy, leaves, one_gradient
from konomi.models.policy import Policy, make_reference
from tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_cast_once_is_autocast(family: str) -> None:
    """The same numbers to the bit; afterwards the weights are the model's own again."""
    model = tiny_model(family).float().requires_grad_(False)
    before, head = dict(model.named_parameters()), model.get_output_embeddings()
    ids = torch.arange(2, 12)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(input_ids=ids).logits
        with cast_once(model):
            replaced = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not head]
            assert replaced and {m.weight.dtype for m in replaced} == {torch.bfloat16}
            assert head.weight.dtype == model.get_input_embeddings().weight.dtype == torch.float32
            assert torch.equal(head_copy(model), head.weight.bfloat16())
            assert torch.equal(model(input_ids=ids).logits, expected)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)


def test_without_autocast_weights_are_the_model_s_own() -> None:
    model = tiny_model("gpt2").float()
    with cast_once(model):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("as_leaves", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_through_copies_are_those_of_autocast(family: str, as_leaves: bool) -> None:
    """To the bit, of every weight; where the copies are differentiated themselves, theirs are the same in half precision."""
    model, ids = tiny_model(family).float(), torch.arange(2, 12)[None]
    weights = list(model.parameters())

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model.base_model(input_ids=ids).last_hidden_state.square().sum()

    used = [weight for weight in weights if weight is not model.get_output_embeddings().weight]
    expected = torch.autograd.grad(loss(), used, allow_unused=True)
    with copies_as_leaves() if as_leaves else nullcontext():
        with torch.autocast("cpu", torch.bfloat16), cast_once(model):
            told = loss()
        found = torch.autograd.grad(told, leaves(model, used) if as_leaves else used, allow_unused=True)
    halved = [x for x in found if x is not None and x.dtype == torch.bfloat16]
    assert bool(halved) == as_leaves
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one.float(), other)


def test_a_pass_without_copies_is_differentiated_by_the_weights() -> None:
    """Also after one with them."""
    model, ids = tiny_model("gpt2").float(), torch.arange(2, 12)[None]
    weights = list(model.parameters())
    for halved in (True, False):
        with copies_as_leaves():
            with torch.autocast("cpu", torch.bfloat16, enabled=halved), cast_once(model):
                loss = model.base_model(input_ids=ids).last_hidden_state.square().sum()
            used = leaves(model, weights)
            assert any(x is not weight for x, weight in zip(used, weights, strict=True)) == halved
            assert all(x is not None for x in torch.autograd.grad(loss, used, allow_unused=False))


@pytest.mark.parametrize("fused", [True, False])
def test_copies_follow_the_weights(fused: bool) -> None:
    """After an optimiser's step, which a fused one does not count as a change, and after any other change; in place."""
    model = tiny_model("gpt2").float()
    layer = model.transformer.h[0].attn.c_attn

    def copied() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), cast_once(model):
            return layer.weight

    first = copied()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=fused)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert copied() is first and torch.equal(first, layer.weight.bfloat16())
    with torch.no_grad():
        layer.weight.mul_(2.0)
    assert copied() is first and torch.equal(first, layer.weight.bfloat16())
    other = model.transformer.h[1].attn.c_attn
    with torch.no_grad():
        layer.weight.add_(1.0)
    other.weight = torch.nn.Parameter(torch.zeros_like(other.weight))  # all copies are made anew
    assert torch.equal(copied(), layer.weight.bfloat16())


def test_weights_come_back_after_an_error() -> None:
    model = tiny_model("gpt2").float()
    own = model.get_output_embeddings().weight
    with pytest.raises(ZeroDivisionError), torch.no_grad(), torch.autocast("cpu", torch.bfloat16), cast_once(model):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), one_gradient(model):
        raise ZeroDivisionError
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight is own
    assert not model.get_input_embeddings().sparse


@pytest.mark.parametrize("what", ["both", "values", "head"])
def test_a_weight_with_two_uses_has_the_gradient_of_their_sum(what: str) -> None:
    """Against autograd's own two gradients: of a loss that reaches the head and the embeddings, or one of them."""
    policy, rollout = Policy(tiny_model("gpt2").double()), brood()
    torch.nn.init.normal_(policy.value_head.weight)
    lm = policy.lm
    weight = lm.get_input_embeddings().weight
    assert weight is lm.get_output_embeddings().weight

    def loss() -> torch.Tensor:
        ids = rollout.ids[:, :5]
        hidden = lm.base_model(input_ids=ids).last_hidden_state
        if what == "head":
            hidden = hidden.detach()
        logits = lm.get_output_embeddings()(hidden).square().sum()
        return policy.values(hidden).sum() if what == "values" else logits

    (expected,) = torch.autograd.grad(loss(), [weight])
    with one_gradient(lm):
        told = loss()
    (got,) = torch.autograd.grad(told, [weight])
    assert not got.is_sparse
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_a_frozen_weight_is_left_alone() -> None:
    policy = Policy(tiny_model("gpt2"), freeze_embeddings=True)
    with one_gradient(policy.lm):
        assert not policy.lm.get_input_embeddings().sparse
    reference, rollout = make_reference(policy), brood()
    assert torch.equal(reference_logprobs(reference, rollout, 1.0), policy(rollout).logprobs.detach())

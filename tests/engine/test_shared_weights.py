"""Weights that stand in for a model's own: nothing but speed may change."""

from __future__ import annotations

import pytest
import torch
from test_packed import brood

from konomi.engine.forward import reference_logprobs
from konomi.engine.shared_weights import cast_once, one_gradient
from konomi.models.policy import Policy, make_reference
from tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_cast_once_is_autocast(family: str) -> None:
    """The same numbers to the bit; afterwards the weights are the model's own again."""
    model = tiny_model(family).float().requires_grad_(False)
    before = {name: parameter for name, parameter in model.named_parameters()}
    ids = torch.arange(2, 12)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(input_ids=ids).logits
        with cast_once(model):
            assert model.get_output_embeddings().weight.dtype == torch.bfloat16
            assert model.get_input_embeddings().weight.dtype == torch.float32
            assert torch.equal(model(input_ids=ids).logits, expected)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)


@pytest.mark.parametrize(("autocast", "grad"), [(False, False), (True, True)])
def test_cast_once_leaves_alone_what_it_must(autocast: bool, grad: bool) -> None:
    model = tiny_model("gpt2").float()
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=autocast), cast_once(model):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


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

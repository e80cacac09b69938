"""Gradient checkpointing: the same gradients from layers that are computed anew, in every kind of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from konomi.engine.device import autocast
from konomi.engine.recompute import recompute_layers
from konomi.errors import ConfigError
from konomi.models.policy import Policy
from konomi.models.reward import RewardModel
from konomi.training.sft import TokenLoss
from tiny import FAMILIES, tiny_config, tiny_model, tiny_tokenizer
from tiny_run import sharp_model, tiny_rollout, without_dropout


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """How often the last layer's first product runs."""
    calls = [0]
    last = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)][-1]
    linear = next(m for m in last.modules() if type(m).__name__ in ("Linear", "Conv1D"))
    real = linear.forward
    linear.forward = lambda x: calls.__setitem__(0, calls[0] + 1) or real(x)
    try:
        yield calls
    finally:
        del linear.forward


def gradients(model: Any, loss: Callable[[], Tensor]) -> tuple[list[Tensor], int]:
    model.zero_grad()
    with counted(model) as calls:
        loss().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], calls[0]


def same(model: Any, part: Any, loss: Callable[[], Tensor]) -> None:
    """With and without, the gradients are equal to the bit; with, layers run twice."""
    plain, once = gradients(model, loss)
    recompute_layers(part)
    again, twice = gradients(model, loss)
    assert once == 1 and twice == 2 and len(plain) == len(again) > 4
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("top_layers", [None, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_policy(family: str, top_layers: int | None, precision: str) -> None:
    policy = Policy(without_dropout(family), top_layers=top_layers).eval()
    rollout = tiny_rollout(policy.lm)

    def loss() -> Tensor:
        with autocast(torch.device("cpu"), precision):
            out = policy(rollout)
        return out.logprobs.sum() + out.values.square().sum()

    same(policy, policy.lm, loss)
    assert not any(module.training for module in policy.modules())


def test_of_a_family_that_runs_padded() -> None:
    import transformers

    config = transformers.BloomConfig(vocab_size=29, hidden_size=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
    policy = Policy(transformers.BloomForCausalLM(config).eval())
    rollout = tiny_rollout(without_dropout("gpt2"))
    same(policy, policy.lm, lambda: policy(rollout).logprobs.sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_of_fine_tuning_and_of_a_reward_model(family: str) -> None:
    wrapped = TokenLoss(without_dropout(family)).train()
    ids = torch.randint(2, 29, (3, 12), generator=torch.Generator().manual_seed(0))
    same(wrapped, wrapped.lm, lambda: wrapped(ids, ids)["loss"])
    from transformers import AutoModelForSequenceClassification

    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    classifier = AutoModelForSequenceClassification.from_config(tiny_config(family, num_labels=1, **rates)).eval()
    model = RewardModel(classifier, tiny_tokenizer()).train()
    assert model.packs
    batch = model.batch(model.encode(["the cat sat", "a", "once upon"]))
    same(model, classifier, lambda: model(batch).square().sum())


def test_of_a_model_with_dropout() -> None:
    model = tiny_model("gpt2", resid_pdrop=0.3, embd_pdrop=0.0, attn_pdrop=0.3).train()
    ids = torch.randint(2, 29, (3, 12), generator=torch.Generator().manual_seed(0))

    def loss() -> Tensor:
        torch.manual_seed(5)
        return model(input_ids=ids, labels=ids, use_cache=False).loss

    same(model, model, loss)


def test_sampling_and_the_reference_are_what_they_were() -> None:
    lm = sharp_model("llama")
    before = tiny_rollout(lm)
    recompute_layers(lm)
    after = tiny_rollout(lm)
    assert torch.equal(before.ids, after.ids)


def test_a_family_without_such_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.gradient_checkpointing = true: a Linear has no layers"):
        recompute_layers(torch.nn.Linear(2, 2))  # type: ignore[arg-type]

"""The policy against plain transformers, one sequence at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import oracles
from konomi import ops
from konomi.engine import forward as module
from konomi.engine.forward import reference_logprobs
from konomi.engine.rollout import Rollout
from konomi.models.deterministic import fuse_gelu
from konomi.models.policy import VALUE_HEAD_FILE, Policy, make_reference
from konomi.training.checkpoint_files import load_weights
from tiny import EOS_ID, FAMILIES, tiny_config, tiny_tokenizer
from tiny_run import alone, disturbed, sharp_model, taken, tiny_rollout, token_full_kl, weights, without_dropout

TEMPERATURE = 0.7
ROWS = range(9)


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    return tiny_rollout(sharp_model("gpt2"), len(ROWS))


def check_rows(actual: torch.Tensor, expected: list[torch.Tensor], tolerance: float) -> None:
    """``actual`` [B, R] holds the expected rows and zeros."""
    assert actual.shape == (len(expected), max(map(len, expected)))
    for row, wanted in zip(actual, expected, strict=True):
        oracles.close(row[: len(wanted)].double(), wanted.double(), tolerance)
        assert not row[len(wanted) :].any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_logprobs_and_entropy_are_those_of_plain_transformers(
    family: str, dtype: torch.dtype, tolerance: float, rollout: Rollout
) -> None:
    model = sharp_model(family, seed=3).to(dtype)
    logprobs = alone(model, rollout, TEMPERATURE)
    policy = Policy(model)
    result = policy(rollout, TEMPERATURE)
    check_rows(result.logprobs.detach(), taken(logprobs, rollout), tolerance)
    assert result.logprobs.dtype == dtype
    entropies = [torch.tensor([oracles.entropy(token) for token in row.tolist()]) for row in logprobs]
    check_rows(result.entropy, entropies, max(tolerance, 1e-6))
    assert not result.entropy.requires_grad and result.logprobs.requires_grad and result.values.requires_grad
    check_rows(reference_logprobs(model, rollout, TEMPERATURE), taken(logprobs, rollout), tolerance)
    assert not torch.equal(policy(rollout, 1.0).logprobs, result.logprobs)


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_and_padding_change_nothing(family: str, rollout: Rollout) -> None:
    policy = Policy(sharp_model(family))
    torch.nn.init.normal_(policy.value_head.weight)
    together = policy(rollout)
    for rows in ([4], [8, 0, 2], [1, 7]):
        part = policy(rollout.select(torch.tensor(rows)))
        for name in ("logprobs", "values"):
            whole = getattr(together, name)[rows][:, : getattr(part, name).shape[1]]
            oracles.close(getattr(part, name), whole, 1e-9)
    pads = torch.arange(rollout.ids.shape[1]) >= rollout.lengths[:, None]
    assert pads.any()
    for pad_id in (0, EOS_ID, 28):
        other = Rollout(rollout.ids.masked_fill(pads, pad_id), rollout.query_lengths, rollout.response_lengths, rollout.ended)
        for name in ("logprobs", "values"):
            oracles.close(getattr(policy(other), name), getattr(together, name), 1e-9)


@pytest.mark.parametrize("changes", [{}, {"final_logit_softcapping": 2.0}], ids=["linear", "capped"])
def test_the_size_of_blocks_changes_nothing(changes: dict[str, Any], rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of several blocks, and more tokens than go through the head at a time."""
    model, other = (sharp_model("gemma3", seed=seed, vocab=2500, **changes) for seed in (0, 1))
    policy = Policy(model)

    def everything() -> list[torch.Tensor]:
        policy.zero_grad()
        result = policy(rollout, TEMPERATURE)
        result.logprobs.sum().backward()
        grads = [p.grad.clone() for p in model.parameters()]
        return [result.logprobs, result.entropy, token_full_kl(model, other, rollout, TEMPERATURE), *grads]

    before = everything()
    check_rows(before[0].detach(), taken(alone(model, rollout, TEMPERATURE), rollout), 1e-9)
    monkeypatch.setattr(module, "HEAD_TOKENS", 7)
    monkeypatch.setattr(module, "head_blocks", lambda _: ops.Blocks(logits=1))
    for one, two in zip(everything(), before, strict=True):
        oracles.close(one, two, 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load_round_trip_is_exact(family: str, tmp_path: Path, rollout: Rollout) -> None:
    from transformers import AutoModelForCausalLM

    policy = Policy(without_dropout(family))
    torch.nn.init.normal_(policy.value_head.weight)
    disturbed(policy)
    policy.save(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_file(tmp_path / VALUE_HEAD_FILE).keys() == {"weight", "bias"}
    fresh = Policy(without_dropout(family, seed=9))
    assert not torch.equal(fresh(rollout).logprobs, policy(rollout).logprobs)
    load_weights(fresh, tmp_path)
    assert torch.equal(weights(fresh), weights(policy))
    tied = tiny_config(family).tie_word_embeddings
    assert (fresh.lm.get_output_embeddings().weight is fresh.lm.get_input_embeddings().weight) == tied
    one, two = fresh(rollout), policy(rollout)
    assert torch.equal(one.logprobs, two.logprobs) and torch.equal(one.values, two.values)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    fuse_gelu(opened)  # as a policy's is
    ids = rollout.ids[:2]
    assert torch.equal(opened(input_ids=ids).logits, policy.lm(input_ids=ids).logits)
    assert {file.suffix for file in tmp_path.iterdir()} <= {".json", ".safetensors"}


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_embeddings_are_shared_and_stay(family: str, rollout: Rollout) -> None:
    policy = Policy(without_dropout(family), freeze_embeddings=True)
    reference = make_reference(policy)
    before = reference_logprobs(reference, rollout, 1.0)
    for get in ("get_input_embeddings", "get_output_embeddings"):
        own, other = getattr(policy.lm, get)().weight, getattr(reference, get)().weight
        assert own.data_ptr() == other.data_ptr() and not own.requires_grad
    frozen = policy.lm.get_input_embeddings().weight.clone()
    trained = [p for p in policy.lm.parameters() if p.requires_grad]
    assert len(trained) > 10
    addresses = {p.data_ptr() for p in reference.parameters()}
    assert not any(p.data_ptr() in addresses for p in trained)  # what is trained is a copy
    optimizer = torch.optim.Adam(trained, lr=0.01)
    (-policy(rollout).logprobs.sum()).backward()
    optimizer.step()
    assert policy.lm.get_input_embeddings().weight.grad is None
    assert torch.equal(policy.lm.get_input_embeddings().weight, frozen)
    assert torch.equal(reference_logprobs(reference, rollout, 1.0), before)
    assert not torch.allclose(policy(rollout).logprobs, before, atol=0.01)
    assert not any(p.requires_grad for p in reference.parameters())


def test_without_freezing_all_is_copied_and_trained(rollout: Rollout) -> None:
    policy = Policy(without_dropout("gpt2"))
    reference = make_reference(policy)
    before = reference_logprobs(reference, rollout, 1.0)
    assert torch.equal(before, policy(rollout).logprobs)
    assert all(p.requires_grad for p in policy.parameters())
    assert not {p.data_ptr() for p in policy.parameters()} & {p.data_ptr() for p in reference.parameters()}
    disturbed(policy.lm)
    assert torch.equal(reference_logprobs(reference, rollout, 1.0), before)
    assert not reference.training


def test_under_autocast_what_comes_back_is_float32(rollout: Rollout) -> None:
    """bfloat16 has 8 bits: a value of 3.01 would be 3.016."""
    policy = Policy(without_dropout("gpt2"))
    torch.nn.init.constant_(policy.value_head.bias, 3.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = policy(rollout)
    assert {x.dtype for x in (result.logprobs, result.values, result.entropy)} == {torch.float32}
    assert torch.equal(result.values[rollout.mask], torch.full((int(rollout.mask.sum()),), 3.01))

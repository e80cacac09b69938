"""Adapters: what of a model is trained, the reference without a copy, and what is saved, opened by peft itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from konomi.config import LoraConfig, ModelConfig
from konomi.engine.forward import reference_logprobs
from konomi.errors import ConfigError, ModelError
from konomi.models import lora
from konomi.models.deterministic import fuse_gelu
from konomi.models.load import load_causal_lm
from konomi.models.lora import adapted_layers, adapter_weights, add_adapters, merged, reset_adapters, save_adapter
from konomi.models.policy import VALUE_HEAD_FILE, Policy, make_reference, same_weights
from konomi.models.reward_files import make_reward_model, open_reward_model
from tiny import FAMILIES, VOCAB, save_tiny, tiny_encoder, tiny_tokenizer
from tiny_run import disturbed, facts, tiny_rollout, tiny_trainer, without_dropout

RANK = LoraConfig(rank=4)
PEFT_WARNS = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
"""Its class of models asks transformers for a property that is to go."""


def adapted(family: str, **lora: Any) -> Policy:
    """A policy with adapters that add something."""
    lm = without_dropout(family)
    add_adapters(lm, LoraConfig(**{"rank": 4, **lora}), seed=1)
    disturbed(lm)
    return Policy(lm)


def tiny_bert(directory: Path) -> Path:
    """An encoder whose classification head reads a pooler."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=80, pad_token_id=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.parametrize("family", FAMILIES)
def test_without_its_adapters_the_policy_is_its_reference_to_the_bit(family: str) -> None:
    policy, initial = adapted(family), without_dropout(family)
    reference, rollout = make_reference(policy), tiny_rollout(initial)
    expected = reference_logprobs(initial, rollout, 1.0)
    assert torch.equal(reference_logprobs(reference, rollout, 1.0), expected)
    assert not torch.allclose(reference_logprobs(policy.lm, rollout, 1.0), expected, atol=0.01)
    for layer in adapted_layers(policy.lm):  # peft's own way to turn them off
        layer.enable_adapters(False)
    assert torch.equal(reference_logprobs(policy.lm, rollout, 1.0), expected)
    addresses = {parameter.data_ptr() for parameter in policy.lm.parameters()}
    assert {parameter.data_ptr() for parameter in reference.parameters()} <= addresses  # no second copy
    assert not adapted_layers(reference) and not same_weights(policy.lm, reference)
    assert dict(reference.named_parameters()).keys() == dict(initial.named_parameters()).keys()
    reset_adapters(policy.lm)
    assert same_weights(policy.lm, reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_adapters_and_the_value_head_are_trained(family: str) -> None:
    trainer = tiny_trainer(family, lora=4, episodes=32, value_learning_rate=1e-3)
    before = {name: parameter.clone() for name, parameter in trainer.policy.named_parameters()}
    first, second = trainer
    assert first.metrics["objective/kl"] == 0.0
    assert second.metrics["objective/kl"] != 0.0
    for name, parameter in trainer.policy.named_parameters():
        trained = ".lora_" in name or name.startswith("value_head.")
        assert (parameter.grad is not None) == parameter.requires_grad == trained, name
        assert torch.equal(parameter, before[name]) != trained, name
    assert all(trainer.reference.get_parameter(name) is not None for name, _ in without_dropout(family).named_parameters())


def test_every_linear_layer_of_the_trunk_or_those_that_are_named() -> None:
    everything = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}

    def names(**lora: Any) -> list[str]:
        lm = adapted("llama", **lora).lm
        return [name for name, module in lm.named_modules() if hasattr(module, "lora_A")]

    assert {name.rpartition(".")[2] for name in names()} == everything and len(names()) == 2 * len(everything)
    assert {name.rpartition(".")[2] for name in names(targets=("q_proj", "mlp.up_proj"))} == {"q_proj", "up_proj"}
    for wrong in ("lm_head", "embed_tokens", "proj", "c_attn"):
        with pytest.raises(
            ConfigError, match=rf"lora.targets: no linear layer of Llama\w+ is named {wrong}; there are: down_proj, "
        ):
            adapted("llama", targets=("q_proj", wrong))


def test_alpha_scales_and_the_seed_decides() -> None:
    layers = [adapted_layers(adapted("gpt2", rank=8, alpha=alpha).lm) for alpha in (8, 24)]
    ratio = layers[1][0].get_delta_weight("default") / layers[0][0].get_delta_weight("default")
    assert torch.allclose(ratio, torch.tensor(3.0))
    models = [without_dropout("gpt2") for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.manual_seed(seed + 7)
        add_adapters(model, RANK, seed=seed)
    first, same, other = ([w.clone() for w in adapter_weights(model).values()] for model in models)
    assert all(map(torch.equal, first, same)) and not all(map(torch.equal, first, other))
    plain = without_dropout("gpt2")
    add_adapters(plain, LoraConfig())
    assert not adapted_layers(plain) and merged(plain) is plain and all(p.requires_grad for p in plain.parameters())


@PEFT_WARNS
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_opens_in_peft_and_merged_in_transformers(family: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy, base = adapted(family), save_tiny(tmp_path / "base", family)
    policy.lm.peft_config["default"].base_model_name_or_path = str(base)
    rollout, before = tiny_rollout(policy.lm), dict(policy.lm.named_parameters())
    torch.nn.init.normal_(policy.value_head.weight)
    policy.save_adapter(tmp_path)
    policy.save(tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", VALUE_HEAD_FILE, "base", "merged",
    }  # fmt: skip
    facts = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    assert (facts["r"], facts["lora_alpha"], facts["task_type"], facts["bias"]) == (4, 32, "CAUSAL_LM", "none")
    assert facts["target_modules"] == sorted(facts["target_modules"]) and facts["base_model_name_or_path"] == str(base)
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path).eval()
    fuse_gelu(opened)  # as a policy's is
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    for ids, length in zip(rollout.ids, rollout.lengths, strict=True):
        expected = policy.lm(input_ids=ids[None, :length]).logits
        assert torch.equal(opened(input_ids=ids[None, :length]).logits, expected)
        assert torch.allclose(plain(input_ids=ids[None, :length]).logits, expected, atol=1e-5)
    assert all(before[name] is parameter for name, parameter in policy.lm.named_parameters())  # saving has merged a copy
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


@PEFT_WARNS
@pytest.mark.parametrize("kind", ["gpt2", "llama", "encoder", "pooler"])
def test_a_reward_model_keeps_its_head_beside_its_adapters(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    make = {"encoder": tiny_encoder, "pooler": tiny_bert}.get(kind, lambda path: save_tiny(path, kind))
    base = make(tmp_path / "lm")
    made = make_reward_model(ModelConfig(name=str(base)), outputs=1, seed=0, max_length=64, lora=RANK).model
    assert made.packs == (kind in FAMILIES)
    trained = {name for name, parameter in made.model.named_parameters() if parameter.requires_grad}
    heads = {name for name in trained if ".lora_" not in name}
    behind = ("score.", "classifier.", "bert.pooler.")
    assert heads and all(name.startswith(behind) for name in heads)
    assert len(trained) > 10 and not any(name.startswith(behind) for name in trained - heads)
    assert any("pooler" in name for name in heads) == (kind == "pooler")  # drawn at random where the files have none
    disturbed(made.model)
    texts = ["abc", "a longer text", "z"]
    expected = torch.cat(made.predict([[text] for text in texts]))
    made.save(tmp_path / "model", {})
    assert torch.allclose(
        torch.cat(open_reward_model(str(tmp_path / "model")).predict([[text] for text in texts])), expected, atol=1e-5
    )
    (tmp_path / "adapter").mkdir()
    save_adapter(made.model, tmp_path / "adapter")
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=made.pad_id)
    opened = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    for text, number in zip(texts, expected, strict=True):
        assert torch.allclose(opened(input_ids=torch.tensor(made.encode([text]))).logits[0], number, atol=1e-5)


def test_an_adapter_alone_is_its_base_model_with_it(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    lm = load_causal_lm(ModelConfig(name=str(base))).model
    add_adapters(lm, RANK, base=str(base))
    disturbed(lm)
    (tmp_path / "adapter").mkdir()
    save_adapter(lm, tmp_path / "adapter")
    opened = load_causal_lm(ModelConfig(name=str(tmp_path / "adapter")))
    ids = torch.tensor([[0, 5, 9, 3]])
    assert torch.allclose(opened.model(ids).logits, lm(ids).logits, atol=1e-5)
    assert not adapted_layers(opened.model) and all(p.requires_grad for p in opened.model.parameters())
    assert opened.source == str(tmp_path / "adapter") and opened.tokens.vocabulary == VOCAB
    config = tmp_path / "adapter" / "adapter_config.json"
    facts = json.loads(config.read_text("utf-8"))

    def refused(message: str, **changes: Any) -> None:
        config.write_text(json.dumps({**facts, **changes}), encoding="utf-8")
        with pytest.raises(ModelError, match=message):
            load_causal_lm(ModelConfig(name=str(tmp_path / "adapter")))

    refused("no such directory", base_model_name_or_path=str(tmp_path / "gone"))
    refused("it holds an adapter", base_model_name_or_path=str(tmp_path / "adapter"))
    refused("it holds an adapter", base_model_name_or_path=None)
    refused("more than LoRA of linear layers", modules_to_save=["lm_head"])
    refused("more than LoRA of linear layers", megatron_config={"a": 1}, megatron_core="antigravity")
    for name, value in {
        "init_lora_weights": "pissa_niter_16", "use_qalora": True, "use_bdlora": {"nblocks": 2}, "bias": "all",
        "loftq_config": {"loftq_bits": 4}, "ensure_weight_tying": True, "a_setting_of_tomorrow": 1,
    }.items():  # fmt: skip
        refused(rf"more than LoRA of linear layers \({name} = ", **{name: value})
    for start in (False, "gaussian", "eva", "orthogonal"):
        config.write_text(json.dumps({**facts, "init_lora_weights": start, "eva_config": {"rho": 2.0}}), encoding="utf-8")
        again = load_causal_lm(ModelConfig(name=str(tmp_path / "adapter"))).model
        assert torch.equal(again(ids).logits, opened.model(ids).logits)
    refused("its adapter cannot be read", base_model_name_or_path=str(save_tiny(tmp_path / "other", "gpt2")))
    refused("adapter and base model do not fit", target_modules=["q_proj"])
    facts = {"peft_type": "IA3", "base_model_name_or_path": str(base)}
    refused("more than LoRA of linear layers")
    config.write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"adapter_config\.json: cannot be read as JSON"):
        load_causal_lm(ModelConfig(name=str(tmp_path / "adapter")))


def test_half_weights_have_adapters_in_float32() -> None:
    """They learn in steps that half precision would lose; without autocast too."""
    lm = without_dropout("llama").bfloat16()
    add_adapters(lm, RANK)
    assert {p.dtype for p in adapter_weights(lm).values()} == {torch.float32}
    disturbed(lm)
    whole, names = dict(merged(lm).named_parameters()), {id(layer.base_layer.weight) for layer in adapted_layers(lm)}
    adapted = {name for name, p in lora.plain_parameters(lm).items() if id(p) in names}
    assert adapted and {name for name, p in whole.items() if p.dtype == torch.float32} == adapted
    ids, exact = torch.tensor([[3, 4, 5]]), merged(lm).float()
    assert torch.allclose(lm.float()(ids).logits, exact(ids).logits, atol=1e-5)


@pytest.mark.parametrize("targets", [(), ("o_proj", "down_proj")])
def test_four_bits_under_adapters(targets: tuple[str, ...], tmp_path: Path) -> None:
    """The frozen layers are in 4 bits for policy and reference alike; the merged model writes what the policy writes."""
    from transformers import AutoModelForCausalLM

    policy, plain = adapted("llama", quantize="nf4", targets=targets), without_dropout("llama")
    held = [layer for layer in policy.lm.modules() if type(layer).__name__ == "Linear4bit" and not hasattr(layer, "lora_A")]
    layers = [layer for layer in plain.model.layers.modules() if isinstance(layer, torch.nn.Linear)]
    assert len(held) == len(layers) == 14
    assert sum(layer.weight.nbytes for layer in held) * 8 == sum(layer.weight.nbytes for layer in layers)
    reference, rollout = make_reference(policy), tiny_rollout(plain)
    exact, rounded = (reference_logprobs(model, rollout, 1.0) for model in (plain, reference))
    assert 1e-4 < float((exact - rounded).abs().max()) < 0.5
    moved = reference_logprobs(policy.lm, rollout, 1.0)
    assert not torch.allclose(moved, rounded, atol=0.01)
    policy.save(tmp_path / "merged")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(reference_logprobs(opened, rollout, 1.0), moved, atol=1e-5)
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text("utf-8"))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as other linear layers
        assert held[0](torch.ones(1, held[0].in_features)).dtype == torch.bfloat16
    reset_adapters(policy.lm)
    assert same_weights(policy.lm, reference)
    with pytest.raises(ConfigError, match=r'lora.quantize = "nf4": GPT2LMHeadModel has no linear layers of torch'):
        adapted("gpt2", quantize="nf4")


def test_training_over_four_bits_resumes_to_the_bit(tmp_path: Path) -> None:
    trainer, again = (tiny_trainer("llama", lora=4, quantize="nf4", episodes=48) for _ in range(2))
    steps = iter(trainer)
    next(steps)
    trainer.save(tmp_path / "one")
    again.load(tmp_path / "one")
    for ours, theirs in zip(steps, again, strict=True):
        assert facts(ours.metrics) == facts(theirs.metrics)
    weights = adapter_weights(trainer.policy.lm), adapter_weights(again.policy.lm)
    assert weights[0] and all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_without_peft_one_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r'adapters \(LoRA\) need peft: .*; pip install "konomi\[lora\]"'):
        add_adapters(without_dropout("gpt2"), RANK)
    add_adapters(without_dropout("gpt2"), LoraConfig())

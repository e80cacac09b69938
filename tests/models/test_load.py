"""Loading by name: what is handed on, and what is refused with which advice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hub import COMMIT, hub_server
from konomi.config import ClassifierReward, LoraConfig, ModelConfig, RolloutConfig
from konomi.engine.sampler import make_draws, sample
from konomi.errors import ModelError
from konomi.models.load import load_causal_lm
from konomi.models.lora import add_adapters, save_adapter
from konomi.models.policy import Policy
from konomi.models.reward_files import make_reward_model, open_reward_model
from konomi.rewards import build_reward
from refusals import refused as refused_call
from tiny import EOS_ID, FAMILIES, VOCAB, save_tiny, tiny_config, tiny_model, tiny_tokenizer
from tiny_run import weights

DROPOUT = {
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "llama": {"attention_dropout": 0.5},
    "qwen": {"attention_dropout": 0.5},
    "gemma3": {"attention_dropout": 0.5},
}
IDS = torch.tensor([[0, 5, 6, 7, 8, 9, 10, 11]])


def load(name: Path | str, **changes: Any) -> Any:
    return load_causal_lm(ModelConfig(name=str(name), **changes))


def refused(name: Path | str, *parts: str, **changes: Any) -> None:
    refused_call(lambda: load(name, **changes), *parts, error=ModelError)


def edit(directory: Path, **changes: Any) -> Path:
    """Change keys of the directory's config.json."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return directory


def save_other(directory: Path, model: Any) -> Path:
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_loads_without_dropout(family: str, tmp_path: Path) -> None:
    original = tiny_model(family, **DROPOUT[family])
    assert not torch.equal(original.train()(IDS).logits, original(IDS).logits)  # these rates do something
    loaded = load(save_other(tmp_path, original))
    assert (loaded.source, loaded.revision, loaded.note) == (str(tmp_path), None, None)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32} and not loaded.model.training
    logits = loaded.model(IDS).logits
    assert torch.allclose(logits, original.eval()(IDS).logits, atol=1e-6)
    assert torch.equal(loaded.model.train()(IDS).logits, logits)
    config = loaded.model.config.to_dict()
    assert [config[key] for key in DROPOUT[family]] == [0.0] * len(DROPOUT[family])
    ids = loaded.tokenizer("hello world").input_ids
    assert ids[0] == 0 and loaded.tokenizer.decode(ids, skip_special_tokens=True) == "hello world"


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_comes_back_as_fp32(family: str, tmp_path: Path) -> None:
    original = tiny_model(family).to(torch.bfloat16)
    loaded = load(save_other(tmp_path, original)).model
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(torch.equal(a.float(), b) for a, b in zip(original.parameters(), loaded.parameters(), strict=True))


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    save_tiny(tmp_path, "gpt2")
    state = torch.get_rng_state()
    load(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_console_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_tiny(tmp_path, "llama")
    capfd.readouterr()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    load(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled() == bars


def test_pickled_weights_are_refused_with_the_way_to_convert(tmp_path: Path) -> None:
    save_tiny(tmp_path, "gpt2")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    refused(tmp_path, "only pytorch_model.bin, which can run code", "convert them once", "save_pretrained")
    (tmp_path / "pytorch_model.bin").unlink()
    refused(tmp_path, "no .safetensors weights. ")


def test_directories_that_hold_no_model(tmp_path: Path) -> None:
    refused(tmp_path, "no config.json, so it is not a saved model")
    save_tiny(tmp_path, "gpt2")
    for content in ("{", "{}", '{"model_type": "nonesuch"}'):
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
        refused(tmp_path, "its config cannot be read")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_tokenizer_is_told(family: str, tmp_path: Path) -> None:
    save_tiny(tmp_path, family)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    refused(tmp_path, "tokenizer")
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    refused(tmp_path, "its tokenizer cannot be read")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"\xff" * 100, lambda b: b""])
def test_damaged_weights_are_told(damage: Any, tmp_path: Path) -> None:
    weights = save_tiny(tmp_path, "llama") / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    refused(tmp_path, "a .safetensors file is damaged or cut short")


def test_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    more = edit(save_tiny(tmp_path / "more", "llama"), num_hidden_layers=3, layer_types=None)
    refused(more, "lack 9 weights", "such as model.layers.2.")
    refused(edit(save_tiny(tmp_path / "wider", "llama"), vocab_size=40), "do not fit: ", "is [29, 32], should be [40, 32]")
    file = save_tiny(tmp_path / "nan", "llama") / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    refused(tmp_path / "nan", "not finite")


def test_other_kinds_of_model_are_refused(tmp_path: Path) -> None:
    small = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**small, intermediate_size=16))
    refused(save_other(tmp_path / "bert", bert), "not causal: its output at a token changes")
    roberta = transformers.XLMRobertaConfig(**small, intermediate_size=16)
    refused(save_other(tmp_path / "trunk", transformers.XLMRobertaModel(roberta)), "files lack ", "of another kind of model")
    t5 = transformers.T5Config(vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    t5 = save_other(tmp_path / "t5", transformers.T5ForConditionalGeneration(t5))
    refused(t5, "a t5 model is not a causal language model")
    vit = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    refused(save_other(tmp_path / "vit", transformers.ViTModel(vit)), "a vit model is not a causal language model")


def test_a_reward_model_or_classifier_is_no_language_model_though_its_embeddings_be_tied(tmp_path: Path) -> None:
    for family in FAMILIES:
        config = tiny_config(family, num_labels=1, tie_word_embeddings=True)
        head = transformers.AutoModelForSequenceClassification.from_config(config)
        path = save_other(tmp_path / family, head)
        with pytest.raises(ModelError, match=r"architecture \w+ForSequenceClassification: a reward model or.*\[reward\]"):
            load(path)
        with pytest.raises(ModelError, match=r"weights score\.weight: a reward model or classifier"):
            load(edit(path, architectures=None))


def test_adapters_are_refused_by_name_alone_and_beside_weights(tmp_path: Path) -> None:
    facts = {"base_model_name_or_path": "base", "peft_type": "LORA", "r": 4, "task_type": "CAUSAL_LM"}
    for name in ("alone", "config", "weights"):
        path = tmp_path / name
        save_tiny(path, "gpt2")
        if name != "weights":
            (path / "model.safetensors").rename(path / "adapter_model.safetensors")
        if name == "alone":
            (path / "config.json").unlink()
        (path / "adapter_config.json").write_text(json.dumps(facts), encoding="utf-8")
        (path / "reward.json").write_text('{"version": 1, "max_length": 9}', encoding="utf-8")
        opened: list[Callable[[], Any]] = [
            lambda path=path: load(path),
            lambda path=path: open_reward_model(str(path)),
            lambda path=path: make_reward_model(ModelConfig(name=str(path)), outputs=1, seed=0, max_length=9),
            lambda path=path: build_reward(ClassifierReward(name=str(path), label=0)),
        ]
        for call in opened[name == "alone" :]:
            with pytest.raises(ModelError, match=r"adapter_config\.json\).*merge any other first.*merge_and_unload"):
                call()
    with pytest.raises(ModelError, match=r"^base: no such directory"):  # of one that is alone the base model is wanted
        load(tmp_path / "alone")


def test_what_ends_a_text_by_the_settings_of_a_model_ends_its_responses_and_is_saved_with_it(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.generation_config.eos_token_id = [7, 5, 400]  # the last is none of the model's ids
    loaded = load(save_other(tmp_path / "chat", model))
    assert loaded.tokens.eos_ids == {EOS_ID, 5, 7} and loaded.tokens.vocabulary == VOCAB
    draws = make_draws(config := RolloutConfig(response_tokens=(1, 60), stop="eos"), 0, [("x", i) for i in range(16)])
    rollout = sample(loaded.model, loaded.tokens, [[0, 2]] * 16, draws, config)
    ends = {row[-1] for row, ended in zip(rollout.response_ids(), rollout.ended.tolist(), strict=True) if ended}
    assert ends == {EOS_ID, 5, 7}
    assert not any(set(row[:-1]) & ends for row in rollout.response_ids())
    Policy(loaded.model).save(tmp_path / "saved")
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").tokens.eos_ids == {EOS_ID, 5, 7}
    (tmp_path / "chat" / "generation_config.json").unlink()
    assert load(edit(tmp_path / "chat", eos_token_id=[1, 3])).tokens.eos_ids == {EOS_ID, 3}


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    quantised = edit(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(quantised, "weights are quantised (gptq) and cannot be trained")


def test_code_of_a_repository_runs_only_if_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    save_tiny(tmp_path / "own", "gpt2")
    (tmp_path / "own" / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        f"Path({str(tmp_path / 'ran')!r}).write_text('x')\n"
        "class OwnConfig(GPT2Config):\n    model_type = 'own'\n"
        "class OwnModel(GPT2LMHeadModel):\n    config_class = OwnConfig\n",
        encoding="utf-8",
    )
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit(tmp_path / "own", model_type="own", auto_map=auto_map, architectures=["OwnModel"])
    refused(tmp_path / "own", "set model.trust_remote_code = true")
    assert not (tmp_path / "ran").exists()
    loaded = load(tmp_path / "own", trust_remote_code=True)
    assert type(loaded.model).__name__ == "OwnModel" and (tmp_path / "ran").exists()


def test_names_that_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused(tmp_path / "model.safetensors", "a file; give the model's directory")
    for name in (f"{tmp_path}/none", "./none", "~/none", "a/b/c", "a b"):
        refused(name, "no such directory, and not a hub name")
    refused(save_tiny(tmp_path / "tiny", "gpt2"), "model.revision = 'v1' is for hub models only", revision="v1")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A hub of our own, which serves <tmp_path>/hub/<owner>/<model>, and an empty hub cache."""
    from huggingface_hub import constants

    with hub_server(tmp_path / "hub") as (server, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        yield server


def test_a_hub_model_loads_and_then_without_the_hub(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    directory = tmp_path / "hub" / "someone" / "tiny"
    save_tiny(directory, "llama")
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n", encoding="utf-8")
    first = load("someone/tiny")
    assert (first.source, first.revision) == ("someone/tiny", COMMIT)
    assert first.note == "Licence, as its README.md says: apache-2.0"
    hub.shutdown()
    hub.server_close()
    again = load("someone/tiny")
    assert (again.revision, again.note) == (COMMIT, first.note)
    assert torch.equal(weights(first.model), weights(again.model))
    with pytest.raises(ModelError, match=r"no copy of revision v2 in .*hub-cache, and the hub .* cannot be reached"):
        load("someone/tiny", revision="v2")


def test_an_adapter_keeps_the_commit_of_its_base_on_the_hub(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    save_tiny(tmp_path / "hub" / "someone" / "tiny", "llama")
    save_tiny(tmp_path / "local", "llama")
    loaded = load("someone/tiny")
    add_adapters(loaded.model, LoraConfig(rank=4), base="someone/tiny", revision=loaded.commit)
    (tmp_path / "adapter").mkdir()
    save_adapter(loaded.model, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    facts = json.loads(config.read_text("utf-8"))
    assert facts["revision"] == COMMIT
    load(tmp_path / "adapter")
    config.write_text(json.dumps({**facts, "base_model_name_or_path": str(tmp_path / "local")}), encoding="utf-8")
    load(tmp_path / "adapter")
    config.write_text(json.dumps({**facts, "revision": "v2"}), encoding="utf-8")
    with pytest.raises(ModelError, match="someone/tiny: cannot be fetched"):
        load(tmp_path / "adapter")
    for name in ("embedded:gemma3-270m", "model.gguf"):
        assert replace(loaded, source=name).commit is None  # its revision is the hash of a file
    head = make_reward_model(ModelConfig(name="someone/tiny"), outputs=1, seed=0, max_length=64, lora=LoraConfig(rank=4)).model
    assert head.model.peft_config["default"].revision == COMMIT


def test_what_the_hub_does_not_have(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"someone/none: cannot be fetched from http://127.*"):
        load("someone/none")
    weights = save_tiny(tmp_path / "hub" / "someone" / "pickled", "gpt2") / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ModelError, match=r"no \.safetensors weights\. .*convert them once"):
        load("someone/pickled")
    with pytest.raises(ModelError, match=r"cannot be fetched from"):
        load("someone/pickled", revision="nonesuch")


def test_without_hub_and_copy_the_embedded_model_is_named(hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.shutdown()
    hub.server_close()
    with pytest.raises(ModelError, match=r"the hub http://127.* cannot be reached\. .*embedded:gemma3-270m"):
        load("someone/none")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE is set.*embedded:gemma3-270m"):
        load("someone/none")

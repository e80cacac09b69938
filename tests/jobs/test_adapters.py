"""Adapters through the command line in the tiny world: fine-tuning, a reward model and PPO, each on what the last one left."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from command_line import konomi, lines_of, sets
from konomi.config import ModelConfig
from konomi.models.load import load_causal_lm


def ran(verb: str, name: str, *settings: str, code: int = 0) -> dict[str, Any]:
    result = konomi(verb, f"{verb}.toml", "--json", *sets("lora.rank=4", f"run.name={name}", *settings), code=code)
    return {**json.loads(result.stdout), "said": result.stderr}


def files(directory: str) -> set[str]:
    return {path.name for path in Path(directory).iterdir()}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_from_fine_tuning_to_ppo_with_adapters_alone(world: Path) -> None:
    from peft import PeftModel

    learned = ran("sft", "s")
    assert learned["after"]["loss"] < learned["before"]["loss"] - 0.2
    judge = ran("reward", "r", "model.name=runs/s", "train.learning_rate=1e-2", "train.epochs=3")
    assert judge["eval"]["held_out"]["accuracy"]["value"] > 0.8
    reward = 'kind = "model"\nname = "runs/r"\nnormalized = false'
    job = Path("ppo.toml").read_text("utf-8").replace('kind = "function"\nname = "taste.py:count_a"', reward)
    Path("ppo.toml").write_text(job, encoding="utf-8")
    moved = ran("ppo", "p", "model.name=runs/s", "ppo.learning_rate=1e-2", "run.keep=9")
    assert "M of them trained (adapters of rank 4)" in moved["said"]
    assert moved["compare"]["after"]["kl"] > 0.05 and moved["compare"]["before"]["kl"] == 0.0
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    assert files("runs/s/adapter") == files("runs/r/adapter") == adapter
    assert files("runs/p/adapter") == adapter | {"value_head.safetensors"}
    checkpoint = Path("runs/p/checkpoints/update-00004")
    assert files(str(checkpoint)) == files("runs/p/adapter") | {"optimizer.safetensors", "random.safetensors", "trainer.json"}
    assert all(".lora_" in name or name.startswith("value_head") for name in load_file(checkpoint / "optimizer.safetensors"))
    for run, base in (("s", "lm"), ("p", "runs/s/model")):
        facts = json.loads(Path(f"runs/{run}/adapter/adapter_config.json").read_text("utf-8"))
        assert facts["base_model_name_or_path"] == str(world / base)
        whole, part = (load_causal_lm(ModelConfig(name=name)).model for name in (f"runs/{run}", base))
        opened = PeftModel.from_pretrained(part, f"runs/{run}/adapter").eval()
        ids = torch.tensor([[0, 5, 9, 3]])
        assert torch.allclose(opened(ids).logits, whole(ids).logits, atol=1e-4)
        assert not torch.allclose(opened.unload()(ids).logits, whole(ids).logits, atol=1e-2)
    for arguments in (["compare", "runs/p"], ["generate", "runs/p", "-p", "abc", "--tokens", "4"], ["report", "runs/p"]):
        konomi(*arguments, code=0)
    konomi("sample", "sample.toml", *sets("models.a.name=runs/p/adapter"), code=0)


def test_resumed_is_as_never_stopped_and_over_the_cap_as_it_was(world: Path) -> None:
    ran("ppo", "whole", "run.keep=9", "ppo.learning_rate=1e-2")
    ran("ppo", "half", "run.keep=9", "ppo.learning_rate=1e-2")
    for update in (3, 4):
        for path in sorted(Path(f"runs/half/checkpoints/update-{update:05d}").iterdir()):
            path.unlink()
        path.parent.rmdir()
    run = Path("runs/half/run.json")
    run.write_text(json.dumps(json.loads(run.read_text("utf-8")) | {"status": "stopped"}), encoding="utf-8")
    konomi("ppo", "--resume", "runs/half", code=0)
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors", "adapter/value_head.safetensors"):
        assert (Path("runs/half") / name).read_bytes() == (Path("runs/whole") / name).read_bytes(), name
    kls = [[line["objective/kl"] for line in lines_of(f"runs/{name}/metrics.jsonl")] for name in ("half", "whole")]
    assert kls[0] == kls[1]
    cap = ("ppo.kl_cap=1e-6", "ppo.kl_controller=fixed", "ppo.learning_rate=1e-2", "run.save_every=99")
    capped = ran("ppo", "capped", *cap, code=1)
    assert capped["status"] == "stopped" and "The model is the initial one" in capped["said"]
    kept, initial = (load_file(f"{name}/model.safetensors") for name in ("runs/capped/model", "lm"))
    assert all(torch.equal(kept[name], initial[name]) for name in initial)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("lm", ("ppo.weights=bf16",)),
        ("lm", ("model.gradient_checkpointing=true", "model.precision=fp64")),
        ("other", ("ppo.weights=bf16", "model.gradient_checkpointing=true")),
        ("other", ("model.precision=bf16",)),
    ],
)
def test_adapters_go_with_what_saves_memory_and_with_each_precision(world: Path, model: str, settings: tuple[str, ...]) -> None:
    told = ran("ppo", "p", f"model.name={model}", "ppo.episodes=32", "ppo.learning_rate=1e-2", "ppo.kl_penalty=full", *settings)
    assert told["status"] == "finished" and told["compare"]["before"]["kl"] == 0.0 != told["compare"]["after"]["kl"]
    adapter = load_file("runs/p/adapter/adapter_model.safetensors")
    wide = torch.float64 if "model.precision=fp64" in settings else torch.float32
    assert {tensor.dtype for tensor in adapter.values()} == {wide}
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    load_causal_lm(ModelConfig(name="runs/p"))


def test_without_peft_each_verb_says_what_to_install(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    for verb in ("sft", "reward", "ppo"):
        wrong = konomi(verb, f"{verb}.toml", *sets("lora.rank=4", "model.name=./none"), code=2)
        assert "adapters (LoRA) need peft" in wrong.stderr and 'pip install "konomi[lora]"' in wrong.stderr
    assert not Path("runs").exists()

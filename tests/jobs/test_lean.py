"""Settings that save memory, through the command line in the tiny world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from command_line import konomi, lines_of, sets


def ran(verb: str, name: str, *settings: str) -> dict[str, Any]:
    return dict(json.loads(konomi(verb, f"{verb}.toml", "--json", *sets(f"run.name={name}", *settings), code=0).stdout))


def test_layers_that_are_computed_anew_change_no_result(world: Path) -> None:
    for verb, file in (("sft", "metrics.jsonl"), ("reward", "eval.json"), ("ppo", "model/model.safetensors")):
        for name in ("plain", "anew"):
            ran(verb, f"{verb}-{name}", f"model.gradient_checkpointing={str(name == 'anew').lower()}")
        plain, anew = (Path(f"runs/{verb}-{name}/{file}").read_bytes() for name in ("plain", "anew"))
        if verb == "sft":  # times differ
            losses = [[line.get("sft/loss") for line in lines_of(f"runs/sft-{name}/{file}")] for name in ("plain", "anew")]
            assert losses[0] == losses[1]
        else:
            assert plain == anew, verb


def test_a_policy_of_bfloat16_and_moments_of_8_bits(world: Path) -> None:
    pytest.importorskip("bitsandbytes")
    lean = ("ppo.weights=bf16", "model.precision=bf16")
    moved = ran("ppo", "lean", *lean, "ppo.optimizer=adam8", "ppo.learning_rate=1e-2")
    saved = load_file("runs/lean/model/model.safetensors")
    assert {x.dtype for x in saved.values()} == {torch.bfloat16}
    assert moved["compare"]["after"]["kl"] > 0.01 and abs(moved["compare"]["before"]["kl"]) < 0.01
    adapted = ran(
        "ppo", "adapted", *lean, "lora.rank=4", "ppo.learning_rate=1e-2"
    )  # adapters are float32, and plain Adam moves them
    assert adapted["compare"]["after"]["kl"] > 0.01
    assert {x.dtype for x in load_file("runs/adapted/adapter/adapter_model.safetensors").values()} == {torch.float32}


def test_bfloat16_and_plain_adam_are_refused_before_a_model_is_loaded(world: Path) -> None:
    wrong = konomi("ppo", "ppo.toml", *sets("ppo.weights=bf16", "model.precision=bf16", "model.name=./none"), code=2)
    assert 'ppo.optimizer = "adam" with ppo.weights = "bf16"' in wrong.stderr and 'use "adam8"' in wrong.stderr
    assert not Path("runs").exists()

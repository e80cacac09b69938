"""Memory of an update of PPO, computed by konomi.engine.memory, and measured with a small model.

What is measured needs the extras lora and adam8.

    python benchmarks/memory.py               the tables, computed; a few seconds
    python benchmarks/memory.py --measure     and a small model's peak beside what is computed for it, and what a tiny one
                                              learns with each optimiser; ten minutes
    python benchmarks/memory.py --write       puts all into docs/results.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from demo_seeds import ROOT, put

from konomi.engine.memory import Setting, Shape, gigabytes

SHAPES = {
    "0.3B (Gemma 3 270M)": Shape(262_144, 640, 2048, 18, 4, 1, 256, tied=True),
    "1B (Llama 3.2)": Shape(128_256, 2048, 8192, 16, 32, 8, 64, tied=True),
    "3B (Llama 3.2)": Shape(128_256, 3072, 8192, 28, 24, 8, 128, tied=True),
    "8B (Llama 3.1)": Shape(128_256, 4096, 14_336, 32, 32, 8, 128, tied=False),
}
SMALL = Shape(32_000, 512, 1536, 8, 8, 8, 64, tied=False)
"""What is measured."""


SETTINGS = {
    "full": Setting(),
    "top 2 layers": Setting(top_layers=2),
    "LoRA, rank 16": Setting(rank=16),
}
LEAN = {
    "full, adam8": Setting(adam8=True),
    "full, adam8, bf16 weights": Setting(adam8=True, half=True),
    "LoRA, rank 16, bf16 weights": Setting(rank=16, half=True),
    "the same, 4 bits": Setting(rank=16, half=True, four_bits=True),
    "full, FSDP2 on 8 GPUs": Setting(processes=8),
}


def measured(setting: Setting, tensors: bool) -> float:
    """The same of `SMALL`, measured: of the tensors; or of this process, less what it held before there was a model. Run it in a
    new one: what the allocator has once had it keeps."""
    from torch.profiler import ProfilerActivity, profile

    from konomi.engine.device import manage_memory, peak_memory_gb

    sys.path.insert(0, str(ROOT / "tests"))
    manage_memory()
    if setting.adam8:
        import bitsandbytes  # noqa: F401 (its own memory is not the model's)
    before = peak_memory_gb()
    if not tensors:
        _update(setting)
        return peak_memory_gb() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        _update(setting)
    with tempfile.TemporaryDirectory() as directory:
        recorded.export_chrome_trace(f"{directory}/trace.json")
        events = json.loads(Path(f"{directory}/trace.json").read_text("utf-8"))["traceEvents"]
    return float(max(each["args"]["Total Allocated"] for each in events if each["name"] == "[memory]") / 1e9)


def _update(setting: Setting) -> None:
    """Make a policy of the shape `SMALL`; an update of two optimiser steps."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from konomi.config import LoraConfig, PPOConfig, RolloutConfig
    from konomi.data.tokens import Tokens
    from konomi.engine.recompute import recompute_layers
    from konomi.models.lora import add_adapters
    from konomi.models.policy import Policy, make_reference
    from konomi.training.ppo import PPOTrainer
    from tiny import tiny_tokenizer
    from tiny_run import Constant

    s = SMALL
    config = LlamaConfig(
        vocab_size=s.vocabulary, hidden_size=s.width, intermediate_size=s.inner, num_hidden_layers=s.layers, head_dim=s.head,
        num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, tie_word_embeddings=s.tied, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    lm = LlamaForCausalLM(config).eval()
    add_adapters(lm, LoraConfig(rank=setting.rank))
    policy = Policy(lm, top_layers=setting.top_layers)
    reference = make_reference(policy)
    if setting.recompute:
        recompute_layers(lm)
    half = setting.length // 2
    letters = [chr(97 + i) for i in range(26)]
    # all different: a query that two responses share would be computed once
    prompts = [first + second + "a" * (half - 3) for first in letters for second in letters][: setting.responses]
    trainer = PPOTrainer(
        policy, reference, Tokens(tiny_tokenizer(), vocabulary=s.vocabulary), prompts, Constant(1.0),
        ppo=PPOConfig(
            episodes=setting.responses, batch_size=setting.responses, mini_batch_size=setting.responses // 2, epochs=1,
            micro_batch_tokens=setting.tokens, baseline_samples=2, optimizer="adam8" if setting.adam8 else "adam",
        ),
        rollout=RolloutConfig(response_tokens=(half, half), stop="length"),
    )  # fmt: skip
    trainer.step()


MEASURED = {
    "full": Setting(tokens=4096),
    "full, adam8": Setting(tokens=4096, adam8=True),
    "full, gradient checkpointing": Setting(tokens=4096, recompute=True),
    "top 2 layers": Setting(tokens=4096, top_layers=2),
    "LoRA, rank 16": Setting(tokens=4096, rank=16),
}


def table_of_shapes(copies: bool) -> list[str]:
    """GB by shape and setting, in fp32 or with products in bf16."""
    settings = {**SETTINGS, **(LEAN if copies else {})}
    lines = [f"| model | {' | '.join(settings)} |", "| --- " * (1 + len(settings)) + "|"]
    for name, shape in SHAPES.items():
        figures = [gigabytes(shape, replace(each, copies=copies)) for each in settings.values()]
        lines.append(f"| {name} | {' | '.join(f'{x:.3g}' for x in figures)} |")
    return lines


def table_of_measurements() -> list[str]:
    """Computed and measured GB of the small model."""
    lines = ["| setting | computed, GB | its tensors, GB | error | the process, GB |", "| --- | --- | --- | --- | --- |"]
    for name, setting in MEASURED.items():
        real, process = (_alone(setting, tensors) for tensors in (True, False))
        expected = gigabytes(SMALL, setting)
        lines.append(f"| {name} | {expected:.2f} | {real:.2f} | {expected / real - 1:+.0%} | {process:.2f} |")
    return lines


def table_of_learning() -> list[str]:
    """What 60 updates of a tiny model gain, by optimiser: means of five seeds and their standard errors."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_run import tiny_trainer, without_dropout

    lean = {"optimizer": "adam8", "weights": "bf16", "precision": "bf16"}
    lines = ["| optimiser and weights | gain of the score | KL, nats/response |", "| --- | --- | --- |"]
    for name, settings in {"adam, fp32": {}, "adam8, fp32": {"optimizer": "adam8"}, "adam8, bf16": lean}.items():
        gains, kls = [], []
        for seed in range(5):
            model = without_dropout("llama", hidden_size=64, intermediate_size=128, seed=seed)
            model.to(torch.bfloat16 if "weights" in settings else torch.float32)
            rates: dict[str, Any] = {"learning_rate": 3e-4, "kl_coef": 0.02, "kl_controller": "fixed"}
            run = [step.metrics for step in tiny_trainer(model=model, seed=seed, episodes=960, **rates, **settings)]
            score, kls = [metrics["ppo/mean_scores"] for metrics in run], [*kls, run[-1]["objective/kl"]]
            gains.append(mean(score[-8:]) - mean(score[:4]))
        lines.append(f"| {name} | {mean(gains):.2f} ± {stdev(gains) / 5**0.5:.2f} | {mean(kls):.1f} |")
    return lines


def _alone(setting: Setting, tensors: bool) -> float:
    """What :func:`measured` gives in a process of its own."""
    call = [sys.executable, __file__, "--one", json.dumps([vars(setting), tensors])]
    return float(subprocess.run(call, check=True, capture_output=True, text=True, encoding="utf-8").stdout.split()[-1])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given: Any = parser.parse_args()
    if given.one:
        setting, tensors = json.loads(given.one)
        print(measured(Setting(**setting), tensors))
        return
    lines = ["Products in fp32:", "", *table_of_shapes(copies=False), "", "Products in bf16:", "", *table_of_shapes(copies=True)]
    if given.measure or given.write:
        lines += ["", f"A model of {SMALL.weights / 1e6:.0f} M weights on a processor, in fp32:", "", *table_of_measurements()]
        lines += ["", "A tiny model that learns to write one letter:", "", *table_of_learning()]
    print("\n".join(lines))
    if given.write:
        put("memory", "\n".join(["", *lines, ""]))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()

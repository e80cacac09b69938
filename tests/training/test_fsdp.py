"""A policy divided between two processes on the CPU (FSDP2): it learns what one process learns, and each holds half of it.

The processes run this file: accelerate launch ... test_fsdp.py DIRECTORY.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import sets
from furnished import furnish
from konomi.config import LandConfig, PPOConfig, PPOJob
from konomi.engine.recompute import recompute_layers
from konomi.errors import ConfigError
from konomi.models.half import weights_to_bf16
from konomi.runs.environment import check_sharding
from konomi.training.ppo import PPOTrainer
from konomi.training.sharding import check_divisible
from tiny_run import CRITIC_FREE, facts, tiny_trainer, weights, without_dropout

TESTS = Path(__file__).resolve().parents[1]
LAUNCHER = TESTS.parent / "examples/accelerate/fsdp-eight-gpus.yaml"
SIZE = 8
"""Batch and mini-batch."""


def spread(responses: list[str]) -> list[float]:
    """Hardly ever the same for two responses."""
    return [sum(map(ord, text)) % 17 / 4 for text in responses]


def trainer_of(updates: int = 2, family: str = "llama", recompute: bool = False, half: bool = False, **more: Any) -> PPOTrainer:
    """Of few tokens a micro-batch, so that one process has more of them than the other."""
    settings = {"precision": "fp64", "batch_size": SIZE, "mini_batch_size": SIZE, "micro_batch_tokens": 20}
    model = without_dropout(family)
    if recompute:
        recompute_layers(model)
    if half:
        weights_to_bf16(model)
    return tiny_trainer(
        **{**settings, "model": model, "reward": spread, "episodes": updates * SIZE, "responses_per_prompt": 2, **more}
    )


CASES: dict[str, Callable[[], PPOTrainer]] = {
    "whole": partial(trainer_of, epochs=2, mini_batch_size=4),
    "top layer, exact KL": partial(trainer_of, 1, "gemma3", top_layers=1, kl_penalty="full"),
    "layers computed anew": partial(trainer_of, 1, "gpt2", freeze=True, recompute=True),
    "adapters": partial(trainer_of, 1, lora=2),
    "no critic": partial(trainer_of, 1, algorithm=CRITIC_FREE["rloo"]),
    "bf16": partial(trainer_of, 1, precision="bf16"),
    "bf16, adapters": partial(trainer_of, 1, precision="bf16", half=True, lora=2),
}
SAVED = ("whole", "adapters", "bf16")


def halves(trainer: PPOTrainer) -> dict[str, Any]:
    """The share of this process in the parameters, the gradients and the optimiser's state."""
    own, state = trainer.engine.parameters, trainer.engine.optimizer.state
    kept = {"parameters": own, "gradients": [p.grad for p in own], "moments": [state[p]["exp_avg_sq"] for p in own]}
    here = {name: sum(getattr(x, "_local_tensor", x).numel() for x in tensors) for name, tensors in kept.items()}
    beside = {str(p.dtype) for lm in (trainer.policy.lm, trainer.reference) for n, p in lm.named_parameters() if "k_proj" in n}
    return {"share": {name: numbers / sum(p.numel() for p in own) for name, numbers in here.items()}, "beside": sorted(beside)}


def learnt(trainer: PPOTrainer) -> dict[str, Any]:
    """What a trainer makes of all its updates: figures, and weights."""
    steps = [facts(step.metrics) for step in trainer]
    with trainer.engine.unsharded():
        total = float(weights(trainer.policy).double().abs().sum())
    return {"steps": steps, "weights": total, **halves(trainer)}


def in_processes(directory: Path) -> None:
    """What each of the processes does."""
    from konomi.cli import app
    from konomi.runs import processes

    check_sharding("konomi ppo")
    found = {}
    for name, make in CASES.items():
        trainer = make()
        found[name] = learnt(trainer)
        if name in SAVED:
            trainer.save(directory / f"{name}-2")
    for before in (1, 2):
        trainer = trainer_of(3, epochs=2, mini_batch_size=4)
        trainer.load(directory / f"whole-{before}")
        found[f"whole, on from {before}"] = learnt(trainer)
    trainer.restart()
    found["whole, anew"] = learnt(trainer)
    if processes.is_main():
        (directory / "found.json").write_text(json.dumps(found), encoding="utf-8")
    os.chdir(directory)
    small = sets("ppo.episodes=32", "ppo.baseline_samples=2", "compare.prompts=4", "rollout.response_tokens=[2, 4]")
    app(["ppo", "ppo.toml", *small], standalone_mode=False)


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_divided_policy_learns_what_a_whole_one_does(tmp_path: Path) -> None:
    furnish(tmp_path)
    alone = {}
    for name, make in CASES.items():
        trainer = make()
        alone[name] = learnt(trainer)
        if name == "whole":
            trainer.save(tmp_path / "whole-1")
            on = trainer_of(3, epochs=2, mini_batch_size=4)
            on.load(tmp_path / "whole-1")
            alone["whole, on from 1"] = alone["whole, on from 2"] = learnt(on)
            on.restart()
            alone["whole, anew"] = learnt(on)
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    settings = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCHER), "--num_processes", "2"]
    command = [*start, "--main_process_port", "0", __file__, str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ, **settings})
    assert answer.returncode == 0, answer.stderr[-8000:]
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert found.keys() == alone.keys()
    for name, one in alone.items():
        for step, expected in zip(found[name]["steps"], one["steps"], strict=True):
            for figures in (step, expected):
                figures.pop("ppo/val/clipfrac", None)  # compares numbers that are equal but for rounding
            exact = not name.startswith("bf16")  # there a token's numbers depend on the micro-batch
            assert step == pytest.approx(expected, rel=1e-6 if exact else 0.02, abs=1e-7 if exact else 2e-3), name
        assert found[name]["weights"] == pytest.approx(one["weights"], rel=1e-9 if exact else 1e-4), name
        assert all(0.4 < share < 0.6 for share in found[name]["share"].values()), (name, found[name]["share"])
    assert found["bf16"]["beside"] == ["torch.bfloat16"]  # as products read it
    for name in SAVED:  # what two processes have saved, one goes on from
        trainer = CASES[name]()
        trainer.load(tmp_path / f"{name}-2")
        total = float(weights(trainer.policy).double().abs().sum())
        assert total == pytest.approx(alone[name]["weights"], rel=1e-4 if name == "bf16" else 1e-9)
    assert not torch.equal(weights(trainer.policy), weights(trainer.policy).bfloat16().float())  # and it is exact
    (run,) = (path.parent for path in (tmp_path / "runs").glob("*/run.json"))
    assert json.loads((run / "run.json").read_text("utf-8"))["status"] == "finished"
    assert len((run / "metrics.jsonl").read_text("utf-8").splitlines()) == 2 and (run / "compare.json").exists()
    assert (run / "model/model.safetensors").exists() and (run / "model/value_head.safetensors").exists()


def test_what_is_not_divided_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(command: str = "konomi ppo", **asked: str) -> str:
        with monkeypatch.context() as patch, pytest.raises(ConfigError) as caught:
            launched = {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
            for name, value in {**launched, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", **asked}.items():
                patch.setenv(name, value)
            check_sharding(command)
            assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"  # the second process would load no weights
            with pytest.raises(ConfigError, match=r"land\.kl = 6 does not go with FSDP.*konomi blend RUN --kl 6"):
                check_divisible(PPOJob(land=LandConfig(kl=6.0)))
            check_divisible(PPOJob(ppo=PPOConfig(optimizer="adam8")))
        return str(caught.value)

    assert "--use_fsdp --fsdp_version 2" in refused(ACCELERATE_USE_FSDP="false", ACCELERATE_USE_DEEPSPEED="true")
    assert "FSDP2 alone" in refused(FSDP_VERSION="1")
    assert "fsdp_offload_params" in refused(FSDP_OFFLOAD_PARAMS="true")
    assert "model.gradient_checkpointing" in refused(FSDP_ACTIVATION_CHECKPOINTING="true")
    assert "konomi sft trains without FSDP" in refused("konomi sft")
    assert '"adam8"' in refused()


if __name__ == "__main__":
    torch.set_num_threads(1)
    in_processes(Path(sys.argv[1]))

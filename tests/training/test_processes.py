"""Two processes on the CPU: they stay equal, and one process with the same batch does the same.

The processes run this file: python test_processes.py OUT_DIRECTORY.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from konomi.errors import ConfigError
from tiny_run import facts, tiny_trainer

TESTS = Path(__file__).resolve().parents[1]
SIZE = 8
"""Batch and mini-batch. One mini-batch: how it is divided among processes changes nothing but the order of sums."""


def train(out: Path) -> dict[str, Any]:
    trainer = tiny_trainer(
        "llama", precision="fp64", episodes=3 * SIZE, batch_size=SIZE, mini_batch_size=SIZE, micro_batch_tokens=40,
        responses_per_prompt=2,
    )  # fmt: skip
    steps = [facts(step.metrics) for step in trainer]
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in trainer.policy.parameters())).hexdigest()
    trainer.save(out / "checkpoint")
    trainer.engine.accelerator.wait_for_everyone()
    total = float(sum(p.detach().abs().sum() for p in trainer.policy.parameters()))
    refused = ""
    if trainer.processes > 1:
        try:
            tiny_trainer(batch_size=SIZE, mini_batch_size=1)
        except ConfigError as error:
            refused = str(error)
    rank = trainer.engine.accelerator.process_index
    found = {"processes": trainer.processes, "steps": steps, "digest": digest, "total": total, "refused": refused}
    (out / f"{trainer.processes}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    trainer.engine.accelerator.end_training()
    return found


@pytest.mark.usefixtures("fresh_accelerator")
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    settings = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}
    # `accelerate launch --cpu` starts one process only where there is no MPI
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, str(tmp_path)]
    answer = subprocess.run(start, capture_output=True, text=True, timeout=200, env={**os.environ, **settings})
    assert answer.returncode == 0, answer.stderr[-3000:]
    alone, first, second = train(tmp_path), *(json.loads((tmp_path / f"2-{i}.json").read_text("utf-8")) for i in (0, 1))
    assert (alone["processes"], first["processes"], second["processes"]) == (1, 2, 2)
    assert first["digest"] == second["digest"]  # the same weights to the bit
    assert first["steps"] == second["steps"] and len(first["steps"]) == 3
    assert "ppo.mini_batch_size = 1 cannot be divided among 2 processes" in first["refused"]
    for one, two in zip(alone["steps"], first["steps"], strict=True):
        for step in (one, two):
            del step["ppo/val/clipfrac"]  # compares numbers that are equal but for rounding
        assert two == pytest.approx(one, rel=1e-6, abs=1e-7)
    assert first["total"] == pytest.approx(alone["total"], rel=1e-9)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]))

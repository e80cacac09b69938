"""Two processes on the CPU: they stay equal, and one process with the same batch does the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import two_processes

HERE = Path(__file__).resolve().parent
SIZES = (8, 8)
"""Batch and mini-batch. One mini-batch: how it is divided among processes changes nothing but the order of sums."""


def launch(out: Path) -> None:
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
    settings = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}
    # `accelerate launch --cpu` starts one process only where there is no MPI
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*start, str(HERE / "two_processes.py"), str(out), *map(str, SIZES)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ, **settings})
    assert answer.returncode == 0, answer.stderr[-3000:]


@pytest.mark.usefixtures("fresh_accelerator")
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    launch(tmp_path)
    two_processes.main(tmp_path, *SIZES)
    alone, first, second = (json.loads((tmp_path / name).read_text("utf-8")) for name in ("1-0.json", "2-0.json", "2-1.json"))
    assert (alone["processes"], first["processes"], second["processes"]) == (1, 2, 2)
    assert first["digest"] == second["digest"]  # the same weights to the bit
    assert first["steps"] == second["steps"] and len(first["steps"]) == 3
    assert "ppo.mini_batch_size = 1 cannot be divided among 2 processes" in first["refused"]
    for one, two in zip(alone["steps"], first["steps"], strict=True):
        for step in (one, two):
            del step["ppo/val/clipfrac"]  # compares numbers that are equal but for rounding
        assert two == pytest.approx(one, rel=1e-6, abs=1e-7)
    assert first["total"] == pytest.approx(alone["total"], rel=1e-9)

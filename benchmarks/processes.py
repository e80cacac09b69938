"""Two processes of one thread beside one of two threads: seconds an update and memory of each process, on the same job.

    python benchmarks/processes.py               about two minutes on two cores
    python benchmarks/processes.py --updates 20

The model has the shape of GPT-2 with 4 layers of width 256 and random weights, in float32. The first update warms up and does not
count. Rounds take turns, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SETUPS = {"1 process x 2 threads": (1, 2), "2 processes x 1 thread": (2, 1), "1 process x 1 thread": (1, 1)}
ROUNDS = 2


def work(updates: int) -> None:
    """Train in the processes that run this; the main one prints what all measured."""
    import resource

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from konomi import PPOConfig, PPOTrainer, RolloutConfig
    from konomi.data.tokens import Tokens
    from konomi.models.policy import Policy, make_reference
    from konomi.runs import processes
    from tiny import tiny_tokenizer

    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=8192,
        n_layer=4,
        n_embd=256,
        n_head=4,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    policy = Policy(GPT2LMHeadModel(shape).eval())
    config = PPOConfig(episodes=64 * updates, batch_size=64, mini_batch_size=16, epochs=2, baseline_samples=16, kl_cap=1e9)
    trainer = PPOTrainer(
        policy, make_reference(policy), Tokens(tiny_tokenizer()), ["the cat", "once upon a time", "rain", "we saw"] * 16,
        lambda responses: [float(len(set(text))) for text in responses], ppo=config,
        rollout=RolloutConfig(response_tokens=(10, 24), stop="length"), precision="fp32",
    )  # fmt: skip
    seconds = [step.metrics["time/ppo/total"] for step in trainer][1:]
    peaks = processes.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    if processes.is_main():
        print(json.dumps({"seconds": statistics.median(seconds), "gb": peaks}))
    processes.leave()


def measure(count: int, threads: int, updates: int) -> dict[str, Any]:
    """Run `work` in so many processes."""
    root = Path(__file__).resolve().parents[1]
    start = [] if count == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    settings = {"OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true"}
    settings["PYTHONPATH"] = os.pathsep.join([str(root / "src"), str(root / "tests")])
    command = [sys.executable, *start, __file__, "--work", "--updates", str(updates)]
    answer = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.updates)
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SETUPS}
    for _ in range(ROUNDS):
        for name, (count, threads) in SETUPS.items():
            found[name].append(measure(count, threads, given.updates))
    for name, each in found.items():
        seconds = min(one["seconds"] for one in each)
        print(
            f"{name:24} {seconds:6.2f} s an update   peak GB of each process: {', '.join(f'{gb:.2f}' for gb in each[-1]['gb'])}"
        )


if __name__ == "__main__":
    main()

"""Whether a GPU computes what the processor does: small models, the same seeds, a few updates on each."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import shapes

MODELS, UPDATES = ("gpt2-tiny", "llama-tiny"), 3
ALIKE, FIRST, LAST, HALF = 0.9, 1e-3, 0.05, 0.02
"""The share of the first responses that have to be the same: rounding may decide a draw. How far metrics may be apart in fp32, in
the first update and the last, where all responses are the same; how far entropy in bf16 may be from that in fp32."""


def record(out: Path) -> int:
    """Run the updates where this process's models run; write metrics and responses."""
    import torch

    import jobs
    from konomi.engine.device import find_device

    shapes.VOCABULARY = shapes.FEW  # of many tokens, a draw is often so near to the next that rounding decides
    device, gpu = find_device(), torch.cuda.is_available()
    runs: dict[str, Any] = {}
    for model in MODELS:
        for precision in ("fp32", "bf16") if gpu else ("fp32",):
            given = argparse.Namespace(episodes=16, warmup=0, updates=UPDATES, seed=0)
            trainer, _ = jobs.make_trainer(given, lm=shapes.model(model, 0), precision=precision, mini_batch_size=8,
                                           responses_per_prompt=2, learning_rate=1e-4)  # fmt: skip
            steps = [trainer.step() for _ in range(UPDATES)]
            runs[f"{model}, {precision}"] = {
                "metrics": [{k: v for k, v in step.metrics.items() if _counts(k)} for step in steps],
                "responses": [[sample["response"] for sample in step.samples] for step in steps],
            }
    told = {"device": torch.cuda.get_device_name() if gpu else str(device), "runs": runs}
    (out / f"check-{'gpu' if gpu else 'processor'}.json").write_text(json.dumps(told), encoding="utf-8")
    return 0


def _counts(name: str) -> bool:
    """Whether a metric follows from the seed: neither time nor memory, nor a rest of rounding."""
    return not name.startswith(("time/", "memory/")) and not name.endswith(("per_second", "sampler_gap", "var_explained"))


def apart(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[float, str]:
    """The largest difference of two updates' metrics, relative to their size where that is above 1; and which."""
    pairs = [(abs(ours[name] - theirs[name]) / max(1.0, abs(theirs[name])), name) for name in theirs]
    return max(pairs, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])


def problems(gpu: Mapping[str, Any], processor: Mapping[str, Any]) -> list[str]:
    """What is not alike."""
    found = []
    for name, ours in gpu["runs"].items():
        theirs = processor["runs"][f"{name.partition(',')[0]}, fp32"]
        if name.endswith("bf16"):
            both = [run["metrics"][0]["ppo/policy/entropy"] for run in (ours, theirs)]
            if not abs(both[0] - both[1]) <= HALF * both[1]:
                found.append(f"{name}: entropy {both[0]:.4f}, not {both[1]:.4f}")
            continue
        for place, allowed in ((0, FIRST), (-1, LAST)):
            pairs = list(zip(ours["responses"][place], theirs["responses"][place], strict=True))
            same = sum(a == b for a, b in pairs) / len(pairs)
            if place == 0 and same < ALIKE:
                found.append(f"{name}: {same:.0%} of the first responses are the same")
            gap, which = apart(ours["metrics"][place], theirs["metrics"][place])
            if same == 1 and not gap <= allowed:
                found.append(f"{name}: {which} differs by {gap:.2g} in update {place % UPDATES + 1} (allowed: {allowed:g})")
    return found


def compare(out: Path, start: Callable[[str, dict[str, str]], str | None]) -> int:
    """Record on both at the same time, say what is not alike; the exit code. ``start`` takes the name of a log and variables."""
    for name in ("gpu", "processor"):
        (out / f"check-{name}.json").unlink(missing_ok=True)
    with ThreadPoolExecutor(2) as pool:
        both = {"check-processor.log": {"CUDA_VISIBLE_DEVICES": ""}, "check-gpu.log": {}}
        failed = [problem for problem in pool.map(start, both, both.values()) if problem]
    for problem in failed:
        print(f"check: {problem}", flush=True)
    if failed:
        return 1
    if not (out / "check-gpu.json").exists():
        print("--device: no GPU is seen here; leave it out for a processor")
        return 2
    gpu, processor = (json.loads((out / f"check-{name}.json").read_text(encoding="utf-8")) for name in ("gpu", "processor"))
    found = problems(gpu, processor)
    for line in found:
        print(f"check: {line}")
    print(f"check: {gpu['device']}: {', '.join(gpu['runs'])}: {'not ' if found else ''}as on the processor", flush=True)
    return 1 if found else 0

"""How fast on one GPU: konomi beside TRL on the same jobs in one run, each system in a process of its own.

Prints a table; writes gpu.jsonl (a line an update), gpu.md (the table) and, with --profile, a trace and a picture of one update.
Needs torch and transformers, konomi by PYTHONPATH=src, and no network. Peers run where they can be imported; libraries of
theirs that this environment has not, or has in other versions, are given as directories.

    python benchmarks/gpu.py --out runs/gpu --profile A64
    python benchmarks/gpu.py --jobs A64,A512 --systems konomi,rloo --rloo-path DIR
    python benchmarks/gpu.py --tiny              every path on tiny shapes, in seconds on a processor; no result to quote
    python benchmarks/gpu.py --tiny --device     on a GPU: whether it computes what the processor does
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_check
import shapes
from gpu_table import JOBS, SYSTEMS, Job, table

shapes.quiet()
HERE = Path(__file__).resolve().parent
VERSIONS = {"trl-ppo": "0.11.", "rloo": "1.16."}
"""What the version of a peer begins with."""
MOST_OF_PEERS = 5
"""Updates of a peer that are timed, at most, after one that warms up: they capture nothing."""


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Options; the jobs as a list of names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=_names(JOBS), default=list(JOBS), help=f"of {','.join(JOBS)}")
    parser.add_argument("--systems", type=_names(SYSTEMS), default=list(SYSTEMS), help=f"of {','.join(SYSTEMS)}")
    parser.add_argument("--updates", type=int, help="timed updates of a job; by default as many as it needs")
    parser.add_argument("--warmup", type=int, default=3, help="updates before them, which do not count")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="of konomi")
    parser.add_argument("--micro", type=int, help="ppo.micro_batch_tokens instead of konomi's own choice")
    parser.add_argument("--cache-gb", type=float, help="rollout.cache_gb instead of konomi's own choice")
    parser.add_argument("--profile", type=_names(JOBS), default=[], metavar="JOBS", help="profile an update of these on konomi")
    parser.add_argument("--seconds", type=float, default=240, help="no job is begun after this time")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="directory for the results")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="directory for made models")
    parser.add_argument("--rloo-path", default="", help="directories of TRL 1.16 and what it needs, for PYTHONPATH")
    parser.add_argument("--ppo-path", default="", help="the same of TRL 0.11.4")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", action="store_true", help="with --tiny: compare the GPU with the processor")
    parser.add_argument("--worker", choices=[*SYSTEMS, "check"], help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def _names(known: Mapping[str, Any]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        if unknown := [name for name in text.split(",") if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
        return text.split(",")

    return parse


def jobs_of(given: argparse.Namespace) -> dict[str, Job]:
    """The jobs that were asked for, in the size that was asked for."""
    found = {name: JOBS[name] for name in given.jobs}
    if given.tiny:
        small: dict[str, Any] = {"episodes": 8, "mini_batch": 4, "updates": 1, "response": (shapes.LOW, shapes.HIGH)}
        found = {name: replace(job, model=f"{job.model}-tiny", **small) for name, job in found.items()}
    return {name: replace(job, updates=given.updates or job.updates) for name, job in found.items()}


# a process of one system


def work(system: str, given: argparse.Namespace) -> int:
    """Do all jobs of a system; a job that fails leaves its traceback on stderr, and the next one begins."""
    shapes.VOCABULARY = shapes.FEW if given.tiny else shapes.VOCABULARY
    failed, problem = 0, None if system == "konomi" else not_there(system)
    if system == given.systems[0]:
        from peaks import best_of_gpu

        (given.out / "raw" / "machine.jsonl").write_text(json.dumps(best_of_gpu()), encoding="utf-8")
    for name, job in jobs_of(given).items():
        if system != "konomi" and system not in job.peers:
            continue
        path = given.out / "raw" / f"{system}-{name}.jsonl"
        free_memory()
        if why := problem or ("no time left" if time.time() > given.until else None):
            shapes.Log(path, 0).write(skipped=why)
            continue
        try:
            begun = time.perf_counter()
            run_konomi(name, job, given, path) if system == "konomi" else run_peer(system, job, given, path)
            print(f"{SYSTEMS[system]}, {name}: {time.perf_counter() - begun:.0f} s in all", flush=True)
        except Exception as error:  # whatever it is, the other jobs' numbers are wanted
            traceback.print_exc()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"skipped": f"{type(error).__name__}: {str(error).strip()[:200]}"}) + "\n")
            failed = 1
    return failed


def free_memory() -> None:
    """Give back what the job before held, and forget its peak."""
    gc.collect()
    if cuda := shapes.gpu():
        cuda.empty_cache()
        cuda.reset_peak_memory_stats()


def timed(job: Job, given: argparse.Namespace, path: Path) -> dict[str, Any]:
    """The options that every system's script takes."""
    return {"out": path, "updates": job.updates, "warmup": 1 if given.tiny else given.warmup, "episodes": job.episodes, "seed": 0}


def run_konomi(name: str, job: Job, given: argparse.Namespace, path: Path) -> None:
    """A job on konomi, with its own choice of sizes unless told otherwise; a profile of it."""
    from gpu_trace import host_functions, profiled, told

    import jobs
    from konomi.engine.device import manage_memory
    from konomi.models.deterministic import fuse_gelu

    manage_memory()
    lm = shapes.model(job.model, 0)
    fuse_gelu(lm)  # as for every model that konomi loads
    options = argparse.Namespace(**timed(job, given, path))
    settings: dict[str, Any] = {"mini_batch_size": job.mini_batch, "responses_per_prompt": job.each}
    settings |= {"micro_batch_tokens": given.micro} if given.micro else {}
    trainer, _ = jobs.make_trainer(
        options, lm=lm, reward=classifier_reward(given) if job.classifier else None,
        response=job.response, precision=given.precision, more=2 if name in given.profile else 0,
        rollout={"cache_gb": given.cache_gb} if given.cache_gb else None, **settings,
    )  # fmt: skip
    log = jobs.run(trainer, options, jobs.word_lengths)
    log.write(captured=captured())
    if name in given.profile:
        functions = host_functions(trainer.step)
        found = profiled(trainer.step, given.out / f"trace-{name}.json.gz")
        log.write(profile=found, functions=functions)
        print(told(name, found, functions), flush=True)


def classifier_reward(given: argparse.Namespace) -> Any:
    """The reward of job C, on the device that konomi chooses."""
    import jobs
    from konomi import ClassifierReward, build_reward
    from konomi.engine.device import find_device

    small = {"vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    place = given.work / ("tiny-classifier" if given.tiny else "xlm-r-base-shape")
    directory = jobs.classifier(place, **(small if given.tiny else {}))
    return build_reward(ClassifierReward(name=str(directory), label="positive", text="both"), device=find_device())


def captured() -> Any:
    """What the engine has captured as graphs, and why not more, where it tells."""
    if importlib.util.find_spec("konomi.engine.graphs") is None:
        return None
    from konomi.engine import graphs

    tell = getattr(graphs, "summary", None)
    return tell() if tell else None


def not_there(system: str) -> str | None:
    """Why a peer cannot run here."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("trl")
    except PackageNotFoundError:
        return "trl is not installed"
    return None if found.startswith(VERSIONS[system]) else f"trl is {found} here, not {VERSIONS[system]}"


def run_peer(system: str, job: Job, given: argparse.Namespace, path: Path) -> None:
    """A job on a peer, in the best settings that were found."""
    sys.path.insert(0, str(HERE / "peers"))
    shorter = {**timed(job, given, path), "updates": min(job.updates, MOST_OF_PEERS), "warmup": 1}
    options = [word for key, value in shorter.items() for word in (f"--{key}", str(value))]
    options += ["--mini-batch", str(job.mini_batch), "--model", job.model]
    if system == "rloo":
        import trl_rloo

        trl_rloo.measure(trl_rloo.arguments([*options, "--precision", "bf16", "--response", *map(str, job.response)]))
    else:
        import trl_ppo

        trl_ppo.measure(trl_ppo.arguments([*options, "--generate-batch", str(job.episodes)]))


# all processes


def start(worker: str, given: argparse.Namespace, until: float, log: str, **variables: str) -> str | None:
    """Run a process, a peer without what it prints. Says what went wrong with all of it, and then keeps its ``log``."""
    kept = {name: value for name, value in vars(given).items() if value not in (None, [], "", False)}
    options = []
    for name, value in {**kept, "worker": worker, "until": until}.items():
        text = ",".join(value) if isinstance(value, list) else str(value)
        options += [f"--{name.replace('_', '-')}", *([] if value is True else [text])]
    path = given.out / log
    with path.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run([sys.executable, str(HERE / "gpu.py"), *options],
                                  stdout=file if worker in VERSIONS else None, stderr=file,
                                  env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
                                  timeout=max(60.0, until + 30.0 - time.time()))  # fmt: skip
        except subprocess.TimeoutExpired:
            return "it took too long"
    if done.returncode == 0:
        path.unlink()
        return None
    last = path.read_text(encoding="utf-8").strip().splitlines()[-1:]
    return f"exit code {done.returncode}: {' '.join(last)[:200]}"


def measure(given: argparse.Namespace) -> int:
    """Run every system, one after the other; keep the lines after each; print the tables."""
    until = time.time() + given.seconds
    raw, lines, failed = given.out / "raw", given.out / "gpu.jsonl", 0
    raw.mkdir(exist_ok=True)
    for left in raw.glob("*.jsonl"):
        left.unlink()
    lines.write_text("", encoding="utf-8")
    for system in given.systems:
        own = {"rloo": given.rloo_path, "trl-ppo": given.ppo_path}.get(system)
        problem = start(system, given, until, f"{system}.log", **({"PYTHONPATH": own} if own else {}))
        if problem:
            failed = 1
            print(f"{SYSTEMS[system]}: {problem}", flush=True)
        with lines.open("a", encoding="utf-8") as file:
            for row in collected(raw, system, given.jobs, problem):
                file.write(json.dumps(row) + "\n")
    raw.rmdir()
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    text = table(rows, {name: JOBS[name] for name in given.jobs})
    text = f"Tiny shapes: no result to quote.\n\n{text}" if given.tiny else text
    (given.out / "gpu.md").write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)
    return failed


def collected(raw: Path, system: str, jobs: Sequence[str], problem: str | None) -> list[dict[str, Any]]:
    """The lines of a system's process, which are then gone, each with its system and job; jobs that it did not come to."""
    rows: list[dict[str, Any]] = []
    for name in jobs:
        path, place = raw / f"{system}-{name}.jsonl", {"system": system, "job": name}
        if path.exists():
            rows += [{**place, **json.loads(line)} for line in path.read_text(encoding="utf-8").splitlines()]
            path.unlink()
        elif problem and (system == "konomi" or system in JOBS[name].peers):
            rows.append({**place, "skipped": problem})
    if (machine := raw / "machine.jsonl").exists():
        rows.append(json.loads(machine.read_text(encoding="utf-8")))
        machine.unlink()
    return rows


def main() -> int:
    given = arguments()
    if given.device and not given.tiny:
        raise SystemExit("--device: needs --tiny")
    given.out.mkdir(parents=True, exist_ok=True)
    if given.worker == "check":
        return gpu_check.record(given.out)
    if given.worker:
        return work(given.worker, given)
    if given.device:
        until = time.time() + 120
        return gpu_check.compare(given.out, lambda log, variables: start("check", given, until, log, **variables))
    return measure(given)


if __name__ == "__main__":
    sys.exit(main())

"""Does a run that is killed and resumed end with what an uninterrupted one ends with?

Small runs of each verb are killed (SIGKILL) at random moments between their first file and their end, and resumed until they
finish. Then all that they leave behind is compared with an uninterrupted run: metrics.jsonl but for timings, and weights,
texts and figures byte by byte. Prints a table of docs/results.md; with --write it puts it there, between the marks.

    python benchmarks/kills.py --kills 30 --seed 0 [--demo] [--verbs ppo sft] [--write]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from demo_seeds import ROOT, put

CHAIN = 3
"""Kills of one run before it is let finish."""
CLOCK = re.compile(r"time|time/.*|memory/.*|.*per_second")
"""Metrics that no two runs have the same."""
FILES = (
    "**/model/*.safetensors", "**/adapter/*.safetensors", "**/eval.json", "**/compare.json", "**/candidates.jsonl",
    "**/rankings.jsonl", "**/samples.jsonl",
)  # fmt: skip
"""What has to be the same to the byte, beside metrics.jsonl."""
PIPELINE = """
name = "killed"
mlflow = false
[stages.tune]
do = "sft"
model.name = "lm"
data = { texts = "completions.jsonl", held_out = 0.25 }
sft = { epochs = 4, batch_size = 8, patience = 0, learning_rate = 1e-3 }
run = { save_every = 5 }
[stages.candidates]
do = "sample"
models.a.name = "@tune.model"
data.prompts = "prompts.jsonl"
rollout.response_tokens = [3, 6]
sample = { rounds = 4, batch_size = 16 }
[stages.rank]
do = "judge"
candidates = "@candidates.candidates"
reward = { kind = "function", name = "taste.py:fine" }
[stages.taste]
do = "reward"
model.name = "@tune.model"
data.file = "@rank.rankings"
train = { batch_size = 8, epochs = 4, evaluations = 2, learning_rate = 1e-3 }
normalize.samples = "@candidates.candidates"
run = { save_every = 3 }
[stages.policy]
do = "ppo"
model.name = "@tune.model"
data.prompts = "prompts.jsonl"
rollout.response_tokens = [4, 8]
reward = { kind = "model", name = "@taste.model" }
ppo = { episodes = 192, batch_size = 32, baseline_samples = 32, learning_rate = 1e-3, kl_cap = 60 }
run = { save_every = 2 }
"""
ROUNDS = PIPELINE.replace("mlflow = false", 'mlflow = false\nrounds = 2\ninitial = "lm"')
ROUNDS = ROUNDS[: ROUNDS.index("[stages.tune]")] + ROUNDS[ROUNDS.index("[stages.candidates]") :].replace("@tune", "@newest")
ROUNDS = (
    ROUNDS.replace("@rank.rankings", "@rank.rankings*")
    + """
[stages.verdict]
do = "compare"
model.name = "@policy.model"
before = "@newest.model"
initial = "@initial.model"
data.prompts = "prompts.jsonl"
rollout.response_tokens = [4, 8]
reward = { kind = "function", name = "taste.py:fine" }
"""
)
STAGES = re.findall(r"^\[stages\.(\w+)\]", PIPELINE, re.M)
JOBS = {
    "ppo": ["ppo.toml", "ppo.episodes=256", "ppo.learning_rate=1e-3", "run.save_every=3"],
    "sft": ["sft.toml", "sft.epochs=6", "sft.patience=0", "sft.learning_rate=1e-3", "run.save_every=7"],
    "reward": [
        "reward.toml", "model.name=xlm", "train.batch_size=4", "train.epochs=6", "train.evaluations=2",
        "train.learning_rate=1e-3", "run.save_every=7",
    ],
    "sample": ["sample.toml", "models.b.name=other", "sample.rounds=20", "sample.batch_size=32"],
    "run": ["killed.toml"],
    "rounds": ["rounds.toml"],
    "demo": [],
}  # fmt: skip
"""Verb -> its job file and settings."""


@dataclass
class Result:
    """What became of a verb's runs."""

    kills: int = 0
    resumed: int = 0
    runs: int = 0
    different: list[str] = field(default_factory=list)


def command(verb: str, name: str, resume: bool) -> list[str]:
    """The command line that begins the run ``name``, or goes on with it."""
    konomi = [sys.executable, "-m", "konomi"]
    if verb in ("run", "rounds"):
        return [*konomi, "run", *JOBS[verb], "--out", name]
    if resume:
        return [*konomi, "ppo" if verb == "demo" else verb, "--resume", f"runs/{name}"]
    file, settings = JOBS[verb][:1], [f"run.name={name}", *JOBS[verb][1:]]
    return [*konomi, verb, *file, *(word for each in settings for word in ("--set", each))]


def directory(verb: str, name: str) -> Path:
    """Where that run is."""
    return Path(name, "killed") if verb in ("run", "rounds") else Path("runs", name)


def begun(verb: str, name: str) -> Path:
    """The file without which there is nothing to resume."""
    return directory(verb, name) / ("pipeline.json" if verb in ("run", "rounds") else "run.json")


def finished(verb: str, name: str) -> bool:
    """Whether that run is done with all but its last words."""
    if verb == "rounds":  # it may be one or two
        return False
    if verb == "run":
        return all((begun(verb, name).parent / stage / "stage.json").exists() for stage in STAGES)
    return begun(verb, name).exists() and json.loads(begun(verb, name).read_text("utf-8"))["status"] == "finished"


def run(verb: str, name: str, kill_after: float | None = None) -> float | None:
    """Run a command, and return the processor seconds from its first file until it was finished; or kill it after so many, and
    return None. (A busy machine changes how long a run takes, but not how much it computes.)"""
    first, log = begun(verb, name), Path(f"{verb}.log").resolve()
    before, at_first, used = first.stat().st_mtime_ns if first.exists() else 0, 0.0, 0.0
    with log.open("a", encoding="utf-8") as lines:
        process = subprocess.Popen(command(verb, name, bool(before)), stdout=lines, stderr=lines)
    while process.poll() is None and not finished(verb, name):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            used = sum(psutil.Process(process.pid).cpu_times()[:2])
        if not first.exists() or first.stat().st_mtime_ns == before:
            at_first = used
        elif kill_after is not None and used - at_first >= kill_after:
            process.kill()
            process.wait()
            return None
        time.sleep(0.02)
    if process.wait():
        sys.exit(f"konomi {verb}, {name}: exit code {process.returncode}; see {log}")
    return used - at_first


def contents(root: Path) -> Iterator[tuple[str, Any]]:
    """What is compared of a run."""
    for pattern in FILES:
        for path in sorted(root.glob(pattern)):
            yield str(path.relative_to(root)), path.read_bytes()
    for path in sorted(root.glob("**/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        yield str(path.relative_to(root)), [{k: v for k, v in row.items() if not CLOCK.fullmatch(k)} for row in rows]


def kill_and_compare(verb: str, kills: int, draw: random.Random) -> Result:
    """Kill runs of a verb ``kills`` times in all."""
    seconds = run(verb, "whole")
    assert seconds is not None
    whole, result = dict(contents(directory(verb, "whole"))), Result()
    while result.kills < kills:
        name, worked = f"broken-{result.runs}", None
        while worked is None:
            result.resumed += begun(verb, name).exists()
            killed = result.kills < min(kills, (result.runs + 1) * CHAIN)
            worked = run(verb, name, draw.uniform(0, seconds) if killed else None)
            result.kills += worked is None
        result.runs += 1
        now = dict(contents(directory(verb, name)))
        result.different += [f"{name}/{file}" for file in whole.keys() | now.keys() if whole.get(file) != now.get(file)]
        print(f"{verb}: {result}; a whole run takes {seconds:.1f} processor seconds", file=sys.stderr)
    return result


def table(results: dict[str, Result], seed: int) -> str:
    """Markdown: a line a verb."""
    lines = ["| verb | runs | kills | resumed | identical to the uninterrupted run |", "|---|---|---|---|---|"]
    for verb, result in results.items():
        same = ", ".join(sorted(result.different)) or "all"
        name = "`konomi run` in rounds" if verb == "rounds" else f"`konomi {verb}`"
        lines.append(f"| {name} | {result.runs} | {result.kills} | {result.resumed} | {same} |")
    return "\n".join([*lines, "", f"Seed of the moments: {seed}."])


def furnish(verbs: list[str]) -> None:
    """Write tiny models, data and job files into the current directory."""
    sys.path[:0] = [str(ROOT / "tests")]
    from furnished import furnish as furnished
    from tiny import tiny_encoder

    if verbs != ["demo"]:
        furnished(Path())
        tiny_encoder("xlm")
        Path("killed.toml").write_text(PIPELINE, encoding="utf-8")
        Path("rounds.toml").write_text(ROUNDS, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of all verbs together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--demo", action="store_true", help="the demo alone, with 3 kills")
    parser.add_argument("--verbs", nargs="+", choices=[verb for verb in JOBS if verb != "demo"])
    parser.add_argument("--write", action="store_true", help="put the table into docs/results.md")
    given = parser.parse_args()
    verbs = ["demo"] if given.demo else given.verbs or [verb for verb in JOBS if verb != "demo"]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    work, here = tempfile.mkdtemp(prefix="konomi-kills-"), Path.cwd()
    os.chdir(work)
    furnish(verbs)
    kills, results = 3 if given.demo else given.kills, {}
    for place, verb in enumerate(verbs):
        share = kills // len(verbs) + (place < kills % len(verbs))
        results[verb] = kill_and_compare(verb, share, random.Random(f"{given.seed} {verb}"))
    os.chdir(here)
    text = table(results, given.seed)
    print(text)
    if given.write:
        put("kills-demo" if given.demo else "kills", text)
    if any(result.different for result in results.values()):
        sys.exit(f"different; the runs are in {work}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()

"""How fast: konomi beside TRL on the same job in the same run, beside the version before, and beside what the machine can do.

Prints the tables of docs/results.md; with --write it puts them there, between the marks, and the pictures beside them.

    python benchmarks/speed.py                     about an hour and a quarter on two cores
    python benchmarks/speed.py --quick             under five minutes; fewer and smaller updates, never written to the docs
    python benchmarks/speed.py --only a,sampling
    python benchmarks/speed.py --again runs/speed/results.json --write      no measuring: a stored run's tables and pictures

Each system runs in a process of its own, in rounds (one after the other, then all again), so that a machine that slows down
slows all of them; the first update of a process warms up and does not count. The peers have environments of their own in
.bench/, made here when they are missing (pip; about 1.5 GB each).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import plots
import tables
from demo_seeds import ROOT, hardware, put

HERE, WORK, STORE = ROOT / "benchmarks", ROOT / ".bench", ROOT / "runs" / "speed"
BEFORE = "aaebb0a"
"""The state before the work on speed."""
TORCH = "torch==2.13.0"  # to the digit: of another version pip takes the build for GPUs, several GB
PEERS = {
    # rich: this TRL imports it, and got it from a package that needs it no more
    "trl-0.11.4": ["trl==0.11.4", "transformers==4.45.2", "accelerate==0.34.2", "numpy<2.3", "rich", TORCH],
    "trl-1.16.0": ["trl==1.16.0", "transformers>=5,<6", TORCH],
}
JOBS = {
    "a": "job A beside TRL 0.11.4 PPO and TRL 1.16 RLOO, and as it was before",
    "b": "job B: the top two layers trained (runs A too)",
    "c": "job C: a classifier of XLM-R-base shape as reward",
    "d": "job D: the demo, and as it was before",
    "sampling": "sampling alone",
    "growth": "time a token and memory over length and batch",
}
LENGTHS, BATCHES, ROWS, TOKENS = (16, 64, 256, 1024), (8, 16, 32, 64, 128, 256), 8, 24


@dataclass(frozen=True)
class System:
    """What is run, and how."""

    name: str
    program: list[str]
    updates: int
    warmup: int = 1
    episodes: int = 64
    environment: dict[str, str] = field(default_factory=dict)


def ours(name: str, job: str, updates: int, *more: str, source: Path | None = None) -> System:
    """A job on konomi; ``source``: of another state of it."""
    # the command line of the state before asked for huge pages for large tensors
    environment = {"THP_MEM_ALLOC_ENABLE": "1", "PYTHONPATH": str(source / "src")} if source else {}
    program = [sys.executable, str(HERE / "jobs.py"), job, "--work", str(WORK), *more]
    return System(name, program, updates, environment=environment)


def peer(name: str, home: str, script: str, updates: int, *more: str) -> System | None:
    """A peer, if its environment is there."""
    python = python_of(home)
    # huge pages make RLOO a tenth faster; TRL's PPO gains nothing from them, and needs more memory
    environment = {"THP_MEM_ALLOC_ENABLE": "1"} if script == "trl_rloo.py" else {}
    program = [str(python), str(HERE / "peers" / script), *more]
    return System(name, program, updates, environment=environment) if python else None


def python_of(home: str) -> Path | None:
    """The interpreter of a peer's environment that was made to the end."""
    place = WORK / home
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    return python if python.exists() and (place / "ready").exists() else None


def prepare(home: str) -> str | None:
    """Make a peer's environment; says what went wrong."""
    if python_of(home):
        return None
    say(f"making .bench/{home} (some minutes)")
    place = WORK / home
    venv.create(place, with_pip=True)
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *PEERS[home]]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        return f"{home} could not be installed: {' '.join(errors)[:300]}"
    (place / "ready").touch()
    return None


def state_before() -> tuple[Path | None, str | None]:
    """The source as it was before, in .bench/before; or why there is none."""
    place = WORK / f"before-{BEFORE}"
    if (place / "src" / "konomi").is_dir():
        return place, None
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", BEFORE, "src", "examples"], capture_output=True)
    if archive.returncode:
        return None, f"The version before is not measured: commit {BEFORE} is not in this copy's history."
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-x", "-C", str(place)], input=archive.stdout, check=True)
    return place, None


def chosen_systems(only: Sequence[str], quick: bool, few: int, before: Path | None, precision: str) -> list[System]:
    """The systems of a round, in order: those that are compared stand side by side."""
    found: list[System | None] = []
    if "a" in only or "b" in only:
        found.append(ours("a", "a", few))
    if "a" in only:
        found.append(peer("trl-ppo", "trl-0.11.4", "trl_ppo.py", few))
        # without bf16 in hardware the peer is some ten times as slow in it: its best is then fp32
        kind = "bf16" if precision == "bf16" else "fp32"
        found.append(peer(f"rloo-{kind}", "trl-1.16.0", "trl_rloo.py", few, "--precision", kind))
        found.append(ours("a-before", "a", few, source=before) if before and not quick else None)
    if "b" in only:
        found.append(ours("b", "b", few))
    if "c" in only:
        found.append(ours("c", "c", few))
    if "sampling" in only:
        found.append(ours("sampling", "sampling", few))
    if "d" in only:
        found += [ours("d", "d", few), ours("d-before", "d", few, source=before) if before else None]
    episodes = 16 if quick else 64
    return [replace(system, episodes=episodes) for system in found if system]


def growth_points(quick: bool) -> list[tuple[str, str, System]]:
    """(sampling or training, length or batch, what to run). Long and large ones are run once after warming up."""
    lengths, batches = (LENGTHS[:2], BATCHES[:2]) if quick else (LENGTHS, BATCHES)
    points = []
    for kind in ("sampling", "training"):
        by_length, by_batch = [("length", ROWS, length) for length in lengths], [("batch", rows, TOKENS) for rows in batches]
        pairs = by_length + by_batch if not quick else by_length if kind == "sampling" else by_batch
        for by, rows, length in pairs:
            updates = 3 if rows * length <= 1024 and not quick else 1
            system = ours(f"{kind}-{by}-{rows}x{length}", kind, updates, "--response", str(length), "--growth")
            points.append((kind, by, replace(system, episodes=rows)))
    return points


def run(system: System, seed: int) -> dict[str, Any]:
    """One process of a system: its lines, and what went wrong."""
    raw = STORE / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    out = raw / f"{system.name}-{seed}.jsonl"
    out.unlink(missing_ok=True)
    numbers = {"out": out, "updates": system.updates, "warmup": system.warmup, "episodes": system.episodes, "seed": seed}
    command = [*system.program, *(word for key, value in numbers.items() for word in (f"--{key}", str(value)))]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "THP_MEM_ALLOC_ENABLE")} | system.environment
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
                          errors="replace", env=environment, cwd=ROOT)  # fmt: skip
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    each = [f"{row['seconds']:.2f}" for row in lines if "seconds" in row and not row["warmup"]]
    say(f"{system.name}: {', '.join(each) or 'nothing'} s an update ({time.monotonic() - started:.0f} s in all)")
    if done.returncode:
        out.with_suffix(".txt").write_text(done.stdout, encoding="utf-8")
        last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "no output")
        return {"lines": lines, "error": f"exit code {done.returncode}: {last[:200]}"}
    return {"lines": lines, "error": None}


def best_of_machine() -> dict[str, Any]:
    """A line of peaks.py."""
    command = [sys.executable, str(HERE / "peaks.py")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    peaks = json.loads(done.stdout)
    best = {kind: max(peaks[kind].values()) / 1e9 for kind in ("fp32", "bf16", "read")}
    say("peaks: " + ", ".join(f"{kind} {value:.0f}" for kind, value in best.items()) + " GFLOP/s or GB/s")
    return peaks


def measure(only: Sequence[str], quick: bool, rounds: int, updates: int, peers: bool) -> dict[str, Any]:
    """Run everything; the raw numbers."""
    notes: list[str] = []
    if peers and "a" in only and not quick:
        notes += [problem for home in PEERS if (problem := prepare(home))]
    before, problem = state_before() if {"a", "d"} & set(only) else (None, None)
    notes += [problem] if problem else []
    from konomi.engine.device import choose_precision

    precision = choose_precision("auto")
    chosen = chosen_systems(only, quick, updates, before, precision)
    if peers and "a" in only and precision != "bf16":
        notes.append("TRL's RLOO is measured in fp32 alone: this machine has no bf16 in hardware, and is far slower in it.")
    if not peers:
        chosen = [system for system in chosen if not system.name.startswith(("trl", "rloo"))]
    raw: dict[str, Any] = {
        "hardware": hardware(),
        "quick": quick,
        "jobs": list(only),
        "notes": notes,
        "peaks": [],
        "systems": {},
        "growth": [],
    }
    raw["systems"] = {system.name: {"rounds": [], "error": None} for system in chosen}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        raw["peaks"].append(best_of_machine())
        for system in chosen:
            done = run(system, number)
            entry = raw["systems"][system.name]
            entry["rounds"].append(done["lines"])
            entry["error"] = entry["error"] or done["error"]
            store(raw)
    for kind, by, system in growth_points(quick) if "growth" in only else ():
        done = run(system, 0)
        raw["growth"].append({"kind": kind, "by": by, "episodes": system.episodes,
                              "response": int(system.program[system.program.index("--response") + 1]), **done})  # fmt: skip
        store(raw)
    return raw


def store(raw: dict[str, Any]) -> None:
    """Keep the raw numbers, after each process, so that a run that is stopped is not lost."""
    (STORE / "results.json").write_text(json.dumps(raw, indent=1), encoding="utf-8")


def pictures(raw: dict[str, Any]) -> dict[str, str]:
    """File name -> SVG of the pictures for which there are numbers."""
    results, found = tables.Results(raw), {}
    pairs = {"A": ("a-before", "a"), "D, the demo": ("d-before", "d")}
    groups = [
        [plots.Bar(f"job {job}: {when}", phases) for name, when in zip(names, ("before", "now"), strict=True)
         if (phases := results.phases(name))]
        for job, names in pairs.items()
    ]  # fmt: skip
    if groups := [group for group in groups if group]:
        found["speed-timeline.svg"] = plots.timeline(groups)
    if raw["growth"]:
        panels = []
        axes = {"length": f"response length, tokens ({ROWS} rows)", "batch": f"rows ({TOKENS} tokens each)"}
        for title, unit, column in (("Time a token", "ms a token", 1), ("Peak memory", "GB; dashed: budget", 2)):
            for by, label in axes.items():
                points = {kind: tables.growth(results, kind, by) for kind in tables.BUDGETS}
                curves = {kind: [(point[0], point[column]) for point in each] for kind, each in points.items() if each}
                limits = tables.BUDGETS if column == 2 else {}
                panels.append(plots.Panel(f"{title} over {by}", label, unit, curves, limits))
        found["speed-growth.svg"] = plots.growth(panels)
    return found


TITLES = {
    "speed-timeline.svg": "One update before and after, by phase",
    "speed-growth.svg": "Time a token and peak memory over response length and batch",
}


def write(raw: dict[str, Any], directory: Path) -> None:
    """Put the section into docs/results.md and the pictures beside it."""
    text = tables.section(raw)
    for name, svg in pictures(raw).items():
        (directory / name).write_text(svg, encoding="utf-8")
        text += f"\n\n![{TITLES[name]}]({name})"
    put("speed", text)


def say(words: str) -> None:
    """Progress, beside the tables on stdout."""
    print(f"[{time.strftime('%H:%M:%S')}] {words}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller updates; peers only if they are installed")
    parser.add_argument("--only", help=f"some of {','.join(JOBS)}")
    parser.add_argument("--rounds", type=int, help="default 3; quick: 1")
    parser.add_argument("--updates", type=int, help="of each system in a round; default 2, quick: 1")
    parser.add_argument("--no-peers", action="store_true", help="without TRL")
    parser.add_argument(
        "--write", action="store_true", help="put tables and pictures into docs/ (not those of a quick or partial run)"
    )
    parser.add_argument("--again", type=Path, metavar="FILE", help="measure nothing: take a stored run")
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    given = parser.parse_args()
    given.only = given.only.split(",") if given.only else list(JOBS)
    if unknown := set(given.only) - set(JOBS):
        parser.error(f"--only {','.join(sorted(unknown))}: there are {', '.join(JOBS)}")
    return given


def main() -> None:
    given = arguments()
    if given.list:
        print("\n".join(f"{name:10}{told}" for name, told in JOBS.items()))
        return
    if given.again:
        raw = json.loads(given.again.read_text(encoding="utf-8"))
    else:
        STORE.mkdir(parents=True, exist_ok=True)
        raw = measure(
            given.only, given.quick, given.rounds or (1 if given.quick else 3), given.updates or (1 if given.quick else 2),
            not given.no_peers,
        )  # fmt: skip
    print(tables.section(raw))
    whole = not raw["quick"] and set(raw["jobs"]) == set(JOBS)
    if whole and given.write:
        write(raw, ROOT / "docs")
    else:
        STORE.mkdir(parents=True, exist_ok=True)
        for name, svg in pictures(raw).items():
            (STORE / name).write_text(svg, encoding="utf-8")
    failed = [name for name, system in raw["systems"].items() if system["error"]]
    failed += [f"growth of {point['kind']}, {point['episodes']}x{point['response']}" for point in raw["growth"] if point["error"]]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see {STORE / 'raw'}")


if __name__ == "__main__":
    main()

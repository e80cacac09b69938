"""The jobs of the GPU benchmark, what is aimed at, and the tables made of its lines. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import bounds
import shapes


@dataclass(frozen=True)
class Job:
    """What every system does, and what is aimed at. The goals are those of one H100."""

    label: str
    goal: float
    """Episodes/s."""
    episodes: int
    mini_batch: int
    updates: int
    peers: tuple[str, ...] = ()
    model: str = "gpt2"
    response: tuple[int, int] = (shapes.LOW, shapes.HIGH)
    each: int = 1
    """Responses to a prompt."""
    classifier: bool = False
    rollout_goal: float | None = None
    """Seconds, at most."""


JOBS = {
    "A64": Job("A: GPT-2 small shape, 64 episodes, mini-batch 16", 450, 64, 16, 10, ("trl-ppo", "rloo")),
    "A512": Job("A: 512 / 128", 1500, 512, 128, 6, ("trl-ppo", "rloo")),
    "A2048": Job("A: 2,048 / 512", 2500, 2048, 512, 4, ("rloo",)),
    "C": Job("C: 512 / 128, classifier of XLM-R-base shape", 1000, 512, 128, 5, classifier=True),
    "L": Job("L: layers of Llama 3.2 1B, 64 / 16, 96 to 128 tokens, 4 a prompt", 35, 64, 16, 4, model="llama", response=(96, 128),
             each=4, rollout_goal=0.6),
}  # fmt: skip
SYSTEMS = {"konomi": "konomi", "trl-ppo": "TRL 0.11.4 PPO", "rloo": "TRL 1.16 RLOO, bf16"}
"""Name -> how the tables call it."""
PHASES = ("rollout", "reward", "score", "train")
NONE = "–"
Row = Mapping[str, Any]
Key = tuple[str, str]
"""System and job."""


@dataclass(frozen=True)
class Result:
    """The updates of a job on a system."""

    rows: Sequence[Row]

    @property
    def updates(self) -> list[Row]:
        """Those that count."""
        return [row for row in self.rows if "seconds" in row and not row["warmup"]]

    @property
    def rate(self) -> float | None:
        """Episodes/s, the median."""
        return median(row["episodes"] / row["seconds"] for row in self.updates) if self.updates else None

    def fact(self, name: str) -> Any:
        """The last that was told under this name."""
        return next((row[name] for row in reversed(self.rows) if name in row), None)

    def phase(self, name: str) -> float | None:
        """Seconds of a phase, the median."""
        times = [row["phases"][name] for row in self.updates if name in row.get("phases", {})]
        return median(times) if times else None

    def share(self, flops: float | None) -> float | None:
        """The time that the products of classic PPO would take at the best rate, over the time that was taken."""
        if flops is None or not self.updates or self.fact("shape") is None:
            return None
        shape, plan = bounds.Shape(**self.fact("shape")), bounds.FULL["a"]
        counts = [sum(bounds.update_flops(shape, row["queries"], row["responses"], plan).values()) for row in self.updates]
        return median(count / flops / row["seconds"] for count, row in zip(counts, self.updates, strict=True))


def results(rows: Sequence[Row]) -> dict[Key, Result]:
    """The updates of every job on every system."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        if "job" in row:
            found.setdefault((row["system"], row["job"]), []).append(row)
    return {key: Result(each) for key, each in found.items()}


def _line(*cells: Any) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _number(value: float | None, form: str = ",.1f") -> str:
    return NONE if value is None else f"{value:{form}}"


def _head(*cells: str) -> list[str]:
    return [_line(*cells), "|" + "---|" * len(cells)]


def table(rows: Sequence[Row], jobs: Mapping[str, Job]) -> str:
    """Markdown: episodes/s beside the goals; what the seconds consist of; what did not run, and why."""
    found, best = results(rows), next((row for row in rows if "machine" in row), {})
    told = str(best.get("machine", "a machine that is not named"))
    if "flops" in best:
        told += f"; products in bf16 {best['flops'] / 1e12:.0f} TFLOP/s, copies {best['bytes'] / 1e12:.2f} TB/s"
    return "\n\n".join([told, rates(found, jobs), details(found, best.get("flops")), *notes(found)])


def rates(found: Mapping[Key, Result], jobs: Mapping[str, Job]) -> str:
    """Episodes/s of every system."""
    lines = _head("episodes/s", *SYSTEMS.values(), "goal", "reached")
    for name, job in jobs.items():
        each = [found[system, name].rate if (system, name) in found else None for system in SYSTEMS]
        goal, reached = f">= {job.goal:,}", each[0] is not None and each[0] >= job.goal
        if job.rollout_goal is not None:
            rollout = found["konomi", name].phase("rollout") if each[0] else None
            goal += f", rollout <= {job.rollout_goal} s"
            reached = reached and rollout is not None and rollout <= job.rollout_goal
        lines.append(_line(job.label, *map(_number, each), goal, NONE if each[0] is None else "yes" if reached else "no"))
    return "\n".join(lines)


def details(found: Mapping[Key, Result], flops: float | None) -> str:
    """Seconds by phase and memory. The phases are as the host sees them; only their sum ends with the device at rest."""
    lines = _head("system, job", "s an update (range)", "updates", *PHASES, "GPU, GB", "of the product bound", "precision")
    for (system, name), result in found.items():
        if not result.updates:
            continue
        seconds = sorted(row["seconds"] for row in result.updates)
        spread = f"{median(seconds):.3f} ({seconds[0]:.3f} to {seconds[-1]:.3f})"
        phases = [_number(result.phase(phase), ".3f") for phase in PHASES]
        peak = max((row["gpu"] for row in result.updates if "gpu" in row), default=None)
        cells = [len(seconds), *phases, _number(peak), _number(result.share(flops), ".1%"), result.fact("precision") or NONE]
        lines.append(_line(f"{SYSTEMS[system]}, {name}", spread, *cells))
    return "\n".join(lines)


def notes(found: Mapping[Key, Result]) -> list[str]:
    """What did not run, and what ran as captured graphs."""
    said = []
    for (system, name), result in found.items():
        if why := result.fact("skipped"):
            said.append(f"{SYSTEMS[system]}, {name}: not measured: {why}.")
        if graphs := result.fact("captured"):
            said.append(f"{SYSTEMS[system]}, {name}: captured: {graphs}.")
    return said

"""From the raw numbers of a run to its Markdown: medians, ratios to the peers, shares of the bounds.

Pure: no files, no measuring. The raw numbers (``runs/speed/results.json``):

    hardware, quick, jobs, notes
    peaks      a line of peaks.py for each round
    systems    by name: rounds, each a list of lines as `shapes.Log` writes them; error
    growth     a list of points: kind (sampling or training), by (length or batch), episodes, response, lines
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import bounds
from bounds import GPT2_SMALL, Machine, Plan, Shape

LABELS = {
    "a": "konomi, job A",
    "trl-ppo": "TRL 0.11.4 PPO",
    "rloo-bf16": "TRL 1.16 RLOO, bf16",
    "rloo-fp32": "TRL 1.16 RLOO, fp32",
    "a-before": "konomi before, job A",
    "b": "konomi, job B",
    "c": "konomi, job C",
    "d": "konomi, job D",
    "d-before": "konomi before, job D",
    "sampling": "konomi, sampling alone",
}
RECORDED = 2.56
"""Episodes/s of the write-up that the project starts from, with a reward model, on a V100."""
BUDGETS = {"sampling": 3.5, "training": 4.5}
"""GB that the growth's jobs may hold at most, whatever the length and the batch: rollout.cache_gb bounds the one,
ppo.micro_batch_tokens the other, beside the weights (0.5 GB) and, in training, reference, gradient and moments (2 GB)."""
FLAT = 1.5
"""What is called near flat: the time a token of the longest or largest over that of the shortest or smallest."""
NONE = "–"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Ratio:
    """How many times as fast, and between which values the rounds lie."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        spread = f" ({self.low:.2f} to {self.high:.2f})" if self.high > self.low else ""  # one round has none
        return f"{self.value:.2f}x{spread}"


class Results:
    """The raw numbers, asked."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw

    def rounds(self, name: str) -> list[list[Row]]:
        """The updates of a system that count, round by round."""
        rounds = self.raw["systems"].get(name, {}).get("rounds", [])
        counted = [[row for row in rows if "seconds" in row and not row["warmup"]] for rows in rounds]
        return [rows for rows in counted if rows]

    def updates(self, name: str) -> list[Row]:
        """The same in one list."""
        return [row for rows in self.rounds(name) for row in rows]

    def rate(self, name: str) -> float | None:
        """Episodes/s: the median over updates."""
        return median(row["episodes"] / row["seconds"] for row in rows) if (rows := self.updates(name)) else None

    def memory(self, name: str) -> float | None:
        """The highest peak of its processes, GB."""
        lines = [row for rows in self.raw["systems"].get(name, {}).get("rounds", []) for row in rows]
        return max((row["rss"] for row in lines if "rss" in row), default=None)

    def fact(self, name: str, key: str) -> Any:
        """What the last line of its first round says."""
        rounds = self.raw["systems"].get(name, {}).get("rounds", [])
        return next((row[key] for rows in rounds for row in rows if row.get("end") and key in row), None)

    def problem(self, name: str) -> str | None:
        """Why it has no numbers."""
        system = self.raw["systems"].get(name, {})
        skipped = [row["skipped"] for rows in system.get("rounds", []) for row in rows if "skipped" in row]
        return system.get("error") or (skipped[0] if skipped else None)

    def ratio(self, name: str, other: str) -> Ratio | None:
        """Rate over rate: of all updates, and of each round that has both."""
        whole, base = self.rate(name), self.rate(other)
        if whole is None or base is None:
            return None
        pairs = zip(self.rounds(name), self.rounds(other), strict=False)
        each = [_rate(ours) / _rate(theirs) for ours, theirs in pairs]
        return Ratio(whole / base, min(each), max(each))

    def peak(self, kind: str) -> float | None:
        """FLOP/s of fp32 or bf16, bytes/s of read: the best of a round, the median of the rounds."""
        peaks = self.raw["peaks"]
        return median(max(each[kind].values()) for each in peaks) if peaks else None

    def machine(self) -> Machine | None:
        """Bounds are those of the fastest precision."""
        full, half, read = (self.peak(kind) for kind in ("fp32", "bf16", "read"))
        if full is None or half is None or read is None:
            return None
        return Machine(max(full, half), read, 2 if half > full else 4)

    def shape(self, name: str) -> Shape:
        """The model that the system ran."""
        said = self.fact(name, "shape")
        return Shape(**said) if said else GPT2_SMALL

    def flops(self, name: str, plan: Plan) -> list[dict[str, float]]:
        """The count of each update's phases."""
        shape = self.shape(name)
        return [bounds.update_flops(shape, row["queries"], row["responses"], plan) for row in self.updates(name)]

    def share(self, name: str, plan: Plan) -> float | None:
        """The time that the count needs at the machine's best, over the time that was taken."""
        machine, rows = self.machine(), self.updates(name)
        if machine is None or not rows:
            return None
        counts = [sum(count.values()) for count in self.flops(name, plan)]
        return median(count / machine.flops / row["seconds"] for count, row in zip(counts, rows, strict=True))

    def sampling_share(self, name: str, together: bool = False, phase: str | None = None) -> float | None:
        """The least time for the responses over the time that was taken."""
        machine, rows = self.machine(), self.updates(name)
        if machine is None or not rows:
            return None
        shape = self.shape(name)
        least = [bounds.sampling_seconds(shape, row["queries"], row["responses"], machine, together) for row in rows]
        taken = [row["phases"][phase] if phase else row["seconds"] for row in rows]
        return median(short / long for short, long in zip(least, taken, strict=True))

    def phases(self, name: str) -> dict[str, tuple[float, float | None]]:
        """Seconds of each phase and the share of its bound: rollout as sampling, score and train as products."""
        rows, machine = self.updates(name), self.machine()
        if not rows:
            return {}
        job = name.partition("-")[0]
        plan = bounds.FULL[job] if name.endswith("before") else bounds.done(job, self.fact(name, "precision") or "fp32")
        counts = self.flops(name, plan)
        found: dict[str, tuple[float, float | None]] = {}
        for phase in rows[0]["phases"]:
            seconds = [row["phases"][phase] for row in rows]
            share = None
            if machine and phase == "rollout":
                share = self.sampling_share(name, phase=phase)
            elif machine and phase in counts[0]:
                share = median(c[phase] / machine.flops / s for c, s in zip(counts, seconds, strict=True) if s > 0)
            found[phase] = (median(seconds), share)
        return found


def _rate(rows: Sequence[Row]) -> float:
    return median(row["episodes"] / row["seconds"] for row in rows)


def _number(value: float | None, form: str = ".2f") -> str:
    return NONE if value is None else f"{value:{form}}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _reached(value: float | None, target: float, below: bool = False) -> str:
    if value is None:
        return NONE
    return "yes" if (value < target if below else value >= target) else "no"


def targets(results: Results) -> str:
    """The table of what was aimed at."""
    lines = [_line("job", "measure", "konomi", "beside it", "result", "target", "reached"), "|---|---|---|---|---|---|---|"]

    def times(job: str, measure: str, name: str, other: str, target: float) -> None:
        ratio, ours, theirs = results.ratio(name, other), results.rate(name), results.rate(other)
        cells = (_number(ours), _number(theirs), str(ratio) if ratio else NONE, f"{target}x")
        lines.append(_line(job, measure, *cells, _reached(ratio and ratio.value, target)))

    def part(job: str, measure: str, share: float | None, other: str, target: float) -> None:
        lines.append(_line(job, measure, _number(share, ".0%"), other, _number(share, ".0%"), f"{target:.0%}",
                           _reached(share, target)))  # fmt: skip

    times("A: GPT-2 small shape, all of it trained", "episodes/s, beside TRL 0.11.4 PPO", "a", "trl-ppo", 4.5)
    for kind in ("bf16", "fp32"):
        if f"rloo-{kind}" in results.raw["systems"] or ("rloo-bf16" not in results.raw["systems"] and kind == "fp32"):
            times("", f"episodes/s, beside TRL 1.16 RLOO, {kind}", "a", f"rloo-{kind}", 3.5)
    done = results.share("a", bounds.done("a", results.fact("a", "precision") or "fp32"))
    part("", "share of the product bound", results.share("a", bounds.FULL["a"]), f"{_number(done, '.0%')} of what it does", 0.6)
    times("B: as A, the top 2 layers trained", "episodes/s, beside A", "b", "a", 2.5)
    rate = results.rate("c")
    lines.append(_line("C: as A, XLM-R-base shape as reward", "episodes/s", _number(rate), f"{RECORDED} (a V100, 2023)",
                       _number(rate), f"above {RECORDED}", _reached(rate, RECORDED)))  # fmt: skip
    times("D: the demo", "episodes/s, beside the version before", "d", "d-before", 2.5)
    both = results.sampling_share("sampling", together=True)
    part("sampling alone, batch 64, 24 tokens", "share of the product and bandwidth bound", results.sampling_share("sampling"),
         f"{_number(both, '.0%')} of their sum", 0.45)  # fmt: skip
    ours, theirs = results.memory("a"), results.memory("trl-ppo")
    over = None if ours is None or theirs is None else ours / theirs
    lines.append(_line("memory, job A", "peak, GB, beside TRL 0.11.4 PPO", _number(ours, ".1f"), _number(theirs, ".1f"),
                       _number(over, ".2f"), "below 1", _reached(over, 1.0, below=True)))  # fmt: skip
    lines += [_growth_line(results, kind) for kind in BUDGETS]
    return "\n".join(lines)


def growth(results: Results, kind: str, by: str) -> list[tuple[int, float, float]]:
    """(length or batch, milliseconds a token, peak GB) of the points that were measured.

    A token that is sampled is one of the response; one that is trained on, any of query and response.
    """
    found = []
    for point in results.raw["growth"]:
        rows = [row for row in point["lines"] if "seconds" in row and not row["warmup"]]
        if (point["kind"], point["by"]) != (kind, by) or not rows:
            continue
        each = []
        for row in rows:
            tokens = sum(row["responses"]) + (sum(row["queries"]) if kind == "training" else 0)
            each.append((row["phases"]["train"] if kind == "training" else row["seconds"]) / tokens * 1000)
        x = point["response"] if by == "length" else point["episodes"]
        found.append((x, median(each), max(row["rss"] for row in point["lines"] if "rss" in row)))
    return sorted(found)


def _growth_line(results: Results, kind: str) -> str:
    points = {by: found for by in ("length", "batch") if (found := growth(results, kind, by))}
    memory = max((point[2] for found in points.values() for point in found), default=None)
    ratios = {by: found[-1][1] / found[0][1] for by, found in points.items()}
    told = [f"{ratios[by]:.2f}x from {found[0][0]} to {found[-1][0]} ({by})" for by, found in points.items()]
    reached = NONE if memory is None else "yes" if memory < BUDGETS[kind] and max(ratios.values()) <= FLAT else "no"
    peak = NONE if memory is None else f"{memory:.1f} GB"
    cells = (peak, f"budget {BUDGETS[kind]} GB", "; ".join(told) or NONE, f"at most {FLAT}x, within budget", reached)
    return _line(f"growth, {kind}", "time a token; peak memory", *cells)


def systems(results: Results) -> str:
    """The table of everything that ran."""
    lines = [_line("system", "episodes/s", "seconds an update", "updates", "peak, GB", "precision", "settings"),
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, label in LABELS.items():
        rows = results.updates(name)
        if not rows:
            if problem := results.problem(name):
                lines.append(_line(label, NONE, NONE, "0", NONE, NONE, problem))
            continue
        seconds = sorted(row["seconds"] for row in rows)
        spread = f"{median(seconds):.2f} ({seconds[0]:.2f} to {seconds[-1]:.2f})"
        precision, settings = (results.fact(name, key) or NONE for key in ("precision", "settings"))
        memory = _number(results.memory(name), ".1f")
        lines.append(_line(label, _number(results.rate(name)), spread, str(len(rows)), memory, precision, settings))
    return "\n".join(lines)


def machine(results: Results) -> str:
    """What the bounds are made of."""
    best = results.machine()
    if best is None:
        return "The machine's best was not measured."
    full, half, read = (results.peak(kind) or 0.0 for kind in ("fp32", "bf16", "read"))
    text = (
        f"Products: fp32 {full / 1e9:.0f}, bf16 {half / 1e9:.0f} GFLOP/s; reading: {read / 1e9:.0f} GB/s "
        f"(best of a round, median of {len(results.raw['peaks'])})."
    )
    for name in ("a", "b", "d"):
        if not results.updates(name):
            continue
        done = median(sum(c.values()) for c in results.flops(name, bounds.done(name, results.fact(name, "precision") or "fp32")))
        text += f" Job {name.upper()}, an update: "
        if name in bounds.FULL:
            text += f"{median(sum(c.values()) for c in results.flops(name, bounds.FULL[name])) / 1e12:.2f} TFLOP in full, "
        text += f"{done / 1e12:.2f} done."
    return text + _room(results)


def _room(results: Results) -> str:
    """How far the bound lets the ratios to the peers go: TRL's PPO is in fp32, and without bf16 in hardware so is the bound."""
    share = results.share("a", bounds.FULL["a"])
    ratios = {label: results.ratio("a", name) for name, label in LABELS.items() if name.startswith(("trl", "rloo"))}
    told = [f"{ratio.value / share:.1f}x {label}" for label, ratio in ratios.items() if ratio and share]
    return f" At that bound, all of the count done, job A would be {' and '.join(told)}." if told else ""


def phases(results: Results) -> str:
    """The time-line in figures."""
    names = [name for name in ("a-before", "a", "d-before", "d") if results.updates(name)]
    if not names:
        return ""
    lines = [_line("an update", "rollout", "reward", "score", "train"), "|---|---|---|---|---|"]
    for name in names:
        found = results.phases(name)
        cells = [f"{s:.2f} s" + (f" ({share:.0%})" if share is not None else "") for s, share in found.values()]
        lines.append(_line(LABELS[name], *cells))
    return "\n".join(lines)


def section(raw: Mapping[str, Any]) -> str:
    """The whole section, without pictures."""
    results = Results(raw)
    parts = ["Quick: fewer and smaller updates than the benchmark has; no result to quote."] if raw["quick"] else []
    parts += [f"Hardware: {raw['hardware']}. {machine(results)}", targets(results), systems(results)]
    if told := phases(results):
        parts += ["Seconds of an update by phase, and share of the phase's bound:", told]
    parts += list(raw["notes"])
    return "\n\n".join(parts)

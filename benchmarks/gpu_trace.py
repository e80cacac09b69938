"""One update under torch's profiler: launches, waits, how busy the device is, and the picture of it. Reads Chrome's trace format.

What the host does is seen by cProfile in an update of its own: the profiler of torch sees operators, not Python.
"""

from __future__ import annotations

import cProfile
import gzip
import json
import pstats
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plots

UPDATE = "one update"
DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
RUNTIME = {"cuda_runtime", "cuda_driver"}
"""Categories of the trace: what ran on the device, and what the host asked of its driver."""
SYNCHRONISED = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cuStreamSynchronize"}
ASKED = {"aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::unique_dim", "aten::masked_select"}
"""Calls at which the host waits for the device, and operators that tell it a number."""
PHASES = ("rollout", "reward", "score", "train")
BINS = 600
"""Columns of the picture."""
MOST = 10
"""Kernels and functions that are printed."""

Span = tuple[float, float]


def profiled(step: Callable[[], Any], trace: Path) -> dict[str, Any]:
    """Run one update under the profiler, write its ``trace`` (.json.gz) and the picture beside it; the counts."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as measured, record_function(UPDATE):
        step()
        if gpu:
            torch.cuda.synchronize()
    measured.export_chrome_trace(str(trace))
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    trace.with_suffix("").with_suffix(".svg").write_text(picture(events), encoding="utf-8")
    return summary(events)


def host_functions(step: Callable[[], Any]) -> list[tuple[str, int, float]]:
    """Run one update under cProfile: the functions that take most time themselves, with calls and milliseconds."""
    measured = cProfile.Profile()
    measured.runcall(step)
    stats: Mapping[Any, Any] = pstats.Stats(measured).stats  # type: ignore[attr-defined]
    rows = [(_place(*where), calls, own * 1e3) for where, (_, calls, own, _, _) in stats.items()]
    return sorted(rows, key=lambda row: -row[2])[:MOST]


def _place(file: str, line: int, name: str) -> str:
    short = "/".join(Path(file).parts[-2:])
    return name if file == "~" else f"{short}:{line} {name}"


def _spans(events: Iterable[Mapping[str, Any]]) -> list[Span]:
    return [(float(e["ts"]), float(e["ts"]) + float(e["dur"])) for e in events]


def _merged(spans: Iterable[Span]) -> list[Span]:
    """The same stretches of time, none twice, in order."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _within(merged: Sequence[Span], start: float, end: float) -> float:
    return sum(max(0.0, min(b, end) - max(a, start)) for a, b in merged)


def _window(events: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], float, float]:
    """The events of the update that have a duration, its start, and its end."""
    timed = [e for e in events if e.get("ph") == "X" and "dur" in e]
    whole = next(e for e in timed if e["name"] == UPDATE and e.get("cat") == "user_annotation")
    start, end = _spans([whole])[0]
    return [e for e in timed if start <= float(e["ts"]) <= end and e is not whole], start, end


def _phases(inside: Sequence[Mapping[str, Any]]) -> list[tuple[str, Span]]:
    named = [e for e in inside if e.get("cat") == "user_annotation" and e["name"] in PHASES]
    return list(zip([str(e["name"]) for e in named], _spans(named), strict=True))


def summary(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the device was asked, and how long it worked; seconds."""
    inside, start, end = _window(events)
    calls = [e for e in inside if e.get("cat") in RUNTIME]
    work = [e for e in inside if e.get("cat") in DEVICE]
    waits = [e for e in calls if e["name"] in SYNCHRONISED]
    busy = _merged(_spans(work))
    phases: dict[str, dict[str, float]] = {}
    for name, (first, last) in _phases(inside):
        found = phases.setdefault(name, {"seconds": 0.0, "busy": 0.0, "launches": 0})
        found["seconds"] += (last - first) / 1e6
        found["busy"] += _within(busy, first, last) / 1e6
        found["launches"] += sum("Launch" in e["name"] and first <= float(e["ts"]) <= last for e in calls)
    times, counts = Counter[str](), Counter[str]()
    for e in work:
        times[e["name"]] += float(e["dur"]) / 1e3
        counts[e["name"]] += 1
    return {
        "seconds": (end - start) / 1e6, "busy": _within(busy, start, end) / 1e6,
        "launches": sum("Launch" in e["name"] for e in calls), "graphs": sum("GraphLaunch" in e["name"] for e in calls),
        "kernels": sum(e["cat"] == "kernel" for e in work), "waits": len(waits),
        "waiting": sum(float(e["dur"]) for e in waits) / 1e6,
        "asked": sum(e.get("cat") == "cpu_op" and e["name"] in ASKED for e in inside), "phases": phases,
        "top": [(name, counts[name], ms) for name, ms in times.most_common(MOST)],
    }  # fmt: skip


def told(job: str, found: Mapping[str, Any], functions: Sequence[tuple[str, int, float]]) -> str:
    """The counts and the costliest as text."""

    def share(part: float, whole: float) -> str:
        return f"{100 * part / whole:.0f} %" if whole else "0 %"

    lines = [
        f"Profile of {job}: {found['seconds']:.3f} s, device busy {share(found['busy'], found['seconds'])}",
        f"  launches {found['launches']:,}, of graphs {found['graphs']:,}; kernels {found['kernels']:,}; "
        f"waits {found['waits']:,} ({found['waiting']:.3f} s); numbers asked for {found['asked']:,}",
    ]
    for name, phase in found["phases"].items():
        lines.append(
            f"  {name:<8} {phase['seconds']:.3f} s, busy {share(phase['busy'], phase['seconds'])}, launches {phase['launches']:,}"
        )
    lines += [f"  {ms:9.2f} ms {count:>7,} x  {name[:90]}" for name, count, ms in found["top"]]
    lines += ["  Functions of the host, own time:"] if functions else []
    lines += [f"  {ms:9.2f} ms {count:>7,} x  {name[:90]}" for name, count, ms in functions]
    return "\n".join(lines)


def picture(events: Sequence[Mapping[str, Any]]) -> str:
    """The update as SVG: phases, and over time how busy the device and the host's operators are, and where the host waits."""
    inside, start, end = _window(events)

    def shares(chosen: Iterable[Mapping[str, Any]]) -> list[float]:
        merged, wide, first = _merged(_spans(chosen)), (end - start) / BINS, 0
        found = []
        for number in range(BINS):
            left, right = start + number * wide, start + (number + 1) * wide
            while first < len(merged) and merged[first][1] <= left:
                first += 1
            last = first
            while last < len(merged) and merged[last][0] < right:
                last += 1
            found.append(_within(merged[first:last], left, right) / wide)
        return found

    lanes = {
        "device": shares(e for e in inside if e.get("cat") in DEVICE),
        "operators": shares(e for e in inside if e.get("cat") == "cpu_op"),
        "waits": shares(e for e in inside if e.get("cat") in RUNTIME and e["name"] in SYNCHRONISED),
    }
    phases = [(name, (first - start) / 1e6, (last - start) / 1e6) for name, (first, last) in _phases(inside)]
    return plots.one_update(phases, lanes, (end - start) / 1e6)

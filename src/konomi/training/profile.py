"""A profile of one update: where its time goes, operation by operation.

A span is marked by `torch.profiler.record_function`: the phases of the trainer, and any in a reward function. Shapes and call
stacks are left out: they would make the file several times larger and the update slower.
"""

from __future__ import annotations

import gzip
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.profiler import ProfilerActivity, profile, record_function

from konomi.engine.device import has_gpu
from konomi.files import utf8, write_atomic, writing

if TYPE_CHECKING:
    from konomi.runs.observer import StepResult
    from konomi.training.ppo import PPOTrainer

TRACE_FILE, TABLE_FILE = "trace.json.gz", "profile.txt"
COSTLIEST = 10
"""Operations in the table."""


def profiled(trainer: PPOTrainer, directory: Path, say: Callable[[str], None]) -> Iterator[StepResult]:
    """Iterate over ``trainer`` and profile the second of its updates, or the only one: the first has to warm up.

    Writes two files into ``directory``: trace.json.gz (Chrome's trace format) and profile.txt (spans, and the costliest
    operations). The results are those of an update that is not profiled; its times are a little longer.

    Raises:
        RunError: a file cannot be written.
    """
    chosen = min(trainer.update + 2, trainer.ppo.updates)
    steps = iter(trainer)
    while True:
        if trainer.update + 1 != chosen:
            result = next(steps, None)
        else:
            with profile(activities=_activities(), acc_events=True) as measured, record_function(f"update {chosen}"):
                result = next(steps, None)
            if result is not None:
                _write(measured, directory, f"update {chosen}")
                table_, trace = directory / TABLE_FILE, directory / TRACE_FILE
                say(f"Profile of update {chosen}: {table_}; {trace} opens in https://ui.perfetto.dev or chrome://tracing")
        if result is None:
            return
        yield result


def _activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_gpu() else [])]


def _write(measured: profile, directory: Path, name: str) -> None:
    draft = directory / f".{os.getpid()}.{TRACE_FILE}"
    try:
        with writing(directory / TRACE_FILE):
            measured.export_chrome_trace(str(draft))
            with gzip.open(draft, "rb") as trace:  # of what it cannot write the profiler says nothing
                if not b"".join(deque(trace, maxlen=1)).rstrip().endswith(b"}"):
                    raise OSError("it is cut short; is the disk full?")
            draft.replace(directory / TRACE_FILE)
    finally:
        draft.unlink(missing_ok=True)
    write_atomic(directory / TABLE_FILE, utf8(table(measured, name)))


def table(measured: profile, name: str) -> str:
    """The spans with all that is in them, then the costliest operations without what they call."""
    events = list(measured.key_averages())
    spans = sorted((e for e in events if e.is_user_annotation), key=lambda e: -e.cpu_time_total)
    operations = sorted((e for e in events if not e.is_user_annotation), key=_own, reverse=True)
    total = next(e.cpu_time_total for e in spans if e.key == name)
    busy = sum(map(_own, operations)) or 1.0
    rest = operations[COSTLIEST:]
    device = "device" if has_gpu() else "processor"
    lines = [
        f"{'span':<44} {'times':>8} {'ms':>12} {'share':>7} {'Python ms':>10}",
        *(_row(e.key, e.count, e.cpu_time_total, total) + f" {e.self_cpu_time_total / 1e3:>10.1f}" for e in spans),
        "",
        "Python: the time of a span that is in no operation and in no span within it. Spans lie in one another.",
        "",
        f"{f'operation, on the {device}':<44} {'times':>8} {'ms':>12} {'share':>7}",
        *(_row(e.key, e.count, _own(e), busy) for e in operations[:COSTLIEST]),
        _row("all others", sum(e.count for e in rest), sum(map(_own, rest)), busy),
    ]
    return "\n".join(lines) + "\n"


def _own(event: Any) -> float:
    """Microseconds of an operation itself."""
    time: float = event.self_device_time_total if has_gpu() else event.self_cpu_time_total
    return time


def _row(name: str, count: int, microseconds: float, total: float) -> str:
    short = name if len(name) <= 44 else name[:43] + "…"
    return f"{short:<44} {count:>8} {microseconds / 1e3:>12.1f} {100 * microseconds / total:>6.1f}%"

"""Progress of a job on stderr: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from konomi.runs.observer import Observer
from konomi.runs.processes import is_main
from konomi.text import visible

if TYPE_CHECKING:
    from konomi.runs.directory import RunDir
    from konomi.runs.observer import StepResult

SECONDS = 10.0
"""Between two lines on the progress of one thing."""
ROWS = 12
"""Updates shown in the live table."""
COLUMNS = (
    ("update", "update"), ("episodes", "episodes"), ("eps/s", "episodes/per_second"), ("score", "ppo/mean_scores"),
    ("± std", "ppo/std_scores"), ("KL nats", "objective/kl"), ("coef", "objective/kl_coef"), ("entropy", "objective/entropy"),
    ("clip%", "ppo/policy/clipfrac"), ("expl.v", "ppo/val/var_explained"), ("left", "left"),
)  # fmt: skip
FIRST = ("update", "ppo/mean_scores", "objective/kl", "left", "ppo/std_scores", "episodes/per_second", "objective/kl_coef")
"""Columns in the order in which a narrow terminal keeps them; then judges, then the rest."""
TWO_DECIMALS = ("ppo/mean_scores", "ppo/std_scores", "objective/kl", "ppo/val/var_explained", "episodes/per_second")
GAP = 1
"""Spaces between two columns."""


class Terminal(Console):
    """A console for untrusted texts: no control characters, no markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Make control characters visible in all segments but rich's own control codes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def make_observer() -> Observer:
    """The observer for stderr: live on a terminal, else plain; silent in all processes but the main one."""
    if not is_main():
        return Observer()
    console = Terminal(stderr=True)
    return LiveObserver(console) if console.is_terminal else PlainObserver()


class _Timed(Observer):
    """Formats the figures of an update, with the time left."""

    columns: tuple[tuple[str, str], ...] = COLUMNS
    """Label and key of each figure of an update."""

    def __init__(self) -> None:
        self.updates = 0
        self.seconds: list[float] = []

    def start(self, run: RunDir, facts: dict[str, str], updates: int) -> None:
        self.updates, self.seconds = updates, []

    def cells(self, result: StepResult) -> dict[str, str]:
        """Column -> what stands in it."""
        self.seconds.append(result.metrics["time/ppo/total"])
        if self.columns == COLUMNS and (judges := [key for key in result.metrics if re.fullmatch("judge/.+/mean", key)]):
            self.columns = (*COLUMNS[:5], *((key.split("/")[1], key) for key in judges), *COLUMNS[5:])
        recent = sorted(self.seconds[-5:])[len(self.seconds[-5:]) // 2]
        left = recent * (self.updates - result.update)
        numbers = {key: f"{result.metrics[key]:.3g}" for _, key in self.columns if key in result.metrics}
        numbers["objective/kl_coef"] = f"{result.metrics['objective/kl_coef']:.3f}"
        numbers["ppo/policy/clipfrac"] = f"{100 * result.metrics.get('ppo/policy/clipfrac', 0.0):.1f}"
        for key in set(TWO_DECIMALS) & set(numbers):
            numbers[key] = f"{result.metrics[key]:.2f}"
        for key in set(result.out_of_range) & set(numbers):
            numbers[key] += "!"  # outside its healthy range
        return {
            **numbers,
            "update": f"{result.update}/{self.updates}",
            "episodes": str(result.episodes),
            "left": f"{int(left) // 60}:{int(left) % 60:02d}",
        }


class PlainObserver(_Timed):
    """One plain line an update: for logs and pipes."""

    last_progress = float("-inf")
    """When the last line on progress was printed, by the monotonic clock."""

    def _line(self, text: str) -> None:
        Terminal(stderr=True, no_color=True, soft_wrap=True, force_terminal=False).print(text)

    def say(self, text: str) -> None:
        self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}")

    def start(self, run: RunDir, facts: dict[str, str], updates: int) -> None:
        super().start(run, facts, updates)
        for label, text in facts.items():
            self._line(f"{label}: {text}")
        self._line(f"run: {run.path}")

    def before(self, samples: list[dict[str, Any]]) -> None:
        for sample in samples[:4]:
            self._line(f"before: {_sample_line(sample)}")

    def progress(self, what: str, done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
        now = time.monotonic()
        if not figures and done < total and now - self.last_progress < SECONDS:
            return
        self.last_progress = now
        self._line(_progress(what, done, total, figures))

    def step(self, result: StepResult) -> None:
        cells = self.cells(result)
        marks = ", ".join(key.removeprefix("ppo/") for key in result.out_of_range)
        line = "  ".join(f"{label} {cells[key]}" for label, key in self.columns if key in cells)
        self._line(f"{line}  out of range: {marks}" if marks else line)


class LiveObserver(_Timed):
    """A table that grows, with a few current texts below."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self.rows: list[dict[str, str]] = []
        self.live: Live | None = None
        self.bar: Progress | None = None

    def say(self, text: str) -> None:
        self._stop()
        self.console.print(Text.assemble(("› ", "bold"), text), soft_wrap=True)  # a broken address is none

    def warn(self, text: str) -> None:
        self.console.print(Text.assemble(("warning: ", "yellow"), text))

    def start(self, run: RunDir, facts: dict[str, str], updates: int) -> None:
        super().start(run, facts, updates)
        self.rows = []
        table = Table.grid(padding=(0, 2))
        for label, text in {**facts, "run": str(run.path)}.items():
            table.add_row(Text(label, style="dim"), Text(text, overflow="fold"))  # all of a path, to be copied
        self.console.print(table)

    def before(self, samples: list[dict[str, Any]]) -> None:
        self.console.print(_texts("The initial model writes", samples[:6]))

    def step(self, result: StepResult) -> None:
        self.rows.append(self.cells(result))
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
        shown = columns_that_fit(self.columns, self.rows[-ROWS:], self.console.width)
        for label, _ in shown:
            table.add_column(label, justify="right", no_wrap=True)
        for row in self.rows[-ROWS:]:
            table.add_row(*(row.get(key, "") for _, key in shown))
        view = Group(table, Text(), _texts(f"After update {result.update}", result.samples[:4]))
        if self.live is None:
            self.live = Live(console=self.console, auto_refresh=False)
            self.live.start()
        self.live.update(view, refresh=True)
        if result.update == self.updates:
            self._stop()

    def progress(self, what: str, done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
        if figures:
            self.say(_progress(what, done, total, figures))
        if self.bar is None:
            self._stop()
            bar = BarColumn(max(4, min(40, self.console.width - 36)))  # room for the words and the count
            columns = (TextColumn("{task.description}", markup=False), bar, MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.bar.add_task(what, total=total)
        self.bar.update(self.bar.task_ids[0], description=what, completed=done, total=total)
        if done >= total:
            self._stop()

    def end(self) -> None:
        self._stop()

    def _stop(self) -> None:
        for shown in (self.bar, self.live):
            if shown is not None:
                shown.stop()
        self.bar = self.live = None


def columns_that_fit(columns: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, str]], width: int) -> list[tuple[str, str]]:
    """The columns (label and key) that have a figure and fit beside each other in ``width`` with every figure in full, in
    their own order."""
    columns = [column for column in columns if any(column[1] in row for row in rows)]
    first = [*FIRST, *(key for _, key in columns if key.startswith("judge/"))]
    kept: set[str] = set()
    for label, key in sorted(columns, key=lambda column: first.index(column[1]) if column[1] in first else len(first)):
        needed = max(cell_len(text) for text in (label, *(row.get(key, "") for row in rows))) + GAP
        if needed - GAP > width and kept:
            break
        width -= needed
        kept.add(key)
    return [column for column in columns if column[1] in kept]


def _progress(what: str, done: int, total: int, figures: Mapping[str, float] | None) -> str:
    return "  ".join([f"{what} {done}/{total}", *(f"{name} {value:.4g}" for name, value in (figures or {}).items())])


def _texts(title: str, samples: list[dict[str, Any]]) -> Group:
    lines = [Text(title, style="bold")]
    for sample in samples:
        line = Text(f"{sample['score']:+6.2f}  {one_line(sample['prompt'])}", style="dim")
        lines.append(line.append(one_line(sample["response"]), style="default"))
    return Group(*lines)


def _sample_line(sample: dict[str, Any]) -> str:
    return f"{sample['score']:+.2f}  {one_line(sample['prompt'])}|{one_line(sample['response'])}"


def one_line(text: str) -> str:
    """The text on one line, without characters that control the terminal."""
    return visible(text.replace("\n", "␤").replace("\t", " "))

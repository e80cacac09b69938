"""Observers: callbacks of a job. Imports nothing heavy, so that the first message can appear before torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from konomi.runs.directory import RunDir


class Observer:
    """Callbacks of a job; this base class ignores them."""

    def say(self, text: str) -> None:
        """A step began, or an informative message."""

    def warn(self, text: str) -> None:
        """A problem that does not stop the run."""

    def start(self, run: RunDir, facts: dict[str, str], updates: int) -> None:
        """The run is set up. ``facts``: label -> value."""

    def before(self, samples: list[dict[str, Any]]) -> None:
        """Texts of the initial model."""

    def progress(self, what: str, done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
        """Progress of a long step; ``figures`` get a line of their own."""

    def step(self, result: StepResult) -> None:
        """One update is done."""

    def stopping(self) -> None:
        """A signal asked to stop; the update under way is finished first.

        Called in a thread of its own, while the main thread may be in another method.
        """
        self.warn("stopping: this update is finished and saved first; Ctrl-C again stops at once")

    def end(self) -> None:
        """The job has ended, successfully or not."""


@dataclass(frozen=True)
class StepResult:
    """The result of one update."""

    update: int
    """1 is the first."""
    episodes: int
    """Responses drawn so far."""
    metrics: dict[str, float]
    """See docs/metrics.md."""
    samples: list[dict[str, Any]]
    """Some of the texts: prompt, response, score, kl (nats/response)."""
    out_of_range: list[str] = field(default_factory=list)
    """Metrics that are out of their healthy range."""

"""Findings of the doctor: what was checked, what was seen, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from konomi.runs.observer import Observer

Level = Literal["fine", "look", "broken"]
LEVELS: tuple[Level, ...] = ("broken", "look", "fine")
"""The most important first."""


@dataclass(frozen=True)
class Line:
    """One thing that was checked.

    checked: in a word or two. seen: the figure. do: empty if nothing is to be done. level: ``look`` is worth a thought, with
    ``broken`` the run cannot do what it is for.
    """

    checked: str
    seen: str
    do: str = ""
    level: Level = "fine"


def look(checked: str, seen: str, do: str) -> Line:
    """A line that is worth a look."""
    return Line(checked, seen, do, "look")


def broken(checked: str, seen: str, do: str) -> Line:
    """A line that must be fixed."""
    return Line(checked, seen, do, "broken")


class WarningLines(Observer):
    """Forwards the messages of a job, and collects its warnings as lines on ``checked`` with the advice ``do``."""

    def __init__(self, observer: Observer, checked: str, do: str) -> None:
        self.observer, self.checked, self.do = observer, checked, do
        self.lines: list[Line] = []

    def say(self, text: str) -> None:
        self.observer.say(text)

    def warn(self, text: str) -> None:
        self.lines.append(look(self.checked, text, self.do))


def ordered(lines: Sequence[Line]) -> list[Line]:
    """The most important lines first, else as they came."""
    return sorted(lines, key=lambda line: LEVELS.index(line.level))


def result_of(subject: str, verb: str, lines: Sequence[Line], **figures: Any) -> dict[str, Any]:
    """What ``--json`` prints: the subject, how many lines have each level, the lines, and ``figures``."""
    counts: dict[str, int] = {level: sum(line.level == level for line in lines) for level in LEVELS}
    return {"subject": subject, "verb": verb, **counts, **figures, "lines": [asdict(line) for line in ordered(lines)]}

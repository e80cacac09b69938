"""Which task a person gets next, and in which order its texts stand. Pure: all of it follows from what is handed in.

- A task is shown to as many people as ``overlap`` says, and to none of them twice, but for repeats. What somebody has open
  just now counts as done by them until their lease ends, so that two people do not both become the last one.
- The tasks stand in one random order, around a circle; each person starts somewhere else. Tasks that few have answered come
  first, so that there is soon something of everything; but about every fourth is one that somebody else has answered, so
  that agreement is known early.
- Once in every ``1 / repeats`` tasks, at a random one of them, an earlier task comes again in another order of its texts:
  does one agree with oneself? The last few do not come again, one remembers those.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from konomi.errors import DataError
from konomi.seeds import stream_seed

GAP = 5
"""Tasks that lie at least between a task and its repeat."""
AGREEMENT = 0.25
"""Share of the new tasks that are, where there is one, a task that somebody else has answered."""
LOOK = 100
"""Tasks that are looked at to find such a one."""


@dataclass(frozen=True)
class Settings:
    """How the work is handed out.

    Attributes:
        overlap: people a task, 1 to 100; 1.25: every fourth task goes to two.
        repeats: share of what a person is shown that they have answered before, 0 to 0.5.
        lease_minutes: how long a task is kept for who has it open, 1 to 1440.
        k_max: candidates that a task may have, 2 to 9.
        seed: of every order.
    """

    overlap: float = 2.0
    repeats: float = 0.1
    lease_minutes: float = 30.0
    k_max: int = 9
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"overlap": (1, 100), "repeats": (0, 0.5), "lease_minutes": (1, 1440), "k_max": (2, 9)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise DataError(f"settings: {name} is {value!r}; a number from {low} to {high} is needed")
        for name in ("k_max", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise DataError(f"settings: {name} is {value!r}; a whole number is needed")


@dataclass(frozen=True)
class Candidacy:
    """A task that a person might get.

    Attributes:
        id: of the task.
        place: on the circle, 0 to 1.
        leased: other people who have it open.
    """

    id: int
    place: float
    leased: int


@dataclass(frozen=True)
class History:
    """What a person has done.

    Attributes:
        person: their pseudonym.
        new: tasks that they answered or skipped.
        repeats: repeats that they answered or skipped.
    """

    person: str
    new: int
    repeats: int


class Tasks(Protocol):
    """What the queue asks of the tasks, for one person at one moment."""

    def unseen(self, covered: int, begin: float, end: float, look: int | None) -> Iterator[Candidacy]:
        """Tasks with ``begin <= place < end``, by place, that ``covered`` people have answered and the person was not shown.

        With ``look`` it is enough to go through that many tasks, seen or not.
        """

    def earlier(self, first: int, last: int) -> int | None:
        """Of the person's new tasks number ``first`` to ``last``, the first that may come again.

        They count from 1 in the order of their answers; one that was skipped or has come again already may not.
        """


@dataclass(frozen=True)
class Choice:
    """A task, and whether the person has answered it before."""

    task: int
    repeat: bool


def choose(history: History, tasks: Tasks, settings: Settings) -> Choice | None:
    """What the person gets next; None when all is done that can be done by them."""
    if repeat_is_due(history, settings) and (task := _earlier(history, tasks, settings)) is not None:
        return Choice(task, True)
    task = _new(history, tasks, settings)
    return None if task is None else Choice(task, False)


def target(place: float, overlap: float) -> int:
    """How many people a task should go to.

    >>> [target(place, 1.25) for place in (0.2, 0.3)]
    [2, 1]
    """
    return math.floor(overlap) + (place < overlap % 1)


def has_room(place: float, covered: int, leased: int, overlap: float) -> bool:
    """Whether one more person may get a task that ``covered`` have answered and ``leased`` others have open."""
    return covered + leased < target(place, overlap)


def repeat_is_due(history: History, settings: Settings) -> bool:
    """Whether the next one should be a repeat: repeat number r comes at a random place of the r-th ``1 / repeats`` tasks."""
    if not settings.repeats:
        return False
    when = (history.repeats + _fraction(settings.seed, "repeat", history.person, history.repeats)) / settings.repeats
    return history.new + history.repeats >= math.floor(when)


def place_of(task: str, settings: Settings) -> float:
    """Where a task stands on the circle, 0 to 1, by its digest."""
    return _fraction(settings.seed, "place", task)


def order(count: int, task: str, person: str, settings: Settings, before: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """In which order ``count`` candidates of a task (its digest) stand before a person; never in the order ``before``."""
    numbers = list(range(count))
    random.Random(stream_seed(settings.seed, "order", task, person, before is not None)).shuffle(numbers)
    if tuple(numbers) == before:
        numbers = numbers[1:] + numbers[:1]
    return tuple(numbers)


def _earlier(history: History, tasks: Tasks, settings: Settings) -> int | None:
    last = history.new - GAP
    if last < 1:
        return None
    start = 1 + int(last * _fraction(settings.seed, "which", history.person, history.repeats))
    found = tasks.earlier(start, last)
    return tasks.earlier(1, start - 1) if found is None and start > 1 else found


def _new(history: History, tasks: Tasks, settings: Settings) -> int | None:
    start = _fraction(settings.seed, "start", history.person)
    levels = range(math.ceil(settings.overlap))
    if levels[1:] and _fraction(settings.seed, "second", history.person, history.new) < AGREEMENT:
        begin = _fraction(settings.seed, "look", history.person, history.new)
        for covered in reversed(levels[1:]):
            for each in _around(tasks, covered, begin, LOOK):
                if has_room(each.place, covered, each.leased, settings.overlap):
                    return each.id
    open_elsewhere: list[tuple[int, int]] = []
    for covered in levels:
        for each in _around(tasks, covered, start, None):
            if has_room(each.place, covered, each.leased, settings.overlap):
                if not each.leased:
                    return each.id
                open_elsewhere.append((covered + each.leased, each.id))
    return min(open_elsewhere)[1] if open_elsewhere else None


def _around(tasks: Tasks, covered: int, start: float, look: int | None) -> Iterator[Candidacy]:
    yield from tasks.unseen(covered, start, 1.0, look)
    yield from tasks.unseen(covered, 0.0, start, look)


def _fraction(seed: int, *name: str | int) -> float:
    """A number from 0 to less than 1."""
    return (stream_seed(seed, *name) >> 10) / 2**53

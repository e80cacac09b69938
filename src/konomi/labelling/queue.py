"""Choose a person's next task and the order of its texts. Pure functions.

- A task goes to ``overlap`` people, and to each of them once, repeats aside. An open task counts as done until its lease ends,
  so that two people do not both become the last one.
- The tasks lie on a circle in one random order, and each person starts at a different place. Tasks with few answers come first,
  so that all are covered early; but about every fourth has been answered by somebody else, so that agreement is known early.
- Once in every ``1 / repeats`` tasks, at a random one of them, an earlier task is repeated with its texts in another order, to
  measure intra-rater agreement. The most recent tasks are not repeated, as people remember them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import ConfigDict, Field

from konomi.config.section import Section
from konomi.seeds import stream_seed

GAP = 5
"""Fewest tasks between a task and its repeat."""
AGREEMENT = 0.25
"""Share of new tasks that somebody else has answered, where there are such."""
LOOK = 100
"""Tasks that are searched for such a one."""


class Settings(Section):
    """Settings of the queue."""

    model_config = ConfigDict(strict=True)

    overlap: Annotated[float, Field(ge=1, le=100)] = 2.0  # people a task; 1.25: every fourth task goes to two
    repeats: Annotated[float, Field(ge=0, le=0.5)] = 0.1  # share of repeats among what a person is shown
    lease_minutes: Annotated[float, Field(ge=1, le=1440)] = 30.0  # how long a task is kept for who has it open
    k_max: Annotated[int, Field(ge=2, le=9)] = 9  # candidates that a task may have
    seed: int = 0  # of every order


@dataclass(frozen=True)
class UnseenTask:
    """A task that a person was not shown: its id, place on the circle (0 to 1), and how many others have it open."""

    id: int
    place: float
    leased: int


@dataclass(frozen=True)
class History:
    """How many new tasks and how many repeats a person (a pseudonym) has answered or skipped."""

    person: str
    new: int
    repeats: int


class Tasks(Protocol):
    """Queries of the queue, for one person at one moment."""

    def unseen(self, covered: int, begin: float, end: float, look: int | None) -> Iterator[UnseenTask]:
        """Tasks with ``begin <= place < end``, by place, that ``covered`` people have answered and the person was not shown.

        With ``look`` only that many tasks are searched, seen or not.
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
    """The person's next task; None when nothing is left for them."""
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
    """Whether the next task should be a repeat: the r-th comes at a random place of the r-th ``1 / repeats`` tasks."""
    if not settings.repeats:
        return False
    when = (history.repeats + _fraction(settings.seed, "repeat", history.person, history.repeats)) / settings.repeats
    return history.new + history.repeats >= math.floor(when)


def place_of(task: str, settings: Settings) -> float:
    """The place of a task on the circle, 0 to 1, by its digest."""
    return _fraction(settings.seed, "place", task)


def order(count: int, task: str, person: str, settings: Settings, before: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The order in which a person sees the ``count`` candidates of a task (its digest), other than ``before``."""
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
    task = tasks.earlier(start, last)
    return tasks.earlier(1, start - 1) if task is None and start > 1 else task


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


def _around(tasks: Tasks, covered: int, start: float, look: int | None) -> Iterator[UnseenTask]:
    yield from tasks.unseen(covered, start, 1.0, look)
    yield from tasks.unseen(covered, 0.0, start, look)


def _fraction(seed: int, *name: str | int) -> float:
    """A number from 0 to less than 1."""
    return (stream_seed(seed, *name) >> 10) / 2**53

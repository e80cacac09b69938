"""The queue alone, over tasks in a list; and that the store's indexes answer it as the list does."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from pydantic import ValidationError

from konomi.labelling.answers import collect, save
from konomi.labelling.assignments import next_task
from konomi.labelling.people import add_person
from konomi.labelling.queue import (
    AGREEMENT,
    GAP,
    History,
    Settings,
    UnseenTask,
    choose,
    has_room,
    order,
    place_of,
    repeat_is_due,
    target,
)
from people_at_work import NOW, answer_to, skip, store_of


@dataclass
class Team:
    """A team at work, in lists: the plainest thing that the queue can be asked over."""

    count: int
    settings: Settings
    done: dict[str, list[tuple[int, bool, bool]]] = field(default_factory=lambda: defaultdict(list))
    """Of each person: task, whether it was a repeat, whether it was skipped."""
    open: dict[str, tuple[int, bool]] = field(default_factory=dict)

    def place(self, task: int) -> float:
        return place_of(str(task), self.settings)

    def covered(self, task: int) -> int:
        return sum((task, False, False) in done for done in self.done.values())

    def leased(self, task: int, person: str) -> int:
        return sum(each == (task, False) for who, each in self.open.items() if who != person)

    def history(self, person: str) -> History:
        new = sum(not repeat for _, repeat, _ in self.done[person])
        return History(person, new, len(self.done[person]) - new)

    def next(self, person: str) -> tuple[int, bool] | None:
        if person not in self.open:
            choice = choose(self.history(person), View(self, person), self.settings)
            if choice is None:
                return None
            self.open[person] = choice.task, choice.repeat
        return self.open[person]

    def answer(self, person: str, skipped: bool = False) -> None:
        self.done[person].append((*self.open.pop(person), skipped))


@dataclass
class View:
    team: Team
    person: str

    def unseen(self, covered: int, begin: float, end: float, look: int | None) -> Iterator[UnseenTask]:
        seen = {task for task, *_ in self.team.done[self.person]}
        here = [
            task
            for task in sorted(range(self.team.count), key=self.team.place)
            if begin <= self.team.place(task) < end and self.team.covered(task) == covered
        ]
        for task in here[:look]:
            if task not in seen:
                yield UnseenTask(task, self.team.place(task), self.team.leased(task, self.person))

    def earlier(self, first: int, last: int) -> int | None:
        new = [(task, skipped) for task, repeat, skipped in self.team.done[self.person] if not repeat]
        again = {task for task, repeat, _ in self.team.done[self.person] if repeat}
        return next((task for task, skipped in new[first - 1 : last] if not skipped and task not in again), None)


def work_at_random(team: Team, people: list[str], seed: int, skips: float) -> None:
    """People take and answer tasks in a random order of events, until nobody gets any more."""
    drawn = random.Random(seed)
    while True:
        # whoever has one open may still skip it, and it is free again: only when nobody has is it the end
        waiting = [person for person in people if team.next(person) is not None]
        if not waiting:
            return
        for person in drawn.sample(waiting, drawn.randint(1, len(waiting))):
            team.answer(person, drawn.random() < skips)


teams = st.builds(
    Team,
    st.sampled_from([1, 2, 7, 15, 25]),
    st.builds(
        Settings,
        overlap=st.sampled_from([1, 1.3, 2, 2.5, 3, 7]),
        repeats=st.sampled_from([0, 0.1, 0.3, 0.5]),
        seed=st.integers(0, 5),
    ),
)


@hypothesis(max_examples=80, deadline=None)
@given(teams, st.sampled_from([1, 2, 3, 5]), st.integers(0, 99), st.sampled_from([0.0, 0.2]))
def test_what_holds_of_any_team(team: Team, size: int, seed: int, skips: float) -> None:
    people = [f"p-{n}" for n in range(size)]
    work_at_random(team, people, seed, skips)
    for person in people:
        done = team.done[person]
        new = [task for task, repeat, _ in done if not repeat]
        again = [task for task, repeat, _ in done if repeat]
        assert len(set(new)) == len(new)  # never the same task twice as a new one
        assert len(set(again)) == len(again)  # and once more at the most
        for at, (task, repeat, _) in enumerate(done):
            if repeat:
                first = next(i for i, each in enumerate(done) if each[0] == task)
                assert not done[first][2]  # a skipped one does not come again
                assert sum(not r for _, r, _ in done[first + 1 : at]) >= GAP
    for task in range(team.count):
        wanted = target(team.place(task), team.settings.overlap)
        assert team.covered(task) <= wanted  # never overshot
        if team.covered(task) < wanted:  # and it ends when all is done: whoever is left has had it
            assert all(task in {each for each, *_ in team.done[person]} for person in people)


@hypothesis(max_examples=15, deadline=None)
@given(st.sampled_from([0.05, 0.1, 0.25, 0.5]), st.integers(0, 50))
def test_repeats_are_about_the_share_that_was_asked_for(repeats: float, seed: int) -> None:
    team = Team(120, Settings(overlap=1, repeats=repeats, seed=seed))
    work_at_random(team, ["p"], seed, 0.0)
    again = sum(repeat for _, repeat, _ in team.done["p"])
    assert len(team.done["p"]) == 120 + again
    assert again == pytest.approx(repeats * len(team.done["p"]), abs=3)


def test_no_repeats_when_none_are_wanted() -> None:
    assert not any(repeat_is_due(History("p", new, 0), Settings(repeats=0)) for new in range(200))


def test_when_a_repeat_comes_cannot_be_foretold_but_follows_from_the_seed() -> None:
    def gaps(seed: int) -> list[int]:
        team = Team(200, Settings(overlap=1, seed=seed))
        work_at_random(team, ["p"], 0, 0.0)
        at = [i for i, (_, repeat, _) in enumerate(team.done["p"]) if repeat]
        return [b - a for a, b in itertools.pairwise(at)]

    assert gaps(1) == gaps(1)
    assert gaps(1) != gaps(2)
    assert len(set(gaps(1))) > 5


def test_an_open_task_is_kept_for_who_has_it() -> None:
    team = Team(1, Settings(overlap=1))
    assert team.next("p") == (0, False)
    assert team.next("q") is None
    team.answer("p", skipped=True)
    assert team.next("q") == (0, False)


def test_what_nobody_has_comes_first_and_what_others_have_open_last() -> None:
    team = Team(3, Settings(overlap=3, repeats=0))
    got = [team.next(person) for person in "pqr"]
    assert {each for each in got if each} == {(0, False), (1, False), (2, False)}


def test_people_start_at_different_places_and_most_of_all_is_covered_early() -> None:
    team = Team(100, Settings(overlap=3, repeats=0))
    firsts = {team.next(f"p-{n}") for n in range(8)}
    assert len(firsts) == 8
    for n in range(8):
        team.answer(f"p-{n}")
    for _ in range(9):
        for n in range(8):
            team.next(f"p-{n}")
            team.answer(f"p-{n}")
    counts = Counter(team.covered(task) for task in range(100))
    seconds = counts[2] + 2 * counts[3]
    assert counts[0] < 45  # 80 answers
    assert seconds == pytest.approx(80 * AGREEMENT, abs=10)


def test_overlap_with_a_fraction() -> None:
    settings = Settings(overlap=1.25)
    wanted = [target(place_of(str(task), settings), settings.overlap) for task in range(4000)]
    assert set(wanted) == {1, 2}
    assert sum(wanted) / 4000 == pytest.approx(1.25, abs=0.03)
    assert [has_room(0.9, covered, leased, 2) for covered, leased in ((0, 0), (1, 0), (1, 1), (2, 0), (0, 2))] == [
        *(True, True, False, False, False)
    ]


@given(st.integers(2, 9), st.text(max_size=5), st.text(max_size=5))
def test_orders(count: int, task: str, person: str) -> None:
    settings = Settings()
    first = order(count, task, person, settings)
    assert sorted(first) == list(range(count))
    assert first == order(count, task, person, settings)
    again = order(count, task, person, settings, first)
    assert sorted(again) == list(range(count))
    assert again != first


def test_each_candidate_stands_at_each_place_equally_often() -> None:
    counts = Counter(order(3, f"task {n}", f"person {n % 7}", Settings()) for n in range(6000))
    assert len(counts) == 6
    assert all(count == pytest.approx(1000, abs=130) for count in counts.values())


@pytest.mark.parametrize(
    "given",
    [
        {"overlap": 0},
        {"overlap": float("nan")},
        {"repeats": 0.6},
        {"lease_minutes": "30"},
        {"k_max": 10},
        {"k_max": 3.5},
        {"seed": True},
    ],
    ids=str,
)
def test_settings_that_cannot_be(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(given))):
        Settings(**given)


@pytest.mark.parametrize(("overlap", "repeats"), [(1, 0.1), (1.5, 0.2), (2, 0.1), (3, 0.5)])
def test_the_store_hands_out_what_the_list_would(tmp_path: Path, overlap: float, repeats: float) -> None:
    store = store_of(tmp_path, 30, overlap=overlap, repeats=repeats)
    people = [add_person(store, name)[0] for name in ("one", "two", "three")]
    items = collect(store).items
    with store.read() as db:
        digests = dict(db.execute("SELECT id, digest FROM tasks"))
    ids = {item.prompt: task for task, item in items.items()}

    class Listed(Team):
        def place(self, task: int) -> float:
            return place_of(digests[task + 1], self.settings)

    team = Listed(30, store.settings)
    drawn = random.Random(7)
    for step in range(400):
        person = drawn.choice(people)
        expected = team.next(person.id)
        shown = next_task(store, person, NOW + step)
        if expected is None:
            assert shown is None
            continue
        assert shown is not None
        assert ids[shown.prompt] == expected[0] + 1
        if drawn.random() < 0.8:
            skipped = drawn.random() < 0.1
            team.answer(person.id, skipped)
            # the next one is leased in the same commit as the answer
            save(store, person, skip(shown) if skipped else answer_to(shown), NOW + step)
            team.next(person.id)
    by_store = [(each.rater, each.task - 1, each.repeat, each.kind == "skipped") for each in collect(store).judgements]
    by_list = [(who, *each) for who, done in team.done.items() for each in done]
    assert sorted(by_store) == sorted(by_list)
    assert {person.id for person in people} == set(team.done)
    assert len(by_store) > 25 * overlap

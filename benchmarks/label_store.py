"""How long a person waits for the store: 10,000 tasks, 100,000 answers of 20 people.

Makes such a store through its own methods (the disk's flushes off), then measures on it what one step of the page does.
What the processor does and what the disk's flushes take are told apart: the second is the disk's, a few flushes a commit.

    python benchmarks/label_store.py                     a few minutes
    python benchmarks/label_store.py --tasks 1000 --answers 10000
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from konomi.data.records import Candidate
from konomi.labelling.answers import collect, own_answers, save
from konomi.labelling.assignments import find_shown, next_task, progress_of
from konomi.labelling.database import Store, journal_mode
from konomi.labelling.import_tasks import create_store
from konomi.labelling.people import add_person, all_people, forget, new_token, person_of
from konomi.labelling.queue import Settings
from konomi.labelling.records import Answer, NewTask, Person, Shown

K = 4
WORDS = "今日の天気は晴れで、風がとても気持ちよく、散歩に出かけたくなります。"


def answer(shown: Shown, drawn: random.Random) -> Answer:
    """A random ranking with a short comment."""
    ranks = {text.key: drawn.randint(1, len(shown.texts)) for text in shown.texts}
    comment = WORDS[: drawn.randint(0, 20)]
    return Answer(id=str(uuid.uuid4()), shown=shown.id, kind="ranked", ranks=ranks, comment=comment, seconds=20.0)


def build(path: Path, tasks: int, answers: int, people: int, settings: Settings) -> float:
    """Fill a new store; return how many seconds a step took without flushes."""
    drawn = random.Random(0)
    made = [
        NewTask(f"{n}: {WORDS}", tuple(Candidate(f"{i} {WORDS * 3}", {"model": f"model-{i}", "seed": n}) for i in range(K)))
        for n in range(tasks)
    ]
    with create_store(path, made, settings)[0] as store:
        team = [add_person(store, f"person {n}")[0] for n in range(people)]
        store.connection.execute("PRAGMA synchronous = OFF")
        store.connection.execute("PRAGMA journal_mode = MEMORY")
        start = time.perf_counter()
        for n in range(answers):
            person = team[n % people] if n % 3 else drawn.choice(team)
            shown = next_task(store, person, n)
            if shown is None:
                raise SystemExit(f"{person.name} has nothing left after {n:,} answers; give more tasks")
            save(store, person, answer(shown, drawn), n)
        return (time.perf_counter() - start) / answers


def median(call: Callable[[], object], times: int) -> str:
    """Median and 95th percentile of some calls."""
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        spent.append((time.perf_counter() - start) * 1000)
    return f"{statistics.median(spent):8.2f} {statistics.quantiles(spent, n=20)[-1]:8.2f}"


def measure(store: Store, now: float, times: int) -> None:
    """Print what each call takes, in milliseconds."""
    drawn = random.Random(1)
    team = all_people(store)
    shown = {person.id: next_task(store, person, now) for person in team}

    def answer_one() -> None:
        person = drawn.choice(team)
        task = shown[person.id]
        assert task is not None
        save(store, person, answer(task, drawn), now)
        shown[person.id] = next_task(store, person, now)

    def revise() -> None:
        person = drawn.choice(team)
        task = find_shown(store, person, drawn.choice(own_answers(store, person)).shown)
        assert task is not None
        save(store, person, answer(task, drawn), now)

    some: Callable[[], Person] = lambda: drawn.choice(team)  # noqa: E731
    token = new_token(store, team[0].id)
    for name, call in {
        "answer + next_task": answer_one,
        "next_task again": lambda: next_task(store, some(), now),
        "mine + shown + revision": revise,
        "progress": lambda: progress_of(store, some(), now),
        "mine": lambda: own_answers(store, some()),
        "person_of": lambda: person_of(store, token),
    }.items():
        print(f"  {name:24}{median(call, times)}")


def main() -> None:
    """Build a store, measure it with flushes and without, and what an export and an opening take."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--tasks", type=int, default=10_000)
    arguments.add_argument("--answers", type=int, default=100_000)
    arguments.add_argument("--people", type=int, default=20)
    arguments.add_argument("--times", type=int, default=300)
    given = arguments.parse_args()
    settings = Settings(overlap=1 + 1.5 * given.answers / given.tasks)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "labels.sqlite3"
        step = build(path, given.tasks, given.answers, given.people, settings)
        mode = journal_mode(sqlite3.sqlite_version_info)
        print(f"SQLite {sqlite3.sqlite_version}, journal {mode}, {os.cpu_count()} cores, {path.stat().st_size / 1e6:.0f} MB")
        print(f"{given.tasks:,} tasks of {K} texts, {given.answers:,} answers of {given.people} people")
        print(f"filling it: {step * 1000:.2f} ms a step without flushes")
        start = time.perf_counter()
        with Store(path, settings) as store:
            print(f"opening: {time.perf_counter() - start:.2f} s (it is checked whole)")
            for title, sync in (("with flushes", "EXTRA"), ("without (what the processor does)", "OFF")):
                store.connection.execute(f"PRAGMA synchronous = {sync}")
                print(f"ms, median and 95th percentile of {given.times}, {title}:")
                measure(store, given.answers, given.times)
            start = time.perf_counter()
            exported = collect(store)
            print(f"export: {time.perf_counter() - start:.2f} s for {len(exported.judgements):,} answers")
            answered = progress_of(store, all_people(store)[0], 0).mine
            start = time.perf_counter()
            forget(store, all_people(store)[0].id)
            print(f"forget: {time.perf_counter() - start:.2f} s for {answered:,} answers")


if __name__ == "__main__":
    main()

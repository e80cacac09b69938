"""Assign tasks to raters, show them, and measure progress."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from konomi.labelling import people, queue
from konomi.labelling.database import Store
from konomi.labelling.queue import History, Settings, UnseenTask
from konomi.labelling.records import KEYS, Person, Progress, Shown, ShownText, without_surrogates
from konomi.labelling.tables import Row, checked_places, task_of

RECENT = 30
"""The last answers, from which a person's speed is estimated."""
PAUSE = 600.0
"""Maximum seconds that count for one answer: an idle page is not work."""

# a lease that ends far in the future was granted before the clock was set back: ignore it
_LEASED = """(SELECT count(*) FROM shown AS other WHERE other.task = tasks.id AND other.number IS NULL AND other.until > :now
    AND other.until <= :now + 2 * :lease AND other.repeat = 0)"""
# a task that the person gave up without an answer may be assigned to them again
_SEEN = """EXISTS (SELECT 1 FROM shown WHERE shown.person = :person AND shown.task = tasks.id
    AND (shown.number IS NOT NULL OR shown.until > 0))"""
_UNSEEN = f"""SELECT id, place, {_LEASED}, {_SEEN} FROM tasks WHERE covered = :covered AND place >= :begin AND place < :end"""
_EARLIER = """SELECT task FROM shown WHERE person = ? AND repeat = 0 AND number BETWEEN ? AND ? AND kind <> 'skipped'
    AND NOT EXISTS (SELECT 1 FROM shown AS again
        WHERE again.person = shown.person AND again.task = shown.task AND again.repeat = 1) ORDER BY number LIMIT 1"""
_WANTED = "(:whole + (place < :rest))"
"""How many people a task should go to, as :func:`queue.target` says."""
_OPEN = """SELECT id, task, repeat, until FROM shown
    WHERE person = ? AND repeat IN (0, 1) AND number IS NULL AND until > 0 ORDER BY repeat LIMIT 1"""


def next_task(store: Store, person: Person, now: float) -> Shown | None:
    """The person's open task, else a new one; None: nothing is left, or the collection is closed.

    It stays reserved for the person until its lease ends.

    Args:
        now: seconds since 1970, here and below.

    Raises:
        Refused: the person was forgotten.
    """
    half = store.settings.lease_minutes * 30
    with store.read() as db:  # usually it was assigned with the last answer, and nothing needs to be written
        row = _open_showing(db, person.id)
        if row is not None and now + half < row[3] <= now + 4 * half and not store.frozen:
            return _shown(db, row[0])
    with store.write() as db:
        people.find_person(store, person.id)
        showing = None if store.frozen else hand_out(db, person.id, store.settings, now)
        return None if showing is None else _shown(db, showing)


def find_shown(store: Store, person: Person, shown_id: str) -> Shown | None:
    """A task as it was shown to this person; None if it was not."""
    showing = without_surrogates(shown_id)
    with store.read() as db:
        row = db.execute("SELECT 1 FROM shown WHERE id = ? AND person = ?", (showing, person.id)).fetchone()
        return _shown(db, showing) if row else None


def give_up(store: Store, person: Person) -> None:
    """Release the person's open task. A late answer is still accepted."""
    with store.write() as db:
        db.execute("UPDATE shown SET until = 0 WHERE person = ? AND number IS NULL", (person.id,))


def busy(store: Store, now: float, seconds: float = 600.0) -> bool:
    """Whether a task that was assigned within the last ``seconds`` is still unanswered."""
    query = "SELECT 1 FROM shown WHERE number IS NULL AND until > 0 AND at > ? LIMIT 1"
    with store.read() as db:
        return db.execute(query, (now - seconds,)).fetchone() is not None


def coverage(store: Store) -> tuple[int, int]:
    """Answers that count toward the target, and the target: tasks times people per task."""
    with store.read() as db:
        team, target = db.execute(
            "SELECT coalesce(sum(min(covered, wanted)), 0), coalesce(sum(wanted), 0) FROM"
            f" (SELECT covered, {_WANTED} AS wanted FROM tasks INDEXED BY tasks_in_turn)",
            _wanted(store.settings),
        ).fetchone()
        return team, target


def complete(store: Store) -> bool:
    """Whether no more answers are expected: the target is met, or everyone skipped what is missing."""
    with store.read() as db:
        team, target = coverage(store)
        if team >= target:
            return True
        skips = db.execute(  # in place of answers that are wanted, each once
            f"SELECT sum(min(skips, max(0, {_WANTED} - covered))) FROM tasks JOIN"
            " (SELECT task, count(*) AS skips FROM shown WHERE kind = 'skipped' AND repeat = 0 GROUP BY task) ON task = tasks.id",
            _wanted(store.settings),
        ).fetchone()[0]
        if team + (skips or 0) < target:
            return False
        return not any(_left(db, each.id, store.settings) for each in people.all_people(store) if each.active)


def progress_of(store: Store, person: Person, now: float) -> Progress:
    """The progress of a person and of the team."""
    with store.read() as db:
        history = TasksFor(db, person.id, now, store.settings.lease_minutes * 60).history()
        team, target = coverage(store)
        last = "SELECT id FROM shown WHERE person = ? AND answered > 0 ORDER BY answered DESC LIMIT ?"
        rows = db.execute(
            f"SELECT seconds FROM ({last}) AS last JOIN answers ON answers.shown = last.id AND answers.revision = 1",
            (person.id, RECENT),
        )
        spent = [min(seconds, PAUSE) for (seconds,) in rows]
        each = sum(spent) / len(spent) if len(spent) >= 3 else 0.0
        own = "SELECT count(*) FROM shown WHERE person = ? AND kind = 'skipped'"
        left = _left(db, person.id, store.settings)
        return Progress(
            mine=history.new + history.repeats,
            skipped=db.execute(own, (person.id,)).fetchone()[0],
            left=left,
            team=team,
            target=target,
            per_hour=3600 / each if each else None,
            minutes_left=left / (1 - store.settings.repeats) * each / 60 if each else None,
            frozen=store.frozen,
        )


@dataclass(frozen=True)
class TasksFor:
    """Implements :class:`queue.Tasks` on the tables, for one person at one moment."""

    db: sqlite3.Connection
    person: str
    now: float
    lease: float
    """Seconds that a task is kept for a person."""

    def history(self) -> History:
        """How many new tasks and repeats the person has answered or skipped."""
        last = "SELECT max(number) FROM shown WHERE person = ? AND repeat = ?"
        new, repeats = (self.db.execute(last, (self.person, repeat)).fetchone()[0] or 0 for repeat in (0, 1))
        return History(self.person, new, repeats)

    def unseen(self, covered: int, begin: float, end: float, look: int | None) -> Iterator[UnseenTask]:
        """See :class:`queue.Tasks`."""
        given = {
            "person": self.person,
            "now": self.now,
            "lease": self.lease,
            "covered": covered,
            "begin": begin,
            "end": end,
            "look": look,
        }
        rest = f" AND NOT {_SEEN} ORDER BY place" if look is None else " ORDER BY place LIMIT :look"
        for task, place, leased, seen in self.db.execute(_UNSEEN + rest, given):
            if not seen:
                yield UnseenTask(task, place, leased)

    def earlier(self, first: int, last: int) -> int | None:
        """See :class:`queue.Tasks`."""
        row = self.db.execute(_EARLIER, (self.person, first, last)).fetchone()
        return None if row is None else int(row[0])

    def has_room(self, task: int, overlap: float) -> bool:
        """Whether one more person may get a task."""
        state = f"SELECT place, covered, {_LEASED} FROM tasks WHERE id = :task"
        place, covered, leased = self.db.execute(state, {"now": self.now, "lease": self.lease, "task": task}).fetchone()
        return queue.has_room(place, covered, leased, overlap)

    def order_before(self, task: int) -> tuple[int, ...] | None:
        """The order in which the person saw the task's candidates; None if they did not."""
        query = "SELECT places FROM shown WHERE person = ? AND task = ? AND repeat = 0"
        row = self.db.execute(query, (self.person, task)).fetchone()
        return None if row is None else tuple(map(int, row[0]))


def _open_showing(db: sqlite3.Connection, person: str) -> tuple[str, int, int, float] | None:
    """The person's unanswered showing: id, task, whether it is a repeat, end of the lease."""
    row: tuple[str, int, int, float] | None = db.execute(_OPEN, (person,)).fetchone()
    return row


def hand_out(db: sqlite3.Connection, person: str, settings: Settings, now: float) -> str | None:
    """The id of the showing that the person has open, its lease renewed, else of a new one; None: nothing is left."""
    tasks = TasksFor(db, person, now, settings.lease_minutes * 60)
    until = now + tasks.lease
    while row := _open_showing(db, person):
        showing, task, repeat, ended = row
        if repeat or ended > now or tasks.has_room(task, settings.overlap):
            db.execute("UPDATE shown SET until = ? WHERE id = ?", (until, showing))
            return showing
        # reassigned since; a late answer is still accepted
        db.execute("UPDATE shown SET until = 0 WHERE id = ?", (showing,))
    choice = queue.choose(tasks.history(), tasks, settings)
    if choice is None:
        return None
    candidates = "(SELECT count(*) FROM candidates WHERE task = tasks.id)"
    digest, count = db.execute(f"SELECT digest, {candidates} FROM tasks WHERE id = ?", (choice.task,)).fetchone()
    order = queue.order(count, digest, person, settings, tasks.order_before(choice.task))
    given_up = "SELECT id FROM shown WHERE person = ? AND task = ? AND repeat = ? AND number IS NULL"
    known = db.execute(given_up, (person, choice.task, choice.repeat)).fetchone()
    if known is not None:  # a page may still show it
        db.execute("UPDATE shown SET until = ? WHERE id = ?", (until, known[0]))
        return str(known[0])
    return insert_showing(db, choice.task, person, order, now, until, choice.repeat)


def insert_showing(
    db: sqlite3.Connection, task: int, person: str, order: Sequence[int], now: float, until: float, repeat: bool = False
) -> str:
    """Insert a showing of a task's candidates in an order; its id."""
    showing = secrets.token_urlsafe(15)
    db.execute(
        "INSERT INTO shown (id, task, person, repeat, places, at, until) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (showing, task, person, repeat, "".join(map(str, order)), now, until),
    )
    return showing


def shown_texts(candidates: Sequence[Row], order: Sequence[int]) -> tuple[ShownText, ...]:
    """The candidates of a task, of :func:`task_of`, in an order and with the keys of a showing."""
    rows = zip(KEYS, (candidates[number] for number in order), strict=False)
    return tuple(ShownText(key, text, lang, ("reveals",) if named else ()) for key, (text, lang, named, _) in rows)


def _shown(db: sqlite3.Connection, showing: str) -> Shown:
    task, places, revision = db.execute("SELECT task, places, revision FROM shown WHERE id = ?", (showing,)).fetchone()
    (_, lang, prompt, _), candidates = task_of(db, task)
    return Shown(showing, prompt, lang, shown_texts(candidates, checked_places(places, len(candidates), showing)), revision)


def _left(db: sqlite3.Connection, person: str, settings: Settings) -> int:
    """How many tasks still need answers and have none of this person's."""
    given = {"person": person, **_wanted(settings)}
    never = db.execute(
        f"SELECT count(*) FROM tasks INDEXED BY tasks_in_turn WHERE covered < {_WANTED} AND NOT EXISTS"
        " (SELECT 1 FROM shown WHERE shown.person = :person AND shown.task = tasks.id)",
        given,
    ).fetchone()[0]
    unanswered = db.execute(
        "SELECT count(*) FROM shown JOIN tasks ON tasks.id = task"
        f" WHERE person = :person AND repeat = 0 AND number IS NULL AND covered < {_WANTED}",
        given,
    ).fetchone()[0]
    return int(never + unanswered)


def _wanted(settings: Settings) -> dict[str, float]:
    return {"whole": int(settings.overlap), "rest": settings.overlap % 1}

"""Handing out work: what the queue asks of the tables, and a task as it is shown. Functions over an open transaction."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator

from konomi.labelling import queue
from konomi.labelling.checksums import checked_places, seal_task, task_of
from konomi.labelling.import_tasks import Ready
from konomi.labelling.queue import Candidacy, History, Settings
from konomi.labelling.records import KEYS, Progress, Shown, ShownText

RECENT = 30
"""Answers that a person's speed is taken from."""
PAUSE = 600.0
"""Seconds that one answer counts for at most: who has left the page open has not worked."""

_LEASED = """(SELECT count(*) FROM shown AS other WHERE other.task = tasks.id AND other.number IS NULL AND other.until > :now
    AND other.repeat = 0)"""
# what the person gave up to others, and never answered, is theirs again should there be room again
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


def add_tasks(db: sqlite3.Connection, tasks: list[Ready], settings: Settings) -> int:
    """Add those tasks that are not there yet; return how many."""
    added = 0
    for task in tasks:
        place = queue.place_of(task.digest, settings)
        made = db.execute(
            "INSERT INTO tasks (digest, place, kind, lang, prompt, columns) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (task.digest, place, task.kind, task.lang, task.prompt, task.columns),
        )
        if made.rowcount:
            added += 1
            rows = [(made.lastrowid, number, *each) for number, each in enumerate(task.candidates)]
            db.executemany("INSERT INTO candidates VALUES (?, ?, ?, ?, ?, ?)", rows)
            seal_task(db, int(made.lastrowid or 0))
    return added


class TasksFor:
    """The tasks as the queue asks for them: of one person, at one moment, out of the indexes."""

    def __init__(self, db: sqlite3.Connection, person: str, now: float) -> None:
        self.db = db
        self.person = person
        self.now = now

    def history(self) -> History:
        """How much the person has done."""
        last = "SELECT max(number) FROM shown WHERE person = ? AND repeat = ?"
        new, repeats = (self.db.execute(last, (self.person, repeat)).fetchone()[0] or 0 for repeat in (0, 1))
        return History(self.person, new, repeats)

    def unseen(self, covered: int, begin: float, end: float, look: int | None) -> Iterator[Candidacy]:
        """As :class:`queue.Tasks` says."""
        given = {"person": self.person, "now": self.now, "covered": covered, "begin": begin, "end": end, "look": look}
        rest = f" AND NOT {_SEEN} ORDER BY place" if look is None else " ORDER BY place LIMIT :look"
        for task, place, leased, seen in self.db.execute(_UNSEEN + rest, given):
            if not seen:
                yield Candidacy(task, place, leased)

    def earlier(self, first: int, last: int) -> int | None:
        """As :class:`queue.Tasks` says."""
        row = self.db.execute(_EARLIER, (self.person, first, last)).fetchone()
        return None if row is None else int(row[0])

    def state(self, task: int) -> tuple[float, int, int]:
        """A task's place, how many people have answered it, and how many have it open."""
        given = {"now": self.now, "task": task}
        place, covered, leased = self.db.execute(
            f"SELECT place, covered, {_LEASED} FROM tasks WHERE id = :task", given
        ).fetchone()
        return place, covered, leased

    def order_before(self, task: int) -> tuple[int, ...] | None:
        """In which order the person has seen the task's candidates; None if they have not."""
        shown = "SELECT places FROM shown WHERE person = ? AND task = ? AND repeat = 0"
        row = self.db.execute(shown, (self.person, task)).fetchone()
        return None if row is None else tuple(map(int, row[0]))


def open_showing(db: sqlite3.Connection, person: str) -> tuple[str, int, int, float] | None:
    """What the person was shown and has not answered: its id, task, whether it is a repeat, and when the lease ends."""
    row: tuple[str, int, int, float] | None = db.execute(_OPEN, (person,)).fetchone()
    return row


def hand_out(db: sqlite3.Connection, person: str, settings: Settings, now: float) -> str | None:
    """The id of the showing that the person has open, with a new lease, or else of a new one; None: nothing is left."""
    tasks = TasksFor(db, person, now)
    until = now + settings.lease_minutes * 60
    while row := open_showing(db, person):
        showing, task, repeat, ended = row
        if repeat or ended > now or queue.has_room(*tasks.state(task), settings.overlap):
            db.execute("UPDATE shown SET until = ? WHERE id = ?", (until, showing))
            return showing
        # others have taken it since; should an answer still come it is saved all the same
        db.execute("UPDATE shown SET until = 0 WHERE id = ?", (showing,))
    choice = queue.choose(tasks.history(), tasks, settings)
    if choice is None:
        return None
    count = "(SELECT count(*) FROM candidates WHERE task = tasks.id)"
    digest, count = db.execute(f"SELECT digest, {count} FROM tasks WHERE id = ?", (choice.task,)).fetchone()
    order = queue.order(count, digest, person, settings, tasks.order_before(choice.task))
    given_up = "SELECT id FROM shown WHERE person = ? AND task = ? AND repeat = ? AND number IS NULL"
    row = db.execute(given_up, (person, choice.task, choice.repeat)).fetchone()
    if row is not None:  # the page may still hold it
        db.execute("UPDATE shown SET until = ? WHERE id = ?", (until, row[0]))
        return str(row[0])
    showing = secrets.token_urlsafe(15)
    db.execute(
        "INSERT INTO shown (id, task, person, repeat, places, at, until) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (showing, choice.task, person, choice.repeat, "".join(map(str, order)), now, until),
    )
    return showing


def shown(db: sqlite3.Connection, showing: str) -> Shown:
    """The task of a showing as it is shown."""
    task, places, revision = db.execute("SELECT task, places, revision FROM shown WHERE id = ?", (showing,)).fetchone()
    (_, lang, prompt, _), candidates = task_of(db, task)
    texts = []
    for key, place in zip(KEYS, checked_places(places, len(candidates), showing), strict=False):
        text, own, named, _ = candidates[place]
        texts.append(ShownText(key, text, own, ("reveals",) if named else ()))
    return Shown(showing, prompt, lang, tuple(texts), revision)


def coverage(db: sqlite3.Connection, settings: Settings) -> tuple[int, int]:
    """How many answers are wanted, and how many of these are there."""
    target, team = db.execute(
        "SELECT sum(wanted), sum(min(covered, wanted)) FROM"
        f" (SELECT covered, {_WANTED} AS wanted FROM tasks INDEXED BY tasks_in_turn)",
        _wanted(settings),
    ).fetchone()
    return target, team


def skipped(db: sqlite3.Connection, settings: Settings) -> int:
    """How many of the answers that are wanted people have skipped instead, each once: nobody may be left to give them."""
    found = db.execute(
        f"SELECT sum(min(skips, max(0, {_WANTED} - covered))) FROM tasks JOIN"
        " (SELECT task, count(*) AS skips FROM shown WHERE kind = 'skipped' AND repeat = 0 GROUP BY task) ON task = tasks.id",
        _wanted(settings),
    ).fetchone()
    return int(found[0] or 0)


def left(db: sqlite3.Connection, person: str, settings: Settings) -> int:
    """How many tasks are still there for a person: some answers to them are wanted, and none is theirs."""
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


def give_up(db: sqlite3.Connection, person: str) -> None:
    """End the lease of what a person has open."""
    db.execute("UPDATE shown SET until = 0 WHERE person = ? AND number IS NULL", (person,))


def begun_since(db: sqlite3.Connection, since: float) -> bool:
    """Whether somebody has a task open that they were shown after ``since``."""
    row = db.execute("SELECT 1 FROM shown WHERE number IS NULL AND until > 0 AND at > ? LIMIT 1", (since,)).fetchone()
    return row is not None


def _wanted(settings: Settings) -> dict[str, float]:
    return {"whole": int(settings.overlap), "rest": settings.overlap % 1}


def progress(db: sqlite3.Connection, person: str, settings: Settings, frozen: bool, now: float) -> Progress:
    """How far a person and the team are."""
    history = TasksFor(db, person, now).history()
    target, team = coverage(db, settings)
    spent = [
        min(seconds, PAUSE)
        for (seconds,) in db.execute(
            "SELECT seconds FROM (SELECT id FROM shown WHERE person = ? AND answered > 0 ORDER BY answered DESC LIMIT ?) AS last"
            " JOIN answers ON answers.shown = last.id AND answers.revision = 1",
            (person, RECENT),
        )
    ]
    each = sum(spent) / len(spent) if len(spent) >= 3 else 0.0
    own = "SELECT count(*) FROM shown WHERE person = ? AND kind = 'skipped'"
    skipped = db.execute(own, (person,)).fetchone()[0]
    still = left(db, person, settings)
    return Progress(
        mine=history.new + history.repeats,
        skipped=skipped,
        left=still,
        team=team,
        target=target,
        per_hour=3600 / each if each else None,
        minutes_left=still / (1 - settings.repeats) * each / 60 if each else None,
        frozen=frozen,
    )

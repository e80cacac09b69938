"""The store: tasks, people and their answers in one SQLite file. Safe for several threads and several processes.

An answer is on the disk before :meth:`Store.answer` returns, once, however often it is sent; what it replaces is kept.
What is handed to a person (:class:`Shown`, :class:`Answer`, :class:`Mine`, :class:`Progress`) tells no text's source.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from konomi.errors import DataError
from konomi.labelling import answers, assignments, people
from konomi.labelling.checks import checked_id, whole
from konomi.labelling.checksums import checked_json, everything
from konomi.labelling.database import Database, explained
from konomi.labelling.import_tasks import Made, ready
from konomi.labelling.queue import Settings
from konomi.labelling.records import (
    NOTHING_YET,
    Answer,
    Exported,
    Imported,
    Mine,
    NewTask,
    Person,
    Progress,
    Refused,
    Saved,
    Shown,
)


class Store:
    """An open store. Methods that take ``now`` want seconds since 1970; all may raise RunError when the disk fails."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.settings = settings
        self._database = database
        self._comparisons = answers.Comparisons()

    @classmethod
    def create(
        cls, path: Path, tasks: Iterable[NewTask], settings: Settings, models: Iterable[str] = ()
    ) -> tuple[Store, Imported]:
        """Make a store of tasks, and say what became of them.

        Args:
            path: of the file.
            tasks: at least one.
            settings: how the work is handed out.
            models: names of models besides those in the sources of the texts; what names one is flagged.

        Raises:
            DataError: the file is there already; there are no tasks, or one cannot be used. No file is then made.
            RunError: it cannot be written.
        """
        made = ready(list(tasks), settings.k_max, models)
        store = cls(Database(path, new=True), settings)
        try:
            imported = store._add(made)
        except BaseException:
            store.close()
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        return store, imported

    @classmethod
    def open(cls, path: Path, settings: Settings, wait: float | None = None) -> Store:
        """Open a store; one of an older version is brought up to date. The settings are those of the project, not of the file.
        ``wait``: seconds that each call may wait for others who keep the file locked; None: ``BUSY_SECONDS``.

        Raises:
            DataError: there is no such file; it is damaged, another program's, or of a newer konomi.
            RunError: it cannot be opened or written.
        """
        store = cls(Database(path, wait=wait), settings)
        with store._database.read() as db:
            unfinished = _meta(db, "compact")
        if unfinished:
            store._compact()
        return store

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add_tasks(self, tasks: Iterable[NewTask]) -> Imported:
        """Add tasks; those that are there already stay as they are.

        Raises:
            DataError: there are no tasks, or one cannot be used. None is then added.
        """
        with self._database.read() as db:
            known = _list(db, "models")
        return self._add(ready(list(tasks), self.settings.k_max, known))

    def _add(self, made: Made) -> Imported:
        with self._database.write() as db:
            added = assignments.add_tasks(db, made.tasks, self.settings)
            for key, more in (("models", made.names), ("unchanged", made.unchanged)):
                _set_meta(db, key, json.dumps(list(dict.fromkeys([*_list(db, key), *more]))))
        return Imported(added, len(made.tasks) - added, made.notes)

    # people

    def add_person(self, name: str, *, admin: bool = False) -> tuple[Person, str]:
        """A new person and their token, which cannot be read again. Raises Refused: the name is blank, too long, or taken."""
        with self._database.write() as db:
            person = people.add_person(db, name, admin)
            return replace(person, active=True), people.new_token(db, person.id)

    def new_token(self, person_id: str) -> str:
        """One more token for a person: another device, a lost link. Raises Refused: there is no such person."""
        with self._database.write() as db:
            return people.new_token(db, people.find_person(db, person_id).id)

    def session(self, person_id: str) -> str:
        """A token for a browser of theirs, for a month. Raises Refused: there is no such person."""
        with self._database.write() as db:
            return people.new_token(db, people.find_person(db, person_id).id, session=True)

    def end_session(self, token: str) -> None:
        """Nobody comes in with this session any more; what is none stays."""
        if people.is_session(token):
            with self._database.write() as db:
                people.revoke_token(db, token)

    def invited(self, token: str) -> Person | None:
        """Whose invite this is; None if it is nobody's, was revoked, or is a session."""
        return None if people.is_session(token) else self.person_of(token)

    def person_of(self, token: str) -> Person | None:
        """Whose token this is; None if it is nobody's, was revoked, or is of a session that is over."""
        with self._database.read() as db:
            return people.person_of(db, token)

    def revoke(self, person_id: str) -> None:
        """Let no token of this person work any more; their answers stay. Raises Refused: there is no such person."""
        with self._database.write() as db:
            people.revoke(db, people.find_person(db, person_id))

    def people(self) -> list[Person]:
        """Everybody, in the order in which they came."""
        with self._database.read() as db:
            return people.all_people(db)

    def person(self, who: str) -> Person:
        """The person with this pseudonym or name. Raises Refused: there is none."""
        with self._database.read() as db:
            return people.find_person(db, who)

    def remember(self, person: Person, *, guidelines_seen: str | None = None, shortcuts: bool | None = None) -> Person:
        """Keep what a person has read or set (None: as it was), and return them as they are now."""
        with self._database.write() as db:
            return people.remember(db, person, guidelines_seen, shortcuts)

    def forget(self, person_id: str) -> int:
        """Remove a person (by pseudonym or name), their tokens and all that they said; return how many answers that were.

        What they had answered is open again for others. Exports that were made before still hold their answers.

        Raises:
            Refused: there is no such person.
            RunError: all is removed, but others keep the file open, so that traces may still be in it; they go when the
                store is next opened.
        """
        with self._database.write() as db:
            count = answers.forget(db, people.find_person(db, person_id))
            _set_meta(db, "forgotten", str(int(_meta(db, "forgotten") or 0) + 1))
            _set_meta(db, "compact", "1")
        self._compact()
        return count

    def _compact(self) -> None:
        self._database.compact()
        with self._database.write() as db:
            _set_meta(db, "compact", "")

    # work

    def next_task(self, person: Person, now: float) -> Shown | None:
        """What the person is to judge next: what they have open, else something new; None: nothing is left, or it is frozen.

        It is kept for the person until its lease ends. Raises Refused: the person was forgotten.
        """
        half = self.settings.lease_minutes * 30
        with self._database.read() as db:  # mostly it was chosen when the last answer was saved, and nothing is to be written
            row = assignments.open_showing(db, person.id)
            if row is not None and row[3] > now + half and not _meta(db, "frozen"):
                return assignments.shown(db, row[0])
        with self._database.write() as db:
            people.find_person(db, person.id)
            showing = None if _meta(db, "frozen") else assignments.hand_out(db, person.id, self.settings, now)
            return None if showing is None else assignments.shown(db, showing)

    def shown(self, person: Person, shown_id: str) -> Shown | None:
        """A task as it was shown to this person; None if it was not."""
        with self._database.read() as db:
            row = db.execute("SELECT 1 FROM shown WHERE id = ? AND person = ?", (whole(shown_id), person.id)).fetchone()
            return assignments.shown(db, shown_id) if row else None

    def answer(self, person: Person, answer: Answer, now: float, *, seen: int | None = None) -> Saved:
        """Save an answer, or a revision of an earlier one; it is on the disk when this returns.

        What the person gets next is chosen in the same commit. An answer that comes after its lease ended is saved too.
        ``seen`` is the revision that the person had before their eyes (0: none), so that two windows do not overwrite each
        other; None: any.

        Raises:
            Refused: the same id came with another content (``conflict``); the store is ``frozen``; nothing of that name
                was shown to the person (``unknown_task``); there is another revision than ``seen`` (``conflict_revision``);
                or something in the answer is not as :class:`Answer` says.
        """
        answer = replace(answer, id=checked_id(answer.id), shown=whole(answer.shown))
        with self._database.write() as db:
            before = answers.saved_before(db, person, answer)
            if before is not None:
                return before
            if _meta(db, "frozen"):
                raise Refused("frozen", "the answers are final: none is taken any more")
            saved = answers.save(db, person, answer, now, seen)
            if saved.revision == 1:
                assignments.hand_out(db, person.id, self.settings, now)
            return saved

    def answer_of(self, person: Person, shown_id: str) -> Answer | None:
        """The person's latest answer to what they were shown, to be edited; None if there is none."""
        with self._database.read() as db:
            return answers.answer_of(db, person, whole(shown_id))

    def mine(self, person: Person, limit: int = 50, before: str | None = None) -> list[Mine]:
        """The person's own answers, newest first; those before that to the showing ``before``. Raises Refused: there is none."""
        with self._database.read() as db:
            return answers.mine(db, person, limit, None if before is None else whole(before))

    def progress(self, person: Person, now: float) -> Progress:
        """How far the person and the team are."""
        with self._database.read() as db:
            return assignments.progress(db, person.id, self.settings, bool(_meta(db, "frozen")), now)

    def coverage(self) -> tuple[int, int]:
        """How many answers count toward the target, and the target: tasks times people a task."""
        with self._database.read() as db:
            target, team = assignments.coverage(db, self.settings)
            return team, target

    def complete(self) -> bool:
        """Whether no answer is to be expected any more: all are there, or people have skipped what is not, and none of them
        has anything left."""
        with self._database.read() as db:
            target, team = assignments.coverage(db, self.settings)
            if team >= target or team + assignments.skipped(db, self.settings) < target:
                return team >= target
            return not any(assignments.left(db, each.id, self.settings) for each in people.all_people(db) if each.active)

    def give_up(self, person: Person) -> None:
        """Leave what a person has open to others. Should an answer still come it is saved all the same."""
        with self._database.write() as db:
            assignments.give_up(db, person.id)

    def busy(self, now: float, seconds: float = 600.0) -> bool:
        """Whether somebody has begun a task within the last ``seconds`` and has not answered it."""
        with self._database.read() as db:
            return assignments.begun_since(db, now - seconds)

    def changes(self) -> int:
        """Another number after each answer, first or revised, and after each person who was forgotten."""
        with self._database.read() as db:  # SQLite gives the row numbers of removed answers again
            return (int(_meta(db, "forgotten") or 0) << 40) + answers.newest(db)

    def comparisons(self) -> int | None:
        """How many comparisons there are (two texts, one person, no tie); None where before and after are compared."""
        with self._database.read() as db:
            before_after = db.execute("SELECT 1 FROM tasks WHERE kind <> 'rank' LIMIT 1").fetchone()
            return None if before_after else self._comparisons.count(db)

    # the end

    @property
    def frozen(self) -> bool:
        """Whether answers are final."""
        with self._database.read() as db:
            return bool(_meta(db, "frozen"))

    def freeze(self, frozen: bool = True) -> None:
        """Take no answers any more, or take them again."""
        with self._database.write() as db:
            _set_meta(db, "frozen", "1" if frozen else "")

    def export(self, *, freeze: bool = False) -> Exported:
        """All tasks and the latest answers, as they are at one moment, while others may go on writing.

        With ``freeze`` they are final from that moment on. Raises DataError, and nothing is final: nobody has answered yet, or
        something is damaged.
        """
        with self._database.write() if freeze else self._database.snapshot() as db:
            rows, unchanged = everything(db), len(_list(db, "unchanged"))
            if freeze:
                if not rows[1]:
                    raise DataError(NOTHING_YET)
                answers.exported(rows, unchanged)
                _set_meta(db, "frozen", "1")
        with explained(self._database.path):
            return answers.exported(rows, unchanged)


def _meta(db: sqlite3.Connection, key: str) -> str:
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(row[0]) if row else ""


def _list(db: sqlite3.Connection, key: str) -> list[str]:
    found: list[str] = checked_json(f"row {key} of the table meta", _meta(db, key) or "[]")
    return found


def _set_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

"""The tables of the store and their checksums: SQLite detects a torn page, but not a changed value.

A wrong checksum raises :class:`sqlite3.DatabaseError`, which the store reports as a damaged file. Functions over an open
transaction.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

_FIRST = """answers.rowid, answers.digest, answers.id, shown.id, task, person, repeat, places, answers.revision,
    answers.kind, ranks, flags, reason, comment, confidence, seconds, answers.at"""
"""Of an answer before version 4."""
_BEFORE_4 = f"SELECT {_FIRST} FROM answers JOIN shown ON shown.id = answers.shown"
ANSWERS = f"SELECT {_FIRST}, strength, edits FROM answers JOIN shown ON shown.id = answers.shown"
"""Rows of answers: row number, checksum, and the values under it."""
_ALWAYS = 15
"""Values that are always in the checksum; later columns up to the last that is not NULL, so that old checksums stay valid."""
_LOST = """SELECT shown.id FROM shown LEFT JOIN answers ON answers.shown = shown.id GROUP BY shown.id
    HAVING count(answers.id) <> shown.revision OR coalesce(max(answers.revision), 0) <> shown.revision LIMIT 1"""

Row = tuple[Any, ...]


def checked_answer(row: Row) -> Row:
    """The values of a row of ``ANSWERS``. Raises DatabaseError: it is damaged."""
    number, digest, *values = row
    if digest != _checksum(_given(values)):
        raise sqlite3.DatabaseError(f"row {number} of the table answers is not as it was written")
    return tuple(values)


def _given(values: Sequence[Any]) -> Sequence[Any]:
    count = len(values)
    while count > _ALWAYS and values[count - 1] is None:
        count -= 1
    return values[:count]


def checked_places(places: str, count: int, showing: str) -> tuple[int, ...]:
    """Numbers of the candidates in the order shown. Raises DatabaseError: they are not those of ``count`` candidates."""
    if sorted(str(places)) != [str(number) for number in range(count)]:
        raise sqlite3.DatabaseError(f"row {showing} of the table shown is not as it was written")
    return tuple(map(int, places))


def task_of(db: sqlite3.Connection, id: int) -> tuple[Row, list[Row]]:
    """A task (kind, lang, prompt, columns) and its candidates (text, lang, names_model, source).

    Raises DatabaseError: it is damaged.
    """
    tasks = _tasks(db, id)
    if id not in tasks:
        raise sqlite3.DatabaseError(f"row {id} of the table tasks is missing")
    return checked_task(id, *tasks[id])


def checked_task(id: int, row: Row, candidates: list[Row]) -> tuple[Row, list[Row]]:
    """A task of :func:`everything` without its checksum. Raises DatabaseError: it is damaged."""
    if row[0] != _checksum([id, *row[1:], candidates]):
        raise sqlite3.DatabaseError(f"row {id} of the table tasks, or its candidates, is not as it was written")
    return row[2:], candidates


def _tasks(db: sqlite3.Connection, task: int | None = None) -> dict[int, tuple[Row, list[Row]]]:
    where, given = ("", ()) if task is None else (" WHERE {} = ?", (task,))
    rows = db.execute("SELECT id, checksum, digest, kind, lang, prompt, columns FROM tasks" + where.format("id"), given)
    tasks: dict[int, tuple[Row, list[Row]]] = {id: (tuple(row), []) for id, *row in rows}
    for id, number, *each in db.execute(
        f"SELECT task, number, text, lang, names_model, source FROM candidates{where.format('task')} ORDER BY task, number", given
    ):
        if id not in tasks or number != len(tasks[id][1]):
            raise sqlite3.DatabaseError(f"row {id}, {number} of the table candidates is not as it was written")
        tasks[id][1].append(tuple(each))
    return tasks


def everything(db: sqlite3.Connection) -> tuple[dict[int, tuple[Row, list[Row]]], list[Row], list[Row]]:
    """Tasks, latest answers and decisions, unchecked: a short transaction, as it blocks writers.

    Raises DatabaseError: an answer is missing.
    """
    lost = db.execute(_LOST).fetchone()
    if lost is not None:
        raise sqlite3.DatabaseError(f"an answer to row {lost[0]} of the table shown is missing")
    latest = db.execute(f"{ANSWERS} AND answers.revision = shown.revision").fetchall()
    return _tasks(db), latest, db.execute(DECISIONS).fetchall()


def seal_answer(db: sqlite3.Connection, id: str, rows: str = ANSWERS) -> None:
    """Write the checksum of an answer."""
    row = db.execute(f"{rows} WHERE answers.id = ?", (id,)).fetchone()
    db.execute("UPDATE answers SET digest = ? WHERE id = ?", (_checksum(_given(row[2:])), id))


def seal_task(db: sqlite3.Connection, task: int) -> None:
    """Write the checksum of a task and its candidates."""
    row, candidates = _tasks(db, task)[task]
    db.execute("UPDATE tasks SET checksum = ? WHERE id = ?", (_checksum([task, *row[1:], candidates]), task))


def seal_all(db: sqlite3.Connection) -> None:
    """Write all checksums into a store of version 1 or 2. Raises DatabaseError: JSON in it cannot be read."""
    for number, id, ranks, flags in db.execute("SELECT rowid, id, ranks, flags FROM answers").fetchall():
        for text in (ranks or "[]", flags):
            checked_json(f"row {number} of the table answers", text)
        seal_answer(db, id, _BEFORE_4)
    for task, (row, candidates) in _tasks(db).items():
        for text in (row[-1], *(each[-1] for each in candidates)):
            checked_json(f"row {task} of the table tasks, or its candidates,", text)
        seal_task(db, task)


DECISIONS = "SELECT digest, task, person, revision, at, ranks, comment FROM decisions"
"""Rows of decisions: checksum, and the values under it."""


def checked_decision(row: Row) -> Row:
    """The values of a row of ``DECISIONS``. Raises DatabaseError: it is damaged."""
    if row[0] != _checksum(row[1:]):
        raise sqlite3.DatabaseError(f"row {row[1]} of the table decisions is not as it was written")
    return tuple(row[1:])


def write_decision(db: sqlite3.Connection, *values: Any) -> None:
    """Write a decision over an earlier one of the task: its values in the order of ``DECISIONS``."""
    db.execute("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?)", (*values, _checksum(values)))


def checked_json(where: str, text: str) -> Any:
    """Parse JSON of the store. Raises DatabaseError: it cannot be read."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise sqlite3.DatabaseError(f"{where} holds JSON that cannot be read: {error}") from error


def _checksum(values: Sequence[Any]) -> bytes:
    try:
        return hashlib.sha256(json.dumps(values).encode()).digest()
    except TypeError:  # bytes in place of text
        return b""


MIGRATIONS: tuple[tuple[str | Callable[[sqlite3.Connection], None], ...], ...] = (
    (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        # covered: people whose answer counts; place: on the queue's circle
        """CREATE TABLE tasks (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, place REAL NOT NULL,
            covered INTEGER NOT NULL DEFAULT 0, kind TEXT NOT NULL, lang TEXT NOT NULL, prompt TEXT NOT NULL,
            columns TEXT NOT NULL)""",
        "CREATE INDEX tasks_in_turn ON tasks (covered, place)",
        """CREATE TABLE candidates (task INTEGER NOT NULL REFERENCES tasks, number INTEGER NOT NULL, text TEXT NOT NULL,
            lang TEXT NOT NULL, names_model INTEGER NOT NULL, source TEXT NOT NULL, PRIMARY KEY (task, number)) WITHOUT ROWID""",
        "CREATE TABLE people (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, admin INTEGER NOT NULL, created REAL NOT NULL)",
        """CREATE TABLE tokens (hash BLOB PRIMARY KEY, person TEXT NOT NULL REFERENCES people ON DELETE CASCADE,
            created REAL NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX tokens_of ON tokens (person)",
        # places: numbers of the candidates in the order shown. number: the person's first answers counted from 1, repeats
        # apart; NULL before the answer. until: end of the lease, 0 when it was given up. kind, revision: of the latest answer
        """CREATE TABLE shown (id TEXT PRIMARY KEY, task INTEGER NOT NULL REFERENCES tasks,
            person TEXT NOT NULL REFERENCES people ON DELETE CASCADE, repeat INTEGER NOT NULL, places TEXT NOT NULL,
            at REAL NOT NULL, until REAL NOT NULL, number INTEGER, answered REAL, kind TEXT, revision INTEGER NOT NULL DEFAULT 0)
            WITHOUT ROWID""",
        "CREATE UNIQUE INDEX shown_once ON shown (person, task, repeat)",
        "CREATE INDEX shown_numbers ON shown (person, repeat, number)",
        "CREATE INDEX shown_newest ON shown (person, answered)",
        "CREATE INDEX shown_leases ON shown (task, until) WHERE number IS NULL",
        """CREATE TABLE answers (id TEXT PRIMARY KEY, shown TEXT NOT NULL REFERENCES shown ON DELETE CASCADE,
            revision INTEGER NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, ranks TEXT, flags TEXT NOT NULL, reason TEXT,
            comment TEXT NOT NULL, confidence INTEGER, seconds REAL NOT NULL, digest BLOB NOT NULL)""",
        "CREATE UNIQUE INDEX answers_of ON answers (shown, revision)",
    ),
    (
        "ALTER TABLE people ADD COLUMN guidelines_seen TEXT",
        "ALTER TABLE people ADD COLUMN shortcuts INTEGER NOT NULL DEFAULT 1",
    ),
    ("ALTER TABLE tasks ADD COLUMN checksum BLOB NOT NULL DEFAULT x''", seal_all),
    # edits: a JSON list, for each candidate the text that a person made of it, or null
    ("ALTER TABLE answers ADD COLUMN strength INTEGER", "ALTER TABLE answers ADD COLUMN edits TEXT"),
    # ranks: NULL once it was taken back
    (
        """CREATE TABLE decisions (task INTEGER PRIMARY KEY REFERENCES tasks, person TEXT NOT NULL REFERENCES people
            ON DELETE CASCADE, revision INTEGER NOT NULL, at REAL NOT NULL, ranks TEXT, comment TEXT NOT NULL,
            digest BLOB NOT NULL)""",
    ),
)
VERSION = len(MIGRATIONS)


def change(db: sqlite3.Connection, version: int) -> None:
    """Migrate the tables from a version to the current one."""
    for statement in (each for step in MIGRATIONS[version:] for each in step):
        db.execute(statement) if isinstance(statement, str) else statement(db)


def names(db: sqlite3.Connection) -> set[str]:
    """The names of the tables and indexes."""
    return {f"{kind} {name}" for kind, name in db.execute("SELECT type, name FROM sqlite_master")}


@functools.cache
def known_names() -> frozenset[str]:
    """The names of the tables and indexes of a new store."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        change(db, 0)
        return frozenset(names(db))


def meta(db: sqlite3.Connection, key: str) -> str:
    """A value of the table meta, "" if it is missing."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(row[0]) if row else ""


def meta_list(db: sqlite3.Connection, key: str) -> list[str]:
    """A list in the table meta. Raises DatabaseError: it is damaged."""
    values: list[str] = checked_json(f"row {key} of the table meta", meta(db, key) or "[]")
    return values

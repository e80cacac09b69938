"""Checksums of tasks and answers: SQLite notices a torn page, and not a value in it that is another one than was written.

What does not match is a :class:`sqlite3.DatabaseError`, which the store explains as a damaged file. Functions over an open
transaction.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from typing import Any

ANSWERS = """SELECT answers.rowid, answers.digest, answers.id, shown.id, task, person, repeat, places, answers.revision,
    answers.kind, ranks, flags, reason, comment, confidence, seconds, answers.at
    FROM answers JOIN shown ON shown.id = answers.shown"""
"""Rows of answers: their number, their checksum, and what it is of."""
_LOST = """SELECT shown.id FROM shown LEFT JOIN answers ON answers.shown = shown.id GROUP BY shown.id
    HAVING count(answers.id) <> shown.revision OR coalesce(max(answers.revision), 0) <> shown.revision LIMIT 1"""

Row = tuple[Any, ...]


def checked_answer(row: Row) -> Row:
    """A row of ``ANSWERS`` without number and checksum. Raises DatabaseError: it is damaged."""
    number, digest, *values = row
    if digest != _checksum(values):
        raise sqlite3.DatabaseError(f"row {number} of the table answers is not as it was written")
    return tuple(values)


def checked_places(places: str, count: int, showing: str) -> tuple[int, ...]:
    """Numbers of the candidates in the order shown. Raises DatabaseError: they are not those of ``count`` candidates."""
    if sorted(str(places)) != [str(number) for number in range(count)]:
        raise sqlite3.DatabaseError(f"row {showing} of the table shown is not as it was written")
    return tuple(map(int, places))


def task_of(db: sqlite3.Connection, id: int) -> tuple[Row, list[Row]]:
    """A task (kind, lang, prompt, columns) and its candidates (text, lang, names_model, source).

    Raises DatabaseError: it is damaged.
    """
    found = _tasks(db, id)
    if id not in found:
        raise sqlite3.DatabaseError(f"row {id} of the table tasks is missing")
    return checked_task(id, *found[id])


def checked_task(id: int, row: Row, candidates: list[Row]) -> tuple[Row, list[Row]]:
    """What :func:`everything` gave of a task, without its checksum. Raises DatabaseError: it is damaged."""
    if row[0] != _checksum([id, *row[1:], candidates]):
        raise sqlite3.DatabaseError(f"row {id} of the table tasks, or its candidates, is not as it was written")
    return row[2:], candidates


def _tasks(db: sqlite3.Connection, task: int | None = None) -> dict[int, tuple[Row, list[Row]]]:
    where, given = ("", ()) if task is None else (" WHERE {} = ?", (task,))
    tasks = db.execute("SELECT id, checksum, digest, kind, lang, prompt, columns FROM tasks" + where.format("id"), given)
    found: dict[int, tuple[Row, list[Row]]] = {id: (tuple(row), []) for id, *row in tasks}
    for id, number, *each in db.execute(
        f"SELECT task, number, text, lang, names_model, source FROM candidates{where.format('task')} ORDER BY task, number", given
    ):
        if id not in found or number != len(found[id][1]):
            raise sqlite3.DatabaseError(f"row {id}, {number} of the table candidates is not as it was written")
        found[id][1].append(tuple(each))
    return found


def everything(db: sqlite3.Connection) -> tuple[dict[int, tuple[Row, list[Row]]], list[Row]]:
    """Tasks and latest answers, unchecked: quickly, as nobody can save an answer while they are read.

    Raises DatabaseError: an answer is missing.
    """
    lost = db.execute(_LOST).fetchone()
    if lost is not None:
        raise sqlite3.DatabaseError(f"an answer to row {lost[0]} of the table shown is missing")
    return _tasks(db), db.execute(f"{ANSWERS} AND answers.revision = shown.revision").fetchall()


def seal_answer(db: sqlite3.Connection, id: str) -> None:
    """Write the checksum of an answer."""
    row = db.execute(f"{ANSWERS} WHERE answers.id = ?", (id,)).fetchone()
    db.execute("UPDATE answers SET digest = ? WHERE id = ?", (_checksum(row[2:]), id))


def seal_task(db: sqlite3.Connection, task: int) -> None:
    """Write the checksum of a task and its candidates."""
    row, candidates = _tasks(db, task)[task]
    db.execute("UPDATE tasks SET checksum = ? WHERE id = ?", (_checksum([task, *row[1:], candidates]), task))


def seal_all(db: sqlite3.Connection) -> None:
    """Write all checksums into a store that had none. Raises DatabaseError: there is JSON in it that cannot be read."""
    for number, id, ranks, flags in db.execute("SELECT rowid, id, ranks, flags FROM answers").fetchall():
        for text in (ranks or "[]", flags):
            checked_json(f"row {number} of the table answers", text)
        seal_answer(db, id)
    for task, (row, candidates) in _tasks(db).items():
        for text in (row[-1], *(each[-1] for each in candidates)):
            checked_json(f"row {task} of the table tasks, or its candidates,", text)
        seal_task(db, task)


def checked_json(where: str, text: str) -> Any:
    """What is in JSON of the store. Raises DatabaseError: it cannot be read."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise sqlite3.DatabaseError(f"{where} holds JSON that cannot be read: {error}") from error


def _checksum(values: Sequence[Any]) -> bytes:
    try:
        return hashlib.sha256(json.dumps(values).encode()).digest()
    except TypeError:  # bytes where a text was written
        return b""

"""Answers: saved, read again, put together for an export. Functions over an open transaction."""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter
from typing import Any

from konomi.data.records import Candidate
from konomi.labelling.checks import checked
from konomi.labelling.checksums import ANSWERS, checked_answer, checked_json, checked_task, seal_answer
from konomi.labelling.records import KEYS, Answer, Exported, Item, Judgement, Mine, Person, Refused, Saved

__all__ = ["Comparisons", "answer_of", "exported", "forget", "mine", "newest", "save", "saved_before"]


def saved_before(db: sqlite3.Connection, person: Person, answer: Answer) -> Saved | None:
    """What was said of an answer that came before; None if it is new.

    Raises:
        Refused: it was not shown to the person, or its id came with another content.
    """
    row = db.execute("SELECT places FROM shown WHERE id = ? AND person = ?", (answer.shown, person.id)).fetchone()
    if row is None:
        raise Refused("unknown_task", f"no task {answer.shown[:40]!r} was shown to {person.id}")
    known = db.execute(f"{ANSWERS} WHERE answers.id = ?", (answer.id,)).fetchone()
    if known is None:
        return None
    before, revision = _answer(known)
    if before.shown != answer.shown or before != checked(answer, KEYS[: len(row[0])]):
        raise Refused("conflict", f"answer {answer.id} was saved with another content; a new answer needs a new id")
    return Saved(answer.id, answer.shown, revision, again=True)


def save(db: sqlite3.Connection, person: Person, answer: Answer, now: float, seen: int | None = None) -> Saved:
    """Save a new answer to what was shown to the person.

    Raises:
        Refused: it is not as :class:`Answer` says, or the latest revision is not ``seen``.
    """
    task, repeat, places, kind, revision, number = db.execute(
        "SELECT task, repeat, places, kind, revision, number FROM shown WHERE id = ?", (answer.shown,)
    ).fetchone()
    said = checked(answer, KEYS[: len(places)])
    if seen is not None and seen != revision:
        raise Refused(
            "conflict_revision", f"the latest answer is revision {revision}; this one was made over {seen}: look at it first"
        )
    revision += 1
    if number is None:
        last = "SELECT coalesce(max(number), 0) FROM shown WHERE person = ? AND repeat = ?"
        number = 1 + db.execute(last, (person.id, repeat)).fetchone()[0]
        db.execute("UPDATE shown SET answered = ?, number = ? WHERE id = ?", (now, number, said.shown))
    db.execute("UPDATE shown SET kind = ?, revision = ? WHERE id = ?", (said.kind, revision, said.shown))
    by_number = sorted(zip(map(int, places), KEYS, strict=False))
    ranks = json.dumps([said.ranks[key] for _, key in by_number]) if said.ranks else None
    flags = json.dumps([said.flags.get(key, []) for _, key in by_number])
    row = (said.id, said.shown, revision, now, said.kind, ranks, flags, said.reason, said.comment, said.confidence, said.seconds)
    db.execute(f"INSERT INTO answers VALUES ({'?, ' * len(row)}x'')", row)
    seal_answer(db, said.id)
    change = (said.kind != "skipped") - (kind not in (None, "skipped"))
    if change and not repeat:
        db.execute("UPDATE tasks SET covered = covered + ? WHERE id = ?", (change, task))
    return Saved(said.id, said.shown, revision)


def newest(db: sqlite3.Connection) -> int:
    """A number that grows with each answer; 0 before the first."""
    return int(db.execute("SELECT coalesce(max(rowid), 0) FROM answers").fetchone()[0])


class Comparisons:
    """How many comparisons there are (two texts, one person, no tie), counted on as answers come in."""

    def __init__(self) -> None:
        self._rows = self._newest = self._total = 0
        self._id: str | None = None

    def count(self, db: sqlite3.Connection) -> int:
        """The number now."""
        rows = db.execute("SELECT count(*) FROM answers").fetchone()[0]
        new = db.execute(_SINCE, (self._newest,)).fetchall()
        newest = db.execute("SELECT id FROM answers WHERE rowid = ?", (self._newest,)).fetchone()
        forgotten = self._rows + len(new) != rows or (self._newest and newest != (self._id,))  # numbers are given again
        total, last = (0, (0, None)) if forgotten else (self._total, (self._newest, self._id))
        for number, id, repeat, kind, ranks, kind_before, ranks_before in db.execute(_SINCE, (0,)) if forgotten else new:
            if not repeat:
                total += _decided(number, kind, ranks) - _decided(number, kind_before, ranks_before)
            last = number, id
        self._rows, self._total, (self._newest, self._id) = rows, total, last
        return total


_SINCE = """SELECT answers.rowid, answers.id, repeat, answers.kind, answers.ranks, before.kind, before.ranks FROM answers
    JOIN shown ON shown.id = answers.shown
    LEFT JOIN answers AS before ON before.shown = answers.shown AND before.revision = answers.revision - 1
    WHERE answers.rowid > ? ORDER BY answers.rowid"""


def _decided(number: int, kind: str | None, ranks: str | None) -> int:
    if kind != "ranked":
        return 0
    found = checked_json(f"row {number} of the table answers", ranks or "[]")
    if not isinstance(found, list) or not all(type(rank) is int for rank in found):
        raise sqlite3.DatabaseError(f"row {number} of the table answers is not as it was written")
    counts = Counter(found)
    return math.comb(sum(counts.values()), 2) - sum(math.comb(count, 2) for count in counts.values())


def answer_of(db: sqlite3.Connection, person: Person, showing: str) -> Answer | None:
    """The person's latest answer to what they were shown, as it was stored; None if there is none."""
    row = db.execute(
        f"{ANSWERS} AND answers.revision = shown.revision WHERE shown.id = ? AND person = ?", (showing, person.id)
    ).fetchone()
    return None if row is None else _answer(row)[0]


def _answer(row: tuple[Any, ...]) -> tuple[Answer, int]:
    """An answer as it was stored, and its revision."""
    id, showing, _, _, _, places, revision, kind, ranks, flags, reason, comment, confidence, seconds, _ = checked_answer(row)
    keys = [(key, int(place)) for key, place in zip(KEYS, places, strict=False)]
    by_number, flagged = json.loads(ranks) if ranks else None, json.loads(flags)
    given = {key: by_number[number] for key, number in keys} if by_number else {}
    marked = {key: flagged[number] for key, number in keys if flagged[number]}
    return Answer(id, showing, kind, given, reason, marked, comment, confidence, seconds), revision


def mine(db: sqlite3.Connection, person: Person, limit: int, before: str | None) -> list[Mine]:
    """The person's own answers, newest first; those before that to the showing ``before``. Raises Refused: there is none."""
    earlier, cursor = "", ()
    if before is not None:
        own = "SELECT answered, id FROM shown WHERE id = ? AND person = ? AND answered > 0"
        cursor = db.execute(own, (before, person.id)).fetchone()
        if cursor is None:
            raise Refused("unknown_task", f"{person.id} has answered no task {before[:40]!r}")
        earlier = " AND (answered, shown.id) < (?, ?)"
    rows = db.execute(
        "SELECT shown.id, prompt, answered, shown.kind, revision FROM shown JOIN tasks ON tasks.id = task"
        f" WHERE person = ? AND answered > 0{earlier} ORDER BY answered DESC, shown.id DESC LIMIT ?",
        (person.id, *cursor, limit),
    )
    return [Mine(*row) for row in rows]


def forget(db: sqlite3.Connection, person: Person) -> int:
    """Remove a person, their tokens, showings and answers; return how many tasks they had answered, repeats too."""
    answers = db.execute("SELECT count(number) FROM shown WHERE person = ?", (person.id,)).fetchone()[0]
    db.execute(
        "UPDATE tasks SET covered = covered - 1 WHERE id IN"
        " (SELECT task FROM shown WHERE person = ? AND repeat = 0 AND kind <> 'skipped')",
        (person.id,),
    )
    db.execute("DELETE FROM people WHERE id = ?", (person.id,))  # and, by their foreign keys, all the rest
    return int(answers)


def exported(given: tuple[dict[int, Any], list[tuple[Any, ...]]], unchanged: int) -> Exported:
    """What :func:`konomi.labelling.checksums.everything` gave, put together. Raises DatabaseError: something in it is damaged."""
    tasks, rows = given
    items = {}
    for id, (task, candidates) in tasks.items():
        (kind, lang, prompt, columns), candidates = checked_task(id, task, candidates)
        texts, langs, named, sources = zip(*candidates, strict=True)
        both = tuple(Candidate(text, json.loads(source)) for text, source in zip(texts, sources, strict=True))
        items[id] = Item(prompt, lang, kind, both, langs, tuple(map(bool, named)), json.loads(columns))
    found = [_judgement(checked_answer(row)) for row in rows]
    for task in {each.task for each in found} - items.keys():
        raise sqlite3.DatabaseError(f"row {task} of the table tasks is missing")
    return Exported(items, tuple(sorted(found, key=lambda each: (each.task, each.rater, each.repeat))), unchanged)


def _judgement(row: tuple[Any, ...]) -> Judgement:
    _, _, task, person, repeat, places, revision, kind, ranks, flags, reason, comment, confidence, seconds, at = row
    return Judgement(
        task,
        person,
        kind,
        tuple(json.loads(ranks)) if ranks else None,
        tuple(map(int, places)),
        bool(repeat),
        tuple(tuple(each) for each in json.loads(flags)),
        reason,
        comment,
        confidence,
        seconds,
        at,
        revision,
    )

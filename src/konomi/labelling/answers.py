"""Save raters' answers, read them back, and collect them for an export."""

from __future__ import annotations

import json
import re
import sqlite3
from typing import Any

from konomi.data.records import Candidate
from konomi.errors import DataError
from konomi.labelling import assignments
from konomi.labelling.database import Store, explained
from konomi.labelling.records import (
    KEYS,
    Answer,
    Decision,
    Exported,
    Item,
    Judgement,
    LabelOptions,
    OwnAnswer,
    Person,
    Refused,
    Saved,
    without_surrogates,
)  # fmt: skip
from konomi.labelling.tables import ANSWERS as ROWS
from konomi.labelling.tables import (
    checked_answer,
    checked_decision,
    checked_json,
    checked_places,
    checked_task,
    everything,
    meta_list,
    seal_answer,
    task_of,
)
from konomi.labelling.validation import validated

NO_ANSWERS = "nobody has answered anything yet: there is nothing to export"
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.I)


def save(
    store: Store,
    person: Person,
    answer: Answer,
    now: float,
    *,
    seen: int | None = None,
    options: LabelOptions | None = None,
) -> Saved:
    """Save an answer, or a revision of an earlier one; it is on the disk when this returns.

    The person's next task is chosen in the same commit. A late answer, after the end of its lease, is saved too.

    Args:
        now: seconds since 1970.
        seen: the revision that the person saw (0: none), so that two windows do not overwrite each other; None: any.
        options: of the project; None: those of a new one.

    Raises:
        Refused: the same id came with another content (``conflict``); the store is ``frozen``; no such task was shown to
            the person (``unknown_task``); the latest revision is not ``seen`` (``conflict_revision``); or a value is not
            as :class:`Answer` requires.
    """
    if not _UUID.fullmatch(answer.id):
        raise Refused("bad_id", f"answer id {answer.id[:40]!r}: a UUID is needed")
    answer = answer.model_copy(update={"id": answer.id.lower()})
    with store.write() as db:
        query = "SELECT task, repeat, places, kind, revision, number FROM shown WHERE id = ? AND person = ?"
        showing = db.execute(query, (answer.shown, person.id)).fetchone()
        if showing is None:
            raise Refused("unknown_task", f"no task {answer.shown[:40]!r} was shown to {person.id}")
        known = db.execute(f"{ROWS} WHERE answers.id = ?", (answer.id,)).fetchone()
        if known is None and store.frozen:
            raise Refused("frozen", "the collection is closed: no more answers are taken")
        answer, revision = validated(answer, _texts(db, answer, showing), options or LabelOptions()), showing[4]
        if known is not None:
            before, revision = _answer(known)
            if before != answer:
                raise Refused("conflict", f"answer {answer.id} was saved with other content; a new answer needs a new id")
            return Saved(answer.id, answer.shown, revision, again=True)
        if seen is not None and seen != revision:
            latest = f"the latest answer is revision {revision}, and this one was to replace revision {seen}: look at it first"
            raise Refused("conflict_revision", latest)
        _insert(db, person, answer, showing, now)
        if revision == 0:
            assignments.hand_out(db, person.id, store.settings, now)
        return Saved(answer.id, answer.shown, revision + 1)


def _texts(db: sqlite3.Connection, answer: Answer, showing: tuple[Any, ...]) -> dict[str, str]:
    """The texts of a showing, by key."""
    _, candidates = task_of(db, showing[0])
    places = checked_places(showing[2], len(candidates), answer.shown)
    return {key: candidates[place][0] for key, place in zip(KEYS, places, strict=False)}


def _insert(db: sqlite3.Connection, person: Person, answer: Answer, showing: tuple[Any, ...], now: float) -> None:
    task, repeat, places, kind, revision, number = showing
    if number is None:
        last = "SELECT coalesce(max(number), 0) FROM shown WHERE person = ? AND repeat = ?"
        number = 1 + db.execute(last, (person.id, repeat)).fetchone()[0]
        db.execute("UPDATE shown SET answered = ?, number = ? WHERE id = ?", (now, number, answer.shown))
    db.execute("UPDATE shown SET kind = ?, revision = ? WHERE id = ?", (answer.kind, revision + 1, answer.shown))
    keys = [key for _, key in sorted(zip(map(int, places), KEYS, strict=False))]
    ranks = json.dumps([answer.ranks[key] for key in keys]) if answer.ranks else None
    flags = json.dumps([answer.flags.get(key, []) for key in keys])
    row = answer.id, answer.shown, revision + 1, now, answer.kind, ranks, flags
    rest = answer.reason, answer.comment, answer.confidence, answer.seconds
    edits = json.dumps([answer.edits.get(key) for key in keys]) if answer.edits else None
    db.execute(f"INSERT INTO answers VALUES ({'?, ' * 11}x'', ?, ?)", (*row, *rest, answer.strength, edits))
    seal_answer(db, answer.id)
    change = (answer.kind != "skipped") - (kind not in (None, "skipped"))
    if change and not repeat:
        db.execute("UPDATE tasks SET covered = covered + ? WHERE id = ?", (change, task))


def answer_of(store: Store, person: Person, shown_id: str) -> Answer | None:
    """The person's latest answer to a showing; None if there is none."""
    query = f"{ROWS} AND answers.revision = shown.revision WHERE shown.id = ? AND person = ?"
    with store.read() as db:
        row = db.execute(query, (without_surrogates(shown_id), person.id)).fetchone()
        return None if row is None else _answer(row)[0]


def _answer(row: tuple[Any, ...]) -> tuple[Answer, int]:
    """A stored answer and its revision."""
    (id, showing, _, _, _, places, revision, kind, ranks, flags, *rest, strength, edits) = checked_answer(row)
    reason, comment, confidence, seconds, _ = rest
    keys = [(key, int(place)) for key, place in zip(KEYS, places, strict=False)]
    by_number, flagged, edited = json.loads(ranks) if ranks else None, json.loads(flags), json.loads(edits or "[]")
    answer = Answer(
        id=id, shown=showing, kind=kind, reason=reason, comment=comment, confidence=confidence, seconds=seconds,
        strength=strength, edits={key: edited[number] for key, number in keys if edited and edited[number] is not None},
        ranks={key: by_number[number] for key, number in keys} if by_number else {},
        flags={key: flagged[number] for key, number in keys if flagged[number]},
    )  # fmt: skip
    return answer, revision


def own_answers(store: Store, person: Person, limit: int = 50, before: str | None = None) -> list[OwnAnswer]:
    """The person's own answers, newest first; with ``before`` (a showing) those older than the answer to it.

    Raises:
        Refused: they have not answered ``before``.
    """
    earlier: str = ""
    cursor: tuple[Any, ...] = ()
    with store.read() as db:
        if before is not None:
            own = "SELECT answered, id FROM shown WHERE id = ? AND person = ? AND answered > 0"
            cursor = db.execute(own, (without_surrogates(before), person.id)).fetchone()
            if cursor is None:
                raise Refused("unknown_task", f"{person.id} has answered no task {before[:40]!r}")
            earlier = " AND (answered, shown.id) < (?, ?)"
        rows = db.execute(
            "SELECT shown.id, prompt, answered, shown.kind, revision FROM shown JOIN tasks ON tasks.id = task"
            f" WHERE person = ? AND answered > 0{earlier} ORDER BY answered DESC, shown.id DESC LIMIT ?",
            (person.id, *cursor, limit),
        )
        return [OwnAnswer(*row) for row in rows]


def changes(store: Store) -> int:
    """A number that changes whenever an answer is saved or a person is removed."""
    with store.read() as db:  # SQLite reuses the row numbers of deleted answers
        newest = db.execute("SELECT coalesce(max(rowid), 0) FROM answers").fetchone()[0]
        return (int(store.meta("forgotten") or 0) << 40) + int(newest)


def comparisons(store: Store) -> int | None:
    """Count the comparisons (two texts, one person, no tie); None in a before/after project.

    Only answers saved since the last call are read.
    """
    with store.read() as db:
        if db.execute("SELECT 1 FROM tasks WHERE kind IN ('compare', 'same') LIMIT 1").fetchone():
            return None
        rows, newest, last, total = store.cache.get("comparisons", (0, 0, None, 0))
        new = db.execute(_SINCE, (newest,)).fetchall()
        count = db.execute("SELECT count(*) FROM answers").fetchone()[0]
        if rows + len(new) != count or last != db.execute("SELECT id FROM answers WHERE rowid = ?", (newest,)).fetchone():
            # a person was removed and SQLite reuses row numbers: recount
            newest, last, total, new = 0, None, 0, db.execute(_SINCE, (0,)).fetchall()
        for newest, id, repeat, kind, ranks, kind_before, ranks_before in new:
            last = (id,)
            if not repeat:
                total += _decided(newest, kind, ranks) - _decided(newest, kind_before, ranks_before)
        store.cache["comparisons"] = count, newest, last, total
        return int(total)


_SINCE = """SELECT answers.rowid, answers.id, repeat, answers.kind, answers.ranks, before.kind, before.ranks FROM answers
    JOIN shown ON shown.id = answers.shown
    LEFT JOIN answers AS before ON before.shown = answers.shown AND before.revision = answers.revision - 1
    WHERE answers.rowid > ? ORDER BY answers.rowid"""


def _decided(row: int, kind: str | None, ranks: str | None) -> int:
    """Comparisons in one answer: a rank minus 1 is the number of better texts."""
    if kind != "ranked":
        return 0
    values = checked_json(f"row {row} of the table answers", ranks or "[]")
    if not isinstance(values, list) or not all(type(rank) is int for rank in values):
        raise sqlite3.DatabaseError(f"row {row} of the table answers is not as it was written")
    return sum(values) - len(values)


def collect(store: Store, *, freeze: bool = False) -> Exported:
    """Read all tasks and latest answers in one snapshot; other writers are not blocked.

    ``freeze`` closes the collection in the same transaction.

    Raises:
        DataError: nobody has answered yet (with ``freeze``), or something is damaged. Nothing is then frozen.
    """
    with store.write() if freeze else store.snapshot() as db:
        rows, unchanged = everything(db), len(meta_list(db, "unchanged"))
        if freeze:
            if not rows[1]:
                raise DataError(NO_ANSWERS)
            exported = _exported(rows, unchanged)
            store.freeze()
            return exported
    with explained(store.path):
        return _exported(rows, unchanged)


def _exported(rows: tuple[dict[int, Any], list[tuple[Any, ...]], list[tuple[Any, ...]]], unchanged: int) -> Exported:
    """Tasks and answers of :func:`konomi.labelling.tables.everything`. Raises DatabaseError: something in it is damaged."""
    items = {}
    for id, task_row in rows[0].items():
        (kind, lang, prompt, columns), candidates = checked_task(id, *task_row)
        texts, langs, named, sources = zip(*candidates, strict=True)
        responses = tuple(Candidate(text, json.loads(source)) for text, source in zip(texts, sources, strict=True))
        items[id] = Item(prompt, lang, kind, responses, langs, tuple(map(bool, named)), json.loads(columns))
    judgements = [_judgement(checked_answer(row)) for row in rows[1]]
    decisions = [each for each in map(decision_of, sorted(rows[2], key=lambda row: row[1])) if each is not None]
    for task in ({each.task for each in judgements} | {each.task for each in decisions}) - items.keys():
        raise sqlite3.DatabaseError(f"row {task} of the table tasks is missing")
    in_order = tuple(sorted(judgements, key=lambda each: (each.task, each.rater, each.repeat)))
    return Exported(items, in_order, unchanged, tuple(decisions))


def decision_of(row: tuple[Any, ...]) -> Decision | None:
    """The decision in a row of ``tables.DECISIONS``; None: it was taken back. Raises DatabaseError: it is damaged."""
    task, person, revision, at, ranks, comment = checked_decision(row)
    return None if ranks is None else Decision(task, person, tuple(json.loads(ranks)), comment, at, revision)


def _judgement(row: tuple[Any, ...]) -> Judgement:
    _, _, task, person, repeat, places, revision, kind, ranks, flags, *rest, strength, edits = row
    reason, comment, confidence, seconds, at = rest
    by_number = tuple(json.loads(ranks)) if ranks else None
    order, flagged = tuple(map(int, places)), tuple(map(tuple, json.loads(flags)))
    return Judgement(
        task, person, kind, by_number, order, bool(repeat), flagged, reason, comment, confidence, seconds, at, revision,
        strength, tuple(json.loads(edits or "[]")),
    )  # fmt: skip

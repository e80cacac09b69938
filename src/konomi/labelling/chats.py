"""Conversations of raters with a model. Each turn is a task with two answers, shown only to its author."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from konomi.data.messages import Conversation, Message, readable
from konomi.data.records import Candidate
from konomi.labelling.answers import answer_of
from konomi.labelling.assignments import find_shown, insert_showing
from konomi.labelling.database import Store
from konomi.labelling.import_tasks import insert_task, prepare
from konomi.labelling.records import MESSAGE_LIMIT, MESSAGES, NewTask, Person, Refused, Shown
from konomi.labelling.tables import checked_json, meta_list, task_of
from konomi.labelling.validation import as_seen

_NOWHERE = 2.0
"""A place outside the queue's circle, so that the task is assigned to nobody else."""
_LAST = """SELECT shown.id FROM shown JOIN tasks ON tasks.id = task WHERE person = ? AND tasks.kind = 'chat' AND repeat = 0
    AND number IS {} ORDER BY shown.at DESC, shown.id DESC LIMIT 1"""


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation.

    Attributes:
        shown: the two answers, as they are shown.
        before: the messages that they answer.
        after: the messages from which the conversation goes on: with the chosen answer, the first of those that are best; without
            the last message where none was chosen. None while nothing was.
    """

    shown: Shown
    before: Conversation
    after: Conversation | None


def turn(store: Store, person: Person, shown_id: str) -> Turn:
    """A turn of this person. Raises Refused: they have had no such turn."""
    with store.read() as db:
        row = db.execute("SELECT task FROM shown WHERE id = ? AND person = ?", (shown_id, person.id)).fetchone()
        task: Any = None if row is None else task_of(db, row[0])[0]
        if task is None or task[0] != "chat":
            raise Refused("unknown_task", f"no conversation {shown_id[:40]!r} of {person.id}")
        before = Conversation(checked_json(f"row {row[0]} of the table tasks", task[3])[MESSAGES])
        shown, answer = find_shown(store, person, shown_id), answer_of(store, person, shown_id)
    assert shown is not None
    if answer is None:
        return Turn(shown, before, None)
    best = next((each.text for each in shown.texts if answer.ranks.get(each.key) == 1), None) if answer.kind == "ranked" else None
    went_on = before[:-1] if best is None else [*before, {"role": "assistant", "content": best}]
    return Turn(shown, before, Conversation(went_on))


def last_turn(store: Store, person: Person) -> Turn | None:
    """The person's turn that waits for a choice, else their last one."""
    with store.read() as db:
        for state in ("NULL", "NOT NULL"):
            if (row := db.execute(_LAST.format(state), (person.id,)).fetchone()) is not None:
                return turn(store, person, row[0])
    return None


def next_messages(store: Store, person: Person, after: str | None, text: str, system: str | None) -> Conversation:
    """The conversation with one more message of the person.

    Args:
        after: the turn from which it goes on; None: it begins.
        system: the system message that a new one begins with.

    Raises:
        Refused: ``frozen``; the message is blank or too long (``bad_message``); a turn waits for a choice (``chat_open``); there
            is no such turn.
    """
    _check_open(store, person)
    if not as_seen(text) or len(text) > MESSAGE_LIMIT:
        raise Refused("bad_message", f"a message of {len(text):,} characters: some are needed, {MESSAGE_LIMIT:,} are allowed")
    before: Sequence[Message] = [] if system is None else [{"role": "system", "content": system}]
    if after is not None:
        before = turn(store, person, after).after or []
    return Conversation([*before, {"role": "user", "content": text}])


def add_turn(store: Store, person: Person, messages: Conversation, answers: Sequence[Candidate], now: float) -> str:
    """Save two answers of the model to a person's messages as a showing for that person; return its id.

    Raises:
        Refused: they look the same (``chat_same``); meanwhile the collection was closed (``frozen``), or another turn came
            (``chat_open``).
    """
    if len({as_seen(each.text) for each in answers}) < len(answers):
        raise Refused("chat_same", "the answers are the same")
    task = NewTask(readable(messages), tuple(answers), kind="chat", columns={MESSAGES: list(messages)})
    with store.write() as db:
        _check_open(store, person)
        (row,) = prepare([task], len(answers), meta_list(db, "models")).rows
        id = insert_task(db, replace(row, digest=secrets.token_hex(16)), _NOWHERE)  # the same conversation again is a new task
        order = list(range(len(answers)))
        secrets.SystemRandom().shuffle(order)
        return insert_showing(db, int(id or 0), person.id, order, now, now)


def _check_open(store: Store, person: Person) -> None:
    if store.frozen:
        raise Refused("frozen", "the collection is closed: no more answers are taken")
    if (last := last_turn(store, person)) is not None and last.after is None:
        raise Refused("chat_open", "a turn waits for a choice")

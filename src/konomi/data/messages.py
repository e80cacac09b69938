"""Chat messages, ``{"role", "content"}``: conversations and their plain text. Standard library only.

People, text classifiers and pages see the output of :func:`readable`. Models get the messages, rendered by their own chat
template (`konomi.data.chat`).
"""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from konomi.data.rows import Row, UnusableRow, checked_text, kind
from konomi.errors import DataError

Message = dict[str, Any]


class Conversation(list[Message]):
    """The messages that a response answers. The type distinguishes them from a data column named ``messages``."""


def asked(messages: Sequence[Message], system: str | None = None) -> Conversation:
    """The messages with ``system`` prepended, unless they begin with a system message."""
    own = messages[0]["role"] in ("system", "developer")
    return Conversation(messages if own or system is None else [{"role": "system", "content": system}, *messages])


def readable(messages: Sequence[Message]) -> str:
    """The messages as plain text: the text of a single user message, else a dialogue.

    >>> readable([{"role": "user", "content": "Hi"}])
    'Hi'
    >>> print(readable([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]))
    System: Be kind.
    <BLANKLINE>
    User: Hi
    """
    if [message["role"] for message in messages] == ["user"]:
        return str(messages[0]["content"])
    return dialogue(messages)


def identity(messages: Sequence[Message] | None) -> str:
    """A key of the messages, "" for none: two conversations may read alike and differ in their system message."""
    return json.dumps(messages, sort_keys=True, default=str) if messages else ""


def dialogue(messages: Sequence[Message]) -> str:
    """The messages, each prefixed with its role."""
    return "\n\n".join(f"{m['role'][:1].upper()}{m['role'][1:]}: {m['content']}" for m in messages)


@dataclass(frozen=True)
class Answered:
    """A prompt and a response, as rewards read them.

    prompt: the text, of a conversation the readable one. messages: the conversation; None: the response continues the text.
    """

    prompt: str
    response: str
    messages: Conversation | None = None

    def __hash__(self) -> int:
        return hash((self.prompt, self.response))

    def __str__(self) -> str:
        """Both as one text.

        >>> str(Answered("Hi, ", "you")), str(Answered("Hi", "Hello", Conversation([{"role": "user", "content": "Hi"}])))
        ('Hi, you', 'Hi\\n\\nHello')
        """
        if self.messages is None:
            return self.prompt + self.response
        speaker = "" if self.prompt == self.messages[-1]["content"] else "Assistant: "
        return f"{self.prompt}\n\n{speaker}{self.response}"

    @property
    def shown(self) -> dict[str, Any]:
        """As a row for pages and files; ``chat``: the response answers the prompt, and does not continue its text."""
        return {"prompt": self.prompt, "response": self.response, **({"chat": True} if self.messages else {})}

    @property
    def conversation(self) -> Conversation:
        """All messages, the response the last of them; a prompt that is a text is the user's."""
        before = self.messages or [{"role": "user", "content": self.prompt}]
        return Conversation([*before, {"role": "assistant", "content": self.response}])


Text = str | Answered
"""Input of a model that scores texts."""


def preference(row: Row) -> tuple[Conversation, str, str]:
    """The prompt, chosen and rejected of a row in which some of the three are messages.

    The prompt may be messages, a text (then the user's), or missing: then it is what chosen and rejected both begin with. It is
    taken off where they begin with it. An answer of several messages is one text, with the names of who speaks.

    Raises:
        DataError: something is not a list of messages.
        UnusableRow: chosen and rejected are the same, one of them is empty, or there is no prompt.
    """
    where, given = row.where, row.values.get("prompt")
    chosen, rejected = _answer(row, "chosen"), _answer(row, "rejected")
    if chosen == rejected:
        raise UnusableRow(where, "chosen and rejected are equal", "remove the row")
    shared = chosen[: sum(itertools.takewhile(bool, map(operator.eq, chosen, rejected)))]
    if given is None:
        prompt = shared
    elif isinstance(given, list):
        prompt = messages_of(row, "prompt")
    else:
        text = checked_text(where, "'prompt'", given)
        prompt = shared or [{"role": "user", "content": text}]
        if text.strip() not in [message["content"].strip() for message in prompt]:
            raise DataError(
                f"{where}: 'prompt' is none of the messages that 'chosen' and 'rejected' begin with; remove one of them"
            )
    if not any(message["content"].strip() for message in prompt):
        hint = "remove the row, write a prompt, or let chosen and rejected begin with the same messages"
        raise UnusableRow(where, "'prompt' is blank", hint)
    if shared[: len(prompt)] == prompt:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if not chosen or not rejected:
        raise UnusableRow(where, "chosen or rejected has no answer after the prompt", "remove the row")
    one, other = (dialogue(each).removeprefix("Assistant: ") for each in (chosen, rejected))
    return Conversation(prompt), one, other


def messages_of(
    row: Row, column: str, needed: str = "a list of messages", *, blank: bool = True, hint: str = ""
) -> list[Message]:
    """The messages in a column of a row. ``blank``: one may have no text.

    Raises:
        DataError: there is no such column, or no list of messages in it.
    """
    where, value = row.where, row.value(column, hint)
    if not isinstance(value, list):
        raise DataError(f"{where}: {column!r} is {kind(value)}; {needed} is needed")
    messages = []
    for number, message in enumerate(value, start=1):
        name = f"message {number} of {column!r}"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            has = f"an object with {', '.join(message) or 'nothing'}" if isinstance(message, dict) else kind(message)
            raise DataError(f'{where}: {name} is {has}; {{"role": "user", "content": "..."}} is needed')
        checked_text(where, f"the role of {name}", message["role"])
        checked_text(where, f"the content of {name}", message["content"], blank=blank)
        messages.append({key: item for key, item in message.items() if item is not None})  # tables fill missing keys with None
    return messages


def _answer(row: Row, column: str) -> list[Message]:
    if isinstance(row.values.get(column), str):
        return [{"role": "assistant", "content": row.values[column]}]
    return messages_of(row, column, "a list of messages or a text")

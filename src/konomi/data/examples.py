"""Texts to learn from: plain texts, prompts with completions, conversations. This module imports nothing heavy."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from konomi.config import SFTData
from konomi.data.records import Prompt, repeating_rows
from konomi.data.rows import checked_text, kind, need_column, text_of, unused
from konomi.data.sources import EMBEDDED, Hub, open_rows, split_held_out
from konomi.errors import ConfigError, DataError

Kind = Literal["text", "prompt-completion", "messages"]


@dataclass(frozen=True)
class Example:
    """One text to learn.

    Attributes:
        where: where it was read, as the start of a message.
        text: the whole of a plain text; of a prompt with a completion the prompt.
        completion: what should follow the prompt.
        messages: a conversation, each message with ``role`` and ``content``.
    """

    where: str
    text: str = ""
    completion: str | None = None
    messages: tuple[Mapping[str, Any], ...] = ()

    @property
    def asked(self) -> Prompt:
        """What a split goes by: the text, the prompt, or the conversation up to the first answer."""
        messages = itertools.takewhile(lambda message: message["role"] != "assistant", self.messages)
        return Prompt(self.text or "\n".join(f"{message['role']}: {message['content']}" for message in messages))


def load_examples(config: SFTData, say: Callable[[str], None] = lambda _: None) -> tuple[Kind, list[Example]]:
    """Return what the rows of ``config`` are, and all of them in the order of the source.

    Args:
        say: is told which columns are not used, and where prompts were taken off.

    Raises:
        DataError: the source cannot be found, reached or read; a row lacks a column or has something else in it; no rows.
        ConfigError: the columns fit more than one kind, or only the texts of questions with answers would be read; a setting
            for hub data sets is given with a file.
    """
    # what has no columns of its own gets the text's
    plain = config.texts.startswith(EMBEDDED) or config.texts.lower().endswith(".txt")
    hub = Hub(config.subset, config.split, config.revision)
    rows = open_rows(config.texts, config.text_column if plain else None, hub, "data.")
    found: Kind | None = None if config.kind == "auto" else config.kind
    examples = []
    names: dict[str, None] = {}
    for where, row in itertools.islice(rows, config.limit):
        found = found or _detect(where, list(row), config)
        if found == "text" and config.kind == "auto":
            _check_answers(where, row, config)
        names |= dict.fromkeys(row)
        examples.append(_example(where, row, found, config))
    if found is None or not examples:
        raise DataError(f"{config.texts}: no rows in it; at least two texts are needed")
    if left := unused(names, _columns(config)[found]):
        say(f"{config.texts}: read as {found}{left}")
    if found == "prompt-completion":
        pairs = [(each.text, [each.completion or ""]) for each in examples]
        for number in repeating_rows(pairs, lambda text: say(f"{config.texts}: {text}")):
            prompt, (completion,) = pairs[number]
            examples[number] = replace(examples[number], completion=completion[len(prompt) :])
    return found, examples


def split_examples(examples: Sequence[Example], config: SFTData) -> tuple[list[Example], list[Example]]:
    """Return (train, held out), by the same rule as :func:`~konomi.data.sources.split_held_out`.

    Raises:
        DataError: nothing is left on one of the sides.
    """
    _, held_out = split_held_out([example.asked for example in examples], config.held_out)
    held = {prompt.key for prompt in held_out}
    if not held:
        raise DataError(
            f"{config.texts}: of its {len(examples)} rows none is held out for the evaluation; give more rows, or raise "
            f"data.held_out = {config.held_out:g}"
        )
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        sides[example.asked.key in held].append(example)
    return sides


def _columns(config: SFTData) -> dict[Kind, tuple[str, ...]]:
    return {
        "messages": (config.messages_column,),
        "prompt-completion": (config.prompt_column, config.completion_column),
        "text": (config.text_column,),
    }


def _detect(where: str, names: Sequence[str], config: SFTData) -> Kind:
    kinds = [each for each, columns in _columns(config).items() if set(columns) <= set(names)]
    if len(kinds) > 1:
        raise ConfigError(f"{where}: its columns ({', '.join(names)}) fit {' and '.join(kinds)}; set data.kind to one of them")
    if not kinds:
        wanted = ", or ".join(" and ".join(map(repr, columns)) for columns in _columns(config).values())
        raise DataError(
            f"{where}: it has the columns {', '.join(names) or 'none'}; needed: {wanted}. Rename them, or name them in the "
            "settings: data.text_column, data.prompt_column, data.completion_column, data.messages_column"
        )
    return kinds[0]


_ANSWERS = {
    *("answer", "answers", "assistant", "chosen", "completion", "output", "outputs", "reply", "response", "responses"),
    *("回答", "解答", "答え", "出力", "応答", "返答", "返信", "模範解答"),
}
"""Words that the names of columns with answers end in."""


def _check_answers(where: str, row: Mapping[str, Any], config: SFTData) -> None:
    """Refuse to learn the questions of a table of questions and answers."""
    for name, value in row.items():
        words = re.findall(r"[^\W_\d]+", name.casefold())
        if name != config.text_column and _ANSWERS & set(words[-1:]) and isinstance(value, str) and not _says_nothing(value):
            raise ConfigError(
                f"{where}: {config.text_column!r} alone would be learned, but {name!r} looks like the answer to it. Set "
                f'data.kind = "prompt-completion", data.prompt_column = "{config.text_column}" and data.completion_column = '
                f'"{name}"; or, to learn {config.text_column!r} alone, data.kind = "text"'
            )


def _says_nothing(value: str) -> bool:
    """Whether a text is blank or a number: a time, a count, an identity."""
    try:
        float(value.strip() or "0")
    except ValueError:
        return False
    return True


def _example(where: str, row: dict[str, Any], which: Kind, config: SFTData) -> Example:
    if which == "messages":
        return Example(where, messages=_messages(where, row, config.messages_column))
    if which == "text":
        return Example(where, text_of(where, row, config.text_column, hint=". Set data.text_column"))
    example = Example(where, text_of(where, row, config.prompt_column, hint=". Set data.prompt_column"))
    return replace(example, completion=text_of(where, row, config.completion_column, hint=". Set data.completion_column"))


def _messages(where: str, row: dict[str, Any], column: str) -> tuple[Mapping[str, Any], ...]:
    need_column(where, list(row), column, ". Set data.messages_column")
    value = row[column]
    if not isinstance(value, list) or not value:
        has = kind(value) if value != [] else "an empty list"
        raise DataError(f'{where}: {column!r} is {has}; a list of {{"role": ..., "content": ...}} is needed')
    for number, message in enumerate(value, start=1):
        name = f"message {number} of {column!r}"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f'{where}: {name} has no role; {{"role": "user", "content": "..."}} is needed')
        checked_text(where, f"the content of {name}", message.get("content"))
    roles = [message["role"] for message in value]
    if "assistant" not in roles:
        raise DataError(f"{where}: no message of the assistant in {column!r}: there is nothing to learn to say; remove the row")
    if roles[0] == "assistant":
        raise DataError(f"{where}: {column!r} begins with the assistant; what it answers has to come first")
    return tuple(cast(list[Mapping[str, Any]], value))

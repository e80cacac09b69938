"""Training texts: plain texts, prompts with completions, conversations; labelled texts for classifiers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from konomi.config import RewardData, SFTData
from konomi.data.messages import Message, messages_of
from konomi.data.records import LabelledText, split_by_key, text_key
from konomi.data.rows import Row, alike, near, repeating_rows, unused
from konomi.data.sources import EMBEDDED, Hub, open_rows, sources_of
from konomi.errors import ConfigError, DataError

Kind = Literal["text", "prompt-completion", "messages"]


@dataclass(frozen=True)
class Example:
    """One text to learn: a plain text, a prompt (``text``) with its completion, or a conversation.

    ``where``: where it was read, as the start of a message.
    """

    where: str
    text: str = ""
    completion: str | None = None
    messages: tuple[Message, ...] = ()

    @property
    def key(self) -> str:
        """The key of what examples are split by: the text, the prompt, or the conversation up to the first answer."""
        messages = itertools.takewhile(lambda message: message["role"] != "assistant", self.messages)
        return text_key(self.text or "\n".join(f"{message['role']}: {message['content']}" for message in messages))


def load_examples(config: SFTData, say: Callable[[str], None] = lambda _: None) -> tuple[Kind, list[Example]]:
    """Return the kind of the rows that ``config`` names, and all of them in order.

    ``say`` gets the columns that are not used, and whether prompts were taken off completions.

    Raises:
        DataError: the source cannot be found, reached or read; a row lacks a column or has something else in it; no rows.
        ConfigError: the columns fit more than one kind, or only the questions of questions with answers would be read; a setting
            for hub data sets is given with a file.
    """
    # a source without columns gets the text's
    plain = config.texts.startswith(EMBEDDED) or config.texts.lower().endswith(".txt")
    rows = open_rows(config.texts, config.text_column if plain else None, Hub.of(config), "data.")
    kind: Kind | None = None if config.kind == "auto" else config.kind
    examples = []
    names: dict[str, None] = {}
    for row in itertools.islice(rows, config.limit):
        kind = kind or _detect(row, config)
        if kind == "text" and config.kind == "auto":
            _check_answers(row, config)
        names |= dict.fromkeys(row.values)
        examples.append(_example(row, kind, config))
    if kind is None or not examples:
        raise DataError(f"{config.texts}: no rows in it; at least two texts are needed")
    if left := unused(names, _columns(config)[kind]):
        say(f"{config.texts}: read as {kind}{left}")
    if kind == "prompt-completion":
        pairs = [(each.text, [each.completion or ""]) for each in examples]
        for number in repeating_rows(pairs, lambda text: say(f"{config.texts}: {text}")):
            prompt, (completion,) = pairs[number]
            examples[number] = replace(examples[number], completion=completion[len(prompt) :])
    return kind, examples


def split_examples(examples: Sequence[Example], config: SFTData) -> tuple[list[Example], list[Example]]:
    """Return (train, held out), by the same rule as :func:`~konomi.data.prompts.split_held_out`.

    Raises:
        DataError: nothing is left on one of the sides.
    """
    train, held_out = split_by_key(examples, config.held_out)
    if not train or not held_out:
        held, change = ("all are", "lower") if held_out else ("none is", "raise")
        raise DataError(
            f"{config.texts}: of its {len(examples)} rows {held} held out for the evaluation; give more rows, or {change} "
            f"data.held_out = {config.held_out:g}"
        )
    return train, held_out


def _columns(config: SFTData) -> dict[Kind, tuple[str, ...]]:
    return {
        "messages": (config.messages_column,),
        "prompt-completion": (config.prompt_column, config.completion_column),
        "text": (config.text_column,),
    }


def _detect(row: Row, config: SFTData) -> Kind:
    kinds = [each for each, columns in _columns(config).items() if set(columns) <= row.values.keys()]
    names = ", ".join(row.values) or "none"
    if len(kinds) > 1:
        raise ConfigError(f"{row.where}: its columns ({names}) fit {' and '.join(kinds)}; set data.kind to one of them")
    if not kinds:
        wanted = ", or ".join(" and ".join(map(repr, columns)) for columns in _columns(config).values())
        raise DataError(
            f"{row.where}: it has the columns {names}; needed: {wanted}. Rename them, or name them in the settings: "
            "data.text_column, data.prompt_column, data.completion_column, data.messages_column"
        )
    return kinds[0]


_ANSWERS = {
    *("answer", "answers", "assistant", "chosen", "completion", "output", "outputs", "reply", "response", "responses"),
    *("回答", "解答", "答え", "出力", "応答", "返答", "返信", "模範解答"),
}
"""Last words of the names of columns with answers."""


def _check_answers(row: Row, config: SFTData) -> None:
    """Refuse a table of questions and answers of which only the questions would be learned."""
    for name, value in row.values.items():
        words = re.findall(r"[^\W_\d]+", name.casefold())
        if name != config.text_column and _ANSWERS & set(words[-1:]) and isinstance(value, str) and not _says_nothing(value):
            raise ConfigError(
                f"{row.where}: {config.text_column!r} alone would be learned, but {name!r} looks like the answer to it. Set "
                f'data.kind = "prompt-completion", data.prompt_column = "{config.text_column}" and data.completion_column = '
                f'"{name}"; or, to learn {config.text_column!r} alone, data.kind = "text"'
            )


def _says_nothing(value: str) -> bool:
    """Whether a text is blank or a number, such as a time, a count or an ID."""
    try:
        float(value.strip() or "0")
    except ValueError:
        return False
    return True


def _example(row: Row, kind: Kind, config: SFTData) -> Example:
    if kind == "messages":
        return Example(row.where, messages=_messages(row, config.messages_column))
    if kind == "text":
        return Example(row.where, row.text(config.text_column, hint=". Set data.text_column"))
    prompt = row.text(config.prompt_column, hint=". Set data.prompt_column")
    return Example(row.where, prompt, row.text(config.completion_column, hint=". Set data.completion_column"))


def _messages(row: Row, column: str) -> tuple[Message, ...]:
    needed = 'a list of {"role": ..., "content": ...}'
    messages = messages_of(row, column, needed, blank=False, hint=". Set data.messages_column")
    if not messages:
        raise DataError(f"{row.where}: {column!r} is an empty list; {needed} is needed")
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise DataError(
            f"{row.where}: no message of the assistant in {column!r}: there is nothing to learn to say; remove the row"
        )
    if roles[0] == "assistant":
        raise DataError(f"{row.where}: {column!r} begins with the assistant; what it answers has to come first")
    return tuple(messages)


MOST_LABELS = 1000
_HINT = ". Set data.text and data.label"


def read_labelled(
    config: RewardData, say: Callable[[str], None] = lambda _: None, warn: Callable[[str], None] = lambda _: None
) -> tuple[list[LabelledText], list[LabelledText], tuple[str, ...]]:
    """Return the texts to train on, those to evaluate on, and the names of the labels. No text is on both sides.

    Raises:
        DataError: the source cannot be read; a row has no text or no label of the set; a side has no texts; there is one
            label only.
    """
    opened = (open_rows(name, config.text, hub, "data.") for name, hub in sources_of(config))
    rows, *evaluation = [list(itertools.islice(each, config.limit)) for each in opened]
    labels = config.labels or _labels(rows, config)
    if twins := alike(labels):
        warn(f"{config.file}: the labels {twins} are classes of their own; if they should be one, write them alike")
    if rows and (left := unused(rows[0].values, (config.text, config.label))):
        say(f"{config.file}: read as labelled texts{left}")
    if len(labels) < 2:
        raise DataError(
            f"{config.file}: only the label {', '.join(labels) or '(none)'} is there; a classifier needs two at least"
        )
    texts, *held_out = [[_labelled(row, labels, config) for row in each] for each in (rows, *evaluation)]
    sides = split_by_key(texts, config.held_out, *held_out)
    for name, side in zip(("train on", "evaluate on"), sides, strict=True):
        if not side:
            raise DataError(
                f"{config.file}: no text is left to {name}; it has {len(texts)}. Give more texts, or set data.held_out"
            )
    return *sides, tuple(labels)


def _labels(rows: Sequence[Row], config: RewardData) -> tuple[str, ...]:
    """The labels of the rows: all names, or all numbers 0 to C-1."""
    if not rows:
        raise DataError(f"{config.file}: no rows in it; labelled texts are needed")
    values = {_label(row, config.label) for row in rows}
    numbers = {value for value in values if isinstance(value, int)}
    if len(values) > MOST_LABELS or (numbers == values and numbers != set(range(len(numbers)))):
        few = ", ".join(map(str, sorted(values, key=str)[:5]))
        raise DataError(
            f"{config.file}: {len(values)} labels ({few} ...); a label is a name, or a number from 0 without gaps, "
            f"{MOST_LABELS} of them at most. See data.label and data.labels"
        )
    return tuple(map(str, sorted(numbers))) if numbers == values else tuple(sorted(map(str, values)))


def _labelled(row: Row, labels: Sequence[str], config: RewardData) -> LabelledText:
    label, text = _label(row, config.label), row.text(config.text, hint=_HINT)
    if str(label) in labels:
        return LabelledText(text, labels.index(str(label)))
    if isinstance(label, str):
        known = f"one of {', '.join(labels)}{near(label, labels)}"
        raise DataError(f"{row.where}: label {label!r} is not {known}; see data.labels")
    if not 0 <= label < len(labels):
        raise DataError(f"{row.where}: label {label} is outside of 0 to {len(labels) - 1} ({', '.join(labels)}); see data.labels")
    return LabelledText(text, label)


def _label(row: Row, column: str) -> int | str:
    """The label of a row: a number, also where it is written as a text or 1.0, or a name."""
    value = row.value(column, _HINT)
    if isinstance(value, str) and value.strip():
        number = re.fullmatch(r"(\d+)(\.0)?", value.strip())
        return int(number[1]) if number else value.strip()
    if isinstance(value, float) and value.is_integer():  # of a table with missing values
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{row.where}: {column!r} is {value!r}; a name or a whole number is needed")
    if value < 0:
        raise DataError(f"{row.where}: {column!r} is {value}; labels are numbered from 0")
    return value

"""Texts to learn from: plain texts, prompts with completions, conversations; labelled texts for classifiers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from konomi.config import RewardData, SFTData
from konomi.data.messages import messages_of
from konomi.data.records import LabelledText, Prompt, repeating_rows, split_by_key
from konomi.data.rows import Row, alike, near, need_column, text_of, unused
from konomi.data.sources import EMBEDDED, Hub, open_rows, split_held_out
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
    messages: tuple[Mapping[str, Any], ...] = ()

    @property
    def asked(self) -> Prompt:
        """What examples are split by: the text, the prompt, or the conversation up to the first answer."""
        messages = itertools.takewhile(lambda message: message["role"] != "assistant", self.messages)
        return Prompt(self.text or "\n".join(f"{message['role']}: {message['content']}" for message in messages))


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
"""Last words of the names of columns with answers."""


def _check_answers(where: str, row: Mapping[str, Any], config: SFTData) -> None:
    """Refuse to learn the questions alone of a table of questions and answers."""
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
    needed = 'a list of {"role": ..., "content": ...}'
    value = messages_of(where, row, column, blank=False, hint=". Set data.messages_column", needed=needed)
    if not value:
        raise DataError(f"{where}: {column!r} is an empty list; {needed} is needed")
    roles = [message["role"] for message in value]
    if "assistant" not in roles:
        raise DataError(f"{where}: no message of the assistant in {column!r}: there is nothing to learn to say; remove the row")
    if roles[0] == "assistant":
        raise DataError(f"{where}: {column!r} begins with the assistant; what it answers has to come first")
    return tuple(value)


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
    rows = list(_rows(config, config.file, Hub(config.subset, config.split, config.revision)))
    labels = config.labels or _labels(rows, config)
    if twins := alike(labels):
        warn(f"{config.file}: the labels {twins} are classes of their own; if they should be one, write them alike")
    if rows and (left := unused(rows[0][1], (config.text, config.label))):
        say(f"{config.file}: read as labelled texts{left}")
    if len(labels) < 2:
        raise DataError(
            f"{config.file}: only the label {', '.join(labels) or '(none)'} is there; a classifier needs two at least"
        )
    texts = [_labelled(row, labels, config) for row in rows]
    if config.evaluation or config.evaluation_split:
        hub = Hub() if config.evaluation else Hub(config.subset, config.evaluation_split or config.split, config.revision)
        evaluation = [_labelled(row, labels, config) for row in _rows(config, config.evaluation or config.file, hub)]
        seen = {each.key for each in evaluation}
        train = [each for each in texts if each.key not in seen]
    else:
        train, evaluation = split_by_key(texts, config.held_out)
    for name, side in (("train on", train), ("evaluate on", evaluation)):
        if not side:
            raise DataError(
                f"{config.file}: no text is left to {name}; it has {len(texts)}. Give more texts, or set data.held_out"
            )
    return train, evaluation, tuple(labels)


def _rows(config: RewardData, source: str, hub: Hub) -> Iterator[Row]:
    for where, row in itertools.islice(open_rows(source, config.text, hub, "data."), config.limit):
        need_column(where, list(row), config.label, _HINT)
        yield where, row


def _labels(rows: Sequence[Row], config: RewardData) -> tuple[str, ...]:
    """The labels of the rows: all names, or all numbers 0 to C-1."""
    if not rows:
        raise DataError(f"{config.file}: no rows in it; labelled texts are needed")
    values = {_value(where, row[config.label], config) for where, row in rows}
    numbers = {value for value in values if isinstance(value, int)}
    if len(values) > MOST_LABELS or (numbers == values and numbers != set(range(len(numbers)))):
        few = ", ".join(map(str, sorted(values, key=str)[:5]))
        raise DataError(
            f"{config.file}: {len(values)} labels ({few} ...); a label is a name, or a number from 0 without gaps, "
            f"{MOST_LABELS} of them at most. See data.label and data.labels"
        )
    return tuple(map(str, sorted(numbers))) if numbers == values else tuple(sorted(map(str, values)))


def _labelled(row: Row, labels: Sequence[str], config: RewardData) -> LabelledText:
    where, content = row
    value = _value(where, content[config.label], config)
    text = text_of(where, content, config.text, hint=_HINT)
    if isinstance(value, int) and str(value) not in labels:
        if not 0 <= value < len(labels):
            raise DataError(f"{where}: label {value} is outside of 0 to {len(labels) - 1} ({', '.join(labels)}); see data.labels")
        return LabelledText(text, value)
    if str(value) not in labels:
        raise DataError(f"{where}: label {value!r} is not one of {', '.join(labels)}{near(str(value), labels)}; see data.labels")
    return LabelledText(text, list(labels).index(str(value)))


def _value(where: str, value: Any, config: RewardData) -> int | str:
    if isinstance(value, str) and value.strip():
        number = re.fullmatch(r"(\d+)(\.0)?", value.strip())
        return int(number[1]) if number else value.strip()
    if isinstance(value, float) and value.is_integer():  # of a table with a gap
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise DataError(f"{where}: {config.label!r} is {value}; labels are numbered from 0")
        return value
    raise DataError(f"{where}: {config.label!r} is {value!r}; a name or a whole number is needed")

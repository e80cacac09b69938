"""Labelled texts: what a classifier learns from. Imports nothing heavy."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from konomi.config import RewardData
from konomi.data.records import Prompt, is_held_out
from konomi.data.rows import Row, alike, near, need_column, text_of, unused
from konomi.data.sources import Hub, open_rows
from konomi.errors import DataError

MOST_LABELS = 1000
_HINT = ". Set data.text and data.label"


@dataclass(frozen=True)
class Labelled:
    """A text and the number of its label."""

    text: str
    label: int

    @property
    def key(self) -> str:
        """The text's key: what a split goes by."""
        return Prompt(self.text).key


def read_labelled(
    config: RewardData, say: Callable[[str], None] = lambda _: None, warn: Callable[[str], None] = lambda _: None
) -> tuple[list[Labelled], list[Labelled], tuple[str, ...]]:
    """Return the texts to train on, those to evaluate on, and the names of the labels.

    Without ``config.evaluation`` or ``config.evaluation_split``, a text's side depends on its key alone; the same text is
    never on both sides.

    Raises:
        DataError: the source cannot be read; a row has no text or no label of the set; a side has no texts; there is one
            label only.
    """
    rows = list(_rows(config, config.file, Hub(config.subset, config.split, config.revision)))
    labels = config.labels or _found(rows, config)
    if twins := alike(labels):
        warn(f"{config.file}: the labels {twins} are classes of their own; if they should be one, write them alike")
    if rows and (left := unused(rows[0][1], (config.text, config.label))):
        say(f"{config.file}: read as labelled texts{left}")
    if len(labels) < 2:
        raise DataError(
            f"{config.file}: only the label {', '.join(labels) or '(none)'} is there; a classifier needs two at least"
        )
    whole = [_labelled(row, labels, config) for row in rows]
    if config.evaluation or config.evaluation_split:
        hub = Hub() if config.evaluation else Hub(config.subset, config.evaluation_split or config.split, config.revision)
        evaluation = [_labelled(row, labels, config) for row in _rows(config, config.evaluation or config.file, hub)]
        seen = {each.key for each in evaluation}
        train = [each for each in whole if each.key not in seen]
    else:
        train = [each for each in whole if not is_held_out(each.key, config.held_out)]
        evaluation = [each for each in whole if is_held_out(each.key, config.held_out)]
    for name, side in (("train on", train), ("evaluate on", evaluation)):
        if not side:
            raise DataError(
                f"{config.file}: no text is left to {name}; it has {len(whole)}. Give more texts, or set data.held_out"
            )
    return train, evaluation, tuple(labels)


def _rows(config: RewardData, source: str, hub: Hub) -> Iterator[Row]:
    for where, row in itertools.islice(open_rows(source, config.text, hub, "data."), config.limit):
        need_column(where, list(row), config.label, _HINT)
        yield where, row


def _found(rows: Sequence[Row], config: RewardData) -> tuple[str, ...]:
    """The labels that are there: all names, or all numbers 0 to C-1."""
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


def _labelled(row: Row, labels: Sequence[str], config: RewardData) -> Labelled:
    where, content = row
    value = _value(where, content[config.label], config)
    text = text_of(where, content, config.text, hint=_HINT)
    if isinstance(value, int) and str(value) not in labels:
        if not 0 <= value < len(labels):
            raise DataError(f"{where}: label {value} is outside of 0 to {len(labels) - 1} ({', '.join(labels)}); see data.labels")
        return Labelled(text, value)
    if str(value) not in labels:
        raise DataError(f"{where}: label {value!r} is not one of {', '.join(labels)}{near(str(value), labels)}; see data.labels")
    return Labelled(text, list(labels).index(str(value)))


def _value(where: str, value: Any, config: RewardData) -> int | str:
    if isinstance(value, str) and value.strip():
        number = re.fullmatch(r"(\d+)(\.0)?", value.strip())
        return int(number[1]) if number else value.strip()
    if isinstance(value, float) and value.is_integer():  # of a table that had a gap somewhere
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise DataError(f"{where}: {config.label!r} is {value}; labels are numbered from 0")
        return value
    raise DataError(f"{where}: {config.label!r} is {value!r}; a name or a whole number is needed")

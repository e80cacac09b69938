"""Load prompts (texts to continue, conversations to answer) from files, data sets and Python. Imports nothing heavy."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from konomi.config import DataConfig
from konomi.config.ppo import NO_CUT
from konomi.data.messages import Conversation, asked, messages_of, readable
from konomi.data.records import Prompt, split_by_key
from konomi.data.rows import Row
from konomi.data.sources import Hub, open_rows
from konomi.errors import ConfigError, DataError
from konomi.files import plain
from konomi.text import plural


def load_prompts(
    config: DataConfig, reads: Iterable[str] | None = (), say: Callable[[str], None] = lambda _: None
) -> list[Prompt]:
    """Return the prompts that ``config`` names, in the order of the source; ``reads`` as in :func:`distinct_prompts`.

    All have the same columns, None where a row lacks one. Dates become ISO strings; a column with values that JSON cannot hold,
    such as bytes, is left out, and ``say`` gets its name.

    Raises:
        DataError: the source cannot be found, reached or read; a row has no text; there are no rows.
        ConfigError: a setting for hub data sets is given with a file, one for conversations with texts, or one for texts with
            conversations.
    """
    rows = open_rows(config.prompts, config.column, Hub.of(config), "data.")
    prompts = _prompts(itertools.islice(rows, config.limit), config, config.prompts, say)
    return distinct_prompts(prompts, reads, say, config.prompts)


def as_prompts(
    given: Iterable[str | Mapping[str, Any] | Prompt], config: DataConfig | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Prompt]:  # fmt: skip
    """Return prompts of strings, of rows that have ``config.column`` (dicts, a data set), or of prompts, as :func:`load_prompts`
    does.

    Raises:
        DataError: there are none; one has no text.
    """
    if isinstance(given, str | bytes):
        raise DataError("prompts: one string; give a list of them")
    given, config = list(given), config or DataConfig()
    column = config.column
    if all(isinstance(each, Prompt) for each in given):  # their text needs an unused column name
        while any(column in each.columns for each in given if isinstance(each, Prompt)):
            column += "_"

    def values_of(each: str | Mapping[str, Any] | Prompt) -> dict[str, Any]:
        if isinstance(each, Prompt):
            return {**each.columns, column: each.text}
        return dict(each) if isinstance(each, Mapping) else {column: each}

    rows = (Row(f"prompts[{i}]", values_of(each)) for i, each in enumerate(given))
    named = config.model_copy(update={"column": column})
    return distinct_prompts(_prompts(rows, named, "prompts", say), None, say)


def _prompt_of(row: Row, config: DataConfig, columns: dict[str, Any]) -> Prompt:
    """The prompt in a row: a text, or a conversation up to what is to be answered."""
    hint = ". Set data.column"
    if isinstance(columns.get("messages"), Conversation):  # already a prompt
        return Prompt(row.text(config.column), columns)
    if not isinstance(row.value(config.column, hint), list):
        text = row.text(config.column, hint=hint)
        if not config.chat:
            return Prompt(text, columns)
        own = [{"role": "user", "content": text}]
    else:
        own = messages_of(row, config.column, blank=False, hint=hint)
        while own and own[-1]["role"] == "assistant":  # of a data set for fine-tuning
            own.pop()
        if not own:
            raise DataError(f"{row.where}: {config.column!r} has nothing to be answered: no message of the user")
    if columns.get("messages") is not None:
        raise DataError(
            f"{row.where}: a column 'messages' beside {config.column!r}; rewards get the conversation by that name: rename the "
            'column, or read it: data.column = "messages"'
        )
    return Prompt(readable(own), {**columns, "messages": asked(own, config.system)})


def extra_prompts(texts: Iterable[str], data: DataConfig, like: Prompt) -> list[Prompt]:
    """Prompts of texts given beside a data set: a user's messages where its prompts, such as ``like``, are conversations."""
    config = data.model_copy(update={"chat": like.messages is not None})
    return [_prompt_of(Row("prompts", {config.column: text}), config, {}) for text in texts]


def _check_kinds(prompts: Sequence[Prompt], config: DataConfig, source: str) -> None:
    talks = sum(prompt.messages is not None for prompt in prompts)
    if talks and config.query_tokens:
        raise ConfigError(f"data.query_tokens with conversations: {NO_CUT}")
    if config.system is not None and not talks:
        raise ConfigError("data.system: for chat models, and the prompts are texts to be continued; set data.chat = true")
    if 0 < talks < len(prompts):
        raise DataError(f"{source}: texts among conversations; if a text is a user's message, set data.chat = true")


def _prompts(rows: Iterable[Row], config: DataConfig, source: str, say: Callable[[str], None]) -> list[Prompt]:
    prompts: list[Prompt] = []
    column = config.column
    unsupported: dict[str, None] = {}
    for row in rows:
        values = {}
        for name, value in row.values.items():
            if name != column and name not in unsupported:
                try:
                    values[name] = value if isinstance(value, Conversation) else plain(value)
                except (TypeError, ValueError, OverflowError, RuntimeError):  # the last one of torch
                    unsupported[name] = None
        prompts.append(_prompt_of(row, config, values))
    if not prompts:
        raise DataError(f"{source}: no rows in it; at least one text is needed")
    if unsupported:
        say(f"{source}: columns left out, because JSON cannot hold their values: {', '.join(map(repr, unsupported))}")
    _check_kinds(prompts, config, source)
    # JSON rows may differ in their keys; a column that a reward function names must be in every batch
    kept = dict.fromkeys(name for prompt in prompts for name in prompt.columns if name not in unsupported)
    return [Prompt(prompt.text, {name: prompt.columns.get(name) for name in kept}) for prompt in prompts]


def distinct_prompts(
    prompts: Sequence[Prompt], reads: Iterable[str] | None, say: Callable[[str], None], name: str = "prompts"
) -> list[Prompt]:
    """The prompts without repetitions: the same text (by key) and the same values in the columns ``reads`` (None: all).

    Prompts that have the same text and stay are numbered by ``Prompt.copy``. ``say`` gets how many were left out, of the source
    ``name``, and in which columns they differ.
    """
    names = None if reads is None else set(reads)
    seen: dict[tuple[str, str], Prompt] = {}
    copies: Counter[str] = Counter()
    differ: dict[str, None] = {}
    for prompt in prompts:
        same = prompt.key, repr([(k, v) for k, v in prompt.columns.items() if names is None or k in names])
        if same in seen:
            differ |= dict.fromkeys(k for k, v in prompt.columns.items() if repr(v) != repr(seen[same].columns.get(k)))
        else:
            seen[same] = replace(prompt, copy=copies[prompt.key])
            copies[prompt.key] += 1
    if left := len(prompts) - len(seen):
        how = f"; they differ in {', '.join(map(repr, differ))}, which nothing here reads" if differ else ""
        say(f"{name}: {left:,} of {plural(len(prompts), 'prompt')} repeat the text of an earlier one and are left out{how}")
    return list(seen.values())


def split_held_out(prompts: Sequence[Prompt], share: float) -> tuple[list[Prompt], list[Prompt]]:
    """Return (train, held out). A text's side depends on its key alone, whatever other texts there are.

    ``share`` is the expected share held out, 0 to 1: of few texts it can be more or fewer, and even none. What a
    smaller share holds out, a larger one does too.

    Raises:
        DataError: no text is left for training.
    """
    train, held_out = split_by_key(prompts, share)
    if not train:
        raise DataError(
            f"data.held_out = {share}: all of the {len(held_out)} texts are held out and none is left for training; "
            "lower it or add texts"
        )
    return train, held_out

"""Chat messages, ``{"role", "content"}``, as texts: a preference's prompt and its two answers. Standard library only.

A chat model's own template renders them (:func:`template_render`). A base model has none, and often no tokenizer is at hand;
then :func:`plain_render` writes a dialogue that a person can read and any language model can go on with.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

from konomi.data.rows import Row, UnusableRow, checked_text, kind
from konomi.errors import DataError, ModelError

Message = dict[str, Any]
Render = Callable[[list[Message]], str]
"""Messages to one text. Where the last message is not the assistant's, the text ends in the cue for its answer, so that it is
the beginning of the text of prompt and answer."""


def plain_render(messages: Sequence[Message]) -> str:
    """The messages as a dialogue in Anthropic-HH's form, without special tokens.

    >>> print(plain_render([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]))
    System: Be kind.
    <BLANKLINE>
    User: Hi
    <BLANKLINE>
    Assistant:
    """
    parts = [f"{m['role'][:1].upper()}{m['role'][1:]}: {m['content']}" for m in messages]
    return "\n\n".join(parts if messages[-1]["role"] == "assistant" else [*parts, "Assistant:"])


def template_render(tokenizer: Any) -> Render:
    """The chat template of a transformers tokenizer, without a ``<bos>`` that the tokenizer would put in front a second time.

    Raises:
        ModelError: the tokenizer has no chat template.
        DataError: (when it renders) the template refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"{getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__}: this tokenizer has no chat template; "
            "take an instruction-tuned model's, or render messages plainly"
        )
    import jinja2

    bos = tokenizer.bos_token
    added = bos is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [tokenizer.bos_token_id]

    def render(messages: list[Message]) -> str:
        cue = messages[-1]["role"] != "assistant"
        try:
            text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=cue)
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template refuses these messages: {error}") from error
        return text.removeprefix(bos) if added else text

    return render


def preference(row: Row, render: Render | None = None) -> tuple[str, str, str]:
    """The texts of prompt, chosen and rejected of a row in which some of the three are messages.

    The prompt may be messages, a text (then the user's), or missing: then it is what chosen and rejected both begin with. It is
    taken off where they begin with it. Prompt + chosen is the rendering of all messages.

    Raises:
        DataError: something is not a list of messages; the rendering of all does not begin with that of the prompt.
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
    try:
        head, *texts = [(render or plain_render)(each) for each in (prompt, prompt + chosen, prompt + rejected)]
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if not all(text.startswith(head) for text in texts):
        raise DataError(
            f"{where}: the chat template writes the prompt differently when an answer follows ({head[-40:]!r} is not how "
            "the text before the answer ends); use another template, or render messages plainly"
        )
    return head, texts[0][len(head) :], texts[1][len(head) :]


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
        messages.append({key: item for key, item in message.items() if item is not None})  # tables fill up with None
    return messages


def _answer(row: Row, column: str) -> list[Message]:
    if isinstance(row.values.get(column), str):
        return [{"role": "assistant", "content": row.values[column]}]
    return messages_of(row, column, "a list of messages or a text")

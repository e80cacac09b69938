"""Chat templates: render conversations for a model. Imports nothing heavy.

Text by people and models stays text: where it looks like a control token (``<|im_end|>``), a mark inside keeps the tokenizer
from taking it for one (:func:`konomi.data.detokenizer.plain_ids`). Only the template writes control tokens. In earlier answers
those that are not special (``</think>``) stay as they are: templates look for them, to leave old thoughts out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from konomi.data.messages import Message
from konomi.errors import FAULTS, DataError, ModelError

MARK = "\ufdd0"
"""A code point that is no character: at it, the tokens of a text are parted."""
_DAY = datetime(2024, 7, 26)
ARGUMENTS = {"enable_thinking": False, "date_string": _DAY.strftime("%d %b %Y")}
"""What templates are told, if they ask: a model that can think aloud (Qwen3) answers at once; it is always the same day, so that
a prompt is the same tomorrow."""
_PARTS_OF_DATES = "".join(
    f"|replace('%{part}', '{_DAY.strftime(f'%{part}')}')" for part in (*"aAbBcdeDFHIjmMpSTuUwWxXyY", "-d", "-m")
)
_NOW = "{% macro strftime_now(format) %}{{ format" + _PARTS_OF_DATES + " }}{% endmacro %}{{ '' }}"
"""In front of a template: what it asks for today's date. transformers lets no function of ours in; the empty text keeps the line
break that may follow."""
_PROBE = "konomi"


class Rendered(str):
    """What a chat template wrote: all special tokens are in it, none is put around it."""

    __slots__ = ()


Render = Callable[[Sequence[Message]], Rendered]
"""Messages to one text. Where the last message is not the assistant's, the text ends in the cue for its answer."""


def template_render(tokenizer: Any, *, learning: bool = False) -> Render:
    """The chat template of a transformers tokenizer.

    Args:
        tokenizer: any of transformers with a chat template.
        learning: the assistant's messages are to be learned, so that control tokens in them count.

    Raises:
        ModelError: the tokenizer has no chat template.
        DataError: (when it renders) the template refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"{getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__}: its tokenizer has no chat template, which "
            'conversations need. Take a model that was tuned to chat, or give it one: model.chat_template = "FILE.jinja"'
        )
    import jinja2

    controls, special = _controls(tokenizer)

    def render(messages: Sequence[Message]) -> Rendered:
        cue = messages[-1]["role"] != "assistant"
        parted: list[Message] = []
        for number, message in enumerate(messages, start=1):
            own = message["role"] == "assistant"
            if own and learning:
                parted.append(dict(message))
            else:
                parted.append(_parted(message, controls, special if own and number < len(messages) else controls))
        try:
            template = _NOW + tokenizer.get_chat_template()
            settings = {"chat_template": template, "tokenize": False, "add_generation_prompt": cue}
            return Rendered(tokenizer.apply_chat_template(parted, **settings, **ARGUMENTS))
        except (jinja2.TemplateError, *FAULTS) as error:
            raise DataError(f"the chat template refuses these messages: {error}") from error

    return render


def turn_end(tokenizer: Any) -> int | None:
    """The token that the chat template writes behind an answer; None if there is no template, or it writes other text there."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
        behind = template_render(tokenizer)(talk).rpartition(_PROBE)[2].lstrip()
    except DataError:
        return None
    ends = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if behind.startswith(token.content)}
    return ends[max(ends, key=len)] if ends else None


def _controls(tokenizer: Any) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Match control tokens: special ones and what else was added to the vocabulary and is in the template; special ones alone."""
    template = str(tokenizer.chat_template)
    added = [token for token in tokenizer.added_tokens_decoder.values() if len(token.content) > 1 and not token.content.isspace()]
    special = [token.content for token in added if token.special]
    return _any_of([*special, *(token.content for token in added if token.content in template)]), _any_of(special)


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def _parted(value: Any, controls: re.Pattern[str], texts: re.Pattern[str] | None = None) -> Any:
    """A message with a mark in each control token that somebody wrote into it; in its own texts, in each of ``texts``."""
    if isinstance(value, str):
        return controls.sub(lambda match: match[0][0] + MARK + match[0][1:], value.replace(MARK, ""))
    if isinstance(value, dict):
        own = texts or controls
        return {_parted(k, controls): _parted(v, own if isinstance(v, str) else controls) for k, v in value.items()}
    return [_parted(item, controls) for item in value] if isinstance(value, (list, tuple)) else value

"""How a model that scores texts reads them: token ids, cut where they are more than it has room for."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, Literal

from konomi.data.chat import Rendered, template_render
from konomi.data.detokenizer import plain_ids, token_ids
from konomi.data.messages import Answered, Text
from konomi.data.tokens import check_ids, valid_id
from konomi.errors import ConfigError, DataError
from konomi.models.load import vocabulary_size
from konomi.text import plural, shortened

PART = 512
"""Texts that are tokenised at a time: a GPU meanwhile scores those before them."""


class Reader:
    """Reads texts as token ids for a model that scores them, cuts long ones, and counts how many.

    Args:
        tokenizer: the transformers tokenizer; its ``truncation_side`` is where a text is cut.
        model: its embeddings and positions limit what can be read.
        max_length: tokens of a text at most, special tokens included; lowered to what tokenizer and model allow.
        name: of the model, for messages.
        reads_prompt: it is given prompt and response; false: the response alone.
        chat: its tokenizer's chat template writes prompt and response.

    Attributes:
        pad_id: any valid id.
        texts, cut: how many texts were read, and how many of them only in part.
        longest: tokens of the longest text that was cut.
    """

    def __init__(
        self, tokenizer: Any, model: Any, max_length: int, name: str = "", reads_prompt: bool = True, chat: bool = False
    ) -> None:
        self.tokenizer, self.name, self.reads_prompt = tokenizer, name, reads_prompt
        self.vocabulary = vocabulary_size(model)
        self.max_length: int = min(max_length, _positions(model), tokenizer.model_max_length)
        pads = (tokenizer.pad_token_id, model.config.get_text_config().pad_token_id, tokenizer.eos_token_id)
        self.pad_id: int = valid_id(pads, self.vocabulary)
        self.texts, self.cut, self.longest = 0, 0, 0
        self.render = template_render(tokenizer) if chat else None

    @property
    def side(self) -> Literal["beginning", "end"]:
        """Where a text that is too long is cut."""
        return "beginning" if self.tokenizer.truncation_side == "left" else "end"

    @property
    def cuts(self) -> str:
        """How much it reads of a text, for messages."""
        name = self.name or "the model"
        return f"{name}: it reads {self.max_length} tokens of a text, and of a longer one not the {self.side}"

    def warn(self, warn: Callable[[str], None]) -> None:
        """Warn of how many texts were cut so far, if any."""
        if self.cut:
            warn(f"{self.cuts}: {self.cut} of {plural(self.texts, 'text')} are cut, the longest has {self.longest} tokens")

    def written(self, text: Text) -> str:
        """What it reads of a prompt with its response. Raises DataError if its chat template refuses them."""
        if not isinstance(text, Answered):
            return text
        if self.render is None:
            return str(text)
        try:
            return self.render(text.conversation)
        except DataError as error:
            raise DataError(f"{self.name or 'the model'}: the prompt {shortened(text.prompt)!r}: {error}") from error

    def lengths(self, texts: Sequence[Text]) -> list[int]:
        """How many tokens each text has before it is cut, special tokens included.

        Raises:
            ModelError: the model has no embedding for a token of a text.
        """
        written = list(map(self.written, texts))
        return [len(self._checked(row, text)) for row, text in zip(self._ids(written), written, strict=True)]

    def response_lengths(self, texts: Sequence[Text]) -> list[int]:
        """How many tokens of each text, before it is cut, follow those that it has in common with its prompt alone; of a text
        without a prompt all but special ones in front."""
        both = zip(*(self._ids([write(text) for text in texts]) for write in (self.written, self._question)), strict=True)
        return [len(row) - sum(takewhile(bool, map(operator.eq, row, question))) for row, question in both]

    def encode(self, texts: Sequence[Text]) -> list[list[int]]:
        """Token ids of each text, special tokens included, cut to ``max_length``; at least one.

        Raises:
            ModelError: the model has no embedding for a token of a text.
        """
        written = list(map(self.written, texts))
        rows = self._ids(written)
        if long := [i for i, row in enumerate(rows) if len(row) > self.max_length]:
            self.longest = max(self.longest, *(len(rows[i]) for i in long))
            again = self._ids([written[i] for i in long], truncation=True, max_length=self.max_length)
            for i, row in zip(long, again, strict=True):
                rows[i] = row
        self.texts, self.cut = self.texts + len(rows), self.cut + len(long)
        return [self._checked(row, text) or [self.pad_id] for row, text in zip(rows, written, strict=True)]

    def _question(self, text: Text) -> str:
        """What it reads before the response."""
        if not isinstance(text, Answered):
            return ""
        return str(replace(text, response="")) if self.render is None else self.render(text.conversation[:-1])

    def _ids(self, texts: Sequence[str], **settings: Any) -> list[list[int]]:
        if all(isinstance(text, Rendered) for text in texts):
            rows = plain_ids(self.tokenizer, texts)
            if settings:
                rows = [row[-self.max_length :] if self.side == "beginning" else row[: self.max_length] for row in rows]
            return rows
        if not settings:
            return token_ids(self.tokenizer, texts)
        ids: list[list[int]] = self.tokenizer(list(texts), verbose=False, **settings)["input_ids"]
        return ids

    def _checked(self, row: list[int], text: str) -> list[int]:
        return check_ids(row, text, self.tokenizer, self.vocabulary)


def check_room(readers: Iterable[Reader], prompts: Sequence[Text], response: int, warn: Callable[[str], None]) -> None:
    """Warn where prompt and response may be longer than what a reward reads.

    ``response``: tokens of one, at most, of the model that writes: as good an estimate as there is of the reward's own.

    Raises:
        ConfigError: a prompt alone fills a reward that cuts the end: all responses to it would score alike.
    """
    for reader in readers:
        if not reader.reads_prompt:
            if response + reader.lengths([""])[0] > reader.max_length:
                warn(f"{reader.cuts}; responses of up to {response} tokens may be longer")
            continue
        lengths, limit = reader.lengths(prompts), reader.max_length
        if reader.side == "end" and (full := sum(length >= limit for length in lengths)):
            raise ConfigError(
                f"{reader.cuts}; {full} of {len(prompts)} prompts are that long by themselves (the longest has {max(lengths)}), "
                "so that no response to them would be read. Shorten or remove them, cut them with data.query_tokens, or use a "
                "reward that reads more (a classifier: reward.max_length, up to the places that it has)"
            )
        if response and (tight := sum(length + response > limit for length in lengths)):
            warn(
                f"{reader.cuts}; with a response of up to {response} tokens, {tight} of {plural(len(prompts), 'prompt')} may be "
                f"over that (the longest has {max(lengths)}); the metric reward/cut_share shows how often"
            )


def _positions(model: Any) -> int:
    """How many tokens a model has positions for; very many where it does not say."""
    count: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not count or count < 0:
        return 2**31
    # RoBERTa's positions begin behind the padding index
    offset = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    return count if offset is None else count - offset - 1

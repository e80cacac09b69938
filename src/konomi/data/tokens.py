"""Text to token ids and back; queries of random length; padding and masks. Only this file knows pad and eos.

Masks come from lengths and never from ids: the padding id may be the end-of-text id, or the id of a word.
Shapes: B sequences, L the longest of them.
"""

from __future__ import annotations

import itertools
import operator
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from konomi.data.chat import Render, Rendered, template_render, turn_end
from konomi.data.detokenizer import DecodedAfter, Detokenizer, plain_ids
from konomi.data.records import Prompt
from konomi.errors import DataError, ModelError
from konomi.seeds import stream_seed
from konomi.text import shortened

KEPT = 20_000
"""Prompts whose ids are cached across epochs."""
_PROBES = ("a", "1", "あ")  # every tokenizer has a token for one of them


class Tokens:
    """A transformers tokenizer with what a language model needs.

    The special tokens that a tokenizer puts in front of a text are kept (Gemma was trained with ``<bos>``), those that
    it puts behind never (T5's ``</s>`` would ask the model to go on after the end of the text). A conversation has those that its
    chat template writes, and no others.

    Args:
        eos_ids: ids that end a text beside the tokenizer's own and the one that its chat template writes behind an answer: those
            in the model's settings.
        vocabulary: how many tokens the model has embeddings for; None: for all that the tokenizer has.
        only: the ids that end a text, in the place of all these.

    Attributes:
        leading: ids of the special tokens in front.
        eos_ids: ids that end a text; may be empty.
        end_id: the one of them that is put behind a text to learn from, or None.
        pad_id: any valid id.
    """

    def __init__(
        self, tokenizer: Any, eos_ids: Iterable[int] = (), vocabulary: int | None = None, only: Iterable[int] | None = None
    ) -> None:
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        ends = (eos, turn_end(tokenizer), *eos_ids) if only is None else only
        self.eos_ids: frozenset[int] = frozenset(valid_ids(ends, vocabulary))
        self.end_id: int | None = eos if eos in self.eos_ids else min(self.eos_ids, default=None)
        self.pad_id: int = valid_id((pad, self.end_id), vocabulary)
        self._texts = Detokenizer(tokenizer)
        self._read: dict[str, array[int]] = {}
        self._rendered: dict[str, Rendered] = {}
        self.leading: list[int] = self._leading()

    def _leading(self) -> list[int]:
        for probe in _PROBES:
            plain = self._plain([probe])[0]
            full = list(self.tokenizer(probe, verbose=False)["input_ids"])
            for start in range(len(full) - len(plain) + 1):
                if plain and full[start : start + len(plain)] == plain:
                    return full[:start]
        raise ModelError(
            f"{type(self.tokenizer).__name__}: the special tokens that it adds cannot be told from the text's own "
            f"(tried {', '.join(map(repr, _PROBES))}); a tokenizer for text is needed"
        )

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        return plain_ids(self.tokenizer, texts)

    @cached_property
    def render(self) -> Render:
        """The chat template. Raises ModelError if there is none."""
        return template_render(self.tokenizer)

    def _whole(self, texts: Sequence[str]) -> dict[str, array[int]]:
        """The cached ids of at least these texts."""
        if len(self._read) > KEPT:
            self._read = {}
        new = [text for text in dict.fromkeys(texts) if text not in self._read]
        self._read |= zip(new, (array("i", row) for row in self._plain(new)), strict=True)
        return self._read

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text`` with leading special tokens and without trailing ones."""
        return self.query(text, None)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids`` without leading special tokens and without an incomplete last character."""
        return self._texts([self._without_leading(ids)])[0]

    def split(self, prompt: Prompt, query: Sequence[int], response: Sequence[int]) -> tuple[str, str]:
        """Return the text of a prompt, as far as it is in the query, and that of the response.

        The response is without an end of text as its last token and without an incomplete last character; other special tokens
        are text. It is decoded after its query: by itself, SentencePiece decoders drop the space in front of the first word, and
        a character that the cut went through would be lost (it belongs to the response).
        """
        (asked,), (answer,) = self.split_all([prompt], [query], [response])
        return asked, answer

    def split_all(
        self, prompts: Iterable[Prompt], queries: Iterable[Sequence[int]], responses: Iterable[Sequence[int]]
    ) -> tuple[list[str], list[str]]:
        """As :meth:`split`, of many: the texts of their prompts, and those of their responses."""
        prompts, queries = list(prompts), list(map(list, queries))
        prompt_ids = self._whole([prompt.text for prompt in prompts if prompt.messages is None])
        behind = self._behind(queries, list(responses))
        rows = zip(prompts, queries, behind, strict=True)
        asked = [
            prompt.text if prompt.messages or query == [*self.leading, *prompt_ids[prompt.text]] else each.asked
            for prompt, query, each in rows
        ]
        return asked, [each.text[each.start :] for each in behind]

    def ends(self, queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return how many characters of each response's text (that of :meth:`split`) are complete after each of its tokens."""
        ends = []
        for each, response in zip(self._behind(queries, responses), responses, strict=True):
            texts = self._texts([[*each.before, *response[:number]] for number in range(1, len(response))])
            same = (_same_start(text, each.text) - each.start for text in texts)
            ends.append([*itertools.islice(itertools.accumulate(same, max, initial=0), 1, None), len(each.text) - each.start])
        return ends

    def _behind(self, queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[DecodedAfter]:
        """Responses decoded after their queries."""
        written = [row[:-1] if row and row[-1] in self.eos_ids else row for row in responses]
        return self._texts.behind(list(map(self._without_leading, queries)), written)

    def _without_leading(self, ids: Sequence[int]) -> list[int]:
        front = len(self.leading)
        return list(ids[front:] if list(ids[:front]) == self.leading else ids)

    def query(self, text: str, length: int | None) -> list[int]:
        """Return the leading special tokens and the first ``length`` tokens of the text (None: all of them)."""
        ids = self.leading + self._plain([text])[0][:length]
        return check_ids(ids, text, self.tokenizer, self.vocabulary)

    def parts(self, texts: Sequence[str], *, rendered: bool = False) -> list[list[int]]:
        """Return the ids of each of the texts that together are one, the first with the leading special tokens, unless a chat
        template has ``rendered`` the texts.

        Each continues the ids before it, as a response does its query: no token spans two parts.
        """
        rows: list[list[int]] = []
        leading = [] if rendered else self.leading
        ids, before = list(leading), ""
        text_type = Rendered if rendered else str
        for text in map(text_type, texts):
            joined = leading + self._plain([text_type(before + text)])[0]
            more = joined[len(ids) :] if joined[: len(ids)] == ids else self._apart(ids, text, joined)
            rows.append(check_ids(more if rows else ids + more, text, self.tokenizer, self.vocabulary))
            ids, before = ids + more, before + text
        return rows

    def _apart(self, before: list[int], text: str, joined: list[int]) -> list[int]:
        """The ids of a text that the tokenizer would merge with what is before it."""
        ids = self._plain([text])[0]
        # SentencePiece puts a space in front of whatever it is given
        plain, rest, both = self._texts.decode([before + ids, before + ids[1:], joined])
        return ids[1:] if plain != both == rest else ids

    def ended(self, ids: list[int]) -> list[int]:
        """Return ids that end in the end of text. A chat template may have put it there, and a line break behind it."""
        return ids if self.end_id is None or self.eos_ids.intersection(ids[-2:]) else [*ids, self.end_id]

    def stops(self) -> str:
        """The tokens that end a text, as a message."""
        names = [f"{self.tokenizer.convert_ids_to_tokens(i)} ({i})" for i in sorted(self.eos_ids)]
        return ", ".join(names) or "nothing: neither the tokenizer nor the model's settings name an end of text"

    def queries(
        self, prompts: Sequence[Prompt], query_tokens: tuple[int, int] | None, seed: int, epoch: int, max_tokens: int
    ) -> list[list[int]]:
        """Return each prompt's query: all of its text, or its first n tokens, n uniform in ``query_tokens`` inclusive. That of a
        conversation is what the chat template writes, with the cue for an answer.

        n depends only on the run's seed, the epoch and the text.

        Raises:
            DataError: a query is longer than ``max_tokens``, or has no tokens; the chat template refuses a conversation.
            ModelError: the model has no embedding for a token of it, or no chat template for a conversation.
        """
        if not prompts:
            return []
        written = list(map(self._written, prompts))
        rows, prompt_ids = [], self._whole(written)
        for prompt, plain in ((prompt, prompt_ids[text]) for prompt, text in zip(prompts, written, strict=True)):
            if query_tokens is not None and prompt.messages is None:
                low, high = query_tokens
                plain = plain[: low + stream_seed(seed, "query", epoch, prompt.key) % (high - low + 1)]
            leading = [] if prompt.messages else self.leading
            row = check_ids([*leading, *plain], prompt.text, self.tokenizer, self.vocabulary)
            if len(row) > max_tokens:
                cut = "" if prompt.messages else "cut texts with data.query_tokens, "
                raise DataError(
                    f"the text {shortened(prompt.text)!r} makes a query of {len(row)} tokens, more than data.max_query_tokens = "
                    f"{max_tokens}; shorten or remove it, {cut}or raise the limit"
                )
            if not row:
                raise DataError(f"the text {shortened(prompt.text)!r} has no tokens in this model's vocabulary; remove it")
            rows.append(row)
        return rows

    def _written(self, prompt: Prompt) -> str:
        """The text of a prompt for the tokenizer; a conversation is rendered once."""
        if prompt.messages is None:
            return prompt.text
        if (known := repr(prompt.messages)) not in self._rendered:
            if len(self._rendered) > KEPT:
                self._rendered = {}
            try:
                self._rendered[known] = self.render(prompt.messages)
            except DataError as error:
                raise DataError(f"the prompt {shortened(prompt.text)!r}: {error}") from error
        return self._rendered[known]


def _same_start(first: str, second: str) -> int:
    """How many first characters are the same."""
    same = itertools.takewhile(bool, map(operator.eq, first, second))
    return len(first) if second.startswith(first) else sum(same)


def valid_ids(ids: Iterable[int | None], vocabulary: int | None) -> list[int]:
    """Those of ``ids`` that a model with ``vocabulary`` embeddings has; None: any number of them."""
    return [i for i in ids if i is not None and i >= 0 and (vocabulary is None or i < vocabulary)]


def valid_id(ids: Iterable[int | None], vocabulary: int | None) -> int:
    """The first that the model has, as the padding id; 0 if there is none: masks come from lengths."""
    return next(iter(valid_ids(ids, vocabulary)), 0)


def check_ids(ids: list[int], text: str, tokenizer: Any, vocabulary: int | None) -> list[int]:
    """Return ``ids``, which ``tokenizer`` made of ``text``; raise ModelError if the model has no embedding for one."""
    highest = max(ids, default=0)
    if vocabulary is not None and highest >= vocabulary:
        raise ModelError(
            f"{tokenizer.name_or_path or 'the model'}: the text {shortened(text)!r} has the token "
            f"{tokenizer.convert_ids_to_tokens(highest)!r} (id {highest}), but the model has embeddings for {vocabulary} tokens. "
            "Use the tokenizer that it was trained with, or give it more embeddings "
            "(model.resize_token_embeddings(len(tokenizer))) and save it"
        )
    return ids


def lengths_to_mask(lengths_B: torch.Tensor, width: int) -> torch.Tensor:
    """Return the [B, width] mask that is True at the first ``lengths_B[b]`` positions of row b.

    >>> lengths_to_mask(torch.tensor([1, 3]), 3).int().tolist()
    [[1, 0, 0], [1, 1, 1]]
    """
    return torch.arange(width, device=lengths_B.device) < lengths_B.unsqueeze(-1)


def length_batches(lengths: Sequence[int], fits: Callable[[list[int]], bool], longest_first: bool = False) -> Iterator[list[int]]:
    """Divide rows, sorted by length, into batches: a row joins the one before it where ``fits`` says that it may.

    >>> list(length_batches([9, 2, 8, 3], lambda batch: len(batch) <= 2))
    [[1, 3], [2, 0]]
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=longest_first):
        batch.append(i)
        if len(batch) > 1 and not fits(batch):
            yield batch[:-1]
            batch = [i]
    if batch:
        yield batch


def pad_right(rows: Sequence[Sequence[int]], pad_id: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [B, L] int64, filled up with ``pad_id``, and lengths [B] int64."""
    lengths_B = torch.tensor(list(map(len, rows)), dtype=torch.int64)
    mask_BL = lengths_to_mask(lengths_B, int(lengths_B.max()) if rows else 0)
    ids_BL = torch.full(mask_BL.shape, pad_id)
    flat = torch.tensor(list(itertools.chain.from_iterable(rows)), dtype=torch.int64)
    ids_BL[mask_BL if side == "right" else mask_BL.flip(-1)] = flat
    return ids_BL, lengths_B


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`pad_right`, filled up in front."""
    return pad_right(rows, pad_id, "left")


def read_tokenizer(where: str | Path, **how: Any) -> Any:
    """Read a tokenizer. Raises ValueError for a damaged file, where the tokenizers library raises a bare Exception."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(where, **how)
    except Exception as error:
        if type(error) is Exception:  # the library has no class of its own
            raise ValueError(str(error)) from error
        raise

"""Text to token ids and back; queries of random length; padding and masks. Only this file knows pad and eos.

Masks come from lengths and never from ids: the padding id may be the end-of-text id, or the id of a word.
Shapes: B sequences, L the longest of them.
"""

from __future__ import annotations

import codecs
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from konomi.data.records import Prompt
from konomi.errors import DataError, ModelError
from konomi.seeds import stream_seed
from konomi.text import shortened

_PROBES = ("a", "1", "あ")  # any tokenizer has a token for one of them
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # the token of a byte, where a vocabulary falls back to bytes


class Tokens:
    """A transformers tokenizer, as a language model needs it.

    The special tokens that a tokenizer puts in front of a text are kept (Gemma was trained with ``<bos>``), those that
    it puts behind never (T5's ``</s>`` would ask the model to go on after the end of the text).

    Args:
        eos_ids: ids that end a text beside the tokenizer's own: those in the model's settings.
        vocabulary: how many tokens the model has embeddings for; None: for all that the tokenizer has.

    Attributes:
        leading: ids of the special tokens in front.
        eos_ids: ids that end a text; may be empty.
        end_id: the one of them that is put behind a text to learn from, or None.
        pad_id: any valid id.
    """

    def __init__(self, tokenizer: Any, eos_ids: Iterable[int] = (), vocabulary: int | None = None) -> None:
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self.eos_ids: frozenset[int] = frozenset(valid_ids((eos, *eos_ids), vocabulary))
        self.end_id: int | None = eos if eos in self.eos_ids else min(self.eos_ids, default=None)
        self.pad_id: int = valid_id((pad, self.end_id), vocabulary)
        self._symbols = byte_symbols(tokenizer)
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
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text`` with leading special tokens and without trailing ones."""
        return self.query(text, None)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids`` without leading special tokens and without an incomplete last character."""
        return self._text(self._without_leading(ids))

    def split(self, prompt: str, query: Sequence[int], response: Sequence[int]) -> tuple[str, str]:
        """Return the text of a prompt, as far as it is in the query, and that of the response.

        The response is without an end of text as its last token and without an incomplete last character; other special tokens
        are text. It is decoded after its query: by itself, SentencePiece decoders drop the space in front of the first word, and
        a character that the cut went through would be lost (it belongs to the response).
        """
        _, text, start = self._behind(query, response)
        asked = prompt if list(query) == self.query(prompt, None) else self.decode(query)
        return asked, text[start:]

    def split_all(
        self, prompts: Iterable[str], queries: Iterable[Sequence[int]], responses: Iterable[Sequence[int]]
    ) -> tuple[list[str], list[str]]:
        """As :meth:`split`, of many: the texts of their prompts, and those of their responses."""
        pairs = [self.split(*each) for each in zip(prompts, queries, responses, strict=True)]
        return [prompt for prompt, _ in pairs], [response for _, response in pairs]

    def ends(self, query: Sequence[int], response: Sequence[int]) -> list[int]:
        """Return how many characters of the response's text (that of :meth:`split`) are complete after each of its tokens."""
        before, text, start = self._behind(query, response)
        texts = (self._text([*before, *response[:number]]) for number in range(1, len(response)))
        same = (sum(itertools.takewhile(bool, map(operator.eq, each, text))) - start for each in texts)
        return [*itertools.islice(itertools.accumulate(same, max, initial=0), 1, None), len(text) - start]

    def _behind(self, query: Sequence[int], response: Sequence[int]) -> tuple[list[int], str, int]:
        """The ids that a response is decoded after, the text of both, and where the response begins in it."""
        written = response[:-1] if response and response[-1] in self.eos_ids else response
        before = self._without_leading(query)
        asked, text = self._text(before), self._text([*before, *written])
        if text.startswith(asked):
            return before, text, len(asked)
        # with byte fallback a wrong byte spoils all characters around it that are spelt in bytes, the query's too
        before = before[len(self._complete(before)[0]) :]
        return before, self._text([*before, *written]), 0

    def _without_leading(self, ids: Sequence[int]) -> list[int]:
        front = len(self.leading)
        return list(ids[front:] if list(ids[:front]) == self.leading else ids)

    def _text(self, ids: Sequence[int]) -> str:
        complete, half = self._complete(ids)
        text = self._decode(complete)
        return text.removesuffix("\ufffd") if half else text

    def _complete(self, ids: Sequence[int]) -> tuple[list[int], bool]:
        """Ids without those at the end that only begin a character; whether the last one left still begins one."""
        complete = list(ids)
        tail = b"".join(map(self._bytes, complete[-3:]))[-3:]  # three bytes of four at most
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(tail)
        left = len(decoder.getstate()[0])
        while left and (size := len(self._bytes(complete[-1]))) <= left:
            complete.pop()
            left -= size
        return complete, left > 0

    def _bytes(self, i: int) -> bytes:
        """The bytes of a token's text, where they may be parts of characters."""
        token = self.tokenizer.convert_ids_to_tokens(i)
        if isinstance(token, bytes):
            return token
        if token is None:
            return b""
        if self._symbols and all(symbol in self._symbols for symbol in token):
            return bytes(self._symbols[symbol] for symbol in token)
        if not self._symbols and (byte := _BYTE.fullmatch(token)):
            return bytes.fromhex(byte[1])
        return str(token).encode("utf-8", "replace")

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def query(self, text: str, length: int | None) -> list[int]:
        """Return the leading special tokens and the first ``length`` tokens of the text (None: all of them)."""
        ids = self.leading + self._plain([text])[0][:length]
        return check_ids(ids, text, self.tokenizer, self.vocabulary)

    def parts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each of the texts that together are one, the first with the leading special tokens.

        Each continues the ids before it, as a response does its query: no token spans two parts.
        """
        rows: list[list[int]] = []
        ids, before = list(self.leading), ""
        for text in texts:
            joined = self.leading + self._plain([before + text])[0]
            more = joined[len(ids) :] if joined[: len(ids)] == ids else self._apart(ids, text, self._decode(joined))
            rows.append(check_ids(more if rows else ids + more, text, self.tokenizer, self.vocabulary))
            ids, before = ids + more, before + text
        return rows

    def _apart(self, before: list[int], text: str, joined: str) -> list[int]:
        """The ids of a text that the tokenizer would merge with what is before it."""
        ids = self._plain([text])[0]
        # SentencePiece puts a space in front of whatever it is given
        if self._decode(before + ids) != joined and self._decode(before + ids[1:]) == joined:
            return ids[1:]
        return ids

    def ended(self, ids: list[int]) -> list[int]:
        """Return ids that end in the end of text. A chat template may have put it there, and a line break behind it."""
        return ids if self.end_id is None or self.end_id in ids[-2:] else [*ids, self.end_id]

    def stops(self) -> str:
        """What ends a text, in words."""
        names = [f"{self.tokenizer.convert_ids_to_tokens(i)} ({i})" for i in sorted(self.eos_ids)]
        return ", ".join(names) or "nothing: neither the tokenizer nor the model's settings name an end of text"

    def queries(
        self, prompts: Sequence[Prompt], query_tokens: tuple[int, int] | None, seed: int, epoch: int, max_tokens: int
    ) -> list[list[int]]:
        """Return each prompt's query: all of its text, or its first n tokens, n uniform in ``query_tokens`` inclusive.

        n depends only on the run's seed, the epoch and the text.

        Raises:
            DataError: a query is longer than ``max_tokens``, or has no tokens.
            ModelError: the model has no embedding for a token of it.
        """
        if not prompts:
            return []
        rows = []
        for prompt, plain in zip(prompts, self._plain([prompt.text for prompt in prompts]), strict=True):
            if query_tokens is not None:
                low, high = query_tokens
                plain = plain[: low + stream_seed(seed, "query", epoch, prompt.key) % (high - low + 1)]
            row = check_ids(self.leading + plain, prompt.text, self.tokenizer, self.vocabulary)
            start = shortened(prompt.text)
            if len(row) > max_tokens:
                raise DataError(
                    f"the text {start!r} makes a query of {len(row)} tokens, more than data.max_query_tokens = "
                    f"{max_tokens}; shorten or remove it, cut texts with data.query_tokens, or raise the limit"
                )
            if not row:
                raise DataError(f"the text {start!r} has no tokens in this model's vocabulary; remove it")
            rows.append(row)
        return rows


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


def byte_symbols(tokenizer: Any) -> dict[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary, with the bytes; empty for other vocabularies."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
    probe = bytes_to_unicode()[0x80]  # no character of its own
    i = tokenizer.convert_tokens_to_ids(probe)
    is_byte = i is not None and tokenizer.convert_ids_to_tokens(i) == probe and tokenizer.decode([i]) == "\ufffd"
    return symbols if is_byte else {}


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
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    ids_BL = pad_sequence(tensors, True, pad_id, side) if rows else torch.empty(0, 0, dtype=torch.int64)
    return ids_BL, torch.tensor([len(row) for row in rows], dtype=torch.int64)


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

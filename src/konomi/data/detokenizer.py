"""Text to token ids and back, many rows at a time; a text is without the bytes at an end that only begin a character."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from konomi.data.chat import MARK, Rendered

_BYTE = re.compile("<0x([0-9A-F]{2})>")  # the token of a byte, where a vocabulary falls back to bytes


class DecodedAfter(NamedTuple):
    """A response that was decoded after the ids ``before``: their text alone, both together, and where the response begins."""

    before: list[int]
    asked: str
    text: str
    start: int


class Detokenizer:
    """Makes text of token ids, special tokens included."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._symbols, self._fast = byte_symbols(tokenizer), fast_backend(tokenizer)
        self._known: dict[int, bytes] = {}

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of rows of ids, each without an incomplete last character."""
        complete = list(map(self.complete, rows))
        texts = self.decode([ids for ids, _ in complete])
        return [text.removesuffix("\ufffd") if half else text for text, (_, half) in zip(texts, complete, strict=True)]

    def complete(self, ids: Sequence[int]) -> tuple[list[int], bool]:
        """Ids without those at the end that only begin a character; whether the last one left still begins one."""
        complete = list(ids)
        tail = b"".join(map(self._bytes, complete[-3:]))[-3:]  # three bytes of four at most
        if tail.isascii():
            return complete, False
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(tail)
        left = len(decoder.getstate()[0])
        while left and (size := len(self._bytes(complete[-1]))) <= left:
            complete.pop()
            left -= size
        return complete, left > 0

    def behind(self, queries: Sequence[list[int]], responses: Sequence[Sequence[int]]) -> list[DecodedAfter]:
        """Responses decoded after their queries."""
        asked = self(queries)
        texts = self([[*query, *row] for query, row in zip(queries, responses, strict=True)])
        decoded = []
        for query, row, prompt, text in zip(queries, responses, asked, texts, strict=True):
            if text.startswith(prompt):
                decoded.append(DecodedAfter(query, prompt, text, len(prompt)))
            else:
                # with byte fallback a wrong byte spoils all characters around it that are spelt in bytes, the query's too
                half = query[len(self.complete(query)[0]) :]
                decoded.append(DecodedAfter(half, prompt, self([[*half, *row]])[0], 0))
        return decoded

    def _bytes(self, i: int) -> bytes:
        """The bytes of a token's text, where they may be parts of characters."""
        if i not in self._known:
            self._known[i] = self._look_up(self.tokenizer.convert_ids_to_tokens(i))
        return self._known[i]

    def _look_up(self, token: str | bytes | None) -> bytes:
        if isinstance(token, bytes):
            return token
        if token is None:
            return b""
        if self._symbols and all(symbol in self._symbols for symbol in token):
            return bytes(self._symbols[symbol] for symbol in token)
        if not self._symbols and (byte := _BYTE.fullmatch(token)):
            return bytes.fromhex(byte[1])
        return str(token).encode("utf-8", "replace")

    def decode(self, rows: Sequence[list[int]]) -> list[str]:
        """The texts of rows of ids, special tokens included."""
        if self._fast is not None:
            texts: list[str] = self._fast.decode_batch(rows, skip_special_tokens=False)
            return texts
        return [str(self.tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False)) for row in rows]


def fast_backend(tokenizer: Any) -> Any | None:
    """The part of a fast tokenizer that is not Python and reads many texts at a time in its own threads; None for a tokenizer
    that does more than this part."""
    from transformers import PreTrainedTokenizerFast as Fast

    kind, own = type(tokenizer), ("__call__", "_encode_plus", "decode", "_decode")
    plain = isinstance(tokenizer, Fast) and all(getattr(kind, name) is getattr(Fast, name) for name in own)
    return tokenizer.backend_tokenizer if plain and not hasattr(tokenizer, "_switch_to_input_mode") else None


def byte_symbols(tokenizer: Any) -> dict[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary, with the bytes; empty for other vocabularies."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
    probe = bytes_to_unicode()[0x80]  # no character of its own
    i = tokenizer.convert_tokens_to_ids(probe)
    is_byte = i is not None and tokenizer.convert_ids_to_tokens(i) == probe and tokenizer.decode([i]) == "\ufffd"
    return symbols if is_byte else {}


def token_ids(tokenizer: Any, texts: Sequence[str], special: bool = True) -> list[list[int]]:
    """The ids of each text, with the special tokens around it or without, as the tokenizer gives them; of all in one call."""
    if (fast := fast_backend(tokenizer)) is not None:
        fast.no_truncation()
        fast.no_padding()
        fast.encode_special_tokens = tokenizer.split_special_tokens
        return [each.ids for each in fast.encode_batch_fast(list(texts), add_special_tokens=special)]
    rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"] if texts else []
    return rows


def plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts without special tokens around them. In a rendered text no token spans a mark, which itself has no id."""
    pieces = [[each for each in text.split(MARK) if each] or [""] if isinstance(text, Rendered) else [text] for text in texts]
    parts = iter(token_ids(tokenizer, [each for row in pieces for each in row], special=False))
    return [[i for ids in itertools.islice(parts, len(row)) for i in ids] for row in pieces]

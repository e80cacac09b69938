"""Text to token ids and back, the random-length cut of queries, lengths to masks. The only file that knows pad and eos.

Masks come from lengths and never from ids: the padding id may be the end-of-text id, or the id of a word.
Shapes: B sequences, L the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from konomi.data.records import Prompt
from konomi.errors import DataError, ModelError
from konomi.seeds import stream_seed

# texts that any tokenizer has a token for, tried in turn
_PROBES = ("a", "1", "あ")


class Tokens:
    """A tokenizer, as a language model that goes on writing needs it.

    The special tokens that a tokenizer puts in front of a text are kept (Gemma was trained with ``<bos>``), those that
    it puts behind never (T5's ``</s>`` would ask the model to go on after the end of the text).

    Attributes:
        tokenizer: the transformers tokenizer.
        leading: ids of the special tokens in front.
        eos_ids: ids that end a text; may be empty.
        pad_id: any valid id.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        eos = tokenizer.eos_token_id
        self.eos_ids: frozenset[int] = frozenset() if eos is None else frozenset([eos])
        pad = tokenizer.pad_token_id
        self.pad_id: int = next((each for each in (pad, eos) if each is not None), 0)
        self.leading: list[int] = self._leading()

    def _leading(self) -> list[int]:
        """Find what is put in front of an ordinary text: one that itself begins with ``<bos>`` would mislead."""
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
        """Return the text of ``ids`` without special tokens. It may begin or end in half a character (U+FFFD)."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def split(self, query: Sequence[int], response: Sequence[int]) -> tuple[str, str]:
        """Return the texts of a query and of its response, which together are the text of both.

        Decoding the response by itself is not that: SentencePiece decoders drop the space in front of the first word,
        and a character that the cut went through would be lost on both sides (here it belongs to the response).
        """
        whole = self.decode([*query, *response])
        prompt = self.decode(query)
        while not whole.startswith(prompt):
            prompt = prompt[:-1]
        return prompt, whole[len(prompt) :]

    def ends(self, query: Sequence[int], response: Sequence[int]) -> list[int]:
        """Return how many characters of the response's text (that of :meth:`split`) stand there after each of its tokens.

        A character that is made of several tokens counts from the last of them on.
        """
        prompt, text = self.split(query, response)
        whole, counts = prompt + text, [0]
        for number in range(1, len(response)):
            said = self.decode([*query, *response[:number]])
            same = next((i for i, (a, b) in enumerate(zip(said, whole, strict=False)) if a != b), min(len(said), len(whole)))
            counts.append(max(counts[-1], same - len(prompt)))
        return [*counts[1:], len(text)]

    def query(self, text: str, length: int | None) -> list[int]:
        """Return the leading special tokens and the first ``length`` tokens of the text (None: all of them)."""
        return self.leading + self._plain([text])[0][:length]

    def parts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each of the texts that together are one, the first with the leading special tokens.

        Each goes on from the very ids before it, as a response goes on from its query: no token spans two parts.
        """
        rows: list[list[int]] = []
        ids, before = list(self.leading), ""
        for text in texts:
            whole = self.leading + self._plain([before + text])[0]
            more = whole[len(ids) :] if whole[: len(ids)] == ids else self._apart(ids, text, self.decode(whole))
            rows.append(more if rows else ids + more)
            ids, before = ids + more, before + text
        return rows

    def _apart(self, before: list[int], text: str, whole: str) -> list[int]:
        """The ids of a text that the tokenizer would merge with what is before it."""
        ids = self._plain([text])[0]
        # SentencePiece puts a space in front of whatever it is given
        if self.decode(before + ids) != whole and self.decode(before + ids[1:]) == whole:
            return ids[1:]
        return ids

    def ended(self, ids: list[int]) -> list[int]:
        """Return ids that end in the end of text. A chat template may have put it there, and a line break behind it."""
        return ids if self.eos_ids & set(ids[-2:]) else ids + sorted(self.eos_ids)

    def queries(
        self, prompts: Sequence[Prompt], query_tokens: tuple[int, int] | None, seed: int, epoch: int, max_tokens: int
    ) -> list[list[int]]:
        """Return each prompt's query: the whole text, or its first n tokens, n uniform in ``query_tokens`` inclusive.

        n depends on the run's seed, the epoch and the text, and on nothing else.

        Raises:
            DataError: a query is longer than ``max_tokens``, or has no tokens.
        """
        if not prompts:
            return []
        rows = []
        for prompt, plain in zip(prompts, self._plain([prompt.text for prompt in prompts]), strict=True):
            if query_tokens is not None:
                low, high = query_tokens
                plain = plain[: low + stream_seed(seed, "query", epoch, prompt.key) % (high - low + 1)]
            row = self.leading + plain
            start = prompt.text if len(prompt.text) <= 30 else prompt.text[:30] + "..."
            if len(row) > max_tokens:
                raise DataError(
                    f"the text {start!r} makes a query of {len(row)} tokens, more than data.max_query_tokens = "
                    f"{max_tokens}; shorten or remove it, cut texts with data.query_tokens, or raise the limit"
                )
            if not row:
                raise DataError(f"the text {start!r} has no tokens in this model's vocabulary; remove it")
            rows.append(row)
        return rows


def lengths_to_mask(lengths_B: torch.Tensor, width: int) -> torch.Tensor:
    """Return the [B, width] mask that is True at the first ``lengths_B[b]`` places of row b.

    >>> lengths_to_mask(torch.tensor([1, 3]), 3).int().tolist()
    [[1, 0, 0], [1, 1, 1]]
    """
    return torch.arange(width, device=lengths_B.device) < lengths_B.unsqueeze(-1)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [B, L] int64, filled up with ``pad_id`` behind, and lengths [B] int64."""
    width = max(map(len, rows), default=0)
    return _padded([[*row, *[pad_id] * (width - len(row))] for row in rows], rows, width)


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [B, L] int64, filled up with ``pad_id`` in front, and lengths [B] int64."""
    width = max(map(len, rows), default=0)
    return _padded([[*[pad_id] * (width - len(row)), *row] for row in rows], rows, width)


def _padded(filled: list[list[int]], rows: Sequence[Sequence[int]], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids_BL = torch.tensor(filled, dtype=torch.int64).reshape(len(rows), width)
    return ids_BL, torch.tensor([len(row) for row in rows], dtype=torch.int64)

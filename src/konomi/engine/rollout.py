"""The batch from sampler to losses, and its division into micro-batches.

Shape suffixes: B sequences, R response tokens (the longest), L query + response tokens (the longest), N valid tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from konomi.data.tokens import length_batches, lengths_to_mask


@dataclass(frozen=True)
class Rollout:
    """Queries and the responses drawn for them; all on the host, so that sizes and row numbers are known without a wait.

    Masks come from lengths, never from token ids: the end of text is drawn and learned like any token.
    """

    ids: Tensor
    """[B, L] int64: query, then response, then padding of no meaning."""
    query_lengths: Tensor
    """[B] int64."""
    response_lengths: Tensor
    """[B] int64, at least 1."""
    ended: Tensor
    """[B] bool: the last response token is the end of text and stopped the response."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Tensor:
        """[B] int64: query + response tokens."""
        return self.query_lengths + self.response_lengths

    @property
    def mask(self) -> Tensor:
        """[B, R] bool: True is a response token."""
        return lengths_to_mask(self.response_lengths, int(self.response_lengths.max()))

    def select(self, rows: Tensor) -> Rollout:
        """The given rows, without the padding that they do not need."""
        ids, queries, responses, ended = (  # by NumPy, see `Layout`
            x.numpy()[rows.numpy()] for x in (self.ids, self.query_lengths, self.response_lengths, self.ended)
        )
        ids = np.ascontiguousarray(ids[:, : (queries + responses).max()])
        return Rollout(*(torch.from_numpy(x) for x in (ids, queries, responses, ended)))

    def query_ids(self) -> list[list[int]]:
        """Each query's tokens, without padding."""
        return [row[:q] for row, q in zip(self.ids.tolist(), self.query_lengths.tolist(), strict=True)]

    def response_ids(self) -> list[list[int]]:
        """Each response's tokens, without padding; the end of text included where it was drawn."""
        rows = zip(self.ids.tolist(), self.query_lengths.tolist(), self.lengths.tolist(), strict=True)
        return [row[q:end] for row, q, end in rows]


def micro_batches(lengths: Tensor, rows: Tensor, budget: int) -> list[Tensor]:
    """Divide ``rows`` into micro-batches of like length, each of at most ``budget`` tokens with its padding.

    Sorted by length, so that little is padding; a row that alone is over the budget is a micro-batch of its own.

    Args:
        lengths: [B] tokens of every sequence.
        rows: [b] the rows to divide.
        budget: rows times longest row, in tokens.

    Returns:
        Index tensors that together hold every row once; all on the host.

    >>> import torch
    >>> [part.tolist() for part in micro_batches(torch.tensor([9, 2, 8, 3]), torch.arange(4), 20)]
    [[0, 2], [3, 1]]
    """
    sizes = lengths[rows].tolist()
    batches = length_batches(sizes, lambda batch: len(batch) * sizes[batch[0]] <= budget, longest_first=True)
    return [rows[batch] for batch in batches]

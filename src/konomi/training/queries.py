"""The endless stream of queries that a run draws its batches from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from konomi.config import DataConfig
from konomi.data.records import Prompt
from konomi.data.tokens import Tokens
from konomi.seeds import stream_seed


class QueryStream:
    """Prompts in a new order each epoch, cut to queries.

    What stands at a position follows from the seed and the position alone, so the position is all that a checkpoint needs.
    """

    def __init__(self, prompts: Sequence[Prompt], tokens: Tokens, config: DataConfig, seed: int) -> None:
        self.prompts, self.tokens, self.config, self.seed = prompts, tokens, config, seed

    def take(self, start: int, count: int) -> tuple[list[Prompt], list[list[int]]]:
        """The prompts at positions ``start`` to ``start + count - 1`` and their query ids."""
        size = len(self.prompts)
        prompts: list[Prompt] = []
        queries: list[list[int]] = []
        for epoch in range(start // size, (start + count - 1) // size + 1):
            order = self._order(epoch)[max(0, start - epoch * size) : start + count - epoch * size]
            chosen = [self.prompts[i] for i in order]
            prompts += chosen
            queries += self.tokens.queries(chosen, self.config.query_tokens, self.seed, epoch, self.config.max_query_tokens)
        return prompts, queries

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "order", epoch))
        return torch.randperm(len(self.prompts), generator=generator).tolist()

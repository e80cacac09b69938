"""The vocabulary head of the language model that a reward model is made from: how likely texts are to it, while it is trained.

The head is no part of the reward model: it is neither trained nor saved. Where its weight is that of the token embeddings too, it
is what they are at the time, and no gradient reaches them through it.

Shape suffixes: B texts, L tokens of the longest, T tokens of all, N tokens whose likelihood is asked for, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from konomi.engine.forward import check_head, through_head
from konomi.engine.layout import Layout
from konomi.engine.shared_weights import frozen_head


class LanguageHead:
    """The head of a language model whose trunk a reward model has.

    Raises:
        ModelError: trunk and head, as called here, are not the model.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        lm.get_output_embeddings().float()
        check_head(lm)
        self._lm = lm

    def to(self, device: torch.device) -> None:
        """Move it to where the trunk is."""
        self._lm.get_output_embeddings().to(device)

    def nll(self, hidden_TD: Tensor, layout: Layout, ids_BL: Tensor, lengths_B: Tensor, starts_B: Tensor) -> Tensor:
        """[B] mean of ``-log p`` of each text's tokens from ``starts_B`` (at least 1) on, nats a token; 0 for a text without any.

        ``hidden_TD``: last hidden states; all else is on the host.
        """
        counts_B = lengths_B - starts_B
        rows_N = torch.arange(len(counts_B)).repeat_interleave(counts_B)
        nll_B = hidden_TD.new_zeros(len(counts_B), dtype=torch.promote_types(hidden_TD.dtype, torch.float32))
        if not len(rows_N):
            return nll_B
        place_N = torch.arange(len(rows_N)) - (counts_B.cumsum(0) - counts_B - starts_B)[rows_N]
        hidden_ND, targets_N = layout.at(hidden_TD, rows_N, place_N - 1), ids_BL[rows_N, place_N]
        with frozen_head(self._lm):
            logprobs_N, _ = through_head(self._lm, hidden_ND, targets_N.to(hidden_ND.device), 1.0, with_entropy=False)
        shares_N = counts_B.reciprocal()[rows_N].to(logprobs_N)
        return nll_B.index_add(0, rows_N.to(nll_B.device), -shares_N * logprobs_N)

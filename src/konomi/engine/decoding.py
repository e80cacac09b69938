"""One decoding step for each running sequence: packed or, for families that cannot be, padded.

Shape suffixes: B sequences that still run, T tokens, L tokens of the longest, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from konomi.data.tokens import pad_left, pad_right
from konomi.engine import packed
from konomi.engine.device import PREFILL_TOKENS
from konomi.engine.families import NOT_ALIKE, is_near, refusal, trial
from konomi.engine.forward import check_head
from konomi.engine.layout import KeyValues, Layout, whole_lanes
from konomi.engine.packed import Trunk
from konomi.errors import FAULTS


def make_decoder(lm: PreTrainedModel, queries: Sequence[Sequence[int]], tokens: int, trunk_layer: int | None) -> Decoder:
    """Decode up to ``tokens`` tokens after each query."""
    if packed.packs(lm):
        return PackedDecoder(lm, queries, tokens, trunk_layer)
    return PaddedDecoder(lm, queries)


def check_decoding(lm: PreTrainedModel) -> None:
    """Make sure, once for a model, that a token's hidden state is the same alone and in a batch where others end before it.

    Raises:
        ModelError: it is not the same, or `check_head` refuses the family.
    """
    if getattr(lm, "konomi_decodes", None) == lm.dtype:
        return
    check_head(lm)
    if why := NOT_ALIKE.get(lm.config.model_type):
        raise refusal(lm, why)
    with trial(lm):
        if packed.packs(lm):
            with suppress(packed.CannotPack, *FAULTS):
                if _decodes(lm):
                    return
            packed.needs_padding(lm)
        if not _decodes(lm):
            raise refusal(lm, "what it makes of a token changes with the padding before it and the sequences beside it")


def _decodes(lm: PreTrainedModel) -> bool:
    """Decode two sequences, then one of them, and measure the cache they take."""
    ids = torch.arange(12, device=lm.device).remainder(lm.config.get_text_config().vocab_size)
    rows, trunk = (ids[:9], ids[9:]), packed.trunk_of(lm)
    alone = [trunk(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in rows]
    decoder = make_decoder(lm, [row.tolist() for row in (rows[0][:7], rows[1][:2])], 2, None)
    hidden = [decoder.start()]
    before = decoder.cached()
    hidden.append(decoder.step(torch.stack([rows[0][7], rows[1][2]])))
    growth = (decoder.cached() - before) // 2
    decoder.keep([True, False])
    hidden.append(decoder.step(rows[0][8:]))
    expected = torch.stack([alone[0][6], alone[1][1], alone[0][7], alone[1][2], alone[0][8]])
    if not is_near(torch.cat(hidden).float(), expected.float(), lm):
        return False
    lm.konomi_decodes, lm.konomi_cache = lm.dtype, (before // 2 - 7 * growth, growth)
    return True


def cache_bytes(lm: PreTrainedModel, tokens: int) -> int:
    """Bytes that a sequence of this many tokens takes while it is decoded. Call `check_decoding` first."""
    sequence, token = lm.konomi_cache
    room = whole_lanes(tokens) if packed.packs(lm) else tokens
    size: int = (sequence + room * token) * lm.dtype.itemsize
    return size


class PackedDecoder:
    """Decodes sequences of which some end earlier than others. Allocates keys and values once; no token is padding.

    ``rows`` [B] int64: the query of each running sequence.
    """

    def __init__(self, lm: PreTrainedModel, queries: Sequence[Sequence[int]], tokens: int, trunk_layer: int | None) -> None:
        self.lm, self.queries, self.trunk_layer = lm, queries, trunk_layer
        sizes = [len(query) for query in queries]
        self.cache = KeyValues(max(sizes) + tokens, sizes, torch.tensor(sizes, device=lm.device))
        self.rows = torch.arange(len(queries), device=lm.device)
        self._trunk: Tensor | None = None

    def start(self) -> Tensor:
        """Read the queries; the last hidden state [B, D] of each."""
        hidden, lengths_B, first = [], torch.tensor(self.cache.sizes), 0
        while first < len(self.queries):
            end = first + 1
            while end < len(self.queries) and sum(map(len, self.queries[first : end + 1])) <= PREFILL_TOKENS:
                end += 1
            here, self.cache.first = lengths_B[first:end], first
            ids_BL = pad_right(self.queries[first:end], 0)[0]
            layout = Layout(here, (ids_BL, here), self.lm.device)
            with packed.keeping(self.lm, self.trunk_layer) as kept:
                hidden_TD = packed.run(self.lm, layout.ids(ids_BL), layout.positions_T, layout, self.cache)
            if kept:
                self._store(layout.pad(kept[0]), slice(first, end), slice(layout.length))
            hidden.append(layout.at(hidden_TD, torch.arange(end - first), here - 1))
            first = end
        return torch.cat(hidden)

    def step(self, ids_B: Tensor) -> Tensor:
        """Append a token to each sequence; its last hidden state [B, D]."""
        positions_B = self.cache.begin_step()
        with packed.keeping(self.lm, self.trunk_layer) as kept:
            hidden_BD = packed.run(self.lm, ids_B, positions_B, None, self.cache)
        if kept:
            self._store(kept[0], self.rows, positions_B)
        return hidden_BD

    def keep(self, going: Sequence[bool]) -> Tensor:
        """Drop sequences; returns the former place of the one now at each place."""
        order_b = self.cache.keep(going)
        self.rows = self.rows[order_b]
        return order_b

    def cached(self) -> int:
        """Numbers in the cache, as if each sequence were as long as the longest."""
        each = sum(store[0, :, 0].numel() for pair in self.cache.layers.values() for store in pair)
        return each * len(self.cache.sizes) * max(self.cache.sizes)

    def trunk(self) -> Trunk | None:
        """The hidden states kept between two layers, rows in the order of the queries."""
        return None if self._trunk is None or self.trunk_layer is None else Trunk(self.trunk_layer, self._trunk)

    def _store(self, hidden: Tensor, rows: Tensor | slice, positions: Tensor | slice) -> None:
        if self._trunk is None:
            self._trunk = hidden.new_zeros(len(self.queries), self.cache.room, hidden.shape[-1])
        self._trunk[rows, positions] = hidden


class PaddedDecoder:
    """The same with the cache and masks of transformers, queries padded on the left: for families whose attention cannot be
    replaced."""

    def __init__(self, lm: PreTrainedModel, queries: Sequence[Sequence[int]]) -> None:
        self.lm = lm
        ids_BL, lengths_B = pad_left(queries, 0)
        width = ids_BL.shape[1]
        self.ids, self.rows = ids_BL.to(lm.device), torch.arange(len(queries), device=lm.device)
        self.mask = (torch.arange(width) >= width - lengths_B[:, None]).to(lm.device)
        self.positions = (self.mask.long().cumsum(-1) - 1).clamp(min=0)
        self.cache = DynamicCache(config=lm.config)
        self.model = packed.trunk_of(lm)
        # "cache_params": a family of recurrent states only, which has nothing to mask once the queries are read
        self.recurrent = "cache_params" in inspect.signature(self.model.forward).parameters

    def start(self) -> Tensor:
        return self._read(self.mask)

    def _read(self, mask: Tensor | None) -> Tensor:
        cache = "cache_params" if self.recurrent else "past_key_values"
        inputs = {cache: self.cache, "attention_mask": mask, "position_ids": self.positions}
        out = self.model(input_ids=self.ids, use_cache=True, **inputs)
        hidden_BD: Tensor = out.last_hidden_state[:, -1]
        return hidden_BD

    def step(self, ids_B: Tensor) -> Tensor:
        self.ids, self.positions = ids_B[:, None], self.positions[:, -1:] + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        return self._read(None if self.recurrent else self.mask)

    def keep(self, going: Sequence[bool]) -> Tensor:
        order_b = torch.tensor([place for place, on in enumerate(going) if on], dtype=torch.int64, device=self.rows.device)
        self.cache.reorder_cache(order_b)  # can drop rows, and handles recurrent states, which `batch_select_indices` does not
        self.rows, self.positions, self.mask = self.rows[order_b], self.positions[order_b], self.mask[order_b]
        return order_b

    def cached(self) -> int:
        held = [part for layer in self.cache.layers for part in vars(layer).values()]
        held += [part for each in held if isinstance(each, dict) for part in each.values()]
        return sum(part.numel() for part in held if isinstance(part, Tensor))

    def trunk(self) -> Trunk | None:
        return None


Decoder = PackedDecoder | PaddedDecoder

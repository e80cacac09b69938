"""One decoding step for each running sequence: packed or, for families that cannot be, padded.

Shape suffixes: B sequences that still run, T tokens, L tokens of the longest, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from konomi.data.tokens import pad_left, pad_right
from konomi.engine import packed
from konomi.engine.device import prefill_tokens, room_in_use, send
from konomi.engine.families import NOT_ALIKE, is_near, refusal, trial
from konomi.engine.forward import check_head
from konomi.engine.graphs import Graphs
from konomi.engine.kv_cache import KeyValues
from konomi.engine.layout import Layout
from konomi.engine.packed import Trunk
from konomi.errors import FAULTS


def make_decoder(
    lm: PreTrainedModel, queries: Sequence[Sequence[int]], tokens: int, trunk_layer: int | None, graphs: Graphs | None = None
) -> Decoder:
    """Decode up to ``tokens`` tokens after each query. ``graphs``: where queries are captured, if they are."""
    if packed.packs(lm):
        return PackedDecoder(lm, queries, tokens, trunk_layer, graphs or Graphs(torch.device("cpu")))
    return PaddedDecoder(lm, queries)


def check_decoding(lm: PreTrainedModel) -> None:
    """Check, once per model, that a token's hidden state is the same alone and in a batch where others end before it.

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
    """Decode two sequences, then one of them, and measure their cache."""
    ids = torch.arange(12, device=lm.device).remainder(lm.config.get_text_config().vocab_size)
    rows, trunk = (ids[:9], ids[9:]), packed.trunk_of(lm)
    alone = [trunk(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in rows]
    decoder = make_decoder(lm, [row.tolist() for row in (rows[0][:7], rows[1][:2])], 2, None)
    hidden = [decoder.start()]
    before = decoder.cached()
    decoder.grow()
    hidden.append(decoder.step(torch.stack([rows[0][7], rows[1][2]])))
    growth = (decoder.cached() - before) // 2
    decoder.keep([0, 1], 1)
    decoder.grow()
    hidden.append(decoder.step(rows[0][8:]))
    expected = torch.stack([alone[0][6], alone[1][1], alone[0][7], alone[1][2], alone[0][8]])
    if not is_near(torch.cat(hidden).float(), expected.float(), lm):
        return False
    lm.konomi_decodes, lm.konomi_cache = lm.dtype, (before // 2 - 7 * growth, growth)
    return True


def cache_bytes(lm: PreTrainedModel, tokens: int) -> int:
    """Bytes that a sequence of this many tokens takes while it is decoded. Call `check_decoding` first."""
    sequence, token = lm.konomi_cache
    room = room_in_use(tokens, lm.device) if packed.packs(lm) else tokens
    halved = packed.packs(lm) and lm.dtype == torch.float32 and torch.is_autocast_enabled(lm.device.type)
    size: int = (sequence + room * token) * (2 if halved else lm.dtype.itemsize)
    return size


class PackedDecoder:
    """Decodes sequences of which some end earlier than others. Allocates keys and values once; no token is padding.

    ``rows`` [B] int64: the query of each sequence, running ones first.
    """

    def __init__(
        self, lm: PreTrainedModel, queries: Sequence[Sequence[int]], tokens: int, trunk_layer: int | None, graphs: Graphs
    ) -> None:
        self.lm, self.trunk_layer, self.graphs = lm, trunk_layer, graphs
        self.cache = KeyValues(len(queries), max(map(len, queries)) + tokens, lm.device)
        self._first_rows = torch.arange(len(queries), device=lm.device)
        self.rows = self._first_rows.clone()
        self._trunk: Tensor | None = None
        self.begin(queries)

    def begin(self, queries: Sequence[Sequence[int]]) -> None:
        """Start over with as many new queries, none of which needs more room than before."""
        self.queries = queries
        self.cache.begin([len(query) for query in queries])
        self.rows.copy_(self._first_rows)

    def start(self) -> Tensor:
        """Read the queries; the last hidden state [B, D] of each."""
        hidden, lengths_B, device = [], torch.tensor(self.cache.sizes), self.lm.device
        for here in _runs(self.cache.sizes, prefill_tokens(device)):
            ids_BL, lengths = pad_right(self.queries[here], 0)[0], lengths_B[here]
            layout = Layout(lengths, (ids_BL, lengths), static=self.graphs.active)
            last_B = layout.place(np.arange(len(lengths)), lengths.numpy() - 1)
            index = np.concatenate([layout.index.numpy(), layout.host_ids(ids_BL.numpy()), last_B])
            key = ("start", here.start, here.stop, layout.sizes)
            read = self.graphs(key, partial(self._read, layout, here), send(torch.from_numpy(index), device))
            assert read is not None
            hidden.append(read.clone() if self.graphs.active else read)
        return torch.cat(hidden)

    def _read(self, layout: Layout, here: slice, index: Tensor) -> Tensor:
        tokens, count = layout.sizes.tokens, here.stop - here.start
        index, ids_T, last_B = index.split([len(index) - tokens - count, tokens, count])
        layout, self.cache.present = layout.on(index), here
        with packed.keeping(self.lm, self.trunk_layer) as kept:
            hidden_TD = packed.run(self.lm, ids_T, layout.positions_T, layout, self.cache)
        if kept:
            self._store(layout.pad(kept[0])[:count], here, slice(layout.length))
        return hidden_TD.index_select(0, last_B)

    def step(self, ids_b: Tensor) -> Tensor:
        """Append a token to each running sequence; its last hidden state [b, D]. Call `KeyValues.grow` before, each time."""
        positions_b = self.cache.begin_step()
        with packed.keeping(self.lm, self.trunk_layer) as kept:
            hidden_bD = packed.run(self.lm, ids_b, positions_b, None, self.cache)
        if kept:
            self._store(kept[0], self.rows[: len(ids_b)], positions_b)
        return hidden_bD

    def grow(self) -> tuple[Hashable, ...]:
        """Make room for a token of each running sequence; the key of the step that follows, see `Graphs`."""
        self.cache.grow()
        return "step", len(self.cache.sizes), self.cache.in_use

    def keep(self, order: Sequence[int], count: int) -> None:
        """Let the sequences at the places ``order`` take the first places, and go on with the first ``count``."""
        self.cache.keep(order, count)
        self.rows[: len(order)] = self.rows[send(torch.tensor(order), self.rows.device)]

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


def _runs(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Divide sequences, in their order, into runs of at most so many tokens, or of one sequence."""
    first = total = 0
    for place, size in enumerate(sizes):
        if place > first and total + size > most:
            yield slice(first, place)
            first, total = place, 0
        total += size
    yield slice(first, len(sizes))


class PaddedDecoder:
    """The same with the cache and masks of transformers, queries padded on the left: for families whose attention cannot be
    replaced."""

    def __init__(self, lm: PreTrainedModel, queries: Sequence[Sequence[int]]) -> None:
        self.lm = lm
        ids_BL, lengths_B = pad_left(queries, 0)
        width = ids_BL.shape[1]
        self.ids = ids_BL.to(lm.device)
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

    def grow(self) -> None:
        """No shape of this decoder comes twice."""

    def keep(self, order: Sequence[int], count: int) -> None:
        order_b = torch.tensor(order[:count], device=self.positions.device)
        self.cache.reorder_cache(order_b)  # can drop rows, and handles recurrent states, which `batch_select_indices` does not
        self.positions, self.mask = self.positions[order_b], self.mask[order_b]

    def cached(self) -> int:
        held = [part for layer in self.cache.layers for part in vars(layer).values()]
        held += [part for each in held if isinstance(each, dict) for part in each.values()]
        return sum(part.numel() for part in held if isinstance(part, Tensor))

    def trunk(self) -> Trunk | None:
        return None


Decoder = PackedDecoder | PaddedDecoder

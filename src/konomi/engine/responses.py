"""Responses that are drawn together, in steps that a device can capture.

Shape suffixes: B sequences, b of them still running, R response tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from konomi.engine import packed
from konomi.engine.decoding import PackedDecoder, make_decoder
from konomi.engine.device import captures, host_looks, room_in_use, rows_in_use, send
from konomi.engine.draw import draw
from konomi.engine.forward import head_logits
from konomi.engine.graphs import Graphs
from konomi.engine.packed import Trunk

KEEP_ROWS = 0.99
"""Finished rows leave the batch once fewer than this share of its rows is still running."""


@dataclass(frozen=True)
class Asked:
    """Queries that run together, those with the longest responses first, and their random numbers."""

    queries: list[Sequence[int]]
    lengths: Tensor
    uniforms: Tensor

    @property
    def room(self) -> int:
        """The most tokens of a query and a response, whatever is drawn."""
        return max(map(len, self.queries)) + self.uniforms.shape[1]


@dataclass(frozen=True)
class Responses:
    """What was drawn, on the model's device."""

    ids: Tensor
    """[B, R]."""
    figures: Tensor
    """[3, B, R]: log-probabilities, entropies, values."""
    lengths: Tensor
    """[B]."""
    trunk: Trunk | None


@dataclass
class _Kept:
    """The last `Running` of a model and its captured steps, kept on the model for reuse; copies of the model start without it."""

    key: Hashable = None
    running: Running | None = None

    def __deepcopy__(self, memo: object) -> _Kept:
        return _Kept()


def draw_responses(
    lm: PreTrainedModel, asked: Asked, ends: frozenset[int], temperature: float, with_entropy: bool,
    values: Callable[[Tensor], Tensor] | None, trunk_layer: int | None,
) -> Responses:  # fmt: skip
    """Draw the responses to these queries."""
    if not (captures(lm.device) and packed.packs(lm)):
        return Running(lm, asked, ends, temperature, with_entropy, values, trunk_layer).run(asked)
    half = torch.is_autocast_enabled(lm.device.type)
    places = tuple(parameter.data_ptr() for parameter in lm.parameters())
    key = (len(asked.queries), asked.uniforms.shape[1], ends, temperature, with_entropy, values, trunk_layer, half, places)
    kept = getattr(lm, "konomi_running", _Kept())
    if kept.running is None or kept.key != key or kept.running.room < asked.room:
        kept = lm.konomi_running = _Kept(key, Running(lm, asked, ends, temperature, with_entropy, values, trunk_layer))
    assert kept.running is not None
    return kept.running.run(asked)


def forget_running(lm: PreTrainedModel) -> None:
    """Free the buffers in which this model has drawn responses."""
    if hasattr(lm, "konomi_running"):
        del lm.konomi_running


class Running:
    """Responses being drawn. All tensors stay at fixed addresses, running responses first, so that a step has a fixed shape."""

    def __init__(
        self, lm: PreTrainedModel, asked: Asked, ends: frozenset[int], temperature: float, with_entropy: bool,
        values: Callable[[Tensor], Tensor] | None, trunk_layer: int | None,
    ) -> None:  # fmt: skip
        self.lm, self.temperature, self.with_entropy, self.values, device = lm, temperature, with_entropy, values, lm.device
        self.room, count, width = room_in_use(asked.room, device), len(asked.queries), asked.uniforms.shape[1]
        self.graphs = Graphs(device)
        self.decoder = make_decoder(lm, asked.queries, width, trunk_layer, self.graphs)
        self.stops = torch.tensor(sorted(ends), dtype=torch.int64, device=device) if ends else None
        dtype = torch.float64 if lm.dtype == torch.float64 else torch.float32
        self.ids = torch.zeros(count, width, dtype=torch.int64, device=device)
        self.figures = torch.zeros(3, count, width, dtype=dtype, device=device)
        self.lengths, self.begins, self.drawn, self.limits = (torch.zeros_like(self.ids[:, 0]) for _ in range(4))
        """[B] in the order of the places: tokens so far; where the response begins in the flat [B R]; last token; most tokens."""
        self.going = torch.zeros_like(self.begins, dtype=torch.bool)
        self.uniforms = torch.zeros(count, width, dtype=torch.float64, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)

    def run(self, asked: Asked) -> Responses:
        """Draw the responses. One that ends between two checks of the host is decoded further; the extra tokens are discarded."""
        device, longest, width = self.lm.device, int(asked.lengths.max()), self.ids.shape[1]
        for zero in (self.ids, self.figures, self.lengths, self.step):
            zero.zero_()
        self.uniforms.copy_(send(asked.uniforms, device))
        self.limits.copy_(send(asked.lengths, device))
        self.going.fill_(True)
        torch.arange(0, self.ids.numel(), width, out=self.begins)
        limits = asked.lengths.tolist()
        if isinstance(self.decoder, PackedDecoder):
            self.decoder.begin(asked.queries)
        self._draw(self.decoder.start())
        for step in range(1, longest):
            limits = self._look(step, limits)
            if not limits:
                break
            key = self.decoder.grow()
            if key is None:
                self._advance(len(limits))
            else:
                self.graphs(key, partial(self._advance, len(limits)))
        # new tensors: the next responses are written to the same places
        lengths_B = torch.empty_like(self.lengths).index_copy_(0, self.begins // width, self.lengths)
        unused_BR = torch.arange(width, device=device) >= lengths_B[:, None]
        trunk = self.decoder.trunk()
        trunk = trunk and Trunk(trunk.layer, trunk.hidden.clone() if self.graphs.active else trunk.hidden)
        return Responses(self.ids.masked_fill(unused_BR, 0), self.figures.masked_fill(unused_BR, 0), lengths_B, trunk)

    def _advance(self, count: int) -> None:
        self._draw(self.decoder.step(self.drawn[:count]))

    def _draw(self, hidden_bD: Tensor) -> None:
        """Draw and store the next token of each running response."""
        here, step = slice(len(hidden_bD)), self.step
        going_b = self.going[here]
        uniforms_b = self.uniforms[here].index_select(1, step).squeeze(1)
        drawn_b, *figures = draw(head_logits(self.lm, hidden_bD, self.temperature), uniforms_b, self.with_entropy)
        if self.values is not None:
            figures.append(self.values(hidden_bD))
        place_b = self.begins[here] + step
        stacked = torch.stack([each.to(self.figures.dtype) for each in figures])
        self.ids.view(-1).index_copy_(0, place_b, drawn_b)
        self.figures[: len(figures)].view(len(figures), -1).index_copy_(1, place_b, stacked)
        self.drawn[here] = drawn_b
        self.lengths[here] += going_b
        step += 1
        going_b &= step < self.limits[here]
        if self.stops is not None:
            going_b &= torch.isin(drawn_b, self.stops, invert=True)

    def _look(self, step: int, limits: list[int]) -> list[int]:
        """Drop the responses that have ended after ``step`` tokens; returns the limits of the others.

        Where only limits end responses, the host needs no synchronisation for that.
        """
        if self.stops is None:
            going = [limit > step for limit in limits]
        elif host_looks(self.lm.device, step):
            going = self.going[: len(limits)].tolist()
        else:
            return limits
        count = sum(going)
        places = rows_in_use(count, len(limits), self.lm.device) if count else 0
        if places >= KEEP_ROWS * len(limits):
            return limits
        order = compact(going)
        if places:
            self.decoder.keep(order, places)
            order_b, here = send(torch.tensor(order), self.lm.device), slice(len(order))
            for x in (self.begins, self.lengths, self.drawn, self.limits, self.going, self.uniforms):
                x[here] = x[order_b]
        return [limits[place] for place in order[:places]]


def compact(going: Sequence[bool]) -> list[int]:
    """The places in a new order: those that are ``going`` first, moving as few as possible.

    >>> compact([True, False, True, False, True])
    [0, 4, 2, 3, 1]
    """
    count, order = sum(going), list(range(len(going)))
    free = [place for place in range(count) if not going[place]]
    movers = [place for place in range(count, len(going)) if going[place]]
    for one, other in zip(free, movers, strict=True):
        order[one], order[other] = other, one
    return order

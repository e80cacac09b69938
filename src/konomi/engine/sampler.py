"""Batched sampling with a key-value cache: the only sampling in the package.

Tokens are drawn from soft-max(logits / temperature), without top-k, top-p or penalties, so that sampler and losses have the same
distribution. Each response has its own random stream, one uniform number a token, so that its neighbours in the batch do not
change it. Left out on purpose: beams, stop strings, speculative decoding.

Shape suffixes: B sequences, b of them still running, R response tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from konomi.config import RolloutConfig
from konomi.data.tokens import Tokens, pad_right
from konomi.engine import packed
from konomi.engine.decoding import PackedDecoder, cache_bytes, check_decoding, make_decoder
from konomi.engine.device import cache_size, captures, host_looks, rows_in_use, send
from konomi.engine.draw import draw
from konomi.engine.forward import head_logits
from konomi.engine.graphs import Graphs
from konomi.engine.packed import Trunk
from konomi.engine.rollout import Rollout
from konomi.engine.shared_weights import cast_once
from konomi.errors import RunError
from konomi.seeds import stream_seed

KEEP_ROWS = 0.99
"""Finished rows leave the batch once fewer than this share of its rows is still running."""


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch of responses."""

    lengths: Tensor
    """[B] int64: the most tokens of each response."""
    uniforms: Tensor
    """[B, R] float64 in [0, 1): one a token."""


def make_draws(config: RolloutConfig, seed: int, names: Sequence[tuple[str | int, ...]]) -> Draws:
    """The random numbers of the responses called ``names`` in the run with this seed, each from a stream of its own."""
    low, high = config.response_tokens
    uniforms_BR, stream = torch.empty(len(names), high + 1, dtype=torch.float64), torch.Generator()
    for row_R, name in zip(uniforms_BR, names, strict=True):
        torch.rand(high + 1, out=row_R, generator=stream.manual_seed(stream_seed(seed, *name)))
    lengths_B = low + (uniforms_BR[:, 0] * (high - low + 1)).long()
    if config.stop == "eos":
        lengths_B = torch.full_like(lengths_B, high)
    return Draws(lengths_B, uniforms_BR[:, 1:])


@dataclass(frozen=True)
class Generation:
    """Responses, and what the model computed while drawing them; tensors [B, R], 0 at padding."""

    rollout: Rollout
    logprobs: Tensor
    """Log-probability of each response token, nats."""
    entropy: Tensor
    """Entropy of the distribution that the token was drawn from, nats."""
    values: Tensor
    """``values`` of the hidden state that the token was drawn from; 0 without it."""
    trunk: Trunk | None
    """What went into ``trunk_layer``."""


def sample(
    lm: PreTrainedModel, tokens: Tokens, queries: Sequence[Sequence[int]], draws: Draws, config: RolloutConfig,
    name: str = "the model",
) -> Rollout:  # fmt: skip
    """The rollout of :func:`generate`."""
    return generate(lm, tokens, queries, draws, config, name).rollout


@torch.no_grad()
def generate(
    lm: PreTrainedModel, tokens: Tokens, queries: Sequence[Sequence[int]], draws: Draws, config: RolloutConfig,
    name: str = "the model", values: Callable[[Tensor], Tensor] | None = None, trunk_layer: int | None = None,
) -> Generation:  # fmt: skip
    """Draw one response for each query.

    Responses run together as far as ``config.cache_gb`` has room for their keys and values, those of like length first.

    Args:
        lm: the language model, in evaluation mode.
        tokens: knows the end of text and the padding.
        queries: B lists of token ids, none empty.
        draws: lengths and random numbers, from :func:`make_draws`.
        config: temperature, whether the end of text stops a response, memory.
        name: of the model, for the message if it breaks.
        values: maps the last hidden states [n, D] before each token to [n].
        trunk_layer: keep what goes into this layer.

    Returns:
        Rows in the order of the queries.

    Raises:
        RunError: the model's logits are NaN or infinite.
    """
    check_decoding(lm)
    ends = tokens.eos_ids if config.stop != "length" else frozenset()
    order = draws.lengths.argsort(descending=True, stable=True)  # so that those that end early are at the end
    room = max(map(len, queries)) + int(draws.lengths.max())
    turns: list[tuple[Tensor, _Responses]] = []
    for rows in torch.split(order, max(1, cache_size(config.cache_gb, lm.device) // cache_bytes(lm, room))):
        asked = _Asked([queries[row] for row in rows], draws.lengths[rows], draws.uniforms[rows])
        with cast_once(lm):
            turns.append((send(rows, lm.device), _run(lm, asked, ends, config.temperature, values, trunk_layer)))
    out = _join(turns)
    _check_finite(out.figures[0], name)
    response_lengths_B = out.lengths.cpu()
    responses = [row[:n] for row, n in zip(out.ids.tolist(), response_lengths_B.tolist(), strict=True)]
    ids_BL, _ = pad_right([[*q, *r] for q, r in zip(queries, responses, strict=True)], tokens.pad_id)
    ended_B = torch.tensor([response[-1] in ends for response in responses])
    rollout = Rollout(ids_BL, torch.tensor([len(query) for query in queries]), response_lengths_B, ended_B)
    width = rollout.mask.shape[1]
    logprobs_BR, entropy_BR, values_BR = out.figures[:, :, :width]
    trunk = out.trunk and Trunk(out.trunk.layer, out.trunk.hidden[:, : ids_BL.shape[1]])
    return Generation(rollout, logprobs_BR, entropy_BR, values_BR, trunk)


@dataclass(frozen=True)
class _Asked:
    """Queries that run together, those with the longest responses first, and their random numbers."""

    queries: list[Sequence[int]]
    lengths: Tensor
    uniforms: Tensor

    @property
    def room(self) -> int:
        """The most tokens of a query and its response."""
        return max(map(len, self.queries)) + int(self.lengths.max())


@dataclass(frozen=True)
class _Responses:
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
    """On a device that captures steps a model keeps the last `_Running`, whose steps are captured already; no copy has it."""

    key: Hashable = None
    running: _Running | None = None

    def __deepcopy__(self, memo: object) -> _Kept:
        return _Kept()


def _run(
    lm: PreTrainedModel, asked: _Asked, ends: frozenset[int], temperature: float, values: Callable[[Tensor], Tensor] | None,
    trunk_layer: int | None,
) -> _Responses:  # fmt: skip
    """Draw the responses to these queries."""
    if not (captures(lm.device) and packed.packs(lm)):
        return _Running(lm, asked, ends, temperature, values, trunk_layer).run(asked)
    half = torch.is_autocast_enabled(lm.device.type)
    places = tuple(parameter.data_ptr() for parameter in lm.parameters())
    key = (len(asked.queries), asked.uniforms.shape[1], ends, temperature, values, trunk_layer, half, places)
    kept = getattr(lm, "konomi_running", _Kept())
    if kept.running is None or kept.key != key or kept.running.room < asked.room:
        kept = lm.konomi_running = _Kept(key, _Running(lm, asked, ends, temperature, values, trunk_layer))
    assert kept.running is not None
    return kept.running.run(asked)


class _Running:
    """Responses that are being drawn. All is kept at fixed addresses, the responses that still run first: a step is work of
    fixed shape."""

    def __init__(
        self, lm: PreTrainedModel, asked: _Asked, ends: frozenset[int], temperature: float,
        values: Callable[[Tensor], Tensor] | None, trunk_layer: int | None,
    ) -> None:  # fmt: skip
        self.lm, self.temperature, self.values, device = lm, temperature, values, lm.device
        self.room, count, width = asked.room, len(asked.queries), asked.uniforms.shape[1]
        self.graphs = Graphs(device)
        self.decoder = make_decoder(lm, asked.queries, int(asked.lengths.max()), trunk_layer, self.graphs)
        self.stops = torch.tensor(sorted(ends), dtype=torch.int64, device=device) if ends else None
        dtype = torch.float64 if lm.dtype == torch.float64 else torch.float32
        self.ids = torch.zeros(count, width, dtype=torch.int64, device=device)
        self.figures = torch.zeros(3, count, width, dtype=dtype, device=device)
        self.lengths, self.rows, self.drawn, self.limits = (torch.zeros_like(self.ids[:, 0]) for _ in range(4))
        self.going = torch.zeros_like(self.rows, dtype=torch.bool)
        self.uniforms = torch.zeros(count, width, dtype=torch.float64, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)

    def run(self, asked: _Asked) -> _Responses:
        """Draw. A response that ends between two looks of the host is decoded on, unused."""
        device, longest = self.lm.device, int(asked.lengths.max())
        for zero in (self.ids, self.figures, self.lengths, self.step):
            zero.zero_()
        self.uniforms.copy_(send(asked.uniforms, device))
        self.limits.copy_(send(asked.lengths, device))
        self.going.fill_(True)
        torch.arange(len(self.rows), out=self.rows)
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
        trunk = self.decoder.trunk()
        if self.graphs.active:  # the next responses are written to the same places
            trunk = trunk and Trunk(trunk.layer, trunk.hidden.clone())
            return _Responses(self.ids.clone(), self.figures.clone(), self.lengths.clone(), trunk)
        return _Responses(self.ids, self.figures, self.lengths, trunk)

    def _advance(self, count: int) -> None:
        self._draw(self.decoder.step(self.drawn[:count]))

    def _draw(self, hidden_bD: Tensor) -> None:
        """Draw a token of each of the first responses, and write it down unless the response is over."""
        here = slice(len(hidden_bD))
        going_b, rows_b, step = self.going[here], self.rows[here], self.step
        uniforms_b = self.uniforms[here].index_select(1, step).squeeze(1)
        drawn_b, *figures = draw(head_logits(self.lm, hidden_bD, self.temperature), uniforms_b)
        if self.values is not None:
            figures.append(self.values(hidden_bD))
        over_b = ~going_b
        place_b = rows_b * self.ids.shape[1] + step
        stacked = torch.stack([each.to(self.figures.dtype) for each in figures]).masked_fill(over_b, 0)
        self.ids.view(-1).index_copy_(0, place_b, drawn_b.masked_fill(over_b, 0))
        self.figures[: len(figures)].view(len(figures), -1).index_copy_(1, place_b, stacked)
        self.lengths.index_add_(0, rows_b, going_b.long())
        self.drawn[here] = drawn_b
        step += 1
        going_b &= (step < self.limits[here]) & figures[0].isfinite()  # if logits are not finite nothing more is drawn
        if self.stops is not None:
            going_b &= torch.isin(drawn_b, self.stops, invert=True)

    def _look(self, step: int, limits: list[int]) -> list[int]:
        """See which responses have ended after so many tokens, and let go of them; the limits of those that stay.

        Where only their limits end responses, the host knows without looking.
        """
        if host_looks(self.lm.device, step):
            going = self.going[: len(limits)].tolist()
        elif self.stops is None:
            going = [limit > step for limit in limits]
        else:
            return limits
        count = sum(going)
        places = rows_in_use(count, len(limits), self.lm.device) if count else 0
        if places >= KEEP_ROWS * len(limits):
            return limits
        order = _compact(going)
        if places:
            self.decoder.keep(order, places)
            order_b, here = send(torch.tensor(order), self.lm.device), slice(len(order))
            for x in (self.rows, self.drawn, self.limits, self.going, self.uniforms):
                x[here] = x[order_b]
        return [limits[place] for place in order[:places]]


def _compact(going: Sequence[bool]) -> list[int]:
    """The places in a new order: those that are ``going`` first, moving as few as possible.

    >>> _compact([True, False, True, False, True])
    [0, 4, 2, 3, 1]
    """
    count, order = sum(going), list(range(len(going)))
    free = [place for place in range(count) if not going[place]]
    movers = [place for place in range(count, len(going)) if going[place]]
    for one, other in zip(free, movers, strict=True):
        order[one], order[other] = other, one
    return order


def _check_finite(logprobs_BR: Tensor, name: str) -> None:
    broken = int((~logprobs_BR.isfinite()).any(1).sum())
    if broken:
        raise RunError(
            f"{name}: its logits are not finite (NaN or infinity) in {broken} of {len(logprobs_BR)} responses. Its weights are "
            'damaged or have diverged: train it with a lower learning rate, or with model.precision = "fp32"'
        )


def _join(turns: Sequence[tuple[Tensor, _Responses]]) -> _Responses:
    """The responses of all turns, rows in the order of the queries."""
    place_B = torch.cat([rows for rows, _ in turns]).argsort()
    parts = [part for _, part in turns]
    trunk = None
    if (first := parts[0].trunk) is not None:
        width = max(part.trunk.hidden.shape[1] for part in parts if part.trunk)
        padded = [functional.pad(p.trunk.hidden, (0, 0, 0, width - p.trunk.hidden.shape[1])) for p in parts if p.trunk]
        trunk = Trunk(first.layer, torch.cat(padded)[place_B])
    ids, lengths = (torch.cat([getattr(part, name) for part in parts])[place_B] for name in ("ids", "lengths"))
    return _Responses(ids, torch.cat([part.figures for part in parts], dim=1)[:, place_B], lengths, trunk)

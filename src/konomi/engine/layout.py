"""Where tokens are: in a packed row of sequences, and in the room for keys and values of sequences that are being decoded.

Shape suffixes: B sequences, b of them still running, L tokens of the longest, T tokens of all, N positions that are asked for,
X tokens that are another sequence's too, G key-value heads, S room for tokens, d width of a head, x any further axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from konomi.data.tokens import lengths_to_mask
from konomi.engine.device import LANES


class Layout:
    """Which token of a packed row belongs to which sequence.

    A query that several sequences begin with is stored once: causality makes its hidden states the same for all of them.
    All this is found on the host, so that nothing waits for a device.

    Args:
        lengths_B: int64, at least 1.
        queries: ids [B, L] and the lengths [B] of the queries that they begin with, to find those that are shared.
        device: where the model is; by default where ``lengths_B`` is.
    """

    def __init__(
        self, lengths_B: Tensor, queries: tuple[Tensor, Tensor] | None = None, device: torch.device | None = None
    ) -> None:
        self.device, lengths_B = device or lengths_B.device, lengths_B.cpu()
        self.length = int(lengths_B.max())
        mask_BL = lengths_to_mask(lengths_B, self.length)
        columns_L = torch.arange(self.length)
        own_BL, owner_B = mask_BL, torch.arange(len(lengths_B))
        if queries is not None and len(lengths_B) > 1:
            ids_BL, query_lengths_B = (x.cpu() for x in queries)
            query_BL = lengths_to_mask(query_lengths_B, self.length)
            _, same_B = (
                ids_BL[:, : self.length].masked_fill(~query_BL[:, : ids_BL.shape[1]], -1).unique(dim=0, return_inverse=True)
            )
            owner_B = torch.full_like(owner_B, len(owner_B)).scatter_reduce(0, same_B, owner_B, "amin")[same_B]
            own_BL = mask_BL & ~(query_BL & (owner_B != torch.arange(len(owner_B)))[:, None])
        token_T = own_BL.flatten().nonzero().squeeze(1)
        self._rows_T, self._positions_T = token_T // self.length, token_T % self.length
        self.token_T, self.positions_T = token_T.to(self.device), self._positions_T.to(self.device)
        """[T]: the place of each token in the padded block; its place in its sequence."""
        number_BL = (own_BL.flatten().cumsum(0) - 1).view_as(own_BL)
        number_BL = torch.where(own_BL, number_BL, number_BL[owner_B])
        self._place_BL = number_BL.gather(1, torch.minimum(columns_L, lengths_B[:, None] - 1))
        self._places = self._place_BL.flatten().to(self.device)  # the token in each place; in padding the last one once more
        self.copies_X = (mask_BL & ~own_BL).flatten().nonzero().squeeze(1).to(self.device)
        """[X]: places of the block that hold a token of another sequence's."""
        self.plain = len(token_T) == mask_BL.numel()
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def pad(self, x_Tx: Tensor) -> Tensor:
        """[T, ...] -> [B, L, ...]."""
        if self.plain:
            return x_Tx.view(*self._place_BL.shape, *x_Tx.shape[1:])
        rows: Tensor = _Pad.apply(x_Tx, self._places, self.token_T, self.copies_X)
        return rows.view(*self._place_BL.shape, *x_Tx.shape[1:])

    def pack(self, x_BLx: Tensor) -> Tensor:
        """[B, L, ...] -> [T, ...]."""
        flat = x_BLx.reshape(-1, *x_BLx.shape[2:])
        return flat if self.plain else _Pick.apply(flat, self.token_T)

    def at(self, x_Tx: Tensor, rows_N: Tensor, positions_N: Tensor) -> Tensor:
        """[N, ...]: what is at these positions of these sequences, both on the host."""
        return x_Tx.index_select(0, self._place_BL[rows_N, positions_N].to(self.device))

    def ids(self, ids_BL: Tensor) -> Tensor:
        """[T] on the device: the ids of the tokens, of ids on the host."""
        return ids_BL[self._rows_T, self._positions_T].to(self.device)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[L, L]: what is added to the scores of attention; the same for all layers of a kind."""
        if (window, dtype) not in self._masks:
            steps_L = torch.arange(self.length, device=self.device)
            seen_LL = steps_L[:, None] >= steps_L
            if window is not None:
                seen_LL &= steps_L[:, None] - steps_L < window
            self._masks[window, dtype] = additive(seen_LL, dtype)
        return self._masks[window, dtype]


class _Pad(torch.autograd.Function):
    """Gather whose gradient is a gather too: padding reaches nothing, so its gradient is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor, token: Tensor, copies: Tensor) -> Tensor:
        ctx.save_for_backward(place, token, copies)
        return x.index_select(0, place)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        place, token, copies = ctx.saved_tensors
        grads = grad.index_select(0, token)
        if len(copies):
            grads.index_add_(0, place[copies], grad.index_select(0, copies))
        return grads, None, None, None


class _Pick(torch.autograd.Function):
    """``x[index]`` for an index without repeats: no sums in its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grads = grad.new_zeros(ctx.size, *grad.shape[1:])
        grads[ctx.saved_tensors[0]] = grad
        return grads, None


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where ``seen``, else -inf."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def whole_lanes(tokens: int) -> int:
    """``tokens``, rounded up to a multiple of `LANES`.

    A soft-max over so many has no remainder that is summed in another order: its value for a token does not depend on the
    lengths of the other sequences. In bf16 this decides whether two passes over a token agree to the bit.

    >>> whole_lanes(16), whole_lanes(17)
    (16, 32)
    """
    return -(-tokens // LANES) * LANES


@dataclass
class KeyValues:
    """Keys and values of running sequences, allocated once: [B, G, S, d] a layer."""

    room: int
    """S."""
    sizes: list[int]
    """B: tokens of each sequence, that of the present step included."""
    lengths_B: Tensor
    """[B]: the same on the device."""
    first: int = 0
    """The first sequence of the present prefill."""
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _places: tuple[Tensor, Tensor] = field(init=False, repr=False)
    _masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict, init=False, repr=False)

    def prefill(self, layer: int, key_BGLd: Tensor, value_BGLd: Tensor) -> None:
        """Write the first tokens of sequences ``first`` and on."""
        if layer not in self.layers:
            _, heads, _, width = key_BGLd.shape
            shape = (len(self.sizes), heads, whole_lanes(self.room))
            # zeros: what is masked has weight 0, and 0 times whatever was in that memory need not be 0
            self.layers[layer] = (key_BGLd.new_zeros(*shape, width), value_BGLd.new_zeros(*shape, value_BGLd.shape[-1]))
        here = slice(self.first, self.first + len(key_BGLd))
        for store, new in zip(self.layers[layer], (key_BGLd, value_BGLd), strict=True):
            store[here, :, : new.shape[2]] = new

    def begin_step(self) -> Tensor:
        """Make each sequence longer by a token; returns [B], its position."""
        positions_B = self.lengths_B
        self.sizes, self.lengths_B = [size + 1 for size in self.sizes], positions_B + 1
        self._places, self._masks = (torch.arange(len(self.sizes), device=positions_B.device), positions_B), {}
        return positions_B

    def extend(self, layer: int, key_BGd: Tensor, value_BGd: Tensor) -> tuple[Tensor, Tensor]:
        """Write a token of each running sequence; returns [B, G, S, d], all their tokens and unused room."""
        count, longest = len(self.sizes), whole_lanes(max(self.sizes))
        rows_B, positions_B = self._places
        for store, new in zip(self.layers[layer], (key_BGd, value_BGd), strict=True):
            store[rows_B, :, positions_B] = new
        key, value = self.layers[layer]
        return key[:count, :, :longest], value[:count, :, :longest]

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[B, 1, 1, S]: what is added to the scores of the present step's tokens; the same for all layers of a kind."""
        if (window, dtype) not in self._masks:
            longest = whole_lanes(max(self.sizes))
            steps_S = torch.arange(longest, device=self.lengths_B.device)
            seen_BS = steps_S < self.lengths_B[:, None]
            if window is not None and longest > window:
                seen_BS &= steps_S >= self.lengths_B[:, None] - window
            self._masks[window, dtype] = additive(seen_BS, dtype)[:, None, None]
        return self._masks[window, dtype]

    def keep(self, going: Sequence[bool]) -> Tensor:
        """Drop sequences: those at the end move into the free places. Returns [b], the former place of each."""
        count = sum(going)
        free = [place for place in range(count) if not going[place]]
        movers = [place for place in range(count, len(going)) if going[place]]
        order = list(range(count))
        for place, mover in zip(free, movers, strict=True):
            order[place] = mover
        device = self.lengths_B.device
        if free:
            free_b, movers_b = torch.tensor(free, device=device), torch.tensor(movers, device=device)
            for pair in self.layers.values():
                for store in pair:
                    store[free_b] = store[movers_b]
        order_b = torch.tensor(order, dtype=torch.int64, device=device)
        self.sizes, self.lengths_B = [self.sizes[place] for place in order], self.lengths_B[order_b]
        return order_b

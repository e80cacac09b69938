"""Where tokens are in a packed row of sequences, and what a pass over a rollout reads.

Shape suffixes: B sequences, L tokens of the longest, T tokens of all, N positions that are asked for, X tokens that are another
sequence's too, R response tokens, x any further axes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from konomi.data.tokens import lengths_to_mask
from konomi.engine.device import bucket, send
from konomi.engine.kv_cache import additive, whole_lanes
from konomi.engine.rollout import Rollout


class Sizes(NamedTuple):
    """Of the tensors of a layout."""

    tokens: int
    rows: int
    length: int
    copies: int


class Layout:
    """Which token of a packed row belongs to which sequence.

    A query that several sequences begin with is stored once: causality makes its hidden states the same for all of them.
    All this is found on the host, so that nothing waits for a device.

    Args:
        lengths_B: int64, at least 1.
        queries: ids [B, L] and the lengths [B] of the queries that they begin with, to find those that are shared.
        device: where the model is; by default where ``lengths_B`` is.
        static: round sizes up, so that few different ones occur. Further tokens and a further row have no meaning: nothing
            reads what becomes of them, so their gradient is 0.
    """

    def __init__(
        self, lengths_B: Tensor, queries: tuple[Tensor, Tensor] | None = None, device: torch.device | None = None,
        static: bool = False,
    ) -> None:  # fmt: skip
        device, lengths_B = device or lengths_B.device, lengths_B.cpu()
        rows, longest = len(lengths_B), int(lengths_B.max())
        self.length = whole_lanes(longest) if static else longest
        mask_BL = lengths_to_mask(lengths_B, self.length)
        own_BL, owner_B = mask_BL, torch.arange(rows)
        if queries is not None and rows > 1:
            own_BL, owner_B = _own(mask_BL, *(x.cpu() for x in queries))
        token_T = own_BL.flatten().nonzero().squeeze(1)
        self._rows_T, self._positions_T = token_T // self.length, token_T % self.length
        number_BL = (own_BL.flatten().cumsum(0) - 1).view_as(own_BL)
        number_BL = torch.where(own_BL, number_BL, number_BL[owner_B])
        self._place_BL = number_BL.gather(1, torch.minimum(torch.arange(self.length), lengths_B[:, None] - 1))
        copies_X = (mask_BL & ~own_BL).flatten().nonzero().squeeze(1)
        self.plain = not static and len(token_T) == mask_BL.numel()
        places, positions_T = self._place_BL.flatten(), self._positions_T
        if static:
            spare = bucket(len(token_T)) - len(token_T)
            # the further tokens are all at the first place of the further row, which reads the first of them
            token_T = torch.cat([token_T, token_T.new_full((spare,), rows * self.length)])
            positions_T = torch.cat([positions_T, positions_T.new_zeros(spare)])
            places = torch.cat([places, places.new_full((self.length,), len(token_T) - 1)])
            further = bucket(len(copies_X)) - len(copies_X) if len(copies_X) else 0
            copies_X = torch.cat([copies_X, copies_X.new_full((further,), rows * self.length)])
        self.sizes = Sizes(len(token_T), rows + static, self.length, len(copies_X))
        self._set(send(torch.cat([token_T, positions_T, places, copies_X]), device))

    def _set(self, index: Tensor) -> None:
        tokens, rows, length, copies = self.sizes
        self.index, self.device = index, index.device
        # [T]: the place of each token in the padded block; its place in its sequence. [B L]: the token in each place; in
        # padding the last one once more. [X]: places of the block that hold a token of another sequence's
        self.token_T, self.positions_T, self._places, self.copies_X = index.split([tokens, tokens, rows * length, copies])
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def on(self, index: Tensor) -> Layout:
        """A layout of the same sizes, given by its ``index``; only `pad`, `pack` and `mask` can be used."""
        layout = copy.copy(self)
        layout._set(index)
        return layout

    def pad(self, x_Tx: Tensor) -> Tensor:
        """[T, ...] -> [B, L, ...]."""
        shape = (self.sizes.rows, self.length, *x_Tx.shape[1:])
        if self.plain:
            return x_Tx.view(shape)
        rows: Tensor = _Pad.apply(x_Tx, self._places, self.token_T, self.copies_X)
        return rows.view(shape)

    def pack(self, x_BLx: Tensor) -> Tensor:
        """[B, L, ...] -> [T, ...]."""
        flat = x_BLx.reshape(-1, *x_BLx.shape[2:])
        return flat if self.plain else _Pick.apply(flat, self.token_T)

    def place(self, rows_N: Tensor, positions_N: Tensor) -> Tensor:
        """[N]: the tokens at these positions of these sequences; all on the host."""
        return self._place_BL[rows_N, positions_N]

    def at(self, x_Tx: Tensor, rows_N: Tensor, positions_N: Tensor) -> Tensor:
        """[N, ...]: what is at these positions of these sequences, both on the host."""
        return x_Tx.index_select(0, send(self.place(rows_N, positions_N), self.device))

    def ids(self, ids_BL: Tensor) -> Tensor:
        """[T] on the device: the ids of the tokens, of ids on the host; 0 for further ones."""
        return send(self.host_ids(ids_BL), self.device)

    def host_ids(self, ids_BL: Tensor) -> Tensor:
        """[T] on the host."""
        ids = ids_BL[self._rows_T, self._positions_T]
        return torch.cat([ids, ids.new_zeros(self.sizes.tokens - len(ids))])

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[L, L]: what is added to the scores of attention; the same for all layers of a kind."""
        if (window, dtype) not in self._masks:
            steps_L = torch.arange(self.length, device=self.device)
            seen_LL = steps_L[:, None] >= steps_L
            if window is not None:
                seen_LL &= steps_L[:, None] - steps_L < window
            self._masks[window, dtype] = additive(seen_LL, dtype)
        return self._masks[window, dtype]


def _own(mask_BL: Tensor, ids_BL: Tensor, query_lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens are not those of a query that an earlier sequence begins with; and that sequence, for each."""
    rows, length = mask_BL.shape
    query_BL = lengths_to_mask(query_lengths_B, length)
    read = min(length, ids_BL.shape[1])
    _, same_B = ids_BL[:, :read].masked_fill(~query_BL[:, :read], -1).unique(dim=0, return_inverse=True)
    order_B = torch.arange(rows)
    owner_B = torch.full_like(order_B, rows).scatter_reduce(0, same_B, order_B, "amin")[same_B]
    return mask_BL & ~(query_BL & (owner_B != order_B)[:, None]), owner_B


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
    """``x[index]`` for an index whose repeats nothing reads: no sums in its gradient."""

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


class Pass:
    """What one pass of a packed model over rows of a rollout reads, in one tensor, so that it is moved in one copy and a
    captured pass can be given another of the same sizes.

    Args:
        rollout: on the host.
        rows: of the rollout that the pass is for; by default all of them, in their order.
        device: where the model is.
        packs: whether the model runs packed; else the ids stay padded.
        static: see `Layout`.
    """

    def __init__(
        self, rollout: Rollout, rows: Tensor | None, device: torch.device, packs: bool = True, static: bool = False
    ) -> None:
        self.rows = torch.arange(len(rollout)) if rows is None else rows
        self.width = rollout.mask.shape[1]
        here = rollout if rows is None else rollout.select(rows)
        row_N, step_N = here.mask.nonzero(as_tuple=True)
        at_N = here.query_lengths[row_N] + step_N
        where_N, self.count, parts = self.rows[row_N] * self.width + step_N, len(row_N), list[Tensor]()
        self.layout = Layout(here.lengths - 1, (here.ids, here.query_lengths), static=static) if packs else None
        if self.layout is None:
            ids, place_N = here.ids.flatten(), row_N * here.ids.shape[1] + at_N - 1
            self.shape: tuple[int, int] | None = (len(here), here.ids.shape[1])
        else:
            ids, place_N, self.shape = self.layout.host_ids(here.ids), self.layout.place(row_N, at_N - 1), None
            parts = [self.layout.index]
        targets_N = here.ids[row_N, at_N]
        if static:
            spare = bucket(self.count) - self.count
            place_N, targets_N = (torch.cat([x, x.new_zeros(spare)]) for x in (place_N, targets_N))
            where_N = torch.cat([where_N, where_N.new_full((spare,), len(rollout) * self.width)])
        parts += [ids, place_N, targets_N, where_N, torch.arange(len(where_N)) < self.count]
        self._split = [len(part) for part in parts]
        self._set(send(torch.cat(parts), device))

    @property
    def key(self) -> tuple[Any, ...]:
        """What two passes have in common that one captured pass can serve."""
        return (self.layout and self.layout.sizes, self.shape, *self._split)

    def _set(self, index: Tensor) -> None:
        self.index, parts = index, index.split(self._split)
        if self.layout is not None:
            self.layout = self.layout.on(parts[0])
        # [T] ids; [N]: the token before each response token, that token's id, its place in the flat [B R] of all rows, B R
        # for further ones, and whether it is none of these
        self.ids, self.at, self.targets, self.where, self._valid = parts[-5:]

    @property
    def valid(self) -> Tensor:
        """[N] bool: not a further token."""
        return self._valid.bool()

    def on(self, index: Tensor) -> Pass:
        """A pass of the same sizes, given by its ``index``."""
        other = copy.copy(self)
        other._set(index)
        return other

    def select(self, x_CBR: Tensor) -> Tensor:
        """[C, N] of [C, B, R] of all rows; further ones have no meaning."""
        return x_CBR.flatten(1).index_select(1, self.where.clamp(max=x_CBR.shape[1] * x_CBR.shape[2] - 1))


def scatter(parts: Iterable[tuple[Pass, Tensor]], rows: int) -> Tensor:
    """[C, B, R] of the [C, N] of passes over ``rows`` rows in all; 0 elsewhere. Each part is used up before the next is made."""
    out: Tensor | None = None
    width = 0
    for each, x_CN in parts:
        if out is None:
            width = each.width
            out = x_CN.new_zeros(len(x_CN), rows * width + 1)
        out.index_copy_(1, each.where, x_CN)
    assert out is not None
    return out[:, :-1].view(-1, rows, width)

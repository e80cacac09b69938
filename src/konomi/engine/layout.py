"""Where tokens are in a packed row of sequences, and what a pass over a rollout reads.

Shape suffixes: B sequences, L tokens of the longest, T tokens of all, N positions that are asked for, X tokens that are another
sequence's too, R response tokens, x any further axes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from konomi.engine.device import bucket, send
from konomi.engine.kv_cache import additive, whole_lanes
from konomi.engine.rollout import Rollout

Array = np.ndarray[Any, Any]


class Sizes(NamedTuple):
    """Of the tensors of a layout."""

    tokens: int
    rows: int
    length: int
    copies: int


class Layout:
    """Which token of a packed row belongs to which sequence.

    A query that several sequences begin with is stored once: causality makes its hidden states the same for all of them.
    All of this is computed on the host, so that nothing waits for a device.

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
        # by NumPy: it begins such small work sooner than torch, whose threads have to wake up
        lengths, device = lengths_B.cpu().numpy(), device or lengths_B.device
        rows, longest = len(lengths), int(lengths.max())
        self.length = whole_lanes(longest) if static else longest
        columns = np.arange(self.length)
        mask_BL = columns < lengths[:, None]
        own_BL, owner_B = mask_BL, np.arange(rows)
        if queries is not None and rows > 1:
            own_BL, owner_B = _own(mask_BL, queries[0].cpu().numpy(), queries[1].cpu().numpy())
        token_T = own_BL.ravel().nonzero()[0]
        self._rows_T, self._positions_T = np.divmod(token_T, self.length)
        number_BL = (own_BL.ravel().cumsum() - 1).reshape(own_BL.shape)
        number_BL = np.where(own_BL, number_BL, number_BL[owner_B])
        self._place_BL = np.take_along_axis(number_BL, np.minimum(columns, lengths[:, None] - 1), axis=1)
        copies_X = (mask_BL & ~own_BL).ravel().nonzero()[0]
        self.plain = not static and len(token_T) == mask_BL.size
        parts = [token_T, self._positions_T, self._place_BL.ravel(), copies_X]
        if static:
            # the further tokens are all at the first place of the further row, which reads the last of them
            spare, further = bucket(len(token_T)) - len(token_T), bucket(len(copies_X)) - len(copies_X) if len(copies_X) else 0
            ends = (rows * self.length, 0, len(token_T) + spare - 1, rows * self.length)
            parts = [_longer(*pair) for pair in zip(parts, (spare, spare, self.length, further), ends, strict=True)]
        self.sizes = Sizes(len(parts[0]), rows + static, self.length, len(parts[3]))
        self._set(send(torch.from_numpy(np.concatenate(parts)), device))

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

    def place(self, rows_N: Array, positions_N: Array) -> Array:
        """[N]: the tokens at these positions of these sequences; all on the host."""
        return self._place_BL[rows_N, positions_N]

    def at(self, x_Tx: Tensor, rows_N: Tensor, positions_N: Tensor) -> Tensor:
        """[N, ...]: what is at these positions of these sequences, both on the host."""
        place_N = torch.from_numpy(self.place(rows_N.numpy(), positions_N.numpy()))
        return x_Tx.index_select(0, send(place_N, self.device))

    def ids(self, ids_BL: Tensor) -> Tensor:
        """[T] on the device: the ids of the tokens, of ids on the host; 0 for further ones."""
        return send(torch.from_numpy(self.host_ids(ids_BL.numpy())), self.device)

    def host_ids(self, ids_BL: Array) -> Array:
        """[T] on the host."""
        ids = ids_BL[self._rows_T, self._positions_T]
        return _longer(ids, self.sizes.tokens - len(ids), 0)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[L, L]: what is added to the scores of attention; the same for all layers of a kind."""
        if (window, dtype) not in self._masks:
            steps_L = torch.arange(self.length, device=self.device)
            seen_LL = steps_L[:, None] >= steps_L
            if window is not None:
                seen_LL &= steps_L[:, None] - steps_L < window
            self._masks[window, dtype] = additive(seen_LL, dtype)
        return self._masks[window, dtype]


def _longer(x: Array, count: int, value: int) -> Array:
    """``x`` with this value so many times behind it."""
    return np.concatenate([x, np.full(count, value, dtype=x.dtype)]) if count else x


def _own(mask_BL: Array, ids_BL: Array, query_lengths_B: Array) -> tuple[Array, Array]:
    """Which tokens are not those of a query that an earlier sequence begins with; and that sequence, for each."""
    first: dict[bytes, int] = {}
    owner_B = np.array([
        first.setdefault(ids_BL[row, :count].tobytes(), row) for row, count in enumerate(query_lengths_B.tolist())
    ])  # fmt: skip
    shared_B = owner_B != np.arange(len(owner_B))
    return mask_BL & ~((np.arange(mask_BL.shape[1]) < query_lengths_B[:, None]) & shared_B[:, None]), owner_B


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
        here = rollout if rows is None else rollout.select(rows)
        self.rows = torch.arange(len(rollout)) if rows is None else rows
        self.width = int(rollout.response_lengths.max())
        ids_BL, queries, responses = (x.numpy() for x in (here.ids, here.query_lengths, here.response_lengths))
        row_N = np.repeat(np.arange(len(here)), responses)
        step_N = np.arange(len(row_N)) - np.repeat(responses.cumsum() - responses, responses)
        at_N = queries[row_N] + step_N
        where_N, self.count = self.rows.numpy()[row_N] * self.width + step_N, len(row_N)
        self.layout = Layout(here.lengths - 1, (here.ids, here.query_lengths), static=static) if packs else None
        self.shape: tuple[int, int] | None = None if packs else ids_BL.shape
        if self.layout is None:
            parts = [ids_BL.ravel(), row_N * ids_BL.shape[1] + at_N - 1]
        else:
            parts = [self.layout.index.numpy(), self.layout.host_ids(ids_BL), self.layout.place(row_N, at_N - 1)]
        parts += [ids_BL[row_N, at_N], self.rows.numpy()[row_N], where_N, np.ones_like(where_N)]
        if static:
            ends = (0, 0, len(rollout), len(rollout) * self.width, 0)
            parts[-5:] = [_longer(x, bucket(len(x)) - len(x), end) for x, end in zip(parts[-5:], ends, strict=True)]
        self._split, self._end = [len(part) for part in parts], len(rollout) * self.width
        self._set(send(torch.from_numpy(np.concatenate(parts)), device))

    @property
    def key(self) -> tuple[Any, ...]:
        """What two passes have in common that one captured pass can serve."""
        return (self.layout and self.layout.sizes, self.shape, *self._split)

    def _set(self, index: Tensor) -> None:
        self.index, parts = index, index.split(self._split)
        if self.layout is not None:
            self.layout = self.layout.on(parts[0])
        # [T] ids; [N]: the token before each response token, that token's id, its row, B for further ones, its place in the
        # flat [B R] of all rows, B R for further ones, and whether it is none of these
        self.ids, self.at, self.targets, self._row, self.where, self._valid = parts[-6:]

    @property
    def valid(self) -> Tensor:
        """[N] bool: not a further token."""
        return self._valid.bool()

    @property
    def sequences(self) -> tuple[Tensor, int]:
        """[N]: the row of the rollout that each token is of, of a further one the row after the last; and the number of rows."""
        return self._row, self._end // self.width + 1

    def on(self, index: Tensor) -> Pass:
        """A pass of the same sizes, given by its ``index``."""
        other = copy.copy(self)
        other._set(index)
        return other

    def idle(self) -> Pass:
        """The same pass, of which nothing counts: a process runs it to keep step with others that have more."""
        index = self.index.clone()
        *_, where, valid = index.split(self._split)
        where.fill_(self._end)
        valid.zero_()
        other = self.on(index)
        other.count = 0
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

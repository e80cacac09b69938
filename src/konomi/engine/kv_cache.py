"""Keys and values of sequences that are being decoded.

Shape suffixes: B sequences, b of them still running, L tokens, G key-value heads, S room for tokens, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from konomi.engine.device import LANES, room_in_use, send


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


class KeyValues:
    """Keys and values of running sequences, allocated once: [B, G, S, d] a layer.

    What the host counts and what a device holds change apart, `grow` and `begin_step`: a captured step repeats the second only.

    Args:
        count: B.
        room: S, the most tokens of a sequence.
        device: where the model is.
    """

    def __init__(self, count: int, room: int, device: torch.device) -> None:
        self.room, self.sizes = room_in_use(room, device), [0] * count
        self.lengths_B = torch.zeros(count, dtype=torch.int64, device=device)
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.present = slice(0, count)
        """The sequences of the present prefill."""
        self._rows_B = torch.arange(count, device=device)
        self._positions_b = self.lengths_B
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def begin(self, sizes: Sequence[int]) -> None:
        """Sequences of these sizes take all places; nothing of earlier ones is left, numbers that are not finite too."""
        for pair in self.layers.values():
            for store in pair:
                store.zero_()
        self.sizes = list(sizes)
        self.lengths_B.copy_(send(torch.tensor(self.sizes), self.lengths_B.device))

    def prefill(self, layer: int, key_BGLd: Tensor, value_BGLd: Tensor) -> None:
        """Write the first tokens of the sequences that are ``present``; further ones of a `Layout` have no meaning."""
        if layer not in self.layers:
            _, heads, _, width = key_BGLd.shape
            shape = (len(self.lengths_B), heads, self.room)
            # zeros: what is masked has weight 0, and 0 times whatever was in that memory need not be 0
            self.layers[layer] = (key_BGLd.new_zeros(*shape, width), value_BGLd.new_zeros(*shape, value_BGLd.shape[-1]))
        count = self.present.stop - self.present.start
        for store, new in zip(self.layers[layer], (key_BGLd, value_BGLd), strict=True):
            store[self.present, :, : new.shape[2]] = new[:count]

    def grow(self) -> None:
        """Each running sequence gets a token."""
        self.sizes = [size + 1 for size in self.sizes]

    @property
    def in_use(self) -> int:
        """The tokens of a sequence that a step reads."""
        return room_in_use(max(self.sizes), self.lengths_B.device)

    def begin_step(self) -> Tensor:
        """Make each sequence longer by a token, on the device; returns [b], its position."""
        lengths_b = self.lengths_B[: len(self.sizes)]
        self._positions_b, self._masks = lengths_b.clone(), {}
        lengths_b += 1
        return self._positions_b

    def extend(self, layer: int, key_bGd: Tensor, value_bGd: Tensor) -> tuple[Tensor, Tensor]:
        """Write a token of each running sequence; returns [b, G, S, d], all their tokens and unused room."""
        count, longest = len(self.sizes), self.in_use
        for store, new in zip(self.layers[layer], (key_bGd, value_bGd), strict=True):
            store[self._rows_B[:count], :, self._positions_b] = new
        key, value = self.layers[layer]
        return key[:count, :, :longest], value[:count, :, :longest]

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[b, 1, 1, S]: what is added to the scores of the present step's tokens; the same for all layers of a kind."""
        if (window, dtype) not in self._masks:
            longest, last_b1 = self.in_use, self._positions_b[:, None]
            steps_S = torch.arange(longest, device=last_b1.device)
            seen_bS = steps_S <= last_b1
            if window is not None and longest > window:
                seen_bS &= steps_S > last_b1 - window
            self._masks[window, dtype] = additive(seen_bS, dtype)[:, None, None]
        return self._masks[window, dtype]

    def keep(self, order: Sequence[int], count: int) -> None:
        """Let the sequences at the places ``order`` take the first places, and go on with the first ``count``."""
        device = self.lengths_B.device
        moved = [place for place in range(count) if order[place] != place]
        if moved:
            to_m, from_m = send(torch.tensor([moved, [order[place] for place in moved]]), device)
            for pair in self.layers.values():
                for store in pair:
                    store[to_m] = store[from_m]
            self.lengths_B[to_m] = self.lengths_B[from_m]
        self.sizes = [self.sizes[place] for place in order[:count]]

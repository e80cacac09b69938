"""Keys and values of sequences that are being decoded, in room that is made once.

Shape suffixes: B sequences, b of them that go on, G key-value heads, L tokens, S room for tokens, d width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

LANES = 16
"""Numbers that a processor's vector holds, float32."""


def whole_lanes(tokens: int) -> int:
    """At least ``tokens``, and a multiple of `LANES`.

    A soft-max over so many has no rest that is summed in another way: its value for a token does not depend on how long the
    other sequences are. In bf16 that decides whether two passes over a token agree to the bit or differ in every layer above.

    >>> whole_lanes(16), whole_lanes(17)
    (16, 32)
    """
    return -(-tokens // LANES) * LANES


@dataclass
class KeyValues:
    """Keys and values of running sequences, in room that is made once: [B, G, S, d] a layer."""

    room: int
    """S."""
    lengths_B: Tensor
    """[B] tokens that each sequence has, the one of the present step included."""
    first: int = 0
    """The sequence from which on the present prefill is."""
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def prefill(self, layer: int, key_BGLd: Tensor, value_BGLd: Tensor) -> None:
        """Write the first tokens of sequences ``first`` and on."""
        if layer not in self.layers:
            _, heads, _, width = key_BGLd.shape
            shape = (len(self.lengths_B), heads, whole_lanes(self.room))
            # zeros: what is masked has weight 0, and 0 times whatever was in that memory need not be 0
            self.layers[layer] = (key_BGLd.new_zeros(*shape, width), value_BGLd.new_zeros(*shape, value_BGLd.shape[-1]))
        here = slice(self.first, self.first + len(key_BGLd))
        for store, new in zip(self.layers[layer], (key_BGLd, value_BGLd), strict=True):
            store[here, :, : new.shape[2]] = new

    def extend(self, layer: int, key_BGd: Tensor, value_BGd: Tensor) -> tuple[Tensor, Tensor]:
        """Write a token of each running sequence; returns [B, G, S, d] of all that they have, and of what was or is nothing."""
        count, longest = len(self.lengths_B), whole_lanes(int(self.lengths_B.max()))
        rows = torch.arange(count, device=key_BGd.device)
        for store, new in zip(self.layers[layer], (key_BGd, value_BGd), strict=True):
            store[rows, :, self.lengths_B - 1] = new
        key, value = self.layers[layer]
        return key[:count, :, :longest], value[:count, :, :longest]

    def keep(self, going_B: Tensor) -> Tensor:
        """Drop sequences: those at the end move into the places that become free. Returns [b] which one is now where."""
        count = int(going_B.sum())
        order_b = torch.arange(count, device=going_B.device)
        free, movers = (~going_B[:count]).nonzero().squeeze(1), going_B[count:].nonzero().squeeze(1) + count
        order_b[free] = movers
        if len(free):
            for pair in self.layers.values():
                for store in pair:
                    store[free] = store[movers]
        self.lengths_B = self.lengths_B[order_b]
        return order_b

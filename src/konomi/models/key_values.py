"""Keys and values of sequences that are being decoded, in room that is made once.

Shape suffixes: B sequences, b of them that go on, G key-value heads, L tokens, S room for tokens, d width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class KeyValues:
    """Keys and values of running sequences, in room that is made once: [B, G, S, d] a layer."""

    room: int
    """S."""
    lengths_B: Tensor
    """[B] tokens that each sequence has, the one of the present step included."""
    first: int = 0
    """The sequence from which on the present prefill is."""
    decoding: bool = False
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def prefill(self, layer: int, key_BGLd: Tensor, value_BGLd: Tensor) -> None:
        """Write the first tokens of sequences ``first`` and on."""
        if layer not in self.layers:
            _, heads, _, width = key_BGLd.shape
            shape = (len(self.lengths_B), heads, self.room)
            # zeros: what is masked has weight 0, and 0 times whatever was in that memory need not be 0
            self.layers[layer] = (key_BGLd.new_zeros(*shape, width), value_BGLd.new_zeros(*shape, value_BGLd.shape[-1]))
        here = slice(self.first, self.first + len(key_BGLd))
        for store, new in zip(self.layers[layer], (key_BGLd, value_BGLd), strict=True):
            store[here, :, : new.shape[2]] = new

    def extend(self, layer: int, key_BGd: Tensor, value_BGd: Tensor) -> tuple[Tensor, Tensor]:
        """Write a token of each running sequence; returns [B, G, L, d] of all that they have."""
        count, longest = len(self.lengths_B), int(self.lengths_B.max())
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

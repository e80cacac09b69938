"""The vocabulary head and its soft-max block by block of the vocabulary: see `konomi.ops.head`.

Shape suffixes: N tokens, D width, V vocabulary, x a block of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from konomi.ops.logits import Blocks, product
from konomi.ops.masked import widen


def _logits(
    hidden_ND: Tensor, copy_VD: Tensor, targets_N: Tensor, scale: float, blocks: Blocks, first: int = 0
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """Yield of each block from ``first`` on: its rows of the weight, them, its logits, and where the targets are."""
    size = blocks.width(len(hidden_ND))
    for start in range(first, len(copy_VD), size):
        weight_xD = copy_VD[start : start + size].to(hidden_ND.dtype)
        logits_Nx = product(hidden_ND, weight_xD, blocks.rows)
        logits_Nx = logits_Nx if scale == 1.0 else logits_Nx * scale
        column_N = targets_N - start
        inside_N = (column_N >= 0) & (column_N < len(weight_xD))
        yield slice(start, start + size), weight_xD, logits_Nx, inside_N, torch.where(inside_N, column_N, 0)


def exponentials(
    hidden_ND: Tensor, copy_VD: Tensor, targets_N: Tensor, scale: float, blocks: Blocks, top_N: Tensor,
    kept: list[tuple[Tensor, Tensor]],
) -> Iterator[tuple[slice, Tensor, Tensor]]:  # fmt: skip
    """Yield of each block: its rows of the weight; e^(l - higher), kept or computed again; and higher."""
    start = 0
    for weights_Nx, higher_N in kept:
        yield slice(start, start + weights_Nx.shape[1]), weights_Nx, higher_N
        start += weights_Nx.shape[1]
    for rows, _, logits_Nx, _, _ in _logits(hidden_ND, copy_VD, targets_N, scale, blocks, start):
        yield rows, (logits_Nx - top_N[:, None]).exp().to(hidden_ND.dtype), top_N


def in_blocks(
    hidden_ND: Tensor, copy_VD: Tensor, targets_N: Tensor, scale: float, blocks: Blocks, slope_wanted: bool, room: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """The same by blocks; instead of probabilities: the largest logits, sums, and e^(l - top) as far as there is room."""
    sum_N = widen(hidden_ND.new_zeros(len(hidden_ND)))  # of e^(l - top)
    moment_N = torch.zeros_like(sum_N)  # of (l - top) e^(l - top)
    mean_ND = widen(torch.zeros_like(hidden_ND)) if slope_wanted else None  # of e^(l - top) w, until over the sum
    # finite, so that the first block's fade is 0 and not NaN
    top_N = torch.full_like(sum_N, torch.finfo(sum_N.dtype).min)
    taken_N = torch.full_like(sum_N, torch.nan)
    kept: list[tuple[Tensor, Tensor]] = []
    for _, weight_xD, logits_Nx, inside_N, column_N in _logits(hidden_ND, copy_VD, targets_N, scale, blocks):
        # the logit that is summed itself: h w_y computed apart is rounded apart, and log p could exceed 0
        taken_N = torch.where(inside_N, logits_Nx.gather(1, column_N[:, None]).squeeze(1), taken_N)
        higher_N = torch.maximum(top_N, logits_Nx.amax(-1))
        shift_N = top_N - higher_N
        fade_N = shift_N.exp()
        gaps_Nx = logits_Nx - higher_N[:, None]
        weights_Nx = gaps_Nx.exp()
        moment_N = fade_N * (moment_N + shift_N * sum_N) + torch.linalg.vecdot(weights_Nx, gaps_Nx)
        sum_N = fade_N * sum_N + weights_Nx.sum(-1)
        weights_Nx = weights_Nx.to(weight_xD.dtype)
        if mean_ND is not None:
            mean_ND = fade_N[:, None] * mean_ND + weights_Nx @ weight_xD
        top_N = higher_N
        room -= weights_Nx.numel()
        if room >= 0:
            kept.append((weights_Nx, higher_N))
    mean_ND = None if mean_ND is None else mean_ND / sum_N[:, None]
    # top and sum apart, here and in the backward pass: log-probability and probability keep their digits when logits are large
    return (taken_N - top_N) - sum_N.log(), sum_N.log() - moment_N / sum_N, mean_ND, top_N, sum_N, kept

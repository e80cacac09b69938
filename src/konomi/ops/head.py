"""Log-probabilities straight from hidden states: the vocabulary head and its soft-max without the logits.

The logits of a batch over a vocabulary of 262,144 are larger than the model. Here they exist in blocks of the
vocabulary that fit the processor's cache: the soft-max is summed block by block as in online normalisation (Milakov and
Gimelshein 2018, arXiv:1805.02867), and the gradient with respect to the hidden state is summed along the way, as
FlashAttention (Dao et al. 2022, arXiv:2205.14135, algorithm 1) sums values: ``d log p(y) / d h = w_y - sum_v p_v w_v``
needs nothing that the backward pass would bring but one factor a token.

Shape suffixes: N tokens, D width, V vocabulary, x a block of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from konomi.ops.logits import BLOCKS, Blocks, product, product_type
from konomi.ops.masked import check_shapes, widen


def linear_logprobs(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float = 1.0, blocks: Blocks = BLOCKS
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy under ``soft-max(h W^T / temperature)``.

    ``log p(y) = l_y - log sum_v exp l_v`` with ``l = h W^T / temperature``, and ``H = -sum_v p_v log p_v``.
    ``hidden_ND`` [N, D]; ``weight_VD`` [V, D]; ``targets_N`` [N] int64, ids in 0..V-1. Returns ([N], [N]), nats/token.
    Gradients flow from the log-probability to hidden states and weights; the entropy carries none. Equal to
    `selected_logprobs` and `entropy` of the logits to rounding. Hidden states and weights must be finite.

    ``blocks`` bounds what exists at one time, and the exponentials that are kept for the backward pass: see `Blocks`. Matrix
    products are of the type of the hidden states, or of that of autocast where it is on; all else, and what is returned, in
    float32 at least: logits too (`linear_logits`). There are no second derivatives: ``create_graph=True`` raises
    ``RuntimeError``.

    >>> logprobs, entropy = linear_logprobs(torch.zeros(1, 3), torch.ones(4, 3), torch.tensor([2]))
    >>> logprobs, entropy
    (tensor([-1.3863]), tensor([1.3863]))
    """
    check_shapes(hidden_ND=hidden_ND, weight_VD=weight_VD, targets_N=targets_N)
    # here, once: the backward pass, which runs outside of autocast, has to repeat the products in the same type
    hidden_ND = hidden_ND.to(product_type(hidden_ND))
    # checked here: inside of the function the grad mode is always off, and requires_grad ignores no_grad
    wanted = [torch.is_grad_enabled() and x.requires_grad for x in (hidden_ND, weight_VD)]
    inputs = (hidden_ND, weight_VD, targets_N, 1.0 / temperature, blocks, *wanted)
    with torch.autocast(hidden_ND.device.type, enabled=False):  # it would take sums of products in half precision
        logprobs_N, entropy_N = _LinearLogprobs.apply(*inputs)  # type: ignore[no-untyped-call]
    return logprobs_N, entropy_N


def _logits(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float, blocks: Blocks, first: int = 0
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """Yield of each block from ``first`` on: its rows of the weight, them, its logits, and where the targets are."""
    size = max(1024, blocks.logits // len(hidden_ND))
    for start in range(first, len(weight_VD), size):
        weight_xD = weight_VD[start : start + size].to(hidden_ND.dtype)
        logits_Nx = product(hidden_ND, weight_xD, blocks.rows)
        logits_Nx = logits_Nx if scale == 1.0 else logits_Nx * scale
        column_N = targets_N - start
        inside_N = (column_N >= 0) & (column_N < len(weight_xD))
        yield slice(start, start + size), weight_xD, logits_Nx, inside_N, torch.where(inside_N, column_N, 0)


def _exponentials(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float, blocks: Blocks, top_N: Tensor,
    kept: list[tuple[Tensor, Tensor]],
) -> Iterator[tuple[slice, Tensor, Tensor]]:  # fmt: skip
    """Yield of each block: its rows of the weight; e^(l - higher), kept or computed again; and higher."""
    start = 0
    for weights_Nx, higher_N in kept:
        yield slice(start, start + weights_Nx.shape[1]), weights_Nx, higher_N
        start += weights_Nx.shape[1]
    for rows, _, logits_Nx, _, _ in _logits(hidden_ND, weight_VD, targets_N, scale, blocks, start):
        yield rows, (logits_Nx - top_N[:, None]).exp().to(hidden_ND.dtype), top_N


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float, blocks: Blocks, slope_wanted: bool,
        for_weight: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        sum_N = widen(hidden_ND.new_zeros(len(hidden_ND)))  # of e^(l - top)
        moment_N = torch.zeros_like(sum_N)  # of (l - top) e^(l - top)
        mean_ND = widen(torch.zeros_like(hidden_ND)) if slope_wanted else None  # of e^(l - top) w, until over the sum
        # finite, so that the first block's fade is 0 and not NaN
        top_N = torch.full_like(sum_N, torch.finfo(sum_N.dtype).min)
        taken_N = torch.full_like(sum_N, torch.nan)
        kept: list[tuple[Tensor, Tensor]] = []
        room = blocks.kept if for_weight else 0
        for _, weight_xD, logits_Nx, inside_N, column_N in _logits(hidden_ND, weight_VD, targets_N, scale, blocks):
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
        slope_ND = None
        if mean_ND is not None:
            slope_ND = scale * (weight_VD[targets_N].to(mean_ND.dtype) - mean_ND / sum_N[:, None])
        ctx.scale, ctx.blocks, ctx.dtype, ctx.kept = scale, blocks, hidden_ND.dtype, kept
        ctx.save_for_backward(slope_ND, *((hidden_ND, weight_VD, targets_N, top_N, sum_N) if for_weight else (None,) * 5))
        entropy_N = sum_N.log() - moment_N / sum_N
        ctx.mark_non_differentiable(entropy_N)
        # top and sum apart, here and below: log-probability and probability keep their digits when logits are large
        return (taken_N - top_N) - sum_N.log(), entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # once_differentiable lets a constant grad_N pass, and the curvature would be lost
            raise RuntimeError("linear_logprobs has first derivatives only: leave create_graph out")
        slope_ND, hidden_ND, weight_VD, targets_N, top_N, sum_N = ctx.saved_tensors
        grad_hidden_ND = None if slope_ND is None else (grad_N[:, None] * slope_ND).to(ctx.dtype)
        grad_weight_VD = None
        if weight_VD is not None:
            grad_weight_VD = torch.empty_like(weight_VD)
            kept, ctx.kept = ctx.kept, []  # they are used up: a second backward pass does the products again
            factor_N = -ctx.scale * grad_N / sum_N
            exponentials = _exponentials(hidden_ND, weight_VD, targets_N, ctx.scale, ctx.blocks, top_N, kept)
            for rows, weights_Nx, higher_N in exponentials:
                # a token's factor goes to its hidden state, of D numbers, and not to its x exponentials
                scaled_ND = ((factor_N * (higher_N - top_N).exp())[:, None] * hidden_ND).to(hidden_ND.dtype)
                if hidden_ND.dtype == grad_weight_VD.dtype:
                    torch.mm(weights_Nx.T, scaled_ND, out=grad_weight_VD[rows])
                else:
                    grad_weight_VD[rows] = weights_Nx.T @ scaled_ND
            target_ND = ((ctx.scale * grad_N)[:, None] * hidden_ND).to(grad_weight_VD.dtype)
            torch.index_add(grad_weight_VD, 0, targets_N, target_ND, out=grad_weight_VD)
        return grad_hidden_ND, grad_weight_VD, None, None, None, None, None

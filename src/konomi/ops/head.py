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
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float = 1.0, blocks: Blocks = BLOCKS, *,
    copy_VD: Tensor | None = None, with_entropy: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Log-probability of each target and entropy under ``soft-max(h W^T / temperature)``.

    ``log p(y) = l_y - log sum_v exp l_v`` with ``l = h W^T / temperature``, and ``H = -sum_v p_v log p_v``.
    ``hidden_ND`` [N, D]; ``weight_VD`` [V, D]; ``targets_N`` [N] int64, ids in 0..V-1. Returns ([N], [N]), nats/token.
    Gradients flow from the log-probability to hidden states and weights; the entropy carries none. Equal to
    `selected_logprobs` and `entropy` of the logits to rounding. Hidden states and weights must be finite.

    ``blocks`` bounds what exists at one time, and the exponentials that are kept for the backward pass: see `Blocks`. Matrix
    products are of the type of the hidden states, or of that of autocast where it is on; all else, and what is returned, in
    float32 at least: logits too (`linear_logits`). There are no second derivatives: ``create_graph=True`` raises
    ``RuntimeError``.

    ``copy_VD``: the weight in the type of products, if the caller keeps it; rows of zeros may follow. ``with_entropy=False``: it
    may be 0.

    >>> logprobs, entropy = linear_logprobs(torch.zeros(1, 3), torch.ones(4, 3), torch.tensor([2]))
    >>> logprobs, entropy
    (tensor([-1.3863]), tensor([1.3863]))
    """
    check_shapes(hidden_ND=hidden_ND, weight_VD=weight_VD, targets_N=targets_N)
    # here, once: the backward pass, which runs outside of autocast, has to repeat the products in the same type
    hidden_ND = hidden_ND.to(product_type(hidden_ND))
    # checked here: inside of the function the grad mode is always off, and requires_grad ignores no_grad
    wanted = [torch.is_grad_enabled() and x.requires_grad for x in (hidden_ND, weight_VD)]
    if copy_VD is None or copy_VD.dtype != hidden_ND.dtype:
        copy_VD = weight_VD.detach()
    inputs = (hidden_ND, weight_VD, copy_VD, targets_N, 1.0 / temperature, blocks, *wanted, with_entropy)
    with torch.autocast(hidden_ND.device.type, enabled=False):  # it would take sums of products in half precision
        logprobs_N, entropy_N = _LinearLogprobs.apply(*inputs)  # type: ignore[no-untyped-call]
    return logprobs_N, entropy_N


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


def _exponentials(
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


def _in_one_block(
    hidden_ND: Tensor, copy_VD: Tensor, targets_N: Tensor, scale: float, blocks: Blocks, slope_wanted: bool, with_entropy: bool,
    vocabulary: int,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:  # fmt: skip
    """Log-probabilities, entropies, the mean of the weight's rows, and the probabilities, of all the vocabulary at once."""
    weight_VD = copy_VD.to(hidden_ND.dtype)
    logits_NV = product(hidden_ND, weight_VD, blocks.rows)
    if vocabulary < len(copy_VD):
        logits_NV[:, vocabulary:] = torch.finfo(logits_NV.dtype).min / 2  # finite: its share is 0, and 0 times it too
    all_NV = (logits_NV if scale == 1.0 else logits_NV * scale).log_softmax(-1)
    logprobs_N = all_NV.gather(1, targets_N[:, None]).squeeze(1)
    shares_NV = all_NV.exp()
    entropy_N = -torch.linalg.vecdot(shares_NV, all_NV) if with_entropy else torch.zeros_like(logprobs_N)
    shares_NV = shares_NV.to(hidden_ND.dtype)
    return logprobs_N, entropy_N, shares_NV @ weight_VD if slope_wanted else None, shares_NV


def _in_blocks(
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


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, copy_VD: Tensor, targets_N: Tensor, scale: float, blocks: Blocks,
        slope_wanted: bool, for_weight: bool, with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        shares_NV = top_N = sum_N = None
        ctx.kept, whole = [], len(weight_VD) <= blocks.width(len(hidden_ND))
        copy_VD = copy_VD if whole else copy_VD[: len(weight_VD)]
        inputs = (hidden_ND, copy_VD, targets_N, scale, blocks, slope_wanted)
        if whole:
            logprobs_N, entropy_N, mean_ND, shares_NV = _in_one_block(*inputs, with_entropy, len(weight_VD))
        else:
            room = blocks.kept if for_weight else 0
            logprobs_N, entropy_N, mean_ND, top_N, sum_N, ctx.kept = _in_blocks(*inputs, room)
        slope_ND = None if mean_ND is None else scale * (weight_VD[targets_N].to(widen(mean_ND).dtype) - mean_ND)
        ctx.scale, ctx.blocks, ctx.dtype = scale, blocks, hidden_ND.dtype
        saved = (hidden_ND, weight_VD, copy_VD, targets_N, shares_NV, top_N, sum_N) if for_weight else (None,) * 7
        ctx.save_for_backward(slope_ND, *saved)
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # once_differentiable lets a constant grad_N pass, and the curvature would be lost
            raise RuntimeError("linear_logprobs has first derivatives only: leave create_graph out")
        slope_ND, hidden_ND, weight_VD, copy_VD, targets_N, shares_NV, top_N, sum_N = ctx.saved_tensors
        grad_hidden_ND = None if slope_ND is None else (grad_N[:, None] * slope_ND).to(ctx.dtype)
        grad_weight_VD = None
        if weight_VD is not None:
            to_target_ND = (ctx.scale * grad_N)[:, None] * hidden_ND
            if shares_NV is not None:
                # a token's factor goes to its hidden state, of D numbers, and not to its V probabilities
                product_VD = _widened_product(shares_NV.T, -to_target_ND, weight_VD.dtype, ctx.blocks)
                grad_weight_VD = product_VD[: len(weight_VD)]
            else:
                grad_weight_VD = torch.empty_like(weight_VD)
                kept, ctx.kept = ctx.kept, []  # they are used up: a second backward pass does the products again
                factor_N = -ctx.scale * grad_N / sum_N
                exponentials = _exponentials(hidden_ND, copy_VD, targets_N, ctx.scale, ctx.blocks, top_N, kept)
                for rows, weights_Nx, higher_N in exponentials:
                    scaled_ND = (factor_N * (higher_N - top_N).exp())[:, None] * hidden_ND
                    grad_weight_VD[rows] = _widened_product(weights_Nx.T, scaled_ND, weight_VD.dtype, ctx.blocks)
            torch.index_add(grad_weight_VD, 0, targets_N, to_target_ND.to(weight_VD.dtype), out=grad_weight_VD)
        return grad_hidden_ND, grad_weight_VD, None, None, None, None, None, None, None


def _widened_product(left_VN: Tensor, right_ND: Tensor, dtype: torch.dtype, blocks: Blocks) -> Tensor:
    """A product of factors of the left one's type, in ``dtype``."""
    right_ND = right_ND.to(left_VN.dtype)
    if blocks.rows is None and left_VN.dtype != dtype == torch.float32:
        return torch.mm(left_VN, right_ND, out_dtype=torch.float32)
    return (left_VN @ right_ND).to(dtype)

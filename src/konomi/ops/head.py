"""Log-probabilities straight from hidden states: the vocabulary head and its soft-max without the logits.

The logits of a batch over a vocabulary of 262,144 are larger than the model. Here they exist in blocks of the
vocabulary that fit the processor's cache: the soft-max is summed block by block as in online normalisation (Milakov and
Gimelshein 2018, arXiv:1805.02867), and the gradient with respect to the hidden state is summed along the way, as
FlashAttention (Dao et al. 2022, arXiv:2205.14135, algorithm 1) sums values: ``d log p(y) / d h = w_y - sum_v p_v w_v``
needs nothing that the backward pass would bring but one factor a token.

Shape suffixes: N tokens, D width, V vocabulary, x a block of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from konomi.ops.head_blocks import exponentials, in_blocks
from konomi.ops.logits import BLOCKS, Blocks, product, product_type
from konomi.ops.masked import check_shapes


def linear_logprobs(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float = 1.0, blocks: Blocks = BLOCKS, *,
    copy_VD: Tensor | None = None, with_entropy: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Log-probability of each target and entropy under ``soft-max(h W^T / temperature)``.

    ``log p(y) = l_y - log sum_v exp l_v`` with ``l = h W^T / temperature``, and ``H = -sum_v p_v log p_v``.
    ``hidden_ND`` [N, D]; ``weight_VD`` [V, D]; ``targets_N`` [N] int64, ids in 0..V-1. Returns ([N], [N]), nats/token.
    Gradients flow from the log-probability to hidden states and weights; the entropy carries none. Equal to
    `selected_logprobs` and `entropy` of the logits to rounding. Hidden states and weights must be finite.

    ``blocks`` bounds what exists at one time, and the exponentials that are kept for the backward pass: see `Blocks`; a device
    that multiplies half precision to float32 takes all the vocabulary for so many tokens, others a part of it for all. Matrix
    products are of the type of the hidden states, or of that of autocast where it is on; all else, and what is returned, in
    float32 at least: logits too (`linear_logits`). There are no second derivatives: ``create_graph=True`` raises
    ``RuntimeError``.

    ``copy_VD``: the weight in the type of products, if the caller keeps it; rows of zeros may follow. Without
    ``with_entropy`` what is returned for the entropy has no meaning.

    >>> logprobs, entropy = linear_logprobs(torch.zeros(1, 3), torch.ones(4, 3), torch.tensor([2]))
    >>> logprobs, entropy
    (tensor([-1.3863]), tensor([1.3863]))
    """
    check_shapes(hidden_ND=hidden_ND, weight_VD=weight_VD, targets_N=targets_N)
    if blocks.rows is None and len(hidden_ND) > (most := max(1, blocks.logits // len(weight_VD))):
        parts = zip(torch.split(hidden_ND, most), torch.split(targets_N, most), strict=True)
        results = [
            linear_logprobs(h, weight_VD, y, temperature, blocks, copy_VD=copy_VD, with_entropy=with_entropy) for h, y in parts
        ]
        return torch.cat([logprobs_n for logprobs_n, _ in results]), torch.cat([entropy_n for _, entropy_n in results])
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


def _in_one_block(
    hidden_ND: Tensor, copy_VD: Tensor, targets_N: Tensor, scale: float, blocks: Blocks, slope_wanted: bool, with_entropy: bool,
    for_weight: bool, vocabulary: int,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Of all the vocabulary at once: log-probabilities; entropies; ``sum_v e_v w_v``; and e, the probabilities, of the target
    less 1."""
    weight_VD = copy_VD.to(hidden_ND.dtype)
    logits_NV = product(hidden_ND, weight_VD, blocks.rows)
    logits_NV = logits_NV if scale == 1.0 else logits_NV * scale
    if vocabulary < len(copy_VD):
        logits_NV[:, vocabulary:] = torch.finfo(logits_NV.dtype).min / 2  # finite: its share is 0, and 0 times it too
    all_NV = logits_NV.log_softmax(-1)
    logprobs_N1 = all_NV.gather(1, targets_N[:, None])
    logprobs_N = logprobs_N1.squeeze(1)
    entropy_N = -torch.linalg.vecdot(all_NV.exp(), all_NV) if with_entropy else logprobs_N.detach()
    if not (slope_wanted or for_weight):
        return logprobs_N, entropy_N, None, None
    errors_NV = torch.exp(all_NV, out=torch.empty_like(all_NV, dtype=hidden_ND.dtype))
    # not 1 taken from a probability that is rounded already
    errors_NV = torch.scatter(errors_NV, 1, targets_N[:, None], logprobs_N1.expm1().to(hidden_ND.dtype), out=errors_NV)
    return logprobs_N, entropy_N, errors_NV @ weight_VD if slope_wanted else None, errors_NV


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, copy_VD: Tensor, targets_N: Tensor, scale: float, blocks: Blocks,
        slope_wanted: bool, for_weight: bool, with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        errors_NV = top_N = sum_N = None
        ctx.kept, in_one = [], len(weight_VD) <= blocks.width(len(hidden_ND))
        copy_VD = copy_VD if in_one else copy_VD[: len(weight_VD)]
        inputs = (hidden_ND, copy_VD, targets_N, scale, blocks, slope_wanted)
        if in_one:
            logprobs_N, entropy_N, slope_ND, errors_NV = _in_one_block(*inputs, with_entropy, for_weight, len(weight_VD))
        else:
            room = blocks.kept if for_weight else 0
            logprobs_N, entropy_N, mean_ND, top_N, sum_N, ctx.kept = in_blocks(*inputs, room)
            slope_ND = None if mean_ND is None else mean_ND - weight_VD[targets_N]
        ctx.scale, ctx.blocks, ctx.dtype = scale, blocks, hidden_ND.dtype
        saved = (hidden_ND, weight_VD, copy_VD, targets_N, errors_NV, top_N, sum_N) if for_weight else (None,) * 7
        ctx.save_for_backward(slope_ND, *saved)
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # once_differentiable lets a constant grad_N pass, and the curvature would be lost
            raise RuntimeError("linear_logprobs has first derivatives only: leave create_graph out")
        slope_ND, hidden_ND, weight_VD, copy_VD, targets_N, errors_NV, top_N, sum_N = ctx.saved_tensors
        factor_N = -ctx.scale * grad_N
        grad_hidden_ND = None if slope_ND is None else (factor_N[:, None] * slope_ND).to(ctx.dtype)
        grad_weight_VD = None
        if weight_VD is not None and errors_NV is not None:
            # a token's factor goes to its hidden state, of D numbers, and not to its V probabilities
            product_VD = _widened_product(errors_NV.T, factor_N[:, None] * hidden_ND, weight_VD.dtype, ctx.blocks)
            grad_weight_VD = product_VD[: len(weight_VD)]
        elif weight_VD is not None:
            grad_weight_VD = torch.empty_like(weight_VD)
            kept, ctx.kept = ctx.kept, []  # they are used up: a second backward pass does the products again
            shares_N = factor_N / sum_N
            blocks = exponentials(hidden_ND, copy_VD, targets_N, ctx.scale, ctx.blocks, top_N, kept)
            for rows, weights_Nx, higher_N in blocks:
                scaled_ND = (shares_N * (higher_N - top_N).exp())[:, None] * hidden_ND
                if weights_Nx.dtype == weight_VD.dtype:
                    torch.mm(weights_Nx.T, scaled_ND.to(weights_Nx.dtype), out=grad_weight_VD[rows])
                else:
                    grad_weight_VD[rows] = _widened_product(weights_Nx.T, scaled_ND, weight_VD.dtype, ctx.blocks)
            target_ND = (-factor_N[:, None] * hidden_ND).to(weight_VD.dtype)
            torch.index_add(grad_weight_VD, 0, targets_N, target_ND, out=grad_weight_VD)
        return grad_hidden_ND, grad_weight_VD, None, None, None, None, None, None, None


def _widened_product(left_VN: Tensor, right_ND: Tensor, dtype: torch.dtype, blocks: Blocks) -> Tensor:
    """A product of factors of the left one's type, in ``dtype``."""
    right_ND = right_ND.to(left_VN.dtype)
    if blocks.rows is None and left_VN.dtype != dtype == torch.float32:
        return torch.mm(left_VN, right_ND, out_dtype=torch.float32)
    return (left_VN @ right_ND).to(dtype)

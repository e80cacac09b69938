"""Log-probabilities straight from hidden states: the vocabulary head and its soft-max without the logits.

The logits of a batch over a vocabulary of 262,144 are larger than the model. Here they exist in blocks of the vocabulary
that fit the processor's cache: the soft-max is summed block by block as in online normalisation (Milakov and Gimelshein
2018, arXiv:1805.02867), and the gradient with respect to the hidden state is summed along the way, as FlashAttention (Dao et
al. 2022, arXiv:2205.14135, algorithm 1) sums values: ``d log p(y) / d h = w_y - sum_v p_v w_v`` needs nothing that the
backward pass would bring but one factor a token.

Shape suffixes: N tokens, D width, V vocabulary, x a block of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from konomi.ops.checks import check_shapes

BLOCK_ELEMENTS = 2**21
"""Logits that exist at one time."""


def linear_logprobs(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy under ``soft-max(h W^T / temperature)``.

    ``log p(y) = l_y - log sum_v exp l_v`` with ``l = h W^T / temperature``, and ``H = -sum_v p_v log p_v``.
    ``hidden_ND`` [N, D]; ``weight_VD`` [V, D]; ``targets_N`` [N] int64. Returns ([N], [N]), nats/token. Gradients flow from
    the log-probability to hidden states and weights; the entropy carries none. Equal to `selected_logprobs` and `entropy`
    of the logits to rounding.

    >>> logprobs, entropy = linear_logprobs(torch.zeros(1, 3), torch.ones(4, 3), torch.tensor([2]))
    >>> logprobs, entropy
    (tensor([-1.3863]), tensor([1.3863]))
    """
    check_shapes(hidden_ND=hidden_ND, weight_VD=weight_VD, targets_N=targets_N)
    logprobs_N, entropy_N = _LinearLogprobs.apply(hidden_ND, weight_VD, targets_N, 1.0 / temperature)
    return logprobs_N, entropy_N


def _blocks(hidden_ND: Tensor, weight_VD: Tensor) -> list[Tensor]:
    return list(weight_VD.split(max(1024, BLOCK_ELEMENTS // max(1, len(hidden_ND)))))


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        kind = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
        top_N = torch.full((len(hidden_ND),), -torch.inf, dtype=kind, device=hidden_ND.device)
        sum_N, moment_N = torch.zeros_like(top_N), torch.zeros_like(top_N)  # of e^(l - top), and of (l - top) e^(l - top)
        mean_ND = torch.zeros_like(hidden_ND, dtype=kind) if wanted else None  # of e^(l - top) w, until divided by the sum
        for weight_xD in _blocks(hidden_ND, weight_VD):
            logits_Nx = (hidden_ND @ weight_xD.T).to(kind) * scale
            higher_N = torch.maximum(top_N, logits_Nx.amax(-1))
            # nothing summed yet: the shift is 0, not -inf times 0
            shift_N = torch.where(sum_N > 0, top_N - higher_N, torch.zeros_like(top_N))
            fade_N = shift_N.exp()
            gaps_Nx = logits_Nx - higher_N[:, None]
            weights_Nx = gaps_Nx.exp()
            moment_N = fade_N * (moment_N + shift_N * sum_N) + (weights_Nx * gaps_Nx).sum(-1)
            sum_N = fade_N * sum_N + weights_Nx.sum(-1)
            if mean_ND is not None:
                mean_ND = fade_N[:, None] * mean_ND + weights_Nx.to(weight_xD.dtype) @ weight_xD
            top_N = higher_N
        of_target_ND = weight_VD[targets_N].to(kind)
        taken_N = (hidden_ND.to(kind) * of_target_ND).sum(-1) * scale
        norm_N = top_N + sum_N.log()
        slope_ND = None if mean_ND is None else scale * (of_target_ND - mean_ND / sum_N[:, None])
        ctx.scale = scale
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, norm_N, slope_ND)
        entropy_N = sum_N.log() - moment_N / sum_N
        ctx.mark_non_differentiable(entropy_N)
        return taken_N - norm_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        hidden_ND, weight_VD, targets_N, norm_N, slope_ND = ctx.saved_tensors
        grad_hidden_ND = None if slope_ND is None else (grad_N[:, None] * slope_ND).to(hidden_ND.dtype)
        grad_weight_VD = None
        if ctx.needs_input_grad[1]:
            scaled_N = grad_N * ctx.scale
            parts = []
            for weight_xD in _blocks(hidden_ND, weight_VD):
                logits_Nx = (hidden_ND @ weight_xD.T).to(norm_N.dtype) * ctx.scale
                shares_Nx = (logits_Nx - norm_N[:, None]).exp() * -scaled_N[:, None]
                parts.append(shares_Nx.to(hidden_ND.dtype).T @ hidden_ND)
            taken_ND = scaled_N[:, None].to(hidden_ND.dtype) * hidden_ND
            grad_weight_VD = torch.cat(parts).index_add(0, targets_N, taken_ND).to(weight_VD.dtype)
        return grad_hidden_ND, grad_weight_VD, None, None

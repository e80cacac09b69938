"""Batched sampling with a key-value cache: the only sampling in the package.

Tokens are drawn from soft-max(logits / temperature), without top-k, top-p or penalties, so that sampler and losses have the same
distribution. Each response has its own random stream, one uniform number a token, so that its neighbours in the batch do not
change it. Left out on purpose: beams, stop strings, speculative decoding.

Shape suffixes: B sequences, R response tokens, D width, V vocabulary, W the same filled up to blocks, K blocks of it, x in
a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from konomi.config import RolloutConfig
from konomi.data.tokens import Tokens, pad_right
from konomi.engine.decoding import Decoder, cache_bytes, check_decoding, make_decoder
from konomi.engine.device import draw_rows, host_looks
from konomi.engine.forward import head_logits
from konomi.engine.packed import Trunk
from konomi.engine.rollout import Rollout
from konomi.engine.shared_weights import cast_once
from konomi.errors import RunError
from konomi.seeds import stream_seed

BLOCK = 512
"""Vocabulary entries a block in the inverse of the cumulative sum."""
KEEP_ROWS = 0.99
"""Finished rows leave the batch once fewer than this share of its rows is still running."""


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch of responses."""

    lengths: Tensor
    """[B] int64: the most tokens of each response."""
    uniforms: Tensor
    """[B, R] float64 in [0, 1): one a token."""


def make_draws(config: RolloutConfig, seed: int, names: Sequence[tuple[str | int, ...]]) -> Draws:
    """The random numbers of the responses called ``names`` in the run with this seed, each from a stream of its own."""
    low, high = config.response_tokens
    uniforms_BR, stream = torch.empty(len(names), high + 1, dtype=torch.float64), torch.Generator()
    for row_R, name in zip(uniforms_BR, names, strict=True):
        torch.rand(high + 1, out=row_R, generator=stream.manual_seed(stream_seed(seed, *name)))
    lengths_B = low + (uniforms_BR[:, 0] * (high - low + 1)).long()
    if config.stop == "eos":
        lengths_B = torch.full_like(lengths_B, high)
    return Draws(lengths_B, uniforms_BR[:, 1:])


@dataclass(frozen=True)
class Generation:
    """Responses, and what the model computed while drawing them; tensors [B, R], 0 at padding."""

    rollout: Rollout
    logprobs: Tensor
    """Log-probability of each response token, nats."""
    entropy: Tensor
    """Entropy of the distribution that the token was drawn from, nats."""
    values: Tensor
    """``values`` of the hidden state that the token was drawn from; 0 without it."""
    trunk: Trunk | None
    """What went into ``trunk_layer``."""


def sample(
    lm: PreTrainedModel, tokens: Tokens, queries: Sequence[Sequence[int]], draws: Draws, config: RolloutConfig,
    name: str = "the model",
) -> Rollout:  # fmt: skip
    """The rollout of :func:`generate`."""
    return generate(lm, tokens, queries, draws, config, name).rollout


@torch.no_grad()
def generate(
    lm: PreTrainedModel, tokens: Tokens, queries: Sequence[Sequence[int]], draws: Draws, config: RolloutConfig,
    name: str = "the model", values: Callable[[Tensor], Tensor] | None = None, trunk_layer: int | None = None,
) -> Generation:  # fmt: skip
    """Draw one response for each query.

    Responses run together as far as ``config.cache_gb`` has room for their keys and values, those of like length first.

    Args:
        lm: the language model, in evaluation mode.
        tokens: knows the end of text and the padding.
        queries: B lists of token ids, none empty.
        draws: lengths and random numbers, from :func:`make_draws`.
        config: temperature, whether the end of text stops a response, memory.
        name: of the model, for the message if it breaks.
        values: maps the last hidden states [n, D] before each token to [n].
        trunk_layer: keep what goes into this layer.

    Returns:
        Rows in the order of the queries.

    Raises:
        RunError: the model's logits are NaN or infinite.
    """
    check_decoding(lm)
    out = _Responses(len(queries), draws.uniforms.shape[1], lm)
    ends = tokens.eos_ids if config.stop != "length" else frozenset()
    stops = torch.tensor(sorted(ends), dtype=torch.int64, device=lm.device)
    turns: list[tuple[Tensor, Trunk | None]] = []
    order = draws.lengths.argsort(descending=True, stable=True)  # so that those that end early are at the end
    room = max(map(len, queries)) + int(draws.lengths.max())
    for rows in torch.split(order, max(1, int(config.cache_gb * 1e9) // cache_bytes(lm, room))):
        decoder = make_decoder(lm, [queries[row] for row in rows], int(draws.lengths[rows].max()), trunk_layer)
        with cast_once(lm):
            _run(lm, decoder, rows, draws, config, stops, values, out)
        turns.append((rows.to(lm.device), decoder.trunk()))
    _check_finite(out, name)
    response_lengths_B = out.lengths.cpu()
    responses = [row[:n] for row, n in zip(out.ids.tolist(), response_lengths_B.tolist(), strict=True)]
    ids_BL, _ = pad_right([[*q, *r] for q, r in zip(queries, responses, strict=True)], tokens.pad_id)
    ended_B = torch.tensor([response[-1] in ends for response in responses])
    rollout = Rollout(ids_BL, torch.tensor([len(query) for query in queries]), response_lengths_B, ended_B)
    width = rollout.mask.shape[1]
    logprobs_BR, entropy_BR, values_BR = out.figures[:, :, :width]
    return Generation(rollout, logprobs_BR, entropy_BR, values_BR, _join(turns, ids_BL.shape[1]))


class _Responses:
    """The responses so far, rows in the order of the queries."""

    def __init__(self, count: int, width: int, lm: PreTrainedModel) -> None:
        self.ids = torch.zeros(count, width, dtype=torch.int64, device=lm.device)
        self.lengths = torch.zeros(count, dtype=torch.int64, device=lm.device)
        dtype = torch.float64 if lm.dtype == torch.float64 else torch.float32
        self.figures = torch.zeros(3, count, width, dtype=dtype, device=lm.device)
        """Log-probabilities, entropies, values."""

    def add(self, step: int, rows: Tensor, going: Tensor, drawn: Tensor, *figures: Tensor) -> None:
        """Write what was drawn in a step for the ``rows`` that are still ``going``."""
        over = ~going
        stacked = torch.stack([each.to(self.figures.dtype) for each in figures]).masked_fill(over, 0)
        self.ids[:, step].index_copy_(0, rows, drawn.masked_fill(over, 0))
        self.figures[: len(figures), :, step].index_copy_(1, rows, stacked)
        self.lengths.index_add_(0, rows, going.long())


def _run(
    lm: PreTrainedModel, decoder: Decoder, which: Tensor, draws: Draws, config: RolloutConfig, stops: Tensor,
    values: Callable[[Tensor], Tensor] | None, out: _Responses,
) -> None:  # fmt: skip
    """Decode the queries ``which`` to their ends. A response that ends between two looks of the host is decoded on, unused."""
    longest = int(draws.lengths[which].max())
    rows, uniforms, limits = (x.to(lm.device) for x in (which, draws.uniforms[which], draws.lengths[which]))
    going = torch.ones(len(which), dtype=torch.bool, device=lm.device)
    hidden = decoder.start()
    for step in range(longest):
        drawn, logprobs, entropy = draw(head_logits(lm, hidden, config.temperature), uniforms[:, step])
        out.add(step, rows, going, drawn, logprobs, entropy, *([] if values is None else [values(hidden)]))
        going = going & torch.isin(drawn, stops, invert=True) & (step + 1 < limits)
        if step + 1 == longest:
            break
        if host_looks(lm.device, step + 1):
            going = going & logprobs.isfinite()  # of a row whose logits are not finite nothing more is drawn
            left = going.tolist()
            if not any(left):
                break
            if sum(left) < KEEP_ROWS * len(left):
                order = decoder.keep(left)
                drawn, going, rows, uniforms, limits = (x[order] for x in (drawn, going, rows, uniforms, limits))
        hidden = decoder.step(drawn)


def _check_finite(out: _Responses, name: str) -> None:
    broken = int((~out.figures[0].isfinite()).any(1).sum())
    if broken:
        raise RunError(
            f"{name}: its logits are not finite (NaN or infinity) in {broken} of {len(out.ids)} responses. Its weights are "
            'damaged or have diverged: train it with a lower learning rate, or with model.precision = "fp32"'
        )


def _join(turns: Sequence[tuple[Tensor, Trunk | None]], width: int) -> Trunk | None:
    """The trunks of all turns, rows in the order of the queries."""
    first = turns[0][1]
    if first is None:
        return None
    hidden = first.hidden.new_zeros(sum(len(rows) for rows, _ in turns), width, first.hidden.shape[-1])
    for rows, trunk in turns:
        assert trunk is not None
        kept = trunk.hidden[:, :width]
        hidden[rows, : kept.shape[1]] = kept
    return Trunk(first.layer, hidden)


def draw(logits_BV: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a token from soft-max(logits) by inverting its cumulative sum at a uniform number: O(V) without a V-wide noise.

    The sum is first searched by blocks, then within the block that holds the number; sums of blocks are float64, so that a
    token's share is right to float32 rounding however large the vocabulary.

    Args:
        logits_BV: any float type.
        uniforms_B: float64 in [0, 1).

    Returns:
        [B] int64, and [B] the log-probability of the token and [B] the entropy, nats.

    >>> draw(torch.tensor([[0.0, 0.0, 0.0, 0.0]]).expand(3, 4), torch.tensor([0.1, 0.5, 0.99], dtype=torch.float64))[0]
    tensor([0, 2, 3])
    """
    rows = draw_rows(logits_BV.device)
    with torch.autocast(logits_BV.device.type, enabled=False):  # it would take sums of products in bfloat16
        parts = [_draw_rows(*part) for part in zip(logits_BV.split(rows), uniforms_B.split(rows), strict=True)]
    if len(parts) == 1:
        return parts[0]
    token_B, logprob_B, entropy_B = (torch.cat(column) for column in zip(*parts, strict=True))
    return token_B, logprob_B, entropy_B


def _draw_rows(logits_BV: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
    batch, vocabulary = logits_BV.shape
    gaps_BV = logits_BV - logits_BV.amax(dim=-1, keepdim=True)
    weights_BW = logits_BV.new_empty(batch, -(-vocabulary // BLOCK) * BLOCK)
    weights_BV = torch.exp(gaps_BV, out=weights_BW[:, :vocabulary])
    weights_BW[:, vocabulary:] = 0.0
    weights_BKx = weights_BW.view(batch, -1, BLOCK)
    blocks_BK = weights_BKx.sum(dim=-1).double().cumsum(dim=-1)
    total_B = blocks_BK[:, -1]
    target_B1 = uniforms_B[:, None] * total_B[:, None]
    # sums that are NaN give an index behind the last block; the log-probability of that token is NaN too
    block_B = _first_above(blocks_BK, target_B1).clamp(max=blocks_BK.shape[1] - 1)
    start_B1 = blocks_BK.gather(1, (block_B[:, None] - 1).clamp(min=0)).masked_fill(block_B[:, None] == 0, 0.0)
    inner_Bx = weights_BKx.gather(1, block_B[:, None, None].expand(-1, 1, BLOCK)).squeeze(1).double().cumsum(dim=-1)
    token_B = (block_B * BLOCK + _first_above(inner_Bx, target_B1 - start_B1)).clamp(max=vocabulary - 1)
    log_total_B = total_B.log()
    logprob_B = gaps_BV.gather(1, token_B[:, None]).squeeze(1) - log_total_B
    # a logit of -inf has weight 0, and 0 times -inf is not a number
    moment_B = torch.linalg.vecdot(weights_BV, gaps_BV.clamp_(min=torch.finfo(gaps_BV.dtype).min))
    return token_B, logprob_B.to(logits_BV.dtype), (log_total_B - moment_B / total_B).to(logits_BV.dtype)


def _first_above(sums: Tensor, target: Tensor) -> Tensor:
    """Index of the first cumulative sum above the target; by rounding the target may reach the last sum, never pass it."""
    below_total = torch.nextafter(sums[:, -1:], torch.zeros_like(sums[:, -1:]))
    return torch.searchsorted(sums, torch.minimum(target, below_total), right=True).squeeze(1)

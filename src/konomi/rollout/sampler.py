"""Batched sampling with a key-value cache: the only sampling in the package.

A token is drawn from soft-max(logits / temperature) and from nothing else: no top-k, no top-p, no penalties, so that the
distribution that was drawn from is the one that is scored and differentiated. Each response has its own random stream, made
of one uniform number a token, so that its neighbours in the batch do not change it.

Left out on purpose: beams, stop strings, speculative decoding.

Shape suffixes: B sequences, Q query tokens (left-padded here), R response tokens, V vocabulary, K blocks of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from konomi.config import RolloutConfig
from konomi.data.batch import Rollout
from konomi.data.tokens import Tokens, pad_left, pad_right
from konomi.models.policy import head_logits
from konomi.seeds import stream_seed

BLOCK = 512
"""Vocabulary entries a block in the inverse of the cumulative sum."""
KEEP_ROWS = 0.8
"""Finished rows leave the batch once fewer than this share of its rows goes on."""


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch of responses."""

    lengths: Tensor
    """[B] int64: tokens at most."""
    uniforms: Tensor
    """[B, R] float64 in [0, 1): one a token."""


def make_draws(config: RolloutConfig, seed: int, names: Sequence[tuple[str | int, ...]]) -> Draws:
    """The random numbers of the responses called ``names`` in the run with this seed, each from a stream of its own."""
    low, high = config.response_tokens
    streams = [torch.Generator().manual_seed(stream_seed(seed, *name)) for name in names]
    uniforms_BR = torch.stack([torch.rand(high + 1, dtype=torch.float64, generator=stream) for stream in streams])
    lengths_B = low + (uniforms_BR[:, 0] * (high - low + 1)).long()
    if config.stop == "eos":
        lengths_B = torch.full_like(lengths_B, high)
    return Draws(lengths_B, uniforms_BR[:, 1:])


@torch.no_grad()
def sample(lm: PreTrainedModel, tokens: Tokens, queries: Sequence[Sequence[int]], draws: Draws, config: RolloutConfig) -> Rollout:
    """Draw one response for each query.

    Args:
        lm: the language model, in evaluation mode.
        tokens: knows the end of text and the padding.
        queries: B lists of token ids, none empty.
        draws: lengths and random numbers, from :func:`make_draws`.
        config: temperature, and whether the end of text stops a response.

    Returns:
        The rollout, rows in the order of the queries.
    """
    device = lm.device
    stops = tokens.eos_ids if config.stop != "length" else frozenset()
    ids_BQ, lengths_B = pad_left([list(q) for q in queries], tokens.pad_id)
    width = ids_BQ.shape[1]
    mask_BL = (torch.arange(width) >= width - lengths_B[:, None]).to(device)
    step_ids, positions = ids_BQ.to(device), (mask_BL.long().cumsum(-1) - 1).clamp(min=0)
    uniforms, limits = draws.uniforms.to(device), draws.lengths.to(device)
    rows = torch.arange(len(queries), device=device)  # which query each row of the running batch is
    responses: list[list[int]] = [[] for _ in queries]
    ended = torch.zeros(len(queries), dtype=torch.bool)
    going = torch.ones(len(queries), dtype=torch.bool, device=device)
    cache = DynamicCache(config=lm.config)

    for step in range(int(limits.max())):
        out = lm.base_model(
            input_ids=step_ids, attention_mask=mask_BL, position_ids=positions, past_key_values=cache, use_cache=True
        )
        drawn = draw(head_logits(lm, out.last_hidden_state[:, -1], config.temperature), uniforms[rows, step])
        stopped = _is_in(drawn, stops)
        for row, token, last, active in zip(rows.tolist(), drawn.tolist(), stopped.tolist(), going.tolist(), strict=True):
            if active:
                responses[row].append(token)
                ended[row] = last
        going = going & ~stopped & (step + 1 < limits[rows])
        if not going.any():
            break
        positions = positions[:, -1:] + 1
        mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(rows), 1)], dim=1)
        step_ids = drawn[:, None]
        if going.float().mean() < KEEP_ROWS:
            keep = going.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            rows, going, positions, mask_BL, step_ids = (t[keep] for t in (rows, going, positions, mask_BL, step_ids))

    ids_BL, _ = pad_right([[*q, *r] for q, r in zip(queries, responses, strict=True)], tokens.pad_id)
    response_lengths = torch.tensor([len(r) for r in responses])
    return Rollout(ids_BL, lengths_B, response_lengths, ended).to(device)


def draw(logits_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Draw a token from soft-max(logits) by inverting its cumulative sum at a uniform number: O(V) without a V-wide noise.

    The sum is first searched by blocks, then within the block that holds the number; sums are float64, so that a token's
    share is right to float32 rounding however large the vocabulary.

    Args:
        logits_BV: any float type.
        uniforms_B: float64 in [0, 1).

    Returns:
        [B] int64.

    >>> draw(torch.tensor([[0.0, 0.0, 0.0, 0.0]]).expand(3, 4), torch.tensor([0.1, 0.5, 0.99], dtype=torch.float64))
    tensor([0, 2, 3])
    """
    logits_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
    batch, vocabulary = logits_BV.shape
    weights_BV = torch.exp(logits_BV - logits_BV.amax(dim=-1, keepdim=True))
    weights_BKx = torch.nn.functional.pad(weights_BV, (0, -vocabulary % BLOCK)).view(batch, -1, BLOCK)
    blocks_BK = weights_BKx.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target_B1 = uniforms_B[:, None] * blocks_BK[:, -1:]
    block_B = _first_above(blocks_BK, target_B1)
    start_B1 = torch.where(block_B[:, None] > 0, blocks_BK.gather(1, (block_B[:, None] - 1).clamp(min=0)), 0.0)
    inner_Bx = weights_BKx[torch.arange(batch, device=block_B.device), block_B].double().cumsum(dim=-1)
    return block_B * BLOCK + _first_above(inner_Bx, target_B1 - start_B1)


def _first_above(sums: Tensor, target: Tensor) -> Tensor:
    """Index of the first cumulative sum above the target; by rounding the target may reach the last sum, never pass it."""
    below_total = torch.nextafter(sums[:, -1:], torch.zeros_like(sums[:, -1:]))
    return torch.searchsorted(sums, torch.minimum(target, below_total), right=True).squeeze(1)


def _is_in(ids: Tensor, members: Collection[int]) -> Tensor:
    return torch.isin(ids, torch.tensor(sorted(members), dtype=ids.dtype, device=ids.device))

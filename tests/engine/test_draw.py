"""Drawing one token: against the exact inverse of the cumulative sum, and against frequencies."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from konomi.engine import draw as draws
from konomi.engine.draw import BLOCK
from tiny_run import chance

ALMOST_ONE = math.nextafter(1.0, 0.0)


def draw(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    return draws.draw(logits, uniforms)[0]


def inverse_cdf(logits: list[float], uniform: float) -> tuple[int, float]:
    """The token whose piece of [0, total) holds uniform * total, in exact sums; and how far the nearest border is."""
    top = max(logits)
    weights = [Fraction(math.exp(x - top)) for x in logits]
    target, below = Fraction(uniform) * sum(weights), Fraction(0)
    for token, weight in enumerate(weights):
        if target < below + weight:
            return token, float(min(target - below, below + weight - target) / sum(weights))
        below += weight
    raise AssertionError("uniform is 1 or more")


@pytest.mark.parametrize("vocabulary", [1, 2, 29, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 77])
def test_the_token_is_that_of_the_exact_inverse(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(40, vocabulary, dtype=torch.float64, generator=generator)
    uniforms = torch.rand(40, dtype=torch.float64, generator=generator)
    uniforms[:3] = torch.tensor([0.0, ALMOST_ONE, 0.5], dtype=torch.float64)
    drawn = draw(logits, uniforms).tolist()
    for row, uniform, token in zip(logits.tolist(), uniforms.tolist(), drawn, strict=True):
        expected, margin = inverse_cdf(row, uniform)
        assert token == expected or margin < 1e-12
    if vocabulary > BLOCK:
        assert any(token >= BLOCK for token in drawn) and any(token < BLOCK for token in drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_logits_are_drawn_from_as_they_are(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = (2 * torch.randn(60, 700, generator=generator)).to(dtype)
    uniforms = torch.rand(60, dtype=torch.float64, generator=generator)
    drawn = draw(logits, uniforms)
    for row, uniform, token in zip(logits.double().tolist(), uniforms.tolist(), drawn.tolist(), strict=True):
        expected, margin = inverse_cdf(row, uniform)
        assert token == expected or margin < 1e-6


def test_the_ends_of_the_interval_never_reach_an_impossible_token() -> None:
    """Zero weight in front, behind, between, in whole blocks, and in the padding of the last block."""
    possible = [3, BLOCK + 5, BLOCK + 6, 3 * BLOCK + 1]
    logits = torch.full((1, 4 * BLOCK - 100), -math.inf)
    logits[0, possible] = torch.tensor([0.0, 1.0, 2.0, -30.0])
    uniforms = torch.linspace(0, ALMOST_ONE, 500, dtype=torch.float64)
    assert uniforms[-1] == ALMOST_ONE
    drawn = draw(logits.expand(len(uniforms), -1), uniforms)
    assert set(drawn.tolist()) <= set(possible)
    assert drawn[0] == possible[0]
    assert drawn[-1] in possible[2:]  # the last has a share of 1e-14
    assert draw(logits.flip(1), uniforms[:1]).item() == logits.shape[1] - 1 - possible[-1]


def test_size_and_shift_of_the_logits_do_not_matter() -> None:
    uniforms = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    logits = torch.randn(50, 600, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(draw(logits, uniforms), draw(logits + 1e4, uniforms))
    spike = torch.full((50, 600), -1e30)
    spike[:, 577] = 1e30
    assert draw(spike, uniforms).tolist() == [577] * 50


def test_frequencies_are_those_of_the_soft_max() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(BLOCK + 40, generator=generator)
    logits[5::2] = -math.inf
    uniforms = torch.rand(20_000, dtype=torch.float64, generator=generator)
    counts = draw(logits.expand(len(uniforms), -1), uniforms).bincount(minlength=len(logits)).double()
    shares = logits.double().softmax(0)
    assert counts[shares == 0].sum() == 0
    assert chance(counts, shares) > 0.01
    assert chance(counts, shares.roll(1)) < 1e-6  # the test can fail


@pytest.mark.parametrize("blocked", [False, True])
def test_autocast_does_not_round_what_is_told_of_a_draw(blocked: bool) -> None:
    logits = torch.randn(3, 700, generator=torch.Generator().manual_seed(0))
    if blocked:
        logits[:, 5] = -torch.inf
    uniforms = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    plain = draws.draw(logits, uniforms)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = draws.draw(logits, uniforms)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True)) and torch.isfinite(plain[2]).all()

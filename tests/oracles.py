"""Slow loops, written from the equations, that ``konomi.ops`` is held against; and the ragged batches to do it on.

Everything here is plain Python floats in lists of rows, one row a response, without padding: no masks, no tensors, no
vectors. Sums that the package does by recursion are done here by their definition.
"""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass, field

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch import Tensor

Rows = list[list[float]]

FAST = "KONOMI_FAST_TESTS" in os.environ  # for the mutants: that a test fails is enough, the smallest example is not needed
quick = settings(
    max_examples=12 if FAST else 30,
    phases=[Phase.generate] if FAST else list(Phase),
    deadline=None,
    derandomize=True,
    database=None,
)
discounts = st.floats(0.05, 0.99)  # gamma and lambda: never 0 or 1, where wrong code looks right


# -- the equations -----------------------------------------------------------------------------------------------------


def flat(rows: Rows) -> list[float]:
    return [x for row in rows for x in row]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def variance(values: list[float], unbiased: bool = True) -> float:
    if len(values) == 1:
        return 0.0
    centre = mean(values)
    return math.fsum((x - centre) ** 2 for x in values) / (len(values) - (1 if unbiased else 0))


def whiten(rows: Rows, shift_mean: bool, eps: float) -> Rows:
    centre, spread = mean(flat(rows)), math.sqrt(variance(flat(rows)) + eps)
    return [[(x - centre) / spread + (0.0 if shift_mean else centre) for x in row] for row in rows]


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = math.log(math.fsum(math.exp(x - top) for x in logits))
    return [x - top - total for x in logits]


def entropy(logits: list[float]) -> float:
    return -math.fsum(math.exp(x) * x for x in log_softmax(logits) if x > -math.inf)


def full_kl(logits: list[float], ref_logits: list[float]) -> float:
    pairs = zip(log_softmax(logits), log_softmax(ref_logits), strict=True)
    return math.fsum(math.exp(p) * (p - q) for p, q in pairs if p > -math.inf)


def kl_term(logprob: float, ref_logprob: float, kind: str) -> float:
    gap = logprob - ref_logprob
    return {"k1": gap, "abs": abs(gap), "k2": gap * gap / 2}[kind]


def shaped_rewards(kl: Rows, scores: list[float], kl_coef: float) -> Rows:
    return [
        [-kl_coef * x + (score if t == len(row) - 1 else 0.0) for t, x in enumerate(row)]
        for row, score in zip(kl, scores, strict=True)
    ]


def shaped_rewards_with_tokens(kl: Rows, scores: list[float], placed: Rows, kl_coef: float) -> Rows:
    """As above; what is placed before the last token is taken off it, one after the other."""
    rows = shaped_rewards(kl, scores, kl_coef)
    for row, given in zip(rows, placed, strict=True):
        for t in range(len(row) - 1):
            row[t] += given[t]
            row[-1] -= given[t]
    return rows


def pid_kl_coefs(
    first: float, kls: list[float], target: float, low: float, high: float, gains: tuple[float, float, float]
) -> list[float]:
    """The textbook's PID of log2(coefficient), anew from all KLs each time; an error at which the limit holds it and which pushes
    further is not among those that are added up."""
    coefs: list[float] = []
    added: list[float] = []
    errors = [-1.0, *(min(max((kl - target) / target, -1.0), 1.0) for kl in kls)]
    for before, error in itertools.pairwise(errors):
        u = gains[0] * error + gains[1] * math.fsum([*added, error]) + gains[2] * (error - before)
        coefs.append(first * 2 ** sorted((low, u, high))[1])
        if not ((u > high and error > 0) or (u < low and error < 0)):
            added.append(error)
    return coefs


def gae(rewards: Rows, values: Rows, gamma: float, lam: float) -> tuple[Rows, Rows]:
    advantages = []
    for reward, value in zip(rewards, values, strict=True):
        value_after = [*value[1:], 0.0]
        delta = [reward[t] + gamma * value_after[t] - value[t] for t in range(len(reward))]
        row = [math.fsum((gamma * lam) ** (s - t) * delta[s] for s in range(t, len(delta))) for t in range(len(delta))]
        advantages.append(row)
    returns = [[a + v for a, v in zip(x, y, strict=True)] for x, y in zip(advantages, values, strict=True)]
    return advantages, returns


def importance_weights(old: Rows, drawn: Rows, cap: float, level: str) -> Rows:
    """Of probabilities, not of their logarithms."""
    ratios = [[math.exp(p) / math.exp(q) for p, q in zip(*rows, strict=True)] for rows in zip(old, drawn, strict=True)]
    if level == "token":
        return [[min(ratio, cap) for ratio in row] for row in ratios]
    wholes = [math.prod(row) for row in ratios]
    return [[whole if whole <= cap else 0.0] * len(row) for whole, row in zip(wholes, ratios, strict=True)]


def policy_loss(
    new: Rows, old: Rows, advantages: Rows, clip: float, weights: Rows | None = None
) -> tuple[float, dict[str, float]]:
    terms, sums = [], {"clipped": 0.0, "approx_kl": 0.0, "policy_kl": 0.0, "ratio": 0.0}
    factors = [1.0] * len(flat(new)) if weights is None else flat(weights)
    for p, q, a, w in zip(flat(new), flat(old), flat(advantages), factors, strict=True):
        ratio = math.exp(p) / math.exp(q)
        near = min(max(ratio, 1 - clip), 1 + clip)
        terms.append(-w * min(a * ratio, a * near))
        sums["clipped"] += a * near < a * ratio
        sums["approx_kl"] += (p - q) ** 2 / 2
        sums["policy_kl"] += q - p
        sums["ratio"] += ratio
    return mean(terms), sums


def value_loss(new: Rows, old: Rows, returns: Rows, clip: float) -> tuple[float, dict[str, float]]:
    terms, sums = [], {"clipped": 0.0, "error": 0.0, "prediction": 0.0}
    for v, before, target in zip(flat(new), flat(old), flat(returns), strict=True):
        near = min(max(v, before - clip), before + clip)
        terms.append(max((v - target) ** 2, (near - target) ** 2) / 2)
        sums["clipped"] += (near - target) ** 2 > (v - target) ** 2
        sums["error"] += (v - target) ** 2
        sums["prediction"] += v
    return mean(terms), sums


# -- ragged batches ----------------------------------------------------------------------------------------------------


@dataclass
class Ragged:
    """A float64 batch of responses of unequal length; ``normal`` draws another tensor for it, with NaN where masked."""

    mask: Tensor
    seed: int
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def normal(self, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        x = torch.randn(self.mask.shape, generator=self.generator, dtype=torch.float64) * scale + shift
        return torch.where(self.mask, x, torch.nan)

    def rows(self, x: Tensor) -> Rows:
        return [row[valid].tolist() for row, valid in zip(x, self.mask, strict=True)]

    def pad(self, rows: Rows) -> Tensor:
        """The tensor that has ``rows`` at the valid positions and 0 elsewhere."""
        x = torch.zeros(self.mask.shape, dtype=torch.float64)
        x[self.mask] = torch.tensor(flat(rows), dtype=torch.float64)
        return x


@st.composite
def ragged(draw: st.DrawFn, holes: bool = False) -> Ragged:
    """Right-padded batches with at least one token a row; with ``holes`` masks of any pattern."""
    seed = draw(st.integers(0, 2**31))
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))
    width = max(lengths) + draw(st.integers(0, 2))
    mask = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    if holes:
        order = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)).argsort(1)
        mask = mask.gather(1, order)
    return Ragged(mask, seed)


def close(actual: Tensor, expected: Tensor | float, tolerance: float = 1e-9) -> None:
    """Fail unless both are equal within ``tolerance``, absolute and relative, in shape too; NaN equals nothing."""
    actual, expected = actual.detach(), torch.as_tensor(expected, dtype=actual.dtype).detach()
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert torch.allclose(actual, expected, rtol=tolerance, atol=tolerance), f"{actual}, expected {expected}"


def group_relative(scores: list[float], group: int, scale: str) -> list[float]:
    out = []
    for i, score in enumerate(scores):
        first = i - i % group
        own = scores[first : first + group]
        spread = {"group": own, "batch": scores}.get(scale)
        out.append((score - mean(own)) / (1.0 if spread is None else math.sqrt(variance(spread)) + 1e-4))
    return out


def best_of_n(scores: list[float], group: int, backward: float) -> list[float]:
    """Of the responses of a prompt: the best, counted n times, and logarithms of ranks; each less its mean over the prompt."""
    out = []
    for first in range(0, len(scores), group):
        own = scores[first : first + group]
        best = [group * (score == max(own)) / own.count(max(own)) for score in own]
        ranks = [(group - 1) * math.log(sum(other <= score for other in own) / group) for score in own]
        out += [(1 - backward) * (b - mean(best)) + backward * (q - mean(ranks)) for b, q in zip(best, ranks, strict=True)]
    return out


def kl_loss(new: Rows, reference: Rows, weights: Rows) -> float:
    """k3, of probabilities."""
    terms = zip(flat(new), flat(reference), flat(weights), strict=True)
    return math.fsum(w * (math.exp(q) / math.exp(p) - 1 + p - q) for p, q, w in terms)


def sequence_loss(new: Rows, old: Rows, advantages: list[float], clip: float) -> float:
    """The sum over responses of the clipped loss of their ratios."""
    terms = []
    for p, q, a in zip(new, old, advantages, strict=True):
        ratio = math.prod(math.exp(x) for x in p) / math.prod(math.exp(x) for x in q)
        terms.append(-min(a * ratio, a * min(max(ratio, 1 - clip), 1 + clip)))
    return math.fsum(terms)


def leave_one_out(scores: list[float], group: int) -> list[float]:
    """Each score less the mean of the others of its group, one at a time."""
    out = []
    for i, score in enumerate(scores):
        first = i - i % group
        others = [scores[j] for j in range(first, first + group) if j != i]
        out.append(score - sum(others) / len(others))
    return out

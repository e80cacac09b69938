"""Losses of reward models: golden relations, a slow oracle, gradients."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from konomi.ops import conservative_scores, label_loss, preference_loss, score_loss
from oracles import quick


def pairs(better: list[int], worse: list[int], label: float = 1.0, margin: float = 0.0) -> tuple[Tensor, ...]:
    count = len(better)
    return (
        torch.tensor(better), torch.tensor(worse), torch.full((count,), label, dtype=torch.float64),
        torch.full((count,), margin, dtype=torch.float64), torch.full((count,), 1 / count, dtype=torch.float64),
    )  # fmt: skip


@pytest.mark.parametrize("k", [2, 4, 9])
def test_equal_scores_give_log_2_whatever_the_number_of_pairs(k: int) -> None:
    better, worse = zip(*combinations(range(k), 2), strict=True)
    assert len(better) == k * (k - 1) // 2
    loss, sums = preference_loss(torch.full((k,), 3.0, dtype=torch.float64), *pairs(list(better), list(worse)))
    assert float(loss) == pytest.approx(math.log(2), abs=1e-12)
    assert float(sums["right"]) == pytest.approx(0.5) and float(sums["decided"]) == pytest.approx(1.0)


def test_a_soft_label_of_one_half_gives_no_gradient_at_equal_scores() -> None:
    scores = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss, sums = preference_loss(scores, *pairs([0], [1], label=0.5))
    loss.backward()
    assert scores.grad is not None and scores.grad.tolist() == [0.0, 0.0]
    assert float(sums["decided"]) == 0.0


def test_the_gradient_is_what_the_model_is_wrong_by() -> None:
    scores = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    preference_loss(scores, *pairs([0], [1], label=0.75))[0].backward()
    wrong = 1 / (1 + math.exp(-1.0)) - 0.75
    assert scores.grad is not None and scores.grad.tolist() == pytest.approx([wrong, -wrong])


@quick
@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=5), st.floats(0, 1), st.floats(0, 2)
)  # fmt: skip
def test_against_the_equation(values: list[float], label: float, margin: float) -> None:
    better, worse = zip(*combinations(range(len(values)), 2), strict=True)
    weights = [0.5 + i for i in range(len(better))]
    expected = 0.0
    for b, w, weight in zip(better, worse, weights, strict=True):
        p = 1 / (1 + math.exp(-(values[b] - values[w] - margin)))
        expected -= weight * (label * math.log(p) + (1 - label) * math.log(1 - p))
    made = pairs(list(better), list(worse), label, margin)[:4]
    loss, _ = preference_loss(torch.tensor(values, dtype=torch.float64), *made, torch.tensor(weights, dtype=torch.float64))
    assert float(loss) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_what_counts_as_right() -> None:
    scores = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    for better, worse, label, right in ((0, 1, 1.0, 1.0), (1, 0, 1.0, 0.0), (1, 2, 1.0, 0.5), (1, 0, 0.2, 1.0)):
        assert float(preference_loss(scores, *pairs([better], [worse], label))[1]["right"]) == right


def test_score_loss_is_half_the_squared_error() -> None:
    scores = torch.tensor([1.0, 4.0], requires_grad=True)
    loss = score_loss(scores, torch.tensor([2.0, 1.0]))
    loss.backward()
    assert float(loss.detach()) == 0.5 * (1 + 9)
    assert scores.grad is not None and scores.grad.tolist() == [-1.0, 3.0]


def test_label_loss_is_cross_entropy() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    expected = -(2.0 - math.log(math.exp(2.0) + 1)) - (0.0 - math.log(1 + math.e))
    assert float(label_loss(logits, torch.tensor([0, 0]))) == pytest.approx(expected)


@quick
@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=2, max_size=5), st.floats(0, 2))
def test_what_an_ensemble_disagrees_about_is_worth_less(rows: list[list[float]], pessimism: float) -> None:
    scores, spread = conservative_scores(torch.tensor(rows, dtype=torch.float64), pessimism)
    for column, score, deviation in zip(zip(*rows, strict=True), scores.tolist(), spread.tolist(), strict=True):
        mean = sum(column) / len(column)
        expected = math.sqrt(sum((each - mean) ** 2 for each in column) / (len(column) - 1))
        assert deviation == pytest.approx(expected, abs=1e-7)
        assert score == pytest.approx(mean - pessimism * expected, abs=1e-6)

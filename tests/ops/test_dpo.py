"""Losses of direct preference optimisation: the numbers of TRL 1.16.0, a slow oracle, relations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from konomi.ops import dpo_loss, ipo_loss, log_ratios, preference_loss, smooth_labels
from oracles import quick

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "trl_dpo.json").read_text("utf-8"))
assert len(GOLDEN["cases"]) == 9


def wide(*values: Any) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


@pytest.mark.parametrize(
    "case", GOLDEN["cases"], ids=lambda case: f"{case['loss_type']}-{case['beta']}-{case['label_smoothing']}"
)
def test_loss_and_gradients_are_those_of_trl(case: dict[str, Any]) -> None:
    count = len(case["chosen"])
    logprobs, reference = wide(case["chosen"] + case["rejected"], case["ref_chosen"] + case["ref_rejected"])
    lengths = torch.tensor(case["chosen_tokens"] + case["rejected_tokens"]) if case["per_token"] else None
    better, weights = torch.arange(count), torch.full((count,), 1 / count, dtype=torch.float64)
    labels = smooth_labels(torch.ones(count, dtype=torch.float64), case["label_smoothing"])
    ratios = log_ratios(logprobs.requires_grad_(), reference.requires_grad_(), lengths)
    if case["loss_type"] == "ipo":
        loss, _ = ipo_loss(ratios, better, better + count, labels, weights, beta=case["beta"])
    else:
        loss, _ = dpo_loss(ratios, better, better + count, labels, 0 * weights, weights, beta=case["beta"])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(case["loss"], rel=1e-9)
    slopes = logprobs.grad
    assert slopes is not None and slopes.tolist() == pytest.approx(
        case["grad_chosen"] + case["grad_rejected"], rel=1e-9, abs=1e-12
    )
    assert reference.grad is None  # frozen; TRL's, where one is asked for, is the negative of the policy's
    assert (-slopes).tolist() == pytest.approx(case["grad_ref_chosen"] + case["grad_ref_rejected"], rel=1e-9, abs=1e-12)


@quick
@given(
    st.lists(st.floats(-8, 8), min_size=4, max_size=4), st.floats(0.05, 3), st.floats(0, 1), st.floats(0, 0.49), st.floats(0, 2)
)  # fmt: skip
def test_against_the_equations(values: list[float], beta: float, label: float, smoothing: float, margin: float) -> None:
    (policy_a, policy_b), (reference_a, reference_b) = values[:2], values[2:]
    gap = (policy_a - reference_a) - (policy_b - reference_b)
    target = label * (1 - smoothing) + (1 - label) * smoothing
    z = beta * gap - margin
    sigmoid = -target * math.log(1 / (1 + math.exp(-z))) - (1 - target) * math.log(1 / (1 + math.exp(z)))
    # the mean of eq. 17 over votes, and what it is above its least
    votes = target * (gap - 1 / (2 * beta)) ** 2 + (1 - target) * (gap + 1 / (2 * beta)) ** 2
    least = (1 - (2 * target - 1) ** 2) / (2 * beta) ** 2
    policy, reference, weight, labels, margins = wide(values[:2], values[2:], [0.5], [label], [margin])
    ratios, one, other = log_ratios(policy, reference), torch.tensor([0]), torch.tensor([1])
    smooth = smooth_labels(labels, smoothing)
    assert float(smooth) == pytest.approx(target, abs=1e-12)
    found, _ = dpo_loss(ratios, one, other, smooth, margins, weight, beta=beta)
    assert float(found) == pytest.approx(0.5 * sigmoid, rel=1e-9, abs=1e-12)
    found, _ = ipo_loss(ratios, one, other, smooth, weight, beta=beta)
    assert float(found) == pytest.approx(0.5 * (votes - least), rel=1e-7, abs=1e-7)


def test_votes_as_a_share_or_one_by_one_have_the_same_gradient() -> None:
    one, other = torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0])
    thirds, whole = wide([1 / 3] * 3, [1.0])
    for loss in ("sigmoid", "ipo"):
        slopes = []
        for better, worse, labels, weights in ((one, other, thirds * 3, thirds), (one[:1], other[:1], whole * 2 / 3, whole)):
            ratios = torch.tensor([1.0, -0.5], dtype=torch.float64, requires_grad=True)
            if loss == "ipo":
                ipo_loss(ratios, better, worse, labels, weights, beta=0.3)[0].backward()
            else:
                dpo_loss(ratios, better, worse, labels, 0 * labels, weights, beta=0.3)[0].backward()
            assert ratios.grad is not None
            slopes.append(ratios.grad.tolist())
        assert slopes[0] == pytest.approx(slopes[1], abs=1e-12)


def test_ipo_is_at_rest_at_its_gap_and_counts_who_is_ahead() -> None:
    one, other, (weight, certain) = torch.tensor([0]), torch.tensor([1]), wide([1.0], [1.0])
    ratios = torch.tensor([3.0, 1.0], dtype=torch.float64, requires_grad=True)
    loss, sums = ipo_loss(ratios, one, other, certain, weight, beta=0.25)
    loss.backward()
    assert float(loss.detach()) == 0.0 and ratios.grad is not None and ratios.grad.tolist() == [0.0, 0.0]
    assert float(sums["right"]) == float(sums["decided"]) == 1.0
    assert float(ipo_loss(ratios.detach(), other, one, certain, weight, beta=0.25)[1]["right"]) == 0.0


def test_it_is_a_reward_model_whose_score_is_the_log_ratio() -> None:
    ratios, labels, margins, weights = wide([0.4, -1.2, 2.0], [1.0, 0.3], [0.5, 0.0], [0.25, 0.75])
    better, worse = torch.tensor([0, 2]), torch.tensor([1, 0])
    loss, sums = dpo_loss(ratios, better, worse, labels, margins, weights, beta=0.2)
    expected, counted = preference_loss(0.2 * ratios, better, worse, labels, margins, weights)
    assert torch.equal(loss, expected) and sums == counted


def test_half_precision_is_computed_in_float32() -> None:
    half = torch.tensor([-500.0, -400.0], dtype=torch.bfloat16)
    assert log_ratios(half, half + 4).dtype == torch.float32
    one, other, unit = torch.tensor([0]), torch.tensor([1]), torch.ones(1)
    ratios = torch.tensor([0.7, -1.9], dtype=torch.bfloat16)
    kinds = ratios, ratios.float()
    assert torch.equal(*(dpo_loss(each, one, other, unit, 0 * unit, unit, beta=0.3)[0] for each in kinds))
    assert torch.equal(*(ipo_loss(each, one, other, unit, unit, beta=0.3)[0] for each in kinds))

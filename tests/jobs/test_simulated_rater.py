"""The stand-in's mathematics: closed forms against draws, and the relations that have to hold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from konomi.errors import DataError
from konomi.jobs.judge import gumbel, noise_scale, pairs_alike, ranks, rightly_ordered, score_gaps, self_agreement

TASKS = [[0.3, -1.2, 2.5, 0.9], [4.0, 3.8, 3.7], [-2.0, 0.0], [1.0, 1.5, 1.5, -3.0]]
"""One of their 16 pairs is a tie."""
DRAWS = 4000


def drawn(scale: float, rater: str) -> list[list[tuple[int, ...]]]:
    """Many rankings of all tasks by one rater."""
    return [
        [
            ranks([score + scale * gumbel(0, rater, draw, number, place) for place, score in enumerate(scores)])
            for number, scores in enumerate(TASKS)
        ]
        for draw in range(DRAWS)
    ]


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_closed_forms_are_what_is_drawn(scale: float) -> None:
    one, other = drawn(scale, "one"), drawn(scale, "other")
    gaps = score_gaps(TASKS)
    alike = [sum(pairs_alike(a, b)[0] for a, b in zip(x, y, strict=True)) for x, y in zip(one, other, strict=True)]
    error = np.std(alike) / len(gaps) / math.sqrt(DRAWS)
    assert np.mean(alike) / len(gaps) == pytest.approx(self_agreement(gaps, scale), abs=4 * error)
    truth = [ranks(scores) for scores in TASKS]
    right = [sum(pairs_alike(a, b)[0] for a, b in zip(x, truth, strict=True)) for x in one]
    # where the truth is a tie, a ranking with noise never says so: it counts half there
    expected = rightly_ordered(gaps, scale) - 0.5 * float((gaps == 0).mean())
    assert np.mean(right) / len(gaps) == pytest.approx(expected, abs=4 * np.std(right) / len(gaps) / math.sqrt(DRAWS))


def test_one_pair_by_hand() -> None:
    gaps = np.array([math.log(4.0)])  # sigmoid(log 4) = 4/5
    assert rightly_ordered(gaps, 1.0) == pytest.approx(0.8)
    assert self_agreement(gaps, 1.0) == pytest.approx(0.8**2 + 0.2**2)
    assert rightly_ordered(2 * gaps, 2.0) == pytest.approx(0.8)  # only the ratio counts
    assert (rightly_ordered(gaps, 0.0), self_agreement(gaps, 0.0)) == (1.0, 1.0)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("agreement", [0.51, 0.63, 0.75, 0.95])
def test_the_scale_gives_the_agreement_in_any_unit(agreement: float, unit: float) -> None:
    gaps = unit * score_gaps(TASKS)
    assert self_agreement(gaps, noise_scale(gaps, agreement)) == pytest.approx(agreement, abs=1e-9)


def test_more_agreement_is_less_noise() -> None:
    gaps = score_gaps(TASKS)
    scales = [noise_scale(gaps, agreement) for agreement in (0.55, 0.7, 0.8, 0.9, 1.0)]
    assert scales == sorted(scales, reverse=True)
    assert scales[-1] == 0.0


def test_an_agreement_that_ties_forbid_is_refused_with_the_most_that_can_be() -> None:
    gaps = score_gaps([[1.0, 1.0, 1.0], [1.0, 2.0]])
    with pytest.raises(DataError, match=r"judge.agreement = 0.75 cannot be reached: 3 of the 4 pairs .* 0.62 of all pairs"):
        noise_scale(gaps, 0.75)
    assert noise_scale(gaps, 1.0) == 0.0  # without noise a tie is a tie, always
    assert self_agreement(gaps, noise_scale(gaps, 0.6)) == pytest.approx(0.6)


def test_noise_is_gumbel() -> None:
    numbers = np.array([gumbel(3, "noise", i) for i in range(20_000)])
    assert numbers.mean() == pytest.approx(np.euler_gamma, abs=0.04)
    assert numbers.var() == pytest.approx(math.pi**2 / 6, abs=0.08)
    assert gumbel(3, "noise", 5) == numbers[5]
    assert gumbel(4, "noise", 5) != numbers[5]


def test_pairs_alike_knows_ties() -> None:
    assert pairs_alike((1, 2), (2, 1)) == (0, 1)
    assert pairs_alike((1, 1), (2, 2)) == (1, 1)
    assert pairs_alike((1, 1), (1, 2)) == (0, 1)
    assert pairs_alike((1, 2, 3, 4), (1, 2, 4, 3)) == (5, 6)

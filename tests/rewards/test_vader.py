"""English sentiment by VADER."""

from __future__ import annotations

import math

import pytest

from konomi.config import ClassifierReward
from konomi.errors import ConfigError
from konomi.rewards import build_reward


def scores(texts: list[str], **settings: str) -> list[float]:
    reward = build_reward(ClassifierReward(name="embedded:vader", **settings))  # type: ignore[arg-type]
    return list(reward(texts, prompts=[""] * len(texts), responses=texts, columns={}))  # type: ignore[arg-type]


def test_the_sum_of_the_valences_is_the_log_odds() -> None:
    # of the words that VADER has in its lexicon: great 3.1, horrible -2.5, not in front of a word times -0.74
    for text, valence in (("great", 3.1), ("horrible", -2.5), ("not great", -0.74 * 3.1), ("the table", 0.0)):
        assert scores([text]) == pytest.approx([2 * math.asinh(valence / math.sqrt(15))], abs=1e-3), text
        assert scores([text], use="log-odds") == scores([text])
        assert scores([text], label="negative") == pytest.approx([-scores([text])[0]])
    assert scores(["great"], use="probability") == pytest.approx([(1 + 3.1 / math.sqrt(3.1**2 + 15)) / 2], abs=1e-4)


def test_an_empty_text_and_a_very_good_one_have_finite_scores() -> None:
    low, empty, high = scores(["horrible " * 500, "", "great " * 500])
    assert -16 <= low < empty == 0.0 < high <= 16


def test_other_labels_and_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="neutral"):
        scores(["x"], label="neutral")
    with pytest.raises(ConfigError, match="embedded:vader"):
        build_reward(ClassifierReward(name="embedded:nothing"))

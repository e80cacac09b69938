"""Reward = what VADER, a lexicon with rules, says of the sentiment of an English text.

Hutto and Gilbert 2014: each word of the lexicon has a valence, which negations, adverbs of degree, capitals and exclamation
marks change; the sum s becomes ``compound`` = s / sqrt(s^2 + 15), from -1 to 1. Here it is read as a probability,
p = (1 + compound) / 2. About 0.1 ms a short text.
"""

from __future__ import annotations

import functools
from typing import Any

from konomi.config import ClassifierReward
from konomi.errors import ModelError
from konomi.rewards.asari import SentimentReward


class VaderReward(SentimentReward):
    """English sentiment by vaderSentiment 3.3.2."""

    def __init__(self, config: ClassifierReward) -> None:
        super().__init__(config)
        self._analyzer = _analyzer()

    def positive(self, text: str) -> float:
        """Return (1 + compound) / 2."""
        return float((1.0 + self._analyzer.polarity_scores(text)["compound"]) / 2)


@functools.cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ModelError(f"embedded:vader: {error}; install it with: pip install 'konomi[embedded]'") from error
    return SentimentIntensityAnalyzer()

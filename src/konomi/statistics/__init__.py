"""How far a reward model can be trusted: figures that JSON can hold, each share with its interval.

Nothing here knows a model: scores or probabilities go in, figures come out. What cannot be computed (a correlation of
equal numbers, a share of nothing) is None, never NaN. How to read the figures is in docs/reward-models.md.
"""

from __future__ import annotations

from konomi.statistics.classification import evaluate_labels
from konomi.statistics.preference_accuracy import evaluate_preferences
from konomi.statistics.regression import evaluate_scores, evaluate_truth

__all__ = ["evaluate_labels", "evaluate_preferences", "evaluate_scores", "evaluate_truth"]

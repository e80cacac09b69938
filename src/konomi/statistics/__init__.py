"""Statistics of preferences and reward models: figures that JSON can hold, each share with its interval.

Scores or probabilities go in, never a model. What cannot be computed (a correlation of equal numbers, a share of nothing) is
None, never NaN. docs/reward-models.md explains the figures.
"""

from __future__ import annotations

from konomi.statistics.classification import evaluate_labels
from konomi.statistics.preference_accuracy import evaluate_preferences
from konomi.statistics.regression import evaluate_scores, evaluate_truth

__all__ = ["evaluate_labels", "evaluate_preferences", "evaluate_scores", "evaluate_truth"]

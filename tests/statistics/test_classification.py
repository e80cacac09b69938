"""A classifier against labels: slow loops from the equations, scikit-learn, and rows that are drawn again."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from konomi.statistics import evaluate_labels

NAMES = ["very bad", "bad", "good", "very good", "never"]


def slow_class(truth: np.ndarray, classes: np.ndarray, label: int) -> dict[str, float]:
    """Precision TP / (TP + FP), recall TP / (TP + FN) and their harmonic mean; 0 of nothing."""
    right = sum(t == c == label for t, c in zip(truth, classes, strict=True))
    count, predicted = int((truth == label).sum()), int((classes == label).sum())
    precision, recall = right / predicted if predicted else 0.0, right / count if count else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"count": count, "predicted": predicted, "precision": precision, "recall": recall, "f1": f1}


def test_labels_against_slow_loops_and_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice(4, p=[0.3, 0.5, 0.2, 0.0], size=300)
    p_NC = rng.dirichlet([0.7] * 5, size=300)
    p_NC[np.arange(300), truth] += rng.exponential(0.5, size=300)
    p_NC[:, 4] = 0
    p_NC /= p_NC.sum(axis=1, keepdims=True)
    found = evaluate_labels(truth.tolist(), p_NC, NAMES)
    predicted = p_NC.argmax(axis=1)
    right = sum(t == s for t, s in zip(truth, predicted, strict=True)) / 300
    assert found["accuracy"]["value"] == pytest.approx(right)
    classes = [slow_class(truth, predicted, label) for label in range(5)]
    assert [row.pop("label") for row in found["classes"]] == NAMES
    for row, expected in zip(found["classes"], classes, strict=True):
        assert row == pytest.approx(expected)
    known = [each["f1"] for each in classes if each["count"] or each["predicted"]]
    assert len(known) == 4  # what is neither there nor predicted has no F1
    assert found["macro_f1"]["value"] == pytest.approx(sum(known) / 4)
    assert found["confusion"] == [[sum((truth == t) & (predicted == s)) for s in range(5)] for t in range(5)]
    assert found["calibration"]["log_loss"] == pytest.approx(metrics.log_loss(truth, p_NC, labels=list(range(5))))
    assert found["calibration"]["brier"] == pytest.approx(((p_NC - np.eye(5)[truth]) ** 2).sum(axis=1).mean())
    assert found["majority"]["label"] == "bad"
    assert found["majority"]["accuracy"] == pytest.approx((truth == 1).mean())
    ahead = right - (truth == 1).mean()
    assert found["majority"]["difference"]["value"] == pytest.approx(ahead)
    assert found["majority"]["difference"]["low"] < ahead < found["majority"]["difference"]["high"]
    assert found["majority"]["beaten"] and found["texts"] == 300 and found["labels"] == NAMES


def test_macro_f1_by_hand() -> None:
    """True 0 0 0 1 1 2, predicted 0 0 1 1 0 0: F1 4/7, 1/2 and 0; the fourth class does not occur."""
    found = evaluate_labels([0, 0, 0, 1, 1, 2], np.eye(4)[[0, 0, 1, 1, 0, 0]], ["a", "b", "c", "d"])
    assert found["macro_f1"]["value"] == pytest.approx((4 / 7 + 1 / 2 + 0) / 3)
    assert [row["f1"] for row in found["classes"]] == pytest.approx([4 / 7, 1 / 2, 0, 0])


def test_intervals_of_labels_are_those_of_rows_drawn_again() -> None:
    rng = np.random.default_rng(1)
    truth, word = rng.integers(3, size=200), rng.integers(3, size=200)
    word[:120] = truth[:120]
    found = evaluate_labels(truth.tolist(), np.eye(3)[word], ["a", "b", "c"])
    rows = rng.integers(200, size=(2000, 200))
    f1 = np.quantile([metrics.f1_score(truth[r], word[r], average="macro") for r in rows[:300]], [0.025, 0.975])
    right = np.quantile((truth == word)[rows].mean(axis=1), [0.025, 0.975])
    assert [found["accuracy"][key] for key in ("low", "high")] == pytest.approx(right.tolist(), abs=0.01)
    assert [found["macro_f1"][key] for key in ("low", "high")] == pytest.approx(f1.tolist(), abs=0.02)


def test_a_classifier_that_always_says_the_same_is_no_better_than_the_most_frequent_class() -> None:
    found = evaluate_labels([0, 0, 1, 0], [[0.6, 0.4]] * 4, ["a", "b"])
    assert found["majority"]["difference"]["value"] == 0.0 and not found["majority"]["beaten"]
    assert found["calibration"]["ece"] == pytest.approx(0.15)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.floats(1e-9, 1), min_size=3, max_size=3)), max_size=6))
def test_whatever_is_classified_json_comes_out(rows: list[tuple[int, list[float]]]) -> None:
    predicted = [[p / sum(row) for p in row] for _, row in rows]
    found = evaluate_labels([t for t, _ in rows], predicted, ["a", "b", "c"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_what_does_not_fit_together_is_told() -> None:
    for truth in ([2], [-1], [0, 1]):
        with pytest.raises(ValueError, match="labels from 0 to 1 are needed"):
            evaluate_labels(truth, [[0.5, 0.5]], ["a", "b"])
    for row in ([0.5, 0.6], [-0.5, 1.5], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="probabilities with the sum 1"):
            evaluate_labels([0], [row], ["a", "b"])

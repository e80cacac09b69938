"""A classifier against labels.

N texts, C classes. Rows are taken as independent. The bootstrap over rows draws how often each pair of true and predicted class
occurs, from a multinomial distribution: that is the same, and cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from konomi.statistics.bootstrap import Array, finite, header, interval, resample_count, without_interval

BINS = 10
_WORK = 20_000_000


def evaluate_labels(
    truth: Sequence[int], predicted_probabilities: npt.ArrayLike, labels: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Evaluate a classifier on held-out texts. The most probable class is the predicted one.

    Args:
        truth: the number of each text's class, [N].
        predicted_probabilities: [N, C], each row with the sum 1.
        labels: names of the C classes.

    Returns:
        ``accuracy`` and ``macro_f1`` (mean F1 of the classes that occur) with intervals; ``majority``: the most frequent
        class, the accuracy of always predicting it, and the model's lead; ``classes``: precision, recall, F1 and counts of
        each; ``confusion``: [C, C] counts, a row for each true class; ``calibration`` of the predicted class, with log loss
        and Brier score (of all classes, 0 to 2).

    Raises:
        ValueError: shapes do not fit, a class has no name, or probabilities are not such.
    """
    from sklearn.metrics import precision_recall_fscore_support

    size = len(labels)
    truth_N = np.asarray(truth, dtype=np.int64)
    p_NC = np.asarray(predicted_probabilities, dtype=np.float64).reshape(-1, size)
    if len(p_NC) != len(truth_N) or ((truth_N < 0) | (truth_N >= size)).any():
        raise ValueError(f"{len(truth_N)} labels from 0 to {size - 1} are needed for {len(p_NC)} rows of {size} probabilities")
    if not (np.isfinite(p_NC).all() and (p_NC >= 0).all() and (np.abs(p_NC.sum(axis=1) - 1) < 1e-3).all()):
        raise ValueError("predicted_probabilities: each row has to be probabilities with the sum 1")
    predicted_N = p_NC.argmax(axis=1)
    confusion = np.bincount(truth_N * size + predicted_N, minlength=size * size).reshape(size, size)
    some = len(truth_N) > 0
    squares_N = ((p_NC - np.eye(size)[truth_N]) ** 2).sum(axis=1)
    # a probability of 0 for what came true would cost infinity
    losses_N = -np.log(np.maximum(p_NC[np.arange(len(truth_N)), truth_N], 1e-12))
    figures_C = np.zeros((3, size))
    if some:
        figures_C = np.array(precision_recall_fscore_support(truth_N, predicted_N, labels=range(size), zero_division=0)[:3])
    names = ("count", "predicted", "precision", "recall", "f1")
    columns = confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist(), *figures_C.tolist()
    return {
        **header(seed),
        "texts": len(truth_N),
        "labels": list(labels),
        **_intervals(confusion, labels, seed),
        "classes": [{"label": label, **dict(zip(names, row, strict=True))} for label, *row in zip(labels, *columns, strict=True)],
        "confusion": confusion.tolist(),
        "calibration": {
            **calibration(np.minimum(p_NC.max(axis=1, initial=0.0), 1.0), (predicted_N == truth_N).astype(np.float64), 0.0),
            "log_loss": finite(losses_N.mean()) if some else None,
            "brier": finite(squares_N.mean()) if some else None,
        },
    }


def calibration(predicted: Array, observed: Array, low: float) -> dict[str, Any]:
    """How often what was predicted with probability p came true; scikit-learn's curve takes no shares and gives no counts.

    Args:
        predicted: probabilities from ``low`` to 1, [N].
        observed: 1 where it came true, 0 where not, or a share between, [N].
        low: the smallest probability that can be predicted.

    Returns:
        ``bins``: those of ten of equal width that are not empty: mean ``predicted`` and ``observed``, ``count``.
        ``ece``: mean distance of the two, weighted by count (Naeini et al. 2015); None of nothing.
    """
    place = np.minimum((predicted - low) / (1 - low) * BINS, BINS - 1).astype(np.int64)
    bins = [
        {"predicted": float(predicted[place == b].mean()), "observed": float(observed[place == b].mean()), "count": int(n)}
        for b, n in enumerate(np.bincount(place, minlength=BINS))
        if n
    ]
    gaps = [each["count"] * abs(each["predicted"] - each["observed"]) for each in bins]
    return {"bins": bins, "ece": finite(sum(gaps) / len(predicted)) if len(predicted) else None}


def _macro_f1(hits: Array, true: Array, predicted: Array) -> Array:
    """Mean F1 over the classes that occur, the last axis."""
    occurs = true + predicted > 0
    f1 = np.where(occurs, 2 * hits / np.maximum(true + predicted, 1), 0.0)
    result: Array = f1.sum(axis=-1) / occurs.sum(axis=-1)
    return result


def _intervals(confusion: npt.NDArray[np.int64], labels: Sequence[str], seed: int) -> dict[str, Any]:
    rows, columns = np.nonzero(confusion)
    total = int(confusion.sum())
    if not total:
        majority: dict[str, Any] = {"label": None, "accuracy": None, "difference": without_interval(None), "beaten": False}
        return {"accuracy": without_interval(None), "macro_f1": without_interval(None), "majority": majority}
    cells = confusion[rows, columns]
    drawn = np.random.default_rng(seed).multinomial(total, cells / total, size=resample_count(len(cells), _WORK))
    same, of_row, of_column = rows == columns, np.eye(len(labels))[rows], np.eye(len(labels))[columns]
    most = int(confusion.sum(axis=1).argmax())

    def figures(cells: Array) -> tuple[Array, Array, Array]:
        hits, true, predicted = cells @ (of_row * same[:, None]), cells @ of_row, cells @ of_column
        accuracy = hits.sum(axis=-1) / total
        return accuracy, _macro_f1(hits, true, predicted), accuracy - true[..., most] / total

    values, resampled = figures(cells.astype(np.float64)), figures(drawn.astype(np.float64))
    accuracy, macro_f1 = (interval(float(values[i]), resampled[i], total, (0.0, 1.0)) for i in (0, 1))
    ahead = interval(float(values[2]), resampled[2], total)
    beaten = ahead["low"] is not None and ahead["low"] > 0
    majority = {"label": labels[most], "accuracy": float(confusion[most].sum() / total), "difference": ahead, "beaten": beaten}
    return {"accuracy": accuracy, "macro_f1": macro_f1, "majority": majority}

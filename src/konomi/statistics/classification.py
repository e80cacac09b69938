"""A classifier against labels.

N texts, C classes. Rows are taken as independent. A bootstrap over rows then draws how often each pair of true and
predicted class occurs, from a multinomial distribution: that is the same, and cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from konomi.statistics.bootstrap import LEVEL, VERSION, Array, Interval, interval, plain, resample_count
from konomi.statistics.measures import calibration

_WORK = 20_000_000


def evaluate_labels(
    truth: Sequence[int], predicted_probabilities: npt.ArrayLike, labels: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Judge a classifier on texts that it was not trained on. The most probable class counts as its word.

    Args:
        truth: the number of each text's class, [N].
        predicted_probabilities: [N, C], each row with the sum 1.
        labels: names of the C classes.
        seed: of the resampling.

    Returns:
        ``accuracy`` and ``macro_f1`` (mean F1 of the classes that occur) with intervals; ``majority``: the class that is
        most frequent here, the accuracy of always saying it, and the model's lead; ``classes``: precision, recall, F1 and
        counts of each; ``confusion``: [C, C] counts, a row for each true class; ``calibration`` of the class that was said,
        with log loss and Brier score (of all classes, 0 to 2).

    Raises:
        ValueError: shapes do not fit, a class has no name, or probabilities are not such.
    """
    size = len(labels)
    truth_N = np.asarray(truth, dtype=np.int64)
    said_NC = np.asarray(predicted_probabilities, dtype=np.float64).reshape(-1, size)
    if len(said_NC) != len(truth_N) or ((truth_N < 0) | (truth_N >= size)).any():
        raise ValueError(f"{len(truth_N)} labels from 0 to {size - 1} are needed for {len(said_NC)} rows of {size} probabilities")
    if not (np.isfinite(said_NC).all() and (said_NC >= 0).all() and (np.abs(said_NC.sum(axis=1) - 1) < 1e-3).all()):
        raise ValueError("predicted_probabilities: each row has to be probabilities with the sum 1")
    word_N = said_NC.argmax(axis=1)
    confusion = np.bincount(truth_N * size + word_N, minlength=size * size).reshape(size, size)
    right_N = word_N == truth_N
    of_truth_N = said_NC[np.arange(len(truth_N)), truth_N]
    some = len(truth_N) > 0
    found = calibration(np.minimum(said_NC.max(axis=1), 1.0) if some else np.zeros(0), right_N.astype(np.float64), 0.0)
    squares = ((said_NC - np.eye(size)[truth_N]) ** 2).sum(axis=1)
    # a probability of 0 for what came true would cost infinity
    losses = -np.log(np.maximum(of_truth_N, 1e-12))
    return {
        "version": VERSION,
        "level": LEVEL,
        "seed": seed,
        "texts": len(truth_N),
        "labels": list(labels),
        **_intervals(confusion, labels, seed),
        "classes": [{"label": name, **_of_class(confusion, c)} for c, name in enumerate(labels)],
        "confusion": confusion.tolist(),
        "calibration": {
            **found,
            "log_loss": plain(losses.mean()) if some else None,
            "brier": plain(squares.mean()) if some else None,
        },
    }


def _of_class(confusion: npt.NDArray[np.int64], c: int) -> dict[str, Any]:
    hits, count, said = int(confusion[c, c]), int(confusion[c].sum()), int(confusion[:, c].sum())
    return {
        "count": count,
        "predicted": said,
        "precision": hits / said if said else 0.0,
        "recall": hits / count if count else 0.0,
        "f1": 2 * hits / (count + said) if count + said else 0.0,
    }


def _macro_f1(hits: Array, counts: Array, said: Array) -> Array:
    """Mean F1 over the classes that are in the truth or were said; the last axis is classes."""
    there = counts + said > 0
    f1 = np.where(there, 2 * hits / np.maximum(counts + said, 1), 0.0)
    found: Array = f1.sum(axis=-1) / there.sum(axis=-1)
    return found


def _intervals(confusion: npt.NDArray[np.int64], labels: Sequence[str], seed: int) -> dict[str, Any]:
    rows, columns = np.nonzero(confusion)
    total = int(confusion.sum())
    if not total:
        nothing: Interval = {"value": None, "low": None, "high": None}
        majority = {"label": None, "accuracy": None, "difference": nothing, "beaten": False}
        return {"accuracy": nothing, "macro_f1": nothing, "majority": majority}
    cells = confusion[rows, columns]
    count = resample_count(len(cells), _WORK)
    drawn = np.random.default_rng(seed).multinomial(total, cells / total, size=count).astype(np.float64)
    same, of_row, of_column = rows == columns, np.eye(len(labels))[rows], np.eye(len(labels))[columns]
    most = int(confusion.sum(axis=1).argmax())

    def figures(cells: Array) -> tuple[Array, Array, Array]:
        hits, counts, said = cells @ (of_row * same[:, None]), cells @ of_row, cells @ of_column
        accuracy = hits.sum(axis=-1) / total
        return accuracy, _macro_f1(hits, counts, said), accuracy - counts[..., most] / total

    whole, of_drawn = figures(cells.astype(np.float64)), figures(drawn)
    accuracy, macro_f1 = (interval(float(whole[i]), of_drawn[i], total, (0.0, 1.0)) for i in (0, 1))
    ahead = interval(float(whole[2]), of_drawn[2], total)
    beaten = ahead["low"] is not None and ahead["low"] > 0
    share = float(confusion[most].sum() / total)
    return {
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        "majority": {"label": labels[most], "accuracy": share, "difference": ahead, "beaten": beaten},
    }

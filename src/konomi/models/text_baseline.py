"""The text baseline: a score of a response from its characters alone, learned from comparisons in seconds.

TF-IDF of the sequences of 1 to 3 characters (Salton and Buckley 1988), lengths of rows 1, and a linear map on it, fitted by
logistic regression on the differences of two responses: Bradley and Terry's model with a penalty. What a reward model says beyond
it, it has read; beside it in a sum, it errs differently.

Shape suffixes: M responses, P pairs of them, V sequences of characters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from konomi.data.messages import Answered, Text
from konomi.data.records import Group
from konomi.errors import DataError
from konomi.reading import check_regular, parse_json
from konomi.seeds import stream_seed
from konomi.statistics.regression import OF_FLOAT32, beyond_rounding

Array = npt.NDArray[np.float64]

FILE = "text_baseline.safetensors"
"""In the directory of a reward model that has it as a member."""
CHARACTERS = 5_000_000
"""Characters of responses that it learns from, at most; a gigabyte of memory."""
SEQUENCES = 200_000
"""Sequences of characters that it knows, at most: the most frequent."""
INVERSE_PENALTY = 10.0
"""scikit-learn's C: what a comparison's loss weighs against half the square of the weights."""
_PART = 4096


@dataclass(frozen=True)
class TextBaseline:
    """A score by characters: ``weights @ x``, x the TF-IDF of a response.

    sequences: V texts of 1 to 3 characters. idf: [V], above 0. weights: [V], in logits.
    """

    sequences: tuple[str, ...]
    idf_V: Array
    weights_V: Array

    def scores(self, responses: Sequence[str]) -> Array:
        """[M] in logits: the difference of two is the log-odds that the first is preferred."""
        parts = (responses[start : start + _PART] for start in range(0, len(responses), _PART))
        return np.concatenate([np.zeros(0), *(self.features(part) @ self.weights_V for part in parts)])

    def features(self, responses: Sequence[str]) -> Any:
        """[M, V] sparse: TF-IDF with rows of length 1, or 0 where nothing is known."""
        return _features(self._counter.transform(responses), self.idf_V)

    def save(self, directory: Path) -> None:
        """Write `FILE`: its numbers, and its sequences as JSON in the file's metadata."""
        from safetensors.numpy import save_file

        numbers = {"idf": self.idf_V, "weights": self.weights_V}
        save_file(numbers, directory / FILE, metadata={"sequences": json.dumps(self.sequences)})

    @cached_property
    def _counter(self) -> Any:
        return _counter(vocabulary={each: place for place, each in enumerate(self.sequences)})


@dataclass(frozen=True)
class Ensemble:
    """A sum of two scores, which err differently: ``network`` times the network's, ``text`` times the text baseline's."""

    text_baseline: TextBaseline
    network: float
    text: float

    def sum(self, numbers: Sequence[Tensor], texts: Sequence[Sequence[Text]]) -> list[Tensor]:
        """[K, 1] for the K texts of each group, from the network's numbers of them, [K, 1]."""
        responses = [each.response if isinstance(each, Answered) else each for group in texts for each in group]
        own = torch.from_numpy(self.text_baseline.scores(responses)).to(torch.float32)[:, None].split(list(map(len, texts)))
        return [self.network * one + self.text * other for one, other in zip(numbers, own, strict=True)]


def make_ensemble(text_baseline: TextBaseline, weight: float, network_M: Array, text_M: Array) -> Ensemble:
    """The sum of both scores, each divided by its deviation: ``weight`` on the text baseline's, the rest on the network's.

    ``network_M``, ``text_M``: both scores of some responses, of which the deviations are taken. The sum is in units of the mean
    deviation (weighted alike), so that its differences are still about log-odds.
    """
    deviations = [
        beyond_rounding(float(each.std()), float(np.abs(each).max()), OF_FLOAT32) or 1.0 for each in (network_M, text_M)
    ]
    unit = (1 - weight) * deviations[0] + weight * deviations[1]
    return Ensemble(text_baseline, (1 - weight) * unit / deviations[0], weight * unit / deviations[1])


def fit_text_baseline(groups: Iterable[Group], seed: int = 0) -> TextBaseline:
    """Learn from the comparisons of each group's responses.

    The loss is that of :func:`konomi.ops.preference.preference_loss`: each prompt weighs the same, however many comparisons it
    has; weights are such that their mean is 1. Of more than `CHARACTERS` the prompts are drawn with ``seed``.
    """
    some = _bounded([group for group in groups if group.comparisons], seed)
    sequences, idf_V, features_MV = _read([text for group in some for text in group.responses])
    return TextBaseline(sequences, idf_V, _regression(features_MV, some))


def text_points(texts: Sequence[str], dimensions: int, seed: int) -> Array:
    """[M, D]: each text as a point, its TF-IDF along the ``dimensions`` directions (or as many as there are) that hold most of it
    (latent semantic analysis, Deerwester et al. 1990). Of long texts the beginning is read."""
    from sklearn.decomposition import TruncatedSVD

    features_MV = _read([text[: max(1, CHARACTERS // len(texts))] for text in texts])[2]
    if features_MV.shape[1] == 1:  # of one sequence there are no directions
        return np.asarray(features_MV.todense())
    directions = TruncatedSVD(min(dimensions, *features_MV.shape), random_state=seed % 2**32)
    points_MD: Array = directions.fit_transform(features_MV)
    return points_MD


def read_text_baseline(directory: Path) -> TextBaseline:
    """Read what :meth:`TextBaseline.save` wrote. Raises DataError: it is not there, or damaged."""
    from safetensors import SafetensorError, safe_open

    path = directory / FILE
    try:
        check_regular(path)
        with safe_open(path, framework="numpy") as file:
            sequences = tuple(parse_json((file.metadata() or {})["sequences"]))
            idf_V, weights_V = (file.get_tensor(name).astype(np.float64) for name in ("idf", "weights"))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); train the reward model again") from None
    texts = all(isinstance(each, str) for each in sequences)
    valid = texts and 0 < len(set(sequences)) == len(sequences) and idf_V.shape == weights_V.shape == (len(sequences),)
    if not (valid and np.isfinite(idf_V).all() and np.isfinite(weights_V).all()):
        raise DataError(f"{path}: damaged: its numbers do not fit its sequences; train the reward model again")
    return TextBaseline(sequences, idf_V, weights_V)


def _counter(**settings: Any) -> Any:
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(analyzer="char", ngram_range=(1, 3), dtype=np.float64, **settings)


def _read(texts: Sequence[str]) -> tuple[tuple[str, ...], Array, Any]:
    """The sequences of characters in some texts, V of them, their idf [V], and the TF-IDF of the texts [M, V]."""
    counter = _counter(max_features=SEQUENCES)
    counts_MV = counter.fit_transform(texts)
    present_V = np.bincount(counts_MV.indices, minlength=counts_MV.shape[1])
    idf_V = np.log((1 + counts_MV.shape[0]) / (1 + present_V)) + 1
    return tuple(map(str, counter.get_feature_names_out())), idf_V, _features(counts_MV, idf_V)


def _features(counts_MV: Any, idf_V: Array) -> Any:
    from sklearn.preprocessing import normalize

    counts_MV.data *= idf_V[counts_MV.indices]
    return normalize(counts_MV, copy=False)


def _bounded(groups: Sequence[Group], seed: int) -> list[Group]:
    """The groups in their order; of more characters than `CHARACTERS` some, drawn by the hash of the prompt."""
    sizes = [sum(map(len, group.responses)) for group in groups]
    if sum(sizes) <= CHARACTERS:
        return list(groups)
    order = sorted(range(len(groups)), key=lambda place: stream_seed(seed, "text baseline", groups[place].key))
    fit = int((np.cumsum([sizes[place] for place in order]) <= CHARACTERS).sum())
    return [groups[place] for place in sorted(order[: max(1, fit)])]


def _regression(features_MV: Any, groups: Sequence[Group]) -> Array:
    """The weights [V] with the least loss."""
    starts = np.cumsum([0, *(len(group.responses) for group in groups)])
    rows = [
        (start + c.better, start + c.worse, c.label, c.margin, 1 / len(group.comparisons))
        for start, group in zip(starts[:-1].tolist(), groups, strict=True)
        for c in group.comparisons
    ]
    better_P, worse_P = np.array([row[:2] for row in rows], dtype=np.int64).T
    label_P, margin_P, weight_P = np.array([row[2:] for row in rows], dtype=np.float64).T
    weight_P *= INVERSE_PENALTY / weight_P.mean()

    def loss(weights_V: Array) -> tuple[float, Array]:
        scores_M = features_MV @ weights_V
        gap_P = scores_M[better_P] - scores_M[worse_P] - margin_P
        losses_P = np.logaddexp(0, -gap_P) + (1 - label_P) * gap_P
        slope_P = weight_P * (expit(gap_P) - label_P)
        slope_M = np.bincount(better_P, slope_P, len(scores_M)) - np.bincount(worse_P, slope_P, len(scores_M))
        return float(weight_P @ losses_P + weights_V @ weights_V / 2), features_MV.T @ slope_M + weights_V

    start_V = np.zeros(features_MV.shape[1])
    solution = minimize(loss, start_V, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-9, "gtol": 1e-5})
    weights_V: Array = solution.x
    return weights_V

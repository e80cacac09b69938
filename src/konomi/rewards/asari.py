"""Reward = what asari, a small classifier of Japanese sentiment, says of one label.

asari 0.2.0 (MIT) splits a text into words and takes TF-IDF over words and pairs of neighbours; five linear models with a
sigmoid behind each give probabilities, and their mean counts. An ONNX graph holds all that. A runtime that executes it
computes all 316,537 features of each text; some fifty of them are not 0, so that here the graph is read as data and only
those are computed, in float64. What is left of the time, 2 ms a short text on one core, is the splitting.

Shapes: N features of a text that are not 0, M linear models, V features in all.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from konomi.config import ClassifierReward
from konomi.errors import ModelError
from konomi.rewards.base import find_label

# the graph's own probabilities are float32, which near 1 go in steps of 6e-8: further out it was never meant to tell apart
_MAX_LOG_ODDS = 16.0
_NO_ASARI = "embedded:asari: {}; install it with: pip install 'konomi[embedded]'"
_SHA256 = "7b3f5f74a9b214faacfc73a89ec4f9b0d2d50cb27e22ff4f21c501184463efc1"


class SentimentReward(ABC):
    """A small classifier of sentiment that is a package of its own. A text's score does not depend on what else is scored with
    it, to the bit.

    ``label``: negative (0) or positive (1). ``use``: logit and log-odds are the same here, log p/(1-p) within +-16;
    probability is p. Nothing is cut and nothing goes in batches, so ``max_length`` and ``batch_size`` are not used.
    """

    labels: Sequence[str] = ("negative", "positive")

    def __init__(self, config: ClassifierReward) -> None:
        self.name = config.name
        self.reads: set[str] = set()
        self._config = config
        self.label = find_label(config.label, self.labels, config.name)

    @abstractmethod
    def positive(self, text: str) -> float:
        """Return the probability that a text is positive."""

    def __call__(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str],
        responses: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float]:
        """Return the score of each text (or response, as configured)."""
        chosen = responses if self._config.text == "response" else texts
        scores = {text: self._score(text) for text in dict.fromkeys(chosen)}
        return [scores[text] for text in chosen]

    def _score(self, text: str) -> float:
        positive = self.positive(text)
        probability = positive if self.label == 1 else 1.0 - positive
        return probability if self._config.use == "probability" else log_odds(probability)


class AsariReward(SentimentReward):
    """Japanese sentiment by asari 0.2.0."""

    def __init__(self, config: ClassifierReward) -> None:
        self._model = _asari()
        self.labels = self._model.labels
        super().__init__(config)
        self._tokenizer = _janome()

    def positive(self, text: str) -> float:
        """Return the probability that a text is positive."""
        return self._model.positive(" ".join(self._tokenizer.tokenize(text)))


def log_odds(probability: float) -> float:
    """Return log p/(1-p), within +-16."""
    if not 0.0 < probability < 1.0:
        return _MAX_LOG_ODDS if probability > 0.5 else -_MAX_LOG_ODDS
    return max(-_MAX_LOG_ODDS, min(_MAX_LOG_ODDS, math.log(probability) - math.log1p(-probability)))


@dataclass(frozen=True)
class AsariModel:
    """The numbers of asari's graph."""

    labels: list[str]
    """negative, positive."""
    features: dict[str, int]
    """A word, or two neighbours with a space between them -> its place."""
    idf: NDArray[np.float32]
    """[V]."""
    weights: NDArray[np.float32]
    """[V, M], for the label positive."""
    intercepts: NDArray[np.float32]
    """[M]."""
    slopes: NDArray[np.float32]
    """[M]: the sigmoid of model m is 1/(1 + exp(slope z + offset))."""
    offsets: NDArray[np.float32]
    """[M]."""

    def positive(self, words: str) -> float:
        """Return the probability of the label positive for a text that is split into words, with spaces between them."""
        # the graph lower-cases too, but in its locale, where only ASCII letters have a lower case
        counts = Counter(self._found([word for word in words.lower().split(" ") if word]))
        places_N = np.fromiter(counts.keys(), np.int64, len(counts))
        tfidf_N = np.fromiter(counts.values(), np.float64, len(counts)) * self.idf[places_N]
        norm = math.sqrt(tfidf_N @ tfidf_N) or 1.0  # no known word: the intercepts alone
        z_M = (tfidf_N / norm) @ self.weights[places_N].astype(np.float64) + self.intercepts
        return float((1.0 / (1.0 + np.exp(self.slopes * z_M + self.offsets))).mean())

    def _found(self, words: list[str]) -> Iterator[int]:
        for gram in (*words, *map(" ".join, pairwise(words))):
            place = self.features.get(gram)
            if place is not None:
                yield place


@functools.cache
def _janome() -> Any:
    from janome.tokenizer import Tokenizer

    return Tokenizer(wakati=True)


def graph_path() -> Path:
    """Where asari's graph is. The package's own code is not imported, so that none of it runs.

    Raises:
        ModelError: the package, or what is needed to read it, is not installed; the graph is missing.
    """
    spec = importlib.util.find_spec("asari")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(_NO_ASARI.format("the package asari is not installed"))
    try:
        import janome  # noqa: F401
        import onnx  # noqa: F401
    except ImportError as error:
        raise ModelError(_NO_ASARI.format(error)) from error
    path = Path(spec.submodule_search_locations[0], "data", "pipeline.onnx")
    if not path.is_file():
        raise ModelError(_NO_ASARI.format(f"{path} is missing"))
    return path


@functools.cache
def _asari() -> AsariModel:
    """Read asari's graph."""
    path = graph_path()
    import onnx

    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise ModelError(_NO_ASARI.format(f"{path} is not that of asari 0.2.0, or is damaged"))
    graph = onnx.load_from_string(data).graph
    nodes: dict[str, list[dict[str, Any]]] = {}
    for node in graph.node:
        nodes.setdefault(node.op_type, []).append({each.name: each for each in node.attribute})
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    (vectorizer,), (zip_map,), linear = nodes["TfIdfVectorizer"], nodes["ZipMap"], nodes["LinearClassifier"]
    strings = [each.decode() for each in vectorizer["pool_strings"].strings]
    start = vectorizer["ngram_counts"].ints[1]  # words stand before it, pairs behind
    pairs = map(" ".join, zip(strings[start::2], strings[start + 1 :: 2], strict=True))
    features = dict(zip([*strings[:start], *pairs], vectorizer["ngram_indexes"].ints, strict=True))
    weights = np.empty((len(features), len(linear)), np.float32)
    for place, each in enumerate(linear):
        weights[:, place] = np.fromiter(each["coefficients"].floats, np.float32)[len(features) :]
    numbers = ["", "1", "2", "4", "3"]  # of the sigmoid that is behind each linear model, in the order of the file
    return AsariModel(
        labels=[each.decode() for each in zip_map["classlabels_strings"].strings],
        features=features,
        idf=stored["idfcst"],
        weights=weights,
        intercepts=np.asarray([each["intercepts"].floats[1] for each in linear], np.float32),
        slopes=np.asarray([stored[f"a{number}"].item() for number in numbers], np.float32),
        offsets=np.asarray([stored[f"b{number}"].item() for number in numbers], np.float32),
    )

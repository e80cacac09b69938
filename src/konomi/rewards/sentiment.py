"""Small sentiment classifiers as rewards: the packages asari (Japanese) and vaderSentiment (English).

asari 0.2.0 (MIT) splits a text into words and takes TF-IDF over words and pairs of neighbours; the mean of five linear models,
each with a sigmoid, is the probability. An ONNX runtime would compute all 316,537 features of each text, of which some fifty
are not 0: so the graph is read as data and only those are computed, in float64. Splitting takes most of the time, 2 ms a short
text on one core.

VADER (Hutto and Gilbert 2014) adds up the valences of a text's words, which negations, adverbs of degree, capitals and
exclamation marks change; the sum s becomes ``compound`` = s / sqrt(s^2 + 15), -1 to 1, read here as p = (1 + compound) / 2.
About 0.1 ms a short text.

Shapes: N features of a text that are not 0, M linear models, V features in all.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from konomi.config import ClassifierReward
from konomi.errors import ConfigError, ModelError
from konomi.rewards.base import Columns, Texts, find_label

# the graph's own probabilities are float32, in steps of 6e-8 near 1: it tells nothing apart beyond this
_MAX_LOG_ODDS = 16.0
_NO_ASARI = "embedded:asari: {}; install it with: pip install 'konomi[embedded]'"
_SHA256 = "7b3f5f74a9b214faacfc73a89ec4f9b0d2d50cb27e22ff4f21c501184463efc1"


class SentimentReward:
    """The score of a text does not depend, to the bit, on what else is scored with it.

    ``label``: negative (0) or positive (1). ``use``: logit and log-odds are the same here, log p/(1-p) within +-16;
    probability is p. Nothing is cut, and nothing goes in batches.
    """

    divisible = True

    def __init__(self, config: ClassifierReward) -> None:
        self.name = config.name
        self.reads: set[str] = set()
        self._config = config
        if config.name == "embedded:asari":
            self.positive, labels = _asari().of_text, _asari().labels
            _janome()
        elif config.name == "embedded:vader":
            _vader()
            self.positive, labels = _vader_positive, ["negative", "positive"]
        else:
            known = "embedded:asari, embedded:vader"
            raise ConfigError(f"reward.name: {config.name}: no such embedded classifier; known: {known}")
        self.label = find_label(config.label, labels, config.name)

    def __call__(self, texts: Texts, *, prompts: Texts, responses: Texts, columns: Columns) -> list[float]:
        """Return the score of each text (or response, as configured)."""
        chosen = responses if self._config.text == "response" else texts
        scores = {text: self._score(text) for text in dict.fromkeys(chosen)}
        return [scores[text] for text in chosen]

    def _score(self, text: str) -> float:
        positive = self.positive(text)
        probability = positive if self.label == 1 else 1.0 - positive
        return probability if self._config.use == "probability" else log_odds(probability)


def log_odds(probability: float) -> float:
    """Return log p/(1-p), within +-16."""
    if not 0.0 < probability < 1.0:
        return _MAX_LOG_ODDS if probability > 0.5 else -_MAX_LOG_ODDS
    return max(-_MAX_LOG_ODDS, min(_MAX_LOG_ODDS, math.log(probability) - math.log1p(-probability)))


@dataclass(frozen=True)
class AsariModel:
    """The numbers of asari's graph.

    labels: negative, positive.
    features: a word, or two neighbours with a space between them -> its index in ``idf`` and ``weights``.
    idf, weights, intercepts: [V]; [V, M] for the label positive; [M].
    slopes, offsets: [M]: the sigmoid of model m is 1/(1 + exp(slope z + offset)).
    """

    labels: list[str]
    features: dict[str, int]
    idf: NDArray[np.float32]
    weights: NDArray[np.float32]
    intercepts: NDArray[np.float32]
    slopes: NDArray[np.float32]
    offsets: NDArray[np.float32]

    def of_text(self, text: str) -> float:
        """Return the probability of the label positive."""
        return self.positive(" ".join(_janome().tokenize(text)))

    def positive(self, words: str) -> float:
        """As :meth:`of_text`, for a text that is split into words, with spaces between them."""
        # the graph lower-cases too, but in its locale, where only ASCII letters have a lower case
        split = [word for word in words.lower().split(" ") if word]
        grams = (*split, *map(" ".join, pairwise(split)))
        counts = Counter(self.features[gram] for gram in grams if gram in self.features)
        places_N = np.fromiter(counts.keys(), np.int64, len(counts))
        tfidf_N = np.fromiter(counts.values(), np.float64, len(counts)) * self.idf[places_N]
        norm = math.sqrt(tfidf_N @ tfidf_N) or 1.0  # no known word: the intercepts alone
        z_M = (tfidf_N / norm) @ self.weights[places_N].astype(np.float64) + self.intercepts
        return float((1.0 / (1.0 + np.exp(self.slopes * z_M + self.offsets))).mean())


@functools.cache
def _janome() -> Any:
    from janome.tokenizer import Tokenizer

    return Tokenizer(wakati=True)


@functools.cache
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ModelError(f"embedded:vader: {error}; install it with: pip install 'konomi[embedded]'") from error
    return SentimentIntensityAnalyzer()


def _vader_positive(text: str) -> float:
    return float((1.0 + _vader().polarity_scores(text)["compound"]) / 2)


def graph_path() -> Path:
    """Find asari's graph, without importing the package, so that none of its code runs.

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

"""Sentiment by asari and by VADER."""

from __future__ import annotations

import builtins
import importlib.util
import math
import random
from pathlib import Path
from typing import Any

import pytest

from konomi.config import ClassifierReward as Config
from konomi.errors import ConfigError, ModelError
from konomi.rewards import build_reward
from konomi.rewards import sentiment as module
from konomi.rewards.sentiment import SentimentReward, log_odds
from refusals import refused as refused_call
from refusals import scores_of as call


def refused(error: type[Exception], *parts: str, **settings: Any) -> None:
    refused_call(lambda: build_reward(Config(**settings)), *parts, error=error)


BAD, GOOD, OPENING = "最悪でした。二度と買いません", "とても満足です。おすすめ！", "今日の天気は"


@pytest.fixture
def asari() -> SentimentReward:
    pytest.importorskip("asari", reason="pip install 'konomi[embedded]'")
    reward = build_reward(Config())
    assert isinstance(reward, SentimentReward)
    return reward


@pytest.mark.real
def test_asari_scores(asari: SentimentReward) -> None:
    # measured elsewhere
    assert call(asari, [BAD, GOOD, OPENING]) == pytest.approx([-5.91, 8.31, 0.67], abs=0.02)
    assert call(asari, []) == []
    assert call(asari, ["ＣＤがÉTÉ"]) == pytest.approx(call(asari, ["ｃｄがété"]), abs=1e-4)  # whatever the locale


@pytest.mark.real
def test_asari_alone_and_in_a_batch(asari: SentimentReward) -> None:
    texts = [BAD, "", GOOD, " ", OPENING, "\n", "とても" * 100, "😀", "abc"]
    alone = [call(asari, [text])[0] for text in texts]
    assert call(asari, texts) == alone
    assert call(asari, texts[::-1]) == alone[::-1]
    assert call(asari, texts * 3) == alone * 3
    assert all(math.isfinite(each) for each in alone)


@pytest.mark.real
def test_asari_settings(asari: SentimentReward) -> None:
    logits = call(asari, [BAD, GOOD])
    assert call(build_reward(Config(use="log-odds", label=1)), [BAD, GOOD]) == logits
    expected = [1 / (1 + math.exp(-each)) for each in logits]
    assert call(build_reward(Config(use="probability")), [BAD, GOOD]) == pytest.approx(expected, abs=1e-6)
    for label in ("negative", 0):
        assert call(build_reward(Config(label=label)), [BAD, GOOD]) == pytest.approx([-e for e in logits], abs=0.01)
    assert call(build_reward(Config(text="response")), [GOOD + BAD], [BAD]) == pytest.approx(logits[:1], abs=1e-4)
    refused(ConfigError, "embedded:asari has no label 'neutral'; it has: 0 'negative', 1 'positive'", label="neutral")


@pytest.mark.real
def test_a_repeated_text_is_split_once(asari: SentimentReward, monkeypatch: pytest.MonkeyPatch) -> None:
    split: list[str] = []
    real = module._janome().tokenize
    monkeypatch.setattr(module._janome(), "tokenize", lambda text: split.append(text) or real(text))
    call(asari, [GOOD, BAD, GOOD, GOOD])
    assert split == [GOOD, BAD]


@pytest.mark.real
def test_asari_is_what_its_graph_computes(asari: SentimentReward) -> None:
    """The graph, executed by a runtime on texts of known and unknown words, pairs of them, and all sorts of spaces."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    graph = onnx.load(module.graph_path())
    for node in graph.graph.node:
        if node.op_type == "StringNormalizer":  # the default locale is not installed everywhere
            node.attribute.append(onnx.helper.make_attribute("locale", "C"))
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    runtime.disable_telemetry_events()
    session = runtime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    draw = random.Random(0)
    known = draw.sample(list(module._asari().features), 5000)
    odd = ["", " ", "\n", "\t", "\u3000", "#", "ABC", "É", "😀", "最", "\u3000x", "x\ny", "\xa0", "\u2028", "ß"]
    texts = ["", "満足", *(" ".join(draw.choice(draw.choice((known, known, odd))) for _ in range(n)) for n in range(1, 120))]
    (expected,) = session.run(["output_probability"], {"text": [text.lower() for text in texts]})
    found = [module._asari().positive(text) for text in texts]
    assert found == pytest.approx([each["positive"] for each in expected], abs=1e-6)
    assert max(found) > 0.9 and min(found) < 0.1


@pytest.mark.parametrize("gone", ["asari", "janome", "onnx", "vaderSentiment"])
def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    if gone != "asari" and importlib.util.find_spec("asari") is None:
        pytest.skip("asari is not installed")
    real_find, real_import = importlib.util.find_spec, builtins.__import__

    def find(name: str, *rest: Any) -> Any:
        return None if name == gone else real_find(name, *rest)

    def import_(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == gone:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, *rest)

    for cached in (module._asari, module._janome, module._vader):
        cached.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(builtins, "__import__", import_)
    name = "embedded:vader" if gone == "vaderSentiment" else "embedded:asari"
    refused(ModelError, gone, "pip install 'konomi[embedded]'", name=name)


def test_a_damaged_package_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "asari").mkdir()
    (tmp_path / "asari" / "__init__.py").touch()
    module._asari.cache_clear()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "asari", raising=False)
    pytest.importorskip("onnx")
    refused(ModelError, "pipeline.onnx is missing", "pip install 'konomi[embedded]'")
    (tmp_path / "asari" / "data").mkdir()
    (tmp_path / "asari" / "data" / "pipeline.onnx").write_bytes(b"other")
    refused(ModelError, "is not that of asari 0.2.0, or is damaged", "pip install 'konomi[embedded]'")


# VADER


def vader(texts: list[str], **settings: str) -> list[float]:
    reward = build_reward(Config(name="embedded:vader", **settings))  # type: ignore[arg-type]
    return call(reward, texts)


def test_the_sum_of_the_valences_is_the_log_odds() -> None:
    # of the words that VADER has in its lexicon: great 3.1, horrible -2.5, not in front of a word times -0.74
    for text, valence in (("great", 3.1), ("horrible", -2.5), ("not great", -0.74 * 3.1), ("the table", 0.0)):
        assert vader([text]) == pytest.approx([2 * math.asinh(valence / math.sqrt(15))], abs=1e-3), text
        assert vader([text], use="log-odds") == vader([text])
        assert vader([text], label="negative") == pytest.approx([-vader([text])[0]])
    low, empty, high = vader(["horrible " * 500, "", "great " * 500])
    assert -16 <= low < empty == 0.0 < high <= 16
    assert [log_odds(p) for p in (0.0, 1e-30, 0.5, 1.0)] == [-16.0, -16.0, 0.0, 16.0]
    assert vader(["great"], use="probability") == pytest.approx([(1 + 3.1 / math.sqrt(3.1**2 + 15)) / 2], abs=1e-4)


def test_other_labels_and_names_are_refused() -> None:
    refused(ConfigError, "neutral", name="embedded:vader", label="neutral")
    refused(ConfigError, "embedded:nothing", "embedded:asari", "embedded:vader", name="embedded:nothing")

from __future__ import annotations

import builtins
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from konomi.config import ClassifierReward as Config
from konomi.errors import ConfigError, ModelError
from konomi.rewards import build_reward
from konomi.rewards.classifier import AsariReward, ClassifierModelReward, find_label
from tiny import ALPHABET, tiny_config, tiny_tokenizer

LABELS = ("negative", "Neutral", "positive")
TEXTS = ["a", "the rain in spain", "b" * 60, "ab", "", "rain rain go away", "zzz"]


def word_tokenizer(specials: tuple[str, ...] = ("<s>", "<pad>", "</s>", "<unk>")) -> Any:
    """Characters between <s> and </s>, as XLM-R has them: its padding id is 1 and its positions begin behind it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {token: i for i, token in enumerate([*specials, *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def save_classifier(directory: Path, labels: tuple[str, ...] = LABELS, **changes: Any) -> Path:
    import transformers

    config = transformers.XLMRobertaConfig(
        vocab_size=len(ALPHABET) + 4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=34, pad_token_id=1, bos_token_id=0, eos_token_id=2, initializer_range=0.5,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)}, **changes,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.XLMRobertaForSequenceClassification(config).save_pretrained(directory)
    word_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier"))


def made(path: Path | str, **settings: Any) -> ClassifierModelReward:
    reward = build_reward(Config(name=str(path), **settings))
    assert isinstance(reward, ClassifierModelReward)
    return reward


def call(reward: Any, texts: list[str], responses: list[str] | None = None) -> list[float]:
    scores = reward(texts, prompts=[""] * len(texts), responses=responses or texts, columns={})
    assert {type(each) for each in scores} <= {float}
    return list(scores)


def refused(error: type[Exception], *parts: str, **settings: Any) -> None:
    with pytest.raises(error) as caught:
        build_reward(Config(**settings))
    for part in parts:
        assert part in str(caught.value)


# any sequence-classification model


def logits_one_by_one(path: Path, texts: list[str]) -> torch.Tensor:
    """The logits [B, C] by the shortest way: each text alone."""
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        rows = [tokenizer(text, return_tensors="pt", truncation=True, max_length=32) for text in texts]
        return torch.cat([model(**row).logits for row in rows])


def test_scores_are_the_same_alone_and_in_a_batch_and_in_order(classifier: Path) -> None:
    expected = logits_one_by_one(classifier, TEXTS)[:, 2].tolist()
    assert max(expected) - min(expected) > 0.1
    for batch_size in (1, 3, 32):
        assert call(made(classifier, batch_size=batch_size), TEXTS) == pytest.approx(expected, abs=1e-4)


def test_logit_probability_and_log_odds(classifier: Path) -> None:
    logits = logits_one_by_one(classifier, TEXTS).double()
    for index, label in enumerate(LABELS):
        p = logits.softmax(-1)[:, index]
        assert call(made(classifier, label=label), TEXTS) == pytest.approx(logits[:, index].tolist(), abs=1e-4)
        assert call(made(classifier, label=index, use="probability"), TEXTS) == pytest.approx(p.tolist(), abs=1e-4)
        odds = (p / (1 - p)).log()
        assert call(made(classifier, label=index, use="log-odds"), TEXTS) == pytest.approx(odds.tolist(), abs=1e-3)


def test_log_odds_stay_finite_where_the_probability_is_one(tmp_path: Path) -> None:
    reward = made(save_classifier(tmp_path), use="log-odds")
    with torch.no_grad():
        reward._model.classifier.out_proj.bias[2] = 2000.0
    assert all(1000 < each < 3000 for each in call(reward, TEXTS))


def test_a_model_for_several_labels_has_a_sigmoid_a_label(tmp_path: Path) -> None:
    path = save_classifier(tmp_path, problem_type="multi_label_classification")
    logits = call(made(path), TEXTS)
    assert call(made(path, use="log-odds"), TEXTS) == logits
    expected = [1 / (1 + math.exp(-each)) for each in logits]
    assert call(made(path, use="probability"), TEXTS) == pytest.approx(expected)


def test_a_model_with_one_output(tmp_path: Path) -> None:
    path = save_classifier(tmp_path, ("LABEL_0",))
    assert call(made(path, label=0), TEXTS) == pytest.approx(logits_one_by_one(path, TEXTS)[:, 0].tolist(), abs=1e-4)
    refused(ConfigError, "has no label 'positive'", "0 'LABEL_0'", name=str(path))
    for use in ("probability", "log-odds"):
        refused(ConfigError, f'reward.use = "{use}"', 'use "logit"', name=str(path), label=0, use=use)


def test_dropout_is_off(tmp_path: Path) -> None:
    reward = made(save_classifier(tmp_path, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5))
    assert call(reward, TEXTS) == call(reward, TEXTS)


def test_the_response_alone(classifier: Path) -> None:
    both, alone = made(classifier), made(classifier, text="response")
    texts, responses = ["the rain", "abc"], ["rain", ""]
    assert call(alone, texts, responses) == call(both, responses)
    assert call(alone, texts, responses) != call(both, texts)


def test_long_texts_are_cut(classifier: Path) -> None:
    assert call(made(classifier, max_length=5), ["abcdefgh"]) == call(made(classifier), ["abc"])  # <s> abc </s>
    # 34 positions, the first two are never used: 32 tokens, two of them special
    assert call(made(classifier), ["a" * 100]) == call(made(classifier), ["a" * 30])


def test_no_texts(classifier: Path) -> None:
    assert call(made(classifier), []) == []


def test_device(classifier: Path) -> None:
    reward = made(classifier)
    assert reward.to("cpu") is reward
    assert reward._model.dtype == torch.float32


def test_a_decoder_reads_the_last_token_of_each_text(tmp_path: Path) -> None:
    """GPT-2 has no padding token: eos stands in, and an empty text becomes one eos."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2ForSequenceClassification(tiny_config("gpt2", num_labels=2)).eval()
    model.save_pretrained(tmp_path)
    tiny_tokenizer(bos=False).save_pretrained(tmp_path)
    texts = ["a", "abc", "", "abcdefghijk"]
    rows = [[2], [2, 3, 4], [1], list(range(2, 13))]
    with torch.no_grad():
        hidden = [model.transformer(torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
        expected = [float(model.score(each)[1]) for each in hidden]
    assert call(made(tmp_path, label="LABEL_1"), texts) == pytest.approx(expected, abs=1e-4)
    assert call(made(tmp_path, label=1), ["a" * 300]) == call(made(tmp_path, label=1), ["a" * 128])


@pytest.mark.parametrize("label", ["positve", 3, -1, ""])
def test_an_unknown_label_lists_the_labels(classifier: Path, label: str | int) -> None:
    parts = (f"no label {label!r}", "0 'negative', 1 'Neutral', 2 'positive'")
    refused(ConfigError, *parts, name=str(classifier), label=label)


def test_labels_are_found_whatever_their_case() -> None:
    assert find_label("POSITIVE", LABELS, "x") == 2
    assert find_label("neutral", LABELS, "x") == 1
    with pytest.raises(ConfigError, match="no label 'a'"):  # two could be meant
        find_label("a", ("A", "a"), "x")


# models that are refused


def test_a_language_model_has_no_head(tmp_path: Path) -> None:
    from tiny import save_tiny

    path = save_tiny(tmp_path, "gpt2")
    refused(ModelError, "lacks trained weights for score.weight", "at random", name=str(path), label=0)


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    refused(ModelError, "cannot be used as a classifier", name=str(tmp_path))
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    refused(ModelError, "cannot be used as a classifier", name=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clap"}', encoding="utf-8")
    refused(ModelError, "cannot be used as a classifier", name=str(tmp_path), label=0)


def test_weights_that_are_damaged_or_pickled(tmp_path: Path) -> None:
    path = save_classifier(tmp_path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(ModelError, "cannot be used as a classifier", name=str(path))
    weights.rename(path / "pytorch_model.bin")
    refused(ModelError, "safetensors", name=str(path))


def test_code_from_a_repository_is_refused(tmp_path: Path) -> None:
    text = '{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}'
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    refused(ModelError, "trust_remote_code", name=str(tmp_path))


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # no one listens there
    parts = ("someone/some-classifier", "127.0.0.1:9", "embedded:asari")
    refused(ModelError, *parts, name="someone/some-classifier")


def test_an_unknown_embedded_name() -> None:
    refused(ConfigError, "embedded:asahi", "embedded:asari", name="embedded:asahi")


# the embedded classifier


BAD, GOOD, OPENING = "最悪でした。二度と買いません", "とても満足です。おすすめ！", "今日の天気は"


@pytest.fixture
def asari() -> AsariReward:
    pytest.importorskip("asari", reason="pip install 'konomi[embedded]'")
    reward = build_reward(Config())
    assert isinstance(reward, AsariReward)
    return reward


@pytest.mark.real
def test_asari_scores(asari: AsariReward) -> None:
    # measured elsewhere
    assert call(asari, [BAD, GOOD, OPENING]) == pytest.approx([-5.91, 8.31, 0.67], abs=0.02)
    assert call(asari, []) == []


@pytest.mark.real
def test_asari_alone_and_in_a_batch(asari: AsariReward) -> None:
    texts = [BAD, "", GOOD, " ", OPENING, "\n", "とても" * 100, "😀", "abc"]
    alone = [call(asari, [text])[0] for text in texts]
    assert call(asari, texts) == pytest.approx(alone, abs=1e-4)
    assert call(build_reward(Config(batch_size=2)), texts) == pytest.approx(alone, abs=1e-4)
    assert all(math.isfinite(each) for each in alone)


@pytest.mark.real
def test_asari_settings(asari: AsariReward) -> None:
    logits = call(asari, [BAD, GOOD])
    assert call(build_reward(Config(use="log-odds", label=1)), [BAD, GOOD]) == logits
    expected = [1 / (1 + math.exp(-each)) for each in logits]
    assert call(build_reward(Config(use="probability")), [BAD, GOOD]) == pytest.approx(expected, abs=1e-6)
    for label in ("negative", 0):
        assert call(build_reward(Config(label=label)), [BAD, GOOD]) == pytest.approx([-e for e in logits], abs=0.01)
    assert call(build_reward(Config(text="response")), [GOOD + BAD], [BAD]) == pytest.approx(logits[:1], abs=1e-4)
    refused(ConfigError, "embedded:asari has no label 'neutral'; it has: 0 'negative', 1 'positive'", label="neutral")


@pytest.mark.real
def test_asari_is_bounded(asari: AsariReward) -> None:
    assert [asari._score(p) for p in (0.0, 1e-30, 0.5, 1.0)] == [-16.0, -16.0, 0.0, 16.0]


@pytest.mark.real
def test_asari_does_not_depend_on_the_locale_for_capitals(asari: AsariReward) -> None:
    assert call(asari, ["ＣＤがÉTÉ"]) == pytest.approx(call(asari, ["ｃｄがété"]), abs=1e-4)


@pytest.mark.parametrize("gone", ["asari", "janome", "onnx", "onnxruntime"])
def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    import importlib.util

    from konomi.rewards import classifier

    if gone != "asari" and importlib.util.find_spec("asari") is None:
        pytest.skip("asari is not installed")
    real_find, real_import = importlib.util.find_spec, builtins.__import__

    def find(name: str, *rest: Any) -> Any:
        return None if name == gone else real_find(name, *rest)

    def import_(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == gone:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, *rest)

    classifier._asari_session.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(builtins, "__import__", import_)
    refused(ModelError, gone, "pip install 'konomi[embedded]'")


def test_a_damaged_package_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from konomi.rewards import classifier

    (tmp_path / "asari").mkdir()
    (tmp_path / "asari" / "__init__.py").touch()
    classifier._asari_session.cache_clear()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "asari", raising=False)
    pytest.importorskip("onnxruntime")
    refused(ModelError, "pipeline.onnx is missing", "pip install 'konomi[embedded]'")

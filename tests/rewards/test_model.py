"""Classifiers of transformers as rewards: scores, batches, labels; what is refused."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from konomi.config import ClassifierReward as Config
from konomi.config import ModelConfig, ModelReward
from konomi.engine.device import choose_precision
from konomi.errors import ConfigError, ModelError, NotFiniteError
from konomi.models.reward import Normalisation, RewardModel
from konomi.models.reward_files import make_reward_model
from konomi.rewards import build_reward, reward_config
from konomi.rewards import model as module
from konomi.rewards.base import evaluate, find_label
from konomi.rewards.model import ClassifierModelReward, batches
from refusals import refused as refused_call
from refusals import scores_of as call
from tiny import ALPHABET, save_tiny, tiny_config, tiny_tokenizer

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
    reward = build_reward(Config(name=str(path), **{"precision": "fp32", **settings}))
    assert isinstance(reward, ClassifierModelReward)
    return reward


def refused(error: type[Exception], *parts: str, **settings: Any) -> None:
    refused_call(lambda: build_reward(Config(**settings)), *parts, error=error)


# any sequence-classification model


def logits_one_by_one(path: Path, texts: list[str]) -> torch.Tensor:
    """The logits [B, C] by the shortest way: each text alone."""
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        rows = [tokenizer(text, return_tensors="pt", truncation=True, max_length=32) for text in texts]
        return torch.cat([model(**row).logits for row in rows])


def test_a_decoder_within_a_larger_model_is_read_in_batches(tmp_path: Path) -> None:
    """Its settings of tokens are those of the text model."""
    import transformers

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    config = transformers.Gemma3Config(
        text_config=tiny_config("gemma3").to_dict(), vision_config=vision, id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)}, mm_tokens_per_image=4,
    )  # fmt: skip
    transformers.Gemma3ForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    scores = call(made(tmp_path), ["ab", "rain", "zebra"])
    assert scores == pytest.approx([call(made(tmp_path), [text])[0] for text in ("ab", "rain", "zebra")], abs=1e-4)


def test_scores_keep_their_places_whatever_the_batches_the_order_the_lengths_and_the_repetitions(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = TEXTS + [letter * n for n in (1, 30, 2, 12, 7, 29, 18) for letter in "abz"]
    expected = dict(zip(texts, logits_one_by_one(classifier, texts)[:, 2].tolist(), strict=True))
    assert max(expected.values()) - min(expected.values()) > 0.1
    for batch_size, part in ((1, 3), (2, 512), (None, 8), (None, 512)):
        monkeypatch.setattr(module, "PART", part)
        reward = made(classifier, batch_size=batch_size)
        for order in (texts, texts[::-1], texts[5:] + texts[:5], texts * 2 + texts[::-1], []):
            assert call(reward, order) == pytest.approx([expected[text] for text in order], abs=1e-4)


def test_a_repeated_text_goes_through_the_model_once(classifier: Path) -> None:
    reward = made(classifier)
    call(reward, ["rain", "ab", "rain", "rain"])
    assert reward.reader.texts == 2


def test_texts_are_tokenised_after_those_before_them_are_on_their_way_and_all_numbers_are_read_at_the_end(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 8)
    reward = made(classifier, batch_size=4)
    done: list[str] = []
    for where, name in ((reward.reader, "encode"), (reward, "_logits"), (reward, "_scores")):
        real = getattr(where, name)
        monkeypatch.setattr(where, name, lambda x, name=name, real=real: done.append(name) or real(x))
    call(reward, ["a" * n for n in range(20)])
    assert done == [*["encode", "_logits", "_logits"] * 2, "encode", "_logits", "_scores"]


def test_an_error_of_the_tokenizer_comes_through(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = made(classifier)
    with pytest.raises((TypeError, ValueError)):
        reward([b"\xff"], prompts=[""], responses=[""], columns={})  # type: ignore[list-item]


@pytest.mark.parametrize("size", [1, 3, 32])
def test_batches_hold_every_text_once_and_little_padding(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    for count, longest in ((1, 5), (200, 40), (100, 512), (60, 5000)):
        lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
        found = batches(lengths, size, (4096, 512))
        assert sorted(i for batch in found for i in batch) == list(range(count))
        for batch in found:
            width, tokens = max(lengths[i] for i in batch), sum(lengths[i] for i in batch)
            padded = width * len(batch)
            assert len(batch) <= size
            assert len(batch) == 1 or padded <= 4096
            assert padded <= 512 or padded - tokens <= 0.1 * padded
    assert batches([], size, (4096, 512)) == []
    if size == 32:
        assert [len(batch) for batch in batches([20] * 70, size, (4096, 512))] == [32, 32, 6]
        assert [len(batch) for batch in batches([30] * 300, None, (4096, 512))] == [136, 136, 28]


def test_a_gelu_that_is_written_out_is_computed_in_one_and_dropout_is_off(tmp_path: Path) -> None:
    import transformers

    path = save_classifier(tmp_path, hidden_act="gelu_new", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    reward = made(path)
    assert not [m for m in reward._model.modules() if type(m).__name__ == "NewGELUActivation"]
    assert [m for m in reward._model.modules() if isinstance(m, torch.nn.GELU)]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path)
    assert [m for m in model.modules() if type(m).__name__ == "NewGELUActivation"]  # nobody else's model is changed
    assert call(reward, TEXTS) == pytest.approx(logits_one_by_one(path, TEXTS)[:, 2].tolist(), abs=1e-4)


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


def test_the_response_alone(classifier: Path) -> None:
    both, alone = made(classifier), made(classifier, text="response")
    texts, responses = ["the rain", "abc"], ["rain", ""]
    assert call(alone, texts, responses) == call(both, responses)
    assert call(alone, texts, responses) != call(both, texts)


def test_long_texts_are_cut(classifier: Path) -> None:
    assert call(made(classifier, max_length=5), ["abcdefgh"]) == call(made(classifier), ["abc"])  # <s> abc </s>
    # 34 positions, the first two are never used: 32 tokens, two of them special
    assert call(made(classifier), ["a" * 100]) == call(made(classifier), ["a" * 30])


def test_in_bf16_the_trunk_takes_half_the_memory_and_scores_differ_by_rounding_alone(classifier: Path) -> None:
    texts = [ALPHABET[i % 26] * (1 + i % 20) + ALPHABET[i * 7 % 26] for i in range(200)]
    exact, rounded = made(classifier), made(classifier, precision="bf16")
    sizes = {p.dtype for p in rounded._model.base_model.parameters()}, {p.dtype for p in rounded._model.classifier.parameters()}
    assert sizes == ({torch.bfloat16}, {torch.float32})
    before, after = (torch.tensor(call(reward, texts)) for reward in (exact, rounded))
    # products of 8 bits in a model of large weights: 0.026 of a deviation of 0.62
    assert 0 < float((after - before).pow(2).mean().sqrt()) < 0.1 * float(before.std())
    assert len(set(after.tolist())) == len(texts)  # the head is not rounded to 8 bits
    assert after.tolist() == pytest.approx(call(rounded, texts[::-1])[::-1], abs=0.3)  # neighbours change roundings alone
    auto = made(classifier, precision="auto")
    assert (
        next(auto._model.base_model.parameters()).dtype
        == {"bf16": torch.bfloat16, "fp32": torch.float32}[choose_precision("auto")]
    )


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


def test_labels_are_found_whatever_their_case(classifier: Path) -> None:
    assert find_label("POSITIVE", LABELS, "x") == 2
    assert find_label("neutral", LABELS, "x") == 1
    with pytest.raises(ConfigError, match="no label 'a'"):  # two could be meant
        find_label("a", ("A", "a"), "x")
    for label in ("positve", 3, -1, ""):
        parts = (f"no label {label!r}", "0 'negative', 1 'Neutral', 2 'positive'")
        refused(ConfigError, *parts, name=str(classifier), label=label)


# several reward models


def save_reward_model(directory: Path, base: Path, seed: int, scale: Normalisation | None) -> RewardModel:
    model = make_reward_model(ModelConfig(name=str(base)), outputs=1, seed=seed, max_length=64).model
    with torch.no_grad():
        model.model.score.weight.normal_(std=10.0, generator=torch.Generator().manual_seed(seed))
    model.normalisation = scale
    model.save(directory, {})
    return model


def test_several_reward_models_are_one(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "lm", "llama")
    scales = [Normalisation(mean, std, 9, "0" * 64) for mean, std in ((0.5, 2.0), (-1.0, 0.5), (3.0, 4.0))]
    names = [str(tmp_path / f"rm{i}") for i in range(3)]
    models = [save_reward_model(Path(name), base, i, scale) for i, (name, scale) in enumerate(zip(names, scales, strict=True))]
    texts = ["a", "the rain", "zebra"]
    raw = [torch.cat(model.predict([texts]))[:, 0].tolist() for model in models]
    rows = [[(x - s.mean) / s.std for x in row] for row, s in zip(raw, scales, strict=True)]

    def built(name: Any, **settings: Any) -> Any:
        return build_reward(ModelReward(kind="model", name=name, precision="fp32", **settings))

    def scores(reward: Any) -> list[float]:
        return evaluate(reward, [""] * 3, texts, {}, save_to=None).totals

    one = scores(built(names[0]))
    assert one == scores(built(names[:1])) == pytest.approx(rows[0], abs=1e-3)
    mean = [statistics.mean(each) for each in zip(*rows, strict=True)]
    spread = [statistics.stdev(each) for each in zip(*rows, strict=True)]
    assert scores(built(names)) == pytest.approx(mean, abs=1e-3)
    careful = built(names, pessimism=1.5)
    told = evaluate(careful, [""] * 3, texts, {}, save_to=None)
    assert told.totals == pytest.approx([m - 1.5 * s for m, s in zip(mean, spread, strict=True)], abs=1e-3)
    assert told.parts == {"spread": pytest.approx(spread, abs=1e-3)} and min(spread) > 0.01
    assert evaluate(careful, [], [], {}, save_to=None).parts == {"spread": []}
    assert len(careful.readers) == 3 and all(name in careful.name for name in names)
    # alone, and as a part of a sum
    part = {"kind": "model", "name": names, "precision": "fp32", "pessimism": 1.5}
    whole = {"kind": "sum", "parts": {"a": part, "b": {**part, "name": names[0], "pessimism": 0.0}}, "weights": {"a": -2.0}}
    summed = evaluate(build_reward(reward_config(whole)), [""] * 3, texts, {}, save_to=None)
    assert summed.parts == {"a": told.totals, "b": one, "a/spread": told.parts["spread"]}
    assert summed.totals == pytest.approx([b - 2 * a for a, b in zip(told.totals, one, strict=True)])
    with torch.no_grad():
        careful._members[1]._model.model.score.weight.fill_(float("nan"))
    refused_call(lambda: scores(careful), f"reward {names[1]}: returned nan", error=NotFiniteError)
    (tmp_path / "run/model").mkdir(parents=True)
    (tmp_path / "run/run.json").touch()
    twice = [names[0], str(tmp_path / "run"), f"{tmp_path}/rm1/../run/model"]
    refused_call(lambda: built(twice), f"reward.name: {twice[1]} and {twice[2]} are one model; an ensemble", error=ConfigError)
    save_reward_model(tmp_path / "none", base, 4, None)
    refused_call(lambda: built([names[0], str(tmp_path / "none")]), "none has no scale", error=ConfigError)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a", "pessimism": 0.5}, "reward: pessimism = 0.5: one model has no spread; name several, or remove it"),
        ({"name": ["a"], "pessimism": 0.5}, "reward: pessimism = 0.5: one model has no spread; name several, or remove it"),
        ({"name": ["a", "b"], "normalized": False, "pessimism": 1.0},
         "reward: normalized = false: the raw scores of several models have no common scale; remove it"),
        ({"name": ["a", "a"]}, "reward.name: a is named twice; an ensemble needs different models"),
        *(({"name": name}, 'reward.name: give the directory of a reward model, or a list of several: ["RUN", "RUN"]')
          for name in ([], 5, ["a", 5], {})),
    ],
)  # fmt: skip
def test_ensembles_that_are_none(settings: dict[str, Any], message: str) -> None:
    told = refused_call(lambda: reward_config({"kind": "model", **settings}), message, error=ConfigError)
    assert "\n" not in told


# models that are refused


def test_a_language_model_has_no_head(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, "gpt2")
    refused(ModelError, "lacks trained weights for score.weight", "at random", name=str(path), label=0)


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("model.safetensors", None, "cannot be used as a classifier"),
        ("config.json", "{", "cannot be used as a classifier"),
        ("config.json", '{"model_type": "clap"}', "cannot be used as a classifier"),
        ("config.json", '{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}', "trust_remote_code"),
        ("tokenizer.json", '{"version": "9"}', "cannot be used as a classifier: Unknown tokenizer version '9'"),
        ("model.safetensors", "damaged", "cannot be used as a classifier"),
    ],
)
def test_a_damaged_directory(tmp_path: Path, file: str, content: str | None, part: str) -> None:
    path = save_classifier(tmp_path) / file
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    if content is None:
        path.rename(tmp_path / "pytorch_model.bin")  # pickled
    elif "version" in content:
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | json.loads(content)), encoding="utf-8")
    else:
        path.write_text(content, encoding="utf-8")
    refused(ModelError, part, name=str(tmp_path), label=0)


def test_what_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    refused(ModelError, "cannot be used as a classifier", name=str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # no one listens there
    refused(ModelError, "someone/some-classifier", "127.0.0.1:9", "embedded:asari", name="someone/some-classifier")

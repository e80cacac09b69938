"""The write-up's whole job, as its example has it: on tiny models and local data in the layouts of the hub."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from command_line import konomi, sets
from konomi.config import ClassifierReward
from konomi.rewards import build_reward
from tiny import tiny_encoder, tiny_model

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "write-up.toml"
SENSES = (
    ("良いです", "便利だと思う", "満足した"),
    ("普通です", "まあまあだと思う", "特に何もない"),
    ("悪いです", "不便だと思う", "残念だった"),
)
TEXTS = [
    {"text": f"{topic}{when}{word}", "source": "x", "label": label}
    for topic, when, (label, words) in itertools.product(
        ("この商品は", "今日の天気は", "その映画は", "駅の宿は"), ("とても", "いつも", "今年も", "少し", "きっと", "昨日から"),
        enumerate(SENSES),
    )
    for word in words
]  # fmt: skip
NAMES = (
    "stages.classifier.model.name=hub/xlm-roberta-base", "stages.classifier.data.file=hub/multilingual-sentiments",
    "stages.policy.model.name=hub/japanese-gpt2-small", "stages.policy.data.prompts=hub/multilingual-sentiments",
)  # fmt: skip
SIZES = (
    "stages.policy.ppo.episodes=256", "stages.classifier.train.epochs=20", "stages.classifier.train.batch_size=16",
    "stages.classifier.train.learning_rate=3e-3",
)  # fmt: skip
"""One update; what a model of 30,000 weights and 172 texts needs to learn three labels."""


def converted(directory: Path) -> None:
    """The data set, as the hub converts it."""
    for split, rows in (("train", TEXTS[::5] + TEXTS[1::5] + TEXTS[2::5] + TEXTS[3::5]), ("validation", TEXTS[4::5])):
        (directory / split).mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), directory / split / "0000.parquet")


def rinna(directory: Path) -> None:
    """GPT-2 whose tokenizer is a SentencePiece file under T5Tokenizer, which ends each text."""
    import sentencepiece

    tiny_model("gpt2").config.save_pretrained(directory)  # makes the directory
    with (directory / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(each["text"] for each in TEXTS), model_writer=file, vocab_size=120, hard_vocab_limit=False,
            pad_id=3, pad_piece="[PAD]", minloglevel=2,
        )  # fmt: skip
    size = sentencepiece.SentencePieceProcessor(model_file=str(directory / "spiece.model")).get_piece_size()
    tiny_model("gpt2", vocab=size, bos_token_id=1, eos_token_id=2).save_pretrained(directory)
    special = {"eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>", "pad_token": "[PAD]", "extra_ids": 0}
    settings = json.dumps({"tokenizer_class": "T5Tokenizer", **special})
    (directory / "tokenizer_config.json").write_text(settings, encoding="utf-8")


def xlm_tokenizer() -> Any:
    """A vocabulary with scores, in XLM-RoBERTa's order of special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    characters = sorted({character for each in TEXTS for character in each["text"]})
    pieces = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")] + [(each, -3.0) for each in ("▁", *characters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


def test_the_whole_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    converted(Path("hub/multilingual-sentiments/japanese"))
    rinna(Path("hub/japanese-gpt2-small"))
    tiny_encoder("hub/xlm-roberta-base", tokenizer=xlm_tokenizer(), length=140)
    told = json.loads(konomi("run", str(EXAMPLE), "--json", *sets(*NAMES, *SIZES), code=0).stdout)
    assert [(stage["do"], stage["status"]) for stage in told["stages"]] == [("reward", "finished"), ("ppo", "finished")]

    classifier, policy = (Path(stage["run"]) for stage in told["stages"])
    found = json.loads((classifier / "eval.json").read_text("utf-8"))["held_out"]
    assert found["accuracy"]["value"] > 0.8 and set(found) >= {"macro_f1", "confusion"}
    saved = json.loads((classifier / "model/config.json").read_text("utf-8"))
    assert saved["id2label"] == {"0": "positive", "1": "neutral", "2": "negative"}
    reward = build_reward(ClassifierReward(name=str(classifier / "model"), label="positive"))
    good, bad = reward(["この商品はとても良いです", "この商品はとても悪いです"], prompts=["", ""], responses=["", ""], columns={})
    assert good > bad

    comparison = json.loads((policy / "compare.json").read_text("utf-8"))
    shown = [each for each in comparison["texts"] if not each["held_out"]]
    assert [each["prompt"] for each in shown] == ["今日の天気は", "この商品は"]
    assert all(each["before"] and each["after"] for each in shown)

    from mlflow import MlflowClient

    runs = MlflowClient(told["mlflow"]).search_runs(["1"], "tags.mlflow.runName = 'policy'")
    assert {"ppo/mean_scores", "ppo/loss/total", "objective/kl", "compare/difference/mean"} <= runs[0].data.metrics.keys()

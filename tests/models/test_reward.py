"""Reward models: a text's score is its own, whatever stands beside it, whatever was kept, and after a save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from konomi.config import ModelConfig
from konomi.errors import ConfigError, DataError, ModelError
from konomi.models import reward
from konomi.models.half import hold_in_bf16
from konomi.models.reward import Normalisation, RewardModel
from konomi.models.reward_files import init_head, make_reward_model, open_reward_model
from tiny import FAMILIES, save_tiny, tiny_encoder
from tiny_run import weights

TEXTS = ["the cat sat", "a", "once upon a time there was", "the cat ran away", "zebras"]


def make(directory: Path, family: str, **changes: Any) -> RewardModel:
    save_tiny(directory, family) if family in FAMILIES else tiny_encoder(directory)
    return make_reward_model(ModelConfig(name=str(directory), **changes), outputs=1, seed=3, max_length=64).model


def scores(model: RewardModel, texts: list[list[str]]) -> list[float]:
    return torch.cat(model.predict(texts))[:, 0].tolist()


@pytest.mark.parametrize("family", [*FAMILIES, "xlm-roberta"])
def test_a_score_is_the_same_alone_and_in_any_batch(tmp_path: Path, family: str) -> None:
    model = make(tmp_path, family)
    assert model.packs == (family in FAMILIES)
    alone = [scores(model, [[text]])[0] for text in TEXTS]
    assert len({round(score, 3) for score in alone}) == len(TEXTS)
    assert scores(model, [TEXTS]) == pytest.approx(alone, abs=1e-5)
    assert scores(model, [[text] for text in TEXTS]) == pytest.approx(alone, abs=1e-5)
    assert scores(model, [TEXTS[::-1], TEXTS])[5:] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_what_transformers_says(tmp_path: Path, family: str) -> None:
    model = make(tmp_path / "lm", family)
    model.save(tmp_path / "saved", {})
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        theirs = [float(plain(input_ids=torch.tensor(model.encode([text]))).logits) for text in TEXTS]
    assert scores(model, [TEXTS]) == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_kept_of_frozen_layers_changes_nothing(tmp_path: Path, family: str) -> None:
    model = make(tmp_path, family, top_layers=1)
    batch = model.batch(model.encode(TEXTS), [0, 0, 1, 0, 2])
    kept = model.trunk(batch)
    assert kept is not None
    with_it = model(type(batch)(batch.ids, batch.lengths, batch.shared, kept))
    assert torch.allclose(with_it, model(batch), atol=1e-5)
    # it is taken: another trunk gives other numbers
    assert not torch.allclose(model(type(batch)(batch.ids, batch.lengths, batch.shared, kept.flip(0))), model(batch), atol=1e-3)


@pytest.mark.parametrize("family", [*FAMILIES, "xlm-roberta"])
def test_only_the_top_is_trained_and_all_of_it_is_saved(tmp_path: Path, family: str) -> None:
    model = make(tmp_path / "lm", family, top_layers=1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    batch = model.batch(model.encode(TEXTS))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (model(batch)[:, 0] - torch.arange(5.0)).square().mean().backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert any("score" in name or "classifier" in name for name in moved)
    assert not any("embed" in name or "wte" in name or ".0." in name for name in moved)
    model.normalisation = Normalisation(1.5, 2.0, 64, "ab")
    model.save(tmp_path / "saved", {"task": "preference"})
    again = open_reward_model(str(tmp_path / "saved"))
    assert scores(again, [TEXTS]) == pytest.approx(scores(model.eval(), [TEXTS]), abs=1e-5)
    assert again.normalisation == model.normalisation and again.normalised(3.5) == 1.0


@pytest.mark.parametrize("family", [*FAMILIES, "xlm-roberta"])
def test_a_trunk_in_bf16_gives_the_same_scores_but_for_rounding(tmp_path: Path, family: str) -> None:
    model = make(tmp_path, family)
    exact = scores(model, [TEXTS])
    hold_in_bf16(model.model)
    trunk = f"model.{model.model.base_model_prefix}."
    held = {(name.startswith(trunk), p.dtype) for name, p in model.named_parameters()}
    assert held == {(True, torch.bfloat16), (False, torch.float32)}
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    assert all(buffer.dtype == torch.float32 for buffer in buffers)  # rotary embeddings: places of a long text
    rounded = scores(model, [TEXTS])
    assert exact != rounded == pytest.approx(exact, abs=0.05)
    assert rounded != torch.tensor(rounded).bfloat16().tolist()


def test_many_texts_to_one_prompt_are_more_than_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(tmp_path, "llama")
    expected = scores(model, [TEXTS, TEXTS[:2]])
    monkeypatch.setattr(reward, "score_tokens", lambda device: (30, 30))
    for part in (512, 2):  # of small parts there are several
        monkeypatch.setattr(reward, "PART", part)
        assert scores(model, [TEXTS, TEXTS[:2]]) == pytest.approx(expected, abs=1e-5)
    assert model.predict([]) == []


def test_the_seed_decides_all_that_is_new_in_an_encoder(tmp_path: Path) -> None:
    first = make(tmp_path, "xlm-roberta")
    torch.manual_seed(99)
    again = make(tmp_path, "xlm-roberta")
    assert torch.equal(weights(first), weights(again))


def test_frozen_embeddings_stay(tmp_path: Path) -> None:
    model = make(tmp_path, "gemma3", freeze="embeddings")
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["model.model.embed_tokens.weight"]


def test_the_head_is_drawn_small_and_from_its_seed() -> None:
    head, again, other = (torch.nn.Linear(399, 2) for _ in range(3))
    for each, seed in ((head, 1), (again, 1), (other, 2)):
        init_head(each, seed)
    assert torch.equal(head.weight, again.weight) and not torch.equal(head.weight, other.weight)
    assert float(head.weight.detach().std()) == pytest.approx(400**-0.5, rel=0.1) and not head.bias.any()


def test_a_decoder_keeps_the_end_of_a_long_text_and_an_encoder_its_beginning(tmp_path: Path) -> None:
    long, end = "abcdefgh " * 20, "zz"
    decoder, encoder = make(tmp_path / "d", "llama"), make(tmp_path / "e", "xlm-roberta")
    assert len(decoder.encode([long])[0]) == 64
    assert scores(decoder, [[long + end]]) != pytest.approx(scores(decoder, [[long]]), abs=1e-4)
    assert scores(encoder, [[long + end]]) == pytest.approx(scores(encoder, [[long]]), abs=1e-6)


def test_a_classifier_keeps_its_head_where_labels_are_the_same(tmp_path: Path) -> None:
    tiny_encoder(tmp_path / "e")
    config = ModelConfig(name=str(tmp_path / "e"))
    made = make_reward_model(config, outputs=2, labels=("bad", "good"), seed=0, max_length=64).model
    made.save(tmp_path / "c", {})
    again = make_reward_model(
        ModelConfig(name=str(tmp_path / "c")), outputs=2, labels=("bad", "good"), seed=9, max_length=64
    ).model
    assert torch.allclose(torch.cat(again.predict([TEXTS])), torch.cat(made.predict([TEXTS])), atol=1e-6)
    fresh = make_reward_model(
        ModelConfig(name=str(tmp_path / "c")), outputs=2, labels=("good", "bad"), seed=9, max_length=64
    ).model
    assert not torch.allclose(torch.cat(fresh.predict([TEXTS])), torch.cat(made.predict([TEXTS])), atol=1e-3)


def test_too_many_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.top_layers = 3: the model has 2 layers"):
        make(tmp_path, "gpt2", top_layers=3)


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: no such directory; give the model/ of a `konomi reward` run"):
        open_reward_model("nowhere")
    save_tiny(tmp_path, "gpt2")
    with pytest.raises(DataError, match=r"no reward.json, so this is no reward model that konomi trained"):
        open_reward_model(str(tmp_path))
    (tmp_path / "reward.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        open_reward_model(str(tmp_path))
    (tmp_path / "reward.json").write_text(json.dumps({"version": 99}), encoding="utf-8")
    with pytest.raises(DataError, match="format 99, this konomi reads 2; update konomi"):
        open_reward_model(str(tmp_path))
    (tmp_path / "reward.json").write_text(json.dumps({"version": 1, "max_length": 64}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"weights are missing, such as score\.weight"):
        open_reward_model(str(tmp_path))
    for file in ("model.safetensors", "tokenizer.json"):
        (tmp_path / file).write_bytes(b"{")
        with pytest.raises(ModelError, match="its reward model cannot be read"):
            open_reward_model(str(tmp_path))

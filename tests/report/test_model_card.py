"""The card beside a run's model: what it is, what it rests on, what came of it; and a run named where a model is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from some_runs import HOSTILE, PPO, add_compare, ppo_run, reward_run, sft_run

from konomi.errors import ModelError
from konomi.files import model_path
from konomi.jobs.inputs import inputs_of
from konomi.models.find import licence_of
from konomi.report.model_card import write_card
from konomi.runs.directory import RunDir

NOTE = "Gemma 3 270M is provided under and subject to the Gemma Terms of Use, https://ai.google.dev/gemma/terms."


def card(run: RunDir) -> str:
    path = write_card(run)
    assert path == run.model / "README.md"
    return path.read_text("utf-8")


def test_each_kind_of_run_has_its_card(tmp_path: Path) -> None:
    ppo = ppo_run(tmp_path, 2, "ppo")
    assert write_card(ppo) is None  # no model yet
    add_compare(ppo)
    ppo.note(licence=NOTE, inputs={"reward.name": {"name": "taste.py:f", "sha256": "ab" * 32}})
    ppo.note(guards=[{"update": 2, "guard": "ratio", "action": "warned", "en": "The ratio is 3.", "ja": "3"}])
    sft, reward = sft_run(tmp_path, [3.0, 2.0]), reward_run(tmp_path, name="reward")
    free = RunDir.create(tmp_path, "free", {**PPO, "algorithm": {"kind": "reinforce++"}}, seed=0)
    for run in (ppo, sft, reward, free):
        run.model.mkdir()
        run.set_status("finished")
    for run, parts in (
        (ppo, ["embedded:gemma3-270m", "classifier embedded:asari (positive", "ab" * 32, "rose by 2.03",
               "| score mean | −0.48 | 1.55 |", "`ppo.kl_target` | 6.0", "AutoModelForCausalLM", f"## Licence\n\n{NOTE}",
               "ppo, finished", "## What the guards saw", "| 2 | The ratio is 3. |", "toward a reward by PPO."]),
        (free, ["toward a reward by REINFORCE++.", '| `algorithm.kind` | "reinforce++" |']),
        (sft, ["embedded:gemma3-270m-ja", "texts.jsonl", "| perplexity | 20.09 | 7.39 |", "`sft.epochs` | 3", "of the base"]),
        (reward, ["pairs.jsonl", "| accuracy | 0.", "AutoModelForSequenceClassification", 'reward.kind = "model"']),
    ):  # fmt: skip
        text = card(run)
        assert [part for part in parts if part not in text] == []
        assert "None" not in text and "nan" not in text


def test_the_card_of_a_stranger_stays_in_its_cells_and_names_no_directory(tmp_path: Path) -> None:
    config = {"model": {"name": str(tmp_path / "secret" / "base")}, "data": {"texts": "|".join(HOSTILE)}, "sft": {}}
    run = RunDir.create(tmp_path, "sft", config, seed=0)
    run.model.mkdir()
    text = card(run)
    assert str(tmp_path) not in text and "base" in text
    assert "<" not in text.replace("&lt;", "") and "\x1b" not in text and "\u202e" not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") in (3, 4) for line in tables)


def test_the_reward_names_no_directory(tmp_path: Path) -> None:
    rewards = {"rm": {"kind": "model", "name": "/home/alice/secret/rm/model"},
               "rms": {"kind": "model", "name": ["/home/alice/a/model", "/home/alice/b"], "pessimism": 1.0},
               "short": {"kind": "function", "name": "/home/alice/reward.py:short"}}  # fmt: skip
    for number, reward in enumerate((*rewards.values(), {"kind": "sum", "parts": {"all": {"kind": "sum", "parts": rewards}}})):
        run = RunDir.create(tmp_path, f"ppo{number}", {"model": {"name": "m"}, "reward": reward, "ppo": {}}, seed=0)
        run.model.mkdir()
        add_compare(run)
        text = card(run)
        assert "alice" not in text and ("reward.py:short" in text or "model model" in text)
        assert "pessimism" not in text or "model model, b (pessimism 1)" in text


def test_where_nothing_was_better_the_model_is_the_initial_one(tmp_path: Path) -> None:
    for losses, before_after, initial in (
        ([3.0, 3.5, 3.2], "| 3.00 | 3.00 |", True), ([3.0], "| 3.00 | 3.00 |", True), ([3.0, 2.0, 2.5], "| 3.00 | 2.00 |", False),
    ):  # fmt: skip
        run = sft_run(tmp_path, losses, f"sft{len(losses)}{initial}")
        run.model.mkdir()
        text = card(run)
        assert before_after in text and ("this is the initial model" in text) == initial


def test_the_licence_goes_with_the_model(tmp_path: Path) -> None:
    run = sft_run(tmp_path, [3.0])
    run.model.mkdir()
    run.note(licence=NOTE)
    card(run)
    assert licence_of(run.model) == NOTE
    for text, found in (
        ("---\nlicense: other\nlicense_name: gemma\n---\n# A model\n", "Licence, as its README.md says: other, gemma"),
        ("# A model\n", None),
    ):
        (run.model / "README.md").write_text(text, "utf-8")
        assert licence_of(run.model) == found
    assert licence_of(tmp_path) is None


def test_a_run_is_its_model(tmp_path: Path) -> None:
    run = sft_run(tmp_path, [3.0])
    with pytest.raises(ModelError, match="a run without a model"):
        model_path(run.path, ModelError)
    run.model.mkdir()
    (run.model / "config.json").write_text("{}", "utf-8")
    assert model_path(run.path) == run.model == model_path(run.model)
    before = inputs_of({"model": {"name": str(run.path)}})
    assert list(before) == ["model.name"]
    run.append_metrics(9, {"eval/loss": 1.0})  # the run's page and notes are no part of the model
    card(run)  # nor is the model's card, which is written anew
    assert inputs_of({"model": {"name": str(run.path)}}) == before
    (run.model / "config.json").write_text(json.dumps({"a": 1}), "utf-8")
    assert inputs_of({"model": {"name": str(run.path)}}) != before

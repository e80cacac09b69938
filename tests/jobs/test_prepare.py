"""A run that is gone on with, or compared again, computes and stops as it began."""

from __future__ import annotations

from pathlib import Path

import torch

from konomi.config import PPOJob, build
from konomi.data.records import Prompt
from konomi.engine.device import choose_precision
from konomi.jobs.prepare import prepare
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer
from tiny import EOS_ID, save_tiny, tiny_config, tiny_tokenizer

PROMPTS = [Prompt(f"{a}{b}") for a in "abcdef" for b in "uvwxyz"]

VADER = {"name": "embedded:vader", "label": "positive"}


def save_scorer(directory: Path) -> Path:
    """A classifier with one output."""
    import transformers

    config = tiny_config("llama")
    config.num_labels, config.pad_token_id = 1, 0
    transformers.LlamaForSequenceClassification(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def test_rewards_have_the_precision_and_texts_the_ends_that_the_run_began_with(tmp_path: Path) -> None:
    lm, scorer = str(save_tiny(tmp_path / "lm", "llama")), str(save_scorer(tmp_path / "scorer"))
    classifier = {"kind": "classifier", "name": scorer, "label": 0}
    settings = {
        "model": {"name": lm}, "reward": {"kind": "sum", "parts": {"a": classifier}},
        "judges": {"auto": classifier, "own": {**classifier, "precision": "fp32"}, "none": {**classifier, **VADER}},
    }  # fmt: skip
    job = build(PPOJob, settings)
    new = prepare(job, Observer(), prompts=PROMPTS)
    chosen = choose_precision("auto", torch.device("cpu"))
    assert (new.fields["reward_precision"], new.fields["eos_ids"]) == (chosen, [EOS_ID])
    held = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for then, scoring in (({"reward_precision": "bf16", "eos_ids": [EOS_ID, 7]}, "bf16"), ({"eos_ids": [7]}, "fp32")):
        run = RunDir.create(tmp_path, scoring, job.model_dump(mode="json"), seed=0, extra=then)
        again = prepare(job, Observer(), run, prompts=PROMPTS)
        assert again.fields["reward_precision"] == scoring and again.fields["eos_ids"] == then["eos_ids"]
        assert again.tokens.eos_ids == set(then["eos_ids"])
        asked = (again.reward._parts["a"], again.judges["auto"], again.judges["own"])  # type: ignore[attr-defined]
        assert [each._model.base_model.dtype for each in asked] == [held[scoring], held[scoring], torch.float32]

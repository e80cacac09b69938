"""`konomi dpo` in the tiny world, through the command line: it learns, from every form, and is measured as PPO is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import konomi, lines_of, sets, write_rows
from konomi.config import ModelConfig
from konomi.models.load import load_causal_lm
from tiny import ALPHABET

PROMPTS = [f"{a}{b} " for a in "abcdefgh" for b in "ijklmnop"]
AFTER = sets("reward.kind=function", "reward.name=taste.py:count_a", "rollout.response_tokens=[6, 6]", "rollout.stop=length")


def answers(prompt: str, k: int = 4) -> list[str]:
    generator = torch.Generator().manual_seed(sum(map(ord, prompt)))
    rows = torch.randint(4, (k, 6), generator=generator).tolist()
    return list(dict.fromkeys("".join(ALPHABET[i] for i in row) for row in rows))


@pytest.fixture
def here(world: Path) -> Path:
    """The world, with rankings and scores by the number of a's."""
    rows = [(prompt, [(text, text.count("a")) for text in answers(prompt)]) for prompt in PROMPTS]
    write_rows("rankings.jsonl", (
        {"prompt": prompt, "responses": [text for text, _ in own], "ranks": [1 + sum(o > n for _, o in own) for _, n in own]}
        for prompt, own in rows if len({n for _, n in own}) > 1
    ))  # fmt: skip
    write_rows(
        "scores.jsonl", ({"prompt": prompt, "response": text, "score": 1.5 * n} for prompt, own in rows for text, n in own)
    )
    return world


def ran(*settings: str, after: bool = False) -> dict[str, Any]:
    changes = sets("data.file=rankings.jsonl", "dpo.epochs=4", "dpo.learning_rate=3e-3", *settings)
    result = konomi("dpo", "dpo.toml", "--json", *(AFTER if after else []), *changes, code=0)
    return {**json.loads(result.stdout), "said": result.stderr}


def test_it_learns_and_what_it_writes_is_better(here: Path) -> None:
    settings = ("dpo.epochs=8", "dpo.beta=0.03", "compare.samples=4", 'compare.extra=["xy "]')
    told = ran("run.name=d", "model.name=other", *settings, after=True)
    run, held_out, compare = Path("runs/d"), told["eval"]["held_out"], told["compare"]
    assert held_out["accuracy"]["low"] > 0.5 and held_out["margin"]["low"] > 0 and held_out["loss"] < math.log(2)
    assert held_out["preferred"] > held_out["other"]
    assert compare["difference"]["low"] > 0 and compare["after"]["kl"] > compare["before"]["kl"] == 0
    evaluations = [line for line in lines_of(run / "metrics.jsonl") if "eval/loss" in line]
    assert evaluations[0]["eval/loss"] == pytest.approx(math.log(2), abs=1e-5)  # it begins at its reference
    assert min(line["eval/loss"] for line in evaluations) == pytest.approx(held_out["loss"], abs=1e-5)
    assert {"dpo/loss", "dpo/grad_norm", "dpo/learning_rate", "dpo/epoch"} <= lines_of(run / "metrics.jsonl")[1].keys()
    assert {path.name for path in run.iterdir()} - {".lock"} == {
        "config.json", "run.json", "metrics.jsonl", "model", "report.html", "eval.json", "compare.json", "inputs",
    }  # fmt: skip
    card = (run / "model" / "README.md").read_text("utf-8")
    for words in ("by DPO", "| accuracy |", "| margin |", "| score mean |", "`dpo.beta`"):
        assert words in card
    assert "DPO of other on rankings.jsonl" in (run / "report.html").read_text("utf-8")
    doctor = konomi("doctor", str(run)).stdout
    assert "held out" in doctor and "before/after" in doctor
    assert "the job has no [reward]" in konomi("doctor", "dpo.toml").stdout
    again = konomi("dpo", "dpo.toml", *AFTER, *sets("data.file=rankings.jsonl", "dpo.epochs=1", "model.name=runs/d"), code=0)
    for words in ("accuracy", "Before / after on", "The model is the one after update", "konomi sample"):
        assert words in again.stdout  # it goes on from the run's model


@pytest.mark.parametrize("more", [["lora.rank=4", "dpo.learning_rate=3e-2"], ["model.top_layers=1"], ["model.freeze=embeddings"]])
def test_part_of_the_weights_is_enough(here: Path, more: list[str]) -> None:
    told = ran("run.name=d", *more, after=True)
    assert (
        told["eval"]["held_out"]["loss"] < math.log(2) and told["compare"]["before"]["kl"] == 0 < told["compare"]["after"]["kl"]
    )
    tuned, initial = (load_causal_lm(ModelConfig(name=name)).model.state_dict() for name in ("runs/d", "lm"))
    moved = {name for name in initial if not torch.equal(tuned[name], initial[name])}
    below = {name for name in moved if "wte" in name or "h.0." in name}
    assert moved and (not below or more[0] == "lora.rank=4" or more == ["model.freeze=embeddings"])
    assert Path("runs/d/adapter").is_dir() == (more[0] == "lora.rank=4")
    assert more != ["model.freeze=embeddings"] or not any("wte" in name for name in moved)


def test_every_form_is_read(here: Path) -> None:
    rows = [{"prompt": p, "chosen": a, "rejected": b} for p in PROMPTS for a, b in [sorted(answers(p)[:2])]]
    write_rows("pairs.jsonl", rows)
    talks = [{"prompt": [{"role": "user", "content": r["prompt"]}],
              **{k: [{"role": "assistant", "content": r[k]}] for k in ("chosen", "rejected")}} for r in rows]  # fmt: skip
    write_rows("talks.jsonl", talks)
    write_rows("soft.jsonl", ({**row, "label": 0.8, "margin": 0.5} for row in rows))
    thumbs = ({"prompt": p, "response": text, "thumbs": "a" in text} for p in PROMPTS for text in answers(p))
    write_rows("thumbs.jsonl", thumbs)
    few = konomi("dpo", "dpo.toml", *sets("data.file=scores.jsonl", "data.limit=3"), code=2)
    assert "it has 1 prompt in all" in few.stderr  # rows are scores here
    assert ran("dpo.epochs=1", "data.file=thumbs.jsonl")["eval"]["held_out"]["loss"] > 0
    for settings in (["data.file=scores.jsonl", "dpo.loss=ipo"], ["data.file=soft.jsonl", "dpo.label_smoothing=0.1"]):
        assert ran("dpo.epochs=1", *settings)["eval"]["held_out"]["loss"] > 0
    assert "its margins are not used" in ran("dpo.epochs=1", "data.file=soft.jsonl", "dpo.loss=ipo")["said"]
    missing = konomi("dpo", "dpo.toml", *sets("data.file=talks.jsonl"), code=2)
    assert "no chat template" in missing.stderr and not list(Path("runs").glob("*broken*"))
    template = "{% for m in messages %}{{ m.role[0] }} {{ m.content }}{{ eos_token }}{% endfor %}" \
        "{% if add_generation_prompt %}a {% endif %}"  # fmt: skip
    Path("lm/chat_template.jinja").write_text(template, encoding="utf-8")
    talked = ran("dpo.epochs=1", "data.file=talks.jsonl", "compare.prompts=4", after=True)
    chatted = ran("dpo.epochs=1", "data.file=pairs.jsonl", "data.chat=true", "compare.prompts=4", after=True)
    assert talked["eval"]["held_out"]["loss"] == pytest.approx(chatted["eval"]["held_out"]["loss"], abs=1e-6)
    assert talked["compare"]["texts"][0]["chat"] and talked["compare"]["texts"] == chatted["compare"]["texts"]


def test_prompts_of_its_own_for_the_before_after(here: Path) -> None:
    Path("more.jsonl").write_text("".join(json.dumps({"text": f"{a}{b}{c}"}) + "\n" for a in "xyz" for b in "xyz" for c in "pq"))
    told = ran("dpo.epochs=1", "data.prompts=more.jsonl", "data.held_out=0.4", after=True)
    assert all(text["prompt"][0] in "xyz" for text in told["compare"]["texts"])
    assert 0 < told["compare"]["prompts"] < 18


def test_where_nothing_is_learned_the_model_is_the_initial_one(here: Path) -> None:
    # a square of what is far off, whichever way it went
    wild = ("dpo.loss=ipo", "dpo.learning_rate=30", "dpo.warmup=0", "dpo.schedule=constant")
    told = ran("run.name=d", *wild, "dpo.epochs=1", "dpo.patience=1")
    assert "no evaluation was better than that of the initial model" in told["said"] and told["best_update"] == 0
    tuned, initial = (load_causal_lm(ModelConfig(name=name)).model.state_dict() for name in ("runs/d", "lm"))
    assert all(torch.equal(tuned[name], initial[name]) for name in initial)

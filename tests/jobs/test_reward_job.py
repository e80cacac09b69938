"""`konomi reward` in the tiny world, through the command line: three tasks, what is left behind, PPO on the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from command_line import konomi, sets, write_rows
from konomi.config import ModelReward
from konomi.rewards import build_reward
from tiny import ALPHABET, save_tiny, tiny_encoder

PROMPTS = [f"{a}{b} " for a in "abcdefgh" for b in "ijklm"]


def answers(prompt: str, k: int = 4) -> list[str]:
    generator = torch.Generator().manual_seed(sum(map(ord, prompt)))
    rows = torch.randint(4, (k, 6), generator=generator).tolist()
    return list(dict.fromkeys("".join(ALPHABET[i] for i in row) for row in rows))


def rankings(tmp_path: Path) -> str:
    rows = []
    for prompt in PROMPTS:
        texts = answers(prompt)
        counts = [text.count("a") for text in texts]
        rows.append({"prompt": prompt, "responses": texts, "ranks": [1 + sum(c > own for c in counts) for own in counts]})
    return write_rows(tmp_path / "rankings.jsonl", rows)


def candidates(tmp_path: Path) -> str:
    rows = [{"prompt": p, "candidates": [{"text": t, "model": "m"} for t in answers(p)]} for p in PROMPTS]
    return write_rows(tmp_path / "candidates.jsonl", rows)


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "job.toml"
    path.write_text(f'{text}\n[run]\nmlflow = false\nname = "r"\n', encoding="utf-8")
    return str(path)


def preference(tmp_path: Path, more: str = "") -> str:
    save_tiny(tmp_path / "lm", "llama")
    return config(
        tmp_path,
        f'[model]\nname = "{tmp_path / "lm"}"\n[data]\nfile = "{rankings(tmp_path)}"\n[train]\nepochs = 6\nbatch_size = 8\n'
        f"learning_rate = 3e-3\nmax_length = 64\n{more}",
    )


def test_from_rankings_to_a_reward_for_ppo(tmp_path: Path) -> None:
    job = preference(tmp_path, f'[normalize]\nsamples = "{candidates(tmp_path)}"')
    said = konomi("reward", job, "--out", str(tmp_path / "runs"), "--json", code=0)
    result = json.loads(said.stdout)
    run = tmp_path / "runs" / "r"
    assert result["status"] == "finished" and result["run"] == str(run)
    assert f"{result['eval']['held_out']['prompts']} held-out prompts are too few to judge the run by" in said.stderr
    found = json.loads((run / "eval.json").read_text("utf-8"))
    assert found["held_out"]["accuracy"]["value"] > 0.8
    assert found["task"] == "preference" and len(found["texts"]) == 16
    info = json.loads((run / "run.json").read_text("utf-8"))
    assert (info["status"], info["verb"]) == ("finished", "reward")
    assert '"status":"finished"' in (run / "report.html").read_text("utf-8") and not list(run.glob(".best*"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 7 and lines[-1]["eval/loss"] < lines[0]["eval/loss"]
    # the scale is that of the samples: mean 0, deviation 1
    reward = build_reward(ModelReward(kind="model", name=str(run)))  # a run is its model
    texts = [(p, t) for p in PROMPTS for t in answers(p)]

    def score(pairs: list[tuple[str, str]]) -> torch.Tensor:
        prompts, responses = zip(*pairs, strict=True)
        whole = [p + r for p, r in pairs]
        return torch.tensor(reward(whole, prompts=prompts, responses=responses, columns={}))

    scores = score(texts)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-3) and float(scores.std()) == pytest.approx(1, abs=1e-3)
    assert torch.allclose(score(texts[7:9]), scores[7:9], atol=1e-4)
    saved = json.loads((run / "model" / "reward.json").read_text("utf-8"))
    assert saved["count"] == len(texts) and len(saved["data_sha256"]) == 64
    # and PPO climbs it
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(p.strip() for p in PROMPTS), encoding="utf-8")
    ppo = tmp_path / "ppo.toml"
    ppo.write_text(
        f'[model]\nname = "{tmp_path / "lm"}"\nprecision = "fp32"\n[data]\nprompts = "{prompts}"\n[rollout]\n'
        f'response_tokens = [4, 6]\nstop = "length"\n[reward]\nkind = "model"\nname = "{run / "model"}"\n[ppo]\nepisodes = 256\n'
        "batch_size = 32\nlearning_rate = 3e-3\nkl_coef = 0.01\n[run]\nmlflow = false\n",
        encoding="utf-8",
    )
    made = json.loads(konomi("ppo", str(ppo), "--out", str(tmp_path / "runs"), "--json", code=0).stdout)
    assert made["compare"]["difference"]["low"] > 0


def test_without_samples_there_is_no_scale_and_ppo_says_so(tmp_path: Path) -> None:
    output = konomi("reward", preference(tmp_path), "--out", str(tmp_path / "runs"), code=0).output
    assert "It has no scale yet" in output
    model = tmp_path / "runs" / "r" / "model"
    ppo = tmp_path / "ppo.toml"
    ppo.write_text(f'[model]\nname = "{tmp_path / "lm"}"\n[reward]\nkind = "model"\nname = "{model}"\n', encoding="utf-8")
    refused = konomi("ppo", str(ppo), "--out", str(tmp_path / "none"), code=2).output
    assert "has no scale" in refused and "reward.normalized = false" in refused
    assert not (tmp_path / "none").exists()
    build_reward(ModelReward(kind="model", name=str(model), normalized=False))


def test_a_judge_that_is_certain(tmp_path: Path) -> None:
    rows = [{"prompt": p, "response": t, "score": float(t.count("a"))} for p in PROMPTS for t in answers(p)]
    job = preference(tmp_path)
    truth = write_rows(tmp_path / "truth.jsonl", rows)
    konomi("reward", job, "--out", str(tmp_path / "runs"), "--set", f"data.truth={truth}", code=0)
    found = json.loads((tmp_path / "runs" / "r" / "eval.json").read_text("utf-8"))
    assert found["truth"]["accuracy"]["value"] > 0.8
    other = write_rows(tmp_path / "other.jsonl", [{"prompt": "zz", "response": "a", "score": 1.0}] * 1)
    output = konomi("reward", job, "--out", str(tmp_path / "2"), "--set", f"data.truth={other}", code=2).output
    assert "it has no scores of the responses that are held out" in output and not (tmp_path / "2").exists()


def test_scores_are_learned(tmp_path: Path) -> None:
    save_tiny(tmp_path / "lm", "gpt2")
    rows = [{"prompt": p, "response": t, "score": 10.0 * t.count("a")} for p in PROMPTS for t in answers(p)]
    job = config(
        tmp_path,
        f'[model]\nname = "{tmp_path / "lm"}"\n[data]\nfile = "{write_rows(tmp_path / "s.jsonl", rows)}"\n'
        '[train]\ntask = "score"\n'
        "epochs = 12\nbatch_size = 8\nlearning_rate = 3e-3\nmax_length = 64\n",
    )
    konomi("reward", job, "--out", str(tmp_path / "runs"), code=0)
    found = json.loads((tmp_path / "runs" / "r" / "eval.json").read_text("utf-8"))
    assert found["held_out"]["spearman"]["value"] > 0.6


def test_labels_are_learned_with_the_settings_of_the_write_up(tmp_path: Path) -> None:
    """The example of the hub, on local data of the same columns and an encoder of the same family."""
    tiny_encoder(tmp_path / "xlm")
    texts = list(dict.fromkeys(p + t for p in PROMPTS for t in answers(p, 12)))
    rows = [{"text": t, "source": "x", "label": min(2, t.count("a"))} for t in texts]
    for name, part in (("train", rows[:360]), ("validation", rows[360:])):
        path = tmp_path / f"{name}.csv"
        path.write_text("text,source,label\n" + "".join(f"{r['text']},x,{r['label']}\n" for r in part), encoding="utf-8")
    example = Path(__file__).resolve().parents[2] / "examples" / "write-up.toml"
    text = example.read_text("utf-8")
    for line in ("subset = ", "revision = ", "split = ", "evaluation_split = "):
        text = "".join(each for each in text.splitlines(keepends=True) if not each.startswith(line))
    text = text.replace("xlm-roberta-base", str(tmp_path / "xlm"))
    text = text.replace("tyqiangz/multilingual-sentiments", str(tmp_path / "train.csv"))
    path = config(tmp_path, text)
    changes = [
        f"data.evaluation={tmp_path / 'validation.csv'}",
        "train.epochs=20",
        "train.batch_size=16",
        "train.learning_rate=3e-3",
    ]
    output = konomi("reward", path, "--out", str(tmp_path / "runs"), *sets(*changes), code=0).output
    found = json.loads((tmp_path / "runs" / "r" / "eval.json").read_text("utf-8"))
    assert found["held_out"]["accuracy"]["value"] > 0.8, output
    assert set(found["held_out"]) >= {"accuracy", "macro_f1", "confusion"}
    saved = json.loads((tmp_path / "runs" / "r" / "model" / "config.json").read_text("utf-8"))
    assert saved["id2label"] == {"0": "positive", "1": "neutral", "2": "negative"}
    # it is a classifier as any other: PPO's reward of kind "classifier" takes it
    from konomi.config import ClassifierReward

    reward = build_reward(ClassifierReward(name=str(tmp_path / "runs" / "r" / "model"), label="negative"))
    low, high = reward(["bcd bcd", "aaa aaa"], prompts=["", ""], responses=["", ""], columns={})
    assert high > low


def test_texts_that_are_cut_are_counted_before_training_with_the_side_and_what_it_leaves_alike(tmp_path: Path) -> None:
    base = tmp_path / "xlm"
    texts = sum(len(answers(prompt)) for prompt in PROMPTS)  # each a <bos>, 3 characters of prompt, 6 of response
    for model, limit, side, alike in (
        (tiny_encoder(base), 4, "end", f"to {len(PROMPTS)} of {len(PROMPTS)} prompts different responses are the same"),
        (save_tiny(tmp_path / "llama", "llama"), 6, "beginning", ""),
        (save_tiny(tmp_path / "llama", "llama"), 10, "", ""),
    ):
        job = preference(tmp_path)
        changes = [f"model.name={model}", f"train.max_length={limit}", "train.epochs=1", f"run.name=r-{side}"]
        arguments = ["reward", job, "--out", str(tmp_path / "runs"), *sets(*changes)]
        said = konomi(*arguments, code=int(bool(alike))).stderr  # where all responses are the same, nothing is learned
        assert ("nothing was learned, and no model is written" in said) == bool(alike)
        cut = f"it reads {limit} tokens of a text, and of a longer one not the {side}: {texts} of {texts} texts are cut"
        assert (cut in said) == bool(side) and ("texts are cut" in said) == bool(side), said
        assert (alike in said) and ("are the same" in said) == bool(alike)


MISTAKES = [
    ("normalize.samples=nowhere.jsonl", "nowhere.jsonl: no such file"),
    ("train.batch_size=6", "batch_size = 6 is not a multiple of micro_batch_size = 4"),
    ("train.task=classification", 'are for scores; task = "classification" has labels'),
    ("data.file=nowhere.jsonl", "nowhere.jsonl: no such file"),
    ("model.name=nowhere/at all", "no such directory"),
    ("data.subset=x", "subset: for data sets of the hub"),
    ("data.label=x", 'data.label is for task = "classification"'),
    ("normalize.model=n", "fewer than two candidates of the model n (normalize.model; there are: m) in it"),
    ("model.top_layers=9", "model.top_layers = 9: the model has 2 layers"),
]


def test_mistakes_are_told_and_nothing_is_written(tmp_path: Path) -> None:
    job = preference(tmp_path, "micro_batch_size = 4\n" + f'[normalize]\nsamples = "{candidates(tmp_path)}"')
    for change, message in MISTAKES:
        assert message in konomi("reward", job, "--out", str(tmp_path / "runs"), "--set", change, code=2).output
    assert not (tmp_path / "runs").exists()

"""`konomi reward` in the tiny world, through the command line: three tasks, what is left behind, PPO on the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from command_line import assert_mistakes, konomi, lines_of, sets, write_rows
from konomi.config import ModelReward
from konomi.data.formats import read_comparisons
from konomi.data.messages import Answered
from konomi.data.records import groups, split_by_key
from konomi.models.reward_files import open_reward_model
from konomi.models.text_baseline import fit_text_baseline
from konomi.rewards import build_reward
from tiny import ALPHABET, tiny_encoder

PROMPTS = [f"{a}{b} " for a in "abcdefgh" for b in "ijklm"]
LEARNING = sets(
    "model.name=other", "data.file=rankings.jsonl", "train.epochs=6", "train.batch_size=8", "train.learning_rate=3e-3",
    "train.max_length=64", "run.name=r",
)  # fmt: skip


def answers(prompt: str, k: int = 4) -> list[str]:
    generator = torch.Generator().manual_seed(sum(map(ord, prompt)))
    rows = torch.randint(4, (k, 6), generator=generator).tolist()
    return list(dict.fromkeys("".join(ALPHABET[i] for i in row) for row in rows))


TEXTS = [(prompt, text) for prompt in PROMPTS for text in answers(prompt)]


@pytest.fixture
def here(world: Path) -> Path:
    """The world, with rankings by the number of a's, samples of a model, and the number of a's as scores."""
    rows = []
    for prompt in PROMPTS:
        counts = [text.count("a") for text in answers(prompt)]
        ranks = [1 + sum(other > own for other in counts) for own in counts]
        rows.append({"prompt": prompt, "responses": answers(prompt), "ranks": ranks})
    write_rows("rankings.jsonl", rows)
    write_rows("samples.jsonl", ({"prompt": p, "candidates": [{"text": t, "model": "m"} for t in answers(p)]} for p in PROMPTS))
    write_rows("scores.jsonl", ({"prompt": p, "response": t, "score": 10.0 * t.count("a")} for p, t in TEXTS))
    return world


def learned(*settings: str, code: int = 0) -> Result:
    return konomi("reward", "reward.toml", "--json", *LEARNING, *sets(*settings), code=code)


def evaluation() -> Any:
    return json.loads(Path("runs/r/eval.json").read_text("utf-8"))


def test_from_rankings_to_a_reward_for_ppo(here: Path) -> None:
    said = learned("normalize.samples=samples.jsonl", "ensemble.text_weight=0.5")
    result, run, found = json.loads(said.stdout), Path("runs/r"), evaluation()
    assert result["status"] == "finished" and result["run"] == str(run)
    assert f"{result['eval']['held_out']['prompts']} held-out prompts are too few to judge the run by" in said.stderr
    assert found["held_out"]["accuracy"]["value"] > 0.8
    baselines = found["held_out"]["baselines"]
    assert min(baselines[name]["accuracy"]["value"] for name in ("text", "network")) > 0.8
    assert found["task"] == "preference" and len(found["texts"]) == 16
    info = json.loads((run / "run.json").read_text("utf-8"))
    assert (info["status"], info["verb"]) == ("finished", "reward")
    assert '"status":"finished"' in (run / "report.html").read_text("utf-8") and not list(run.glob(".best*"))
    lines = lines_of(run / "metrics.jsonl")
    assert len(lines) == 7 and lines[-1]["eval/loss"] < lines[0]["eval/loss"]
    # the scale is that of the samples: mean 0, deviation 1
    reward = build_reward(ModelReward(kind="model", name=str(run)))  # a run is its model

    def score(pairs: list[tuple[str, str]]) -> torch.Tensor:
        prompts, responses = zip(*pairs, strict=True)
        return torch.tensor(reward([p + r for p, r in pairs], prompts=prompts, responses=responses, columns={}))

    scores = score(TEXTS)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-3) and float(scores.std()) == pytest.approx(1, abs=1e-3)
    assert torch.allclose(score(TEXTS[7:9]), scores[7:9], atol=1e-4)
    saved = json.loads((run / "model" / "reward.json").read_text("utf-8"))
    assert saved["count"] == len(TEXTS) and len(saved["data_sha256"]) == 64
    # a sum, wherever the model is opened by its directory
    whole = open_reward_model(str(run / "model"))
    assert whole.ensemble is not None and whole.normalisation is not None
    train, _ = split_by_key(groups(read_comparisons("rankings.jsonl")), 0.2)  # and of what is held out it has read nothing
    kept, made = whole.ensemble.text_baseline, fit_text_baseline([group for group in train if group.comparisons])
    assert kept.sequences == made.sequences and kept.weights_V == pytest.approx(made.weights_V)
    network, text = saved["ensemble"]["network"], saved["ensemble"]["text"]
    pairs = [[Answered(*each) for each in TEXTS]]
    both = torch.cat(whole.predict(pairs))[:, 0]
    whole.ensemble, of_text = None, torch.from_numpy(whole.ensemble.text_baseline.scores([text for _, text in TEXTS]))
    alone = torch.cat(whole.predict(pairs))[:, 0]
    assert torch.allclose(both, network * alone + text * of_text.float(), atol=1e-4) and min(network, text) > 0
    assert torch.allclose(scores, (both - saved["mean"]) / saved["std"], atol=0.02)  # bf16 where it is fast
    assert "text_baseline.safetensors" in (run / "model" / "README.md").read_text("utf-8")
    # trained on it is the network, which is said
    alone = ("model.name=runs/r", "train.epochs=1", "run.name=on", "normalize.samples=samples.jsonl")
    warned = "its score is a sum with a text baseline, of which only the network is taken"
    assert warned in learned(*alone).stderr and warned not in said.stderr
    assert "ensemble" not in json.loads(Path("runs/on/model/reward.json").read_text("utf-8"))
    # and PPO climbs it
    Path("prompts.txt").write_text("\n".join(p.strip() for p in PROMPTS), encoding="utf-8")
    ppo = (
        Path("ppo.toml")
        .read_text("utf-8")
        .replace('kind = "function"\nname = "taste.py:count_a"', 'kind = "model"\nname = "runs/r"')
    )
    Path("ppo.toml").write_text(ppo, encoding="utf-8")
    settings = (
        "model.name=other", "model.precision=fp32", "rollout.response_tokens=[4, 6]", "rollout.stop=length", "ppo.episodes=256",
        "ppo.batch_size=32", "ppo.mini_batch_size=16", "ppo.kl_coef=0.01",
    )  # fmt: skip
    made = json.loads(konomi("ppo", "ppo.toml", "--json", *sets(*settings), code=0).stdout)
    assert made["compare"]["difference"]["low"] > 0


TASTE = """do = "reward"
model.name = "other"
data.file = "rankings.jsonl"
train = { epochs = 2, batch_size = 8, learning_rate = 3e-3 }
normalize.samples = "samples.jsonl"
"""
SEVERAL = f"""name = "several"
mlflow = false
[stages.one]
{TASTE}
[stages.two]
{TASTE}
run.seed = 1
[stages.policy]
do = "ppo"
model.name = "other"
data = {{ prompts = "prompts.txt", held_out = 0.2 }}
rollout.response_tokens = [3, 5]
reward = {{ kind = "model", name = ["@one.model", "@two.model"], pessimism = 0.5 }}
ppo = {{ episodes = 32, batch_size = 16, mini_batch_size = 8, baseline_samples = 16 }}
compare.samples = 1
"""


def test_several_reward_models_of_a_pipeline_are_one_reward(here: Path) -> None:
    Path("pipe.toml").write_text(SEVERAL, encoding="utf-8")

    def steps() -> dict[str, str]:
        told = json.loads(konomi("run", "pipe.toml", "--dry-run", "--json", code=0).stdout)
        return {step["stage"]: f"{step['action']}: {step['why']}" for step in told}

    konomi("run", "pipe.toml", "--json", code=0)
    policy = Path("runs/several/policy")
    names = [f"runs/several/{name}/model" for name in ("one", "two")]
    inputs = json.loads((policy / "run.json").read_text("utf-8"))["inputs"]
    assert [inputs[f"reward.name.{i}"]["name"] for i in range(2)] == names
    lines = lines_of(policy / "metrics.jsonl")
    assert len([line for line in lines if line.get("reward/spread/mean", 0.0) > 0]) == 2
    assert ", ".join(names) in (policy / "report.html").read_text("utf-8")
    assert {each.partition(":")[0] for each in steps().values()} == {"skip"}
    (Path(names[1]) / "other.txt").write_text("x", encoding="utf-8")
    assert steps()["policy"] == "run: @two.model has changed"


def test_without_samples_there_is_no_scale_and_ppo_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "It has no scale yet" in konomi("reward", "reward.toml", *LEARNING, code=0).stdout
    reward = '[model]\nname = "lm"\n[reward]\nkind = "model"\nname = "runs/r/model"\n'
    Path("other.toml").write_text(reward, encoding="utf-8")
    words = ["has no scale", "reward.normalized = false"]
    assert_mistakes(here, [(["ppo", "other.toml", "--out", "none"], words)], monkeypatch)
    build_reward(ModelReward(kind="model", name="runs/r/model", normalized=False))


def test_a_judge_that_is_certain(here: Path) -> None:
    learned("data.truth=scores.jsonl")
    found = evaluation()
    assert found["truth"]["accuracy"]["value"] > 0.8
    assert found["truth"]["baselines"].keys() == found["held_out"]["baselines"].keys() == {"text"}
    assert found["truth"]["baselines"]["text"]["accuracy"]["value"] > 0.8
    assert not Path("runs/r/model/text_baseline.safetensors").exists()
    write_rows("few.jsonl", [{"prompt": "zz", "response": "a", "score": 1.0}])
    assert "it has no scores of the responses that are held out" in learned("data.truth=few.jsonl", code=2).stderr


def test_scores_are_learned(here: Path) -> None:
    learned("model.name=lm", "data.file=scores.jsonl", "train.task=score", "train.epochs=12")
    assert evaluation()["held_out"]["spearman"]["value"] > 0.6


def test_texts_that_are_cut_are_counted_before_training_with_the_side_and_what_it_leaves_alike(here: Path) -> None:
    tiny_encoder("xlm")
    all_alike = f"to {len(PROMPTS)} of {len(PROMPTS)} prompts different responses are the same"
    for model, limit, side, alike in (("xlm", 4, "end", all_alike), ("other", 6, "beginning", ""), ("other", 10, "", "")):
        changes = [f"model.name={model}", f"train.max_length={limit}", "train.epochs=1", f"run.name=r-{side}"]
        said = learned(*changes, code=int(bool(alike))).stderr  # where all responses are the same, nothing is learned
        assert ("nothing was learned, and no model is written" in said) == bool(alike)
        cut = f"it reads {limit} tokens of a text, and of a longer one not the {side}: {len(TEXTS)} of {len(TEXTS)} texts are cut"
        assert (cut in said) == bool(side) and ("texts are cut" in said) == bool(side), said
        assert (alike in said) and ("are the same" in said) == bool(alike)

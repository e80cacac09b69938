"""`konomi doctor`: faults are found before the first update, sound jobs are not scolded, runs are read as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from chat_layouts import save_chat, talk
from command_line import konomi, sets, write_rows
from konomi.config import PPOJob, build
from konomi.config.pipeline import verb_of
from konomi.config.section import read_toml
from konomi.data.records import Prompt
from konomi.engine.memory import Setting, Shape
from konomi.jobs.common import locked
from konomi.jobs.doctor.lines import Line
from konomi.jobs.doctor.machine import Pace, check_disk, check_memory, plan, reward_gb
from konomi.jobs.doctor.prompts import check_prompts, leaked
from konomi.jobs.doctor.reward_models import check_reward_models
from konomi.jobs.doctor.rewards import Drawn, check_responses, check_scores
from konomi.jobs.doctor.settings import check_settings
from konomi.runs import environment
from konomi.runs.directory import RunDir

WORDS = [a + b + c + d for a in "bcdfg" for b in "aeiou" for c in "lmnr" for d in "stv"]
TASTE = '''
def odd(responses):
    """The share of letters with odd codes: it has nothing to do with length."""
    return [sum(ord(c) % 2 for c in text) / max(1, len(text)) for text in responses]

def short(responses):
    return [-float(len(text) > 9) for text in responses]

def flat(responses):
    return [1.0 for _ in responses]

def length(responses):
    return [float(len(text)) for text in responses]

def raising(responses):
    return [1 / (len(text) - len(text)) for text in responses]

def of_prompt(prompts):
    return [float(sum(map(ord, text))) for text in prompts]
'''
JOB = """
[model]
name = "lm"
precision = "fp32"
[data]
prompts = "prompts.txt"
held_out = 0.2
[rollout]
response_tokens = [6, 12]
[reward]
kind = "function"
name = "taste.py:odd"
[ppo]
episodes = 128
batch_size = 16
mini_batch_size = 8
baseline_samples = 32
learning_rate = 1e-5
"""
SOUND = {
    "plain": (),
    "adapters": ("model.name=other", "lora.rank=4", "ppo.learning_rate=1e-4", "ppo.responses_per_prompt=4",
                 "judges.short.kind=function", "judges.short.name=taste.py:short"),
    "chat": ("model.name=chat", "data.prompts=talks.jsonl", "data.column=messages", "model.top_layers=1"),
}  # fmt: skip
BROKEN = {
    "reward: 1.00 for all of 48 texts": ("reward.name=taste.py:flat",),
    "reward: ZeroDivisionError": ("reward.name=taste.py:raising",),
    "responses to one prompt: it hangs on the prompt alone": ("reward.name=taste.py:of_prompt",),
    "leaks: held-out prompts also learned": ("data.prompts=twice.txt",),
    "end of text: the end of text is token 99, but the model has embeddings for 29 tokens": ("model.name=endless",),
    "memory: it does not fit": ("model.name=huge",),
    "ppo.learning_rate: 0.5; usual": ("ppo.learning_rate=0.5",),
    "ppo.kl_coef: it stays 0": ("ppo.kl_coef=0",),
}
"""What is checked, and words of what is seen -> settings."""


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, prompts, rewards, and a job file that is sound."""
    here = tmp_path_factory.mktemp("clinic")
    tiny.save_tiny(here / "lm", "gpt2")
    tiny.save_tiny(here / "other", "llama", seed=2)
    save_chat(here / "chat", "qwen3")
    tiny.save_tiny(here / "endless", "gpt2", eos_token_id=99)
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(here / "endless")
    sizes = {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64}
    config = tiny.tiny_config("llama", vocab=128_256, **sizes)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(here / "huge")
    (here / "huge" / "model.safetensors").write_bytes(b"")  # nothing reads it
    (here / "prompts.txt").write_text("\n".join(WORDS), encoding="utf-8")
    (here / "twice.txt").write_text("\n".join([*WORDS, *(f"{word[:2]} {word[2:]}" for word in WORDS)]), encoding="utf-8")
    write_rows(here / "talks.jsonl", ({"messages": talk(f"{word}?")} for word in WORDS))
    (here / "taste.py").write_text(TASTE, encoding="utf-8")
    (here / "job.toml").write_text(JOB, encoding="utf-8")
    return here


def asked(*arguments: str, code: int) -> dict[str, Any]:
    return dict(json.loads(konomi("doctor", *arguments, "--json", code=code).stdout))


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if "__pycache__" not in path.parts)


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_job_is_not_scolded(name: str, clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clinic)
    before = files(clinic)
    found = asked("job.toml", *sets(*SOUND[name]), code=0)
    assert [line for line in found["lines"] if line["level"] != "fine" or line["do"]] == []
    assert (found["verb"], found["broken"], found["look"]) == ("ppo", 0, 0)
    assert found["fine"] == len(found["lines"]) > 15 and found["seconds"] > 0 and found["gigabytes"] > 1
    assert files(clinic) == before


@pytest.mark.parametrize("fault", BROKEN)
def test_each_fault_is_found_before_the_first_update(fault: str, clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clinic)
    before = files(clinic)
    found = asked("job.toml", *sets(*BROKEN[fault]), code=1)
    checked, words = fault.split(": ", 1)
    lines = [line for line in found["lines"] if line["checked"] == checked]
    assert [(line["level"], words in line["seen"], bool(line["do"])) for line in lines] == [("broken", True, True)], found
    assert found["lines"][0]["level"] == "broken" and files(clinic) == before


def test_a_reward_that_is_length_is_worth_a_look_and_told_in_a_table(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clinic)
    shown = konomi("doctor", "job.toml", *sets("reward.name=taste.py:length"), "--out", "found.json", code=0).stdout
    kept = json.loads((clinic / "found.json").read_text("utf-8"))
    (clinic / "found.json").unlink()
    first = kept["lines"][0]
    assert (first["checked"], first["level"], kept["look"]) == ("score and length", "look", 1) and "+1.00" in first["seen"]
    assert all(words in shown for words in ("score and length", "-> is the reward more than length?", "0 broken, 1 to look at"))


def test_jobs_of_the_other_verbs_and_pipelines(clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    learned = write_rows("texts.jsonl", ({"prompt": f"{word} ", "completion": word} for word in WORDS))
    pairs = write_rows("pairs.jsonl", ({"prompt": word, "chosen": "aaa", "rejected": "b"} for word in WORDS))
    candidates = write_rows("c.jsonl", ({"prompt": word, "candidates": [{"text": word[k:]} for k in range(3)]} for word in WORDS))
    lm, taste = clinic / "lm", f'kind = "function", name = "{clinic / "taste.py"}:flat"'
    jobs = {
        "sft": f'model.name = "{lm}"\ndata.texts = "{learned}"\ndata.held_out = 0.25',
        "reward": f'model.name = "{lm}"\ndata.file = "{pairs}"',
        "sample": f'models.a.name = "{lm}"\ndata.prompts = "{clinic / "prompts.txt"}"\nrollout.response_tokens = [3, 6]',
        "pick": f'candidates = "{candidates}"\npick.rankings = "{pairs}"',
        "judge": f'candidates = "{candidates}"\nreward = {{ {taste} }}',
    }
    for verb, text in jobs.items():
        Path(f"{verb}.toml").write_text(text, encoding="utf-8")
    before = files(tmp_path)
    told = {}
    for verb in jobs:
        found = asked(f"{verb}.toml", code=int(verb == "judge"))
        told[verb] = {line["checked"]: line["level"] for line in found["lines"] if line["level"] != "fine"}
        assert found["verb"] == verb and files(tmp_path) == before
    assert told == {"sft": {}, "reward": {"scale of the scores": "look"}, "sample": {}, "pick": {}, "judge": {"reward": "broken"}}
    assert asked("sft.toml", "--set", "sft.learning_rate=0.1", code=1)["lines"][0]["checked"] == "sft.learning_rate"
    text = f'name = "p"\n[stages.first]\ndo = "sample"\n{jobs["sample"]}\n[stages.then]\ndo = "judge"\n'
    Path("pipe.toml").write_text(f'{text}candidates = "@first.candidates"\nreward = {{ {taste} }}', encoding="utf-8")
    found = asked("pipe.toml", code=0)
    lines = {line["checked"]: line["seen"] for line in found["lines"]}
    assert "stage first: prompts" in lines and lines["stage then"].startswith("waits for @first.candidates")


def test_what_the_run_would_refuse_the_doctor_refuses(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clinic)
    for arguments, words in (
        (["none.toml"], "none.toml: no such file"),
        (["job.toml", "--set", "ppo.episods=3"], "did you mean episodes?"),
        (["job.toml", "--set", "model.name=./none"], "none"),
        (["job.toml", "--set", 'run.sinks=["wandb"]'], "wandb is not installed"),
        (["lm"], "not a run"),
    ):
        assert words in konomi("doctor", *arguments, code=2).stderr


def job(**settings: Any) -> PPOJob:
    return build(PPOJob, {section: dict(values) for section, values in settings.items()})


def levels(lines: list[Line]) -> dict[str, str]:
    return {line.checked: line.level for line in lines if line.level != "fine"}


def test_settings_far_from_the_usual_are_told_and_the_defaults_are_not() -> None:
    assert levels(check_settings(job())) == {}
    for settings, told in (
        ({"ppo": {"learning_rate": 2e-4}}, {"ppo.learning_rate": "look"}),
        ({"ppo": {"learning_rate": 2e-4}, "lora": {"rank": 8}}, {}),
        ({"ppo": {"learning_rate": 1e-8}}, {"ppo.learning_rate": "look"}),
        ({"ppo": {"mini_batch_size": 1}}, {"ppo.mini_batch_size": "look"}),
        ({"ppo": {"batch_size": 512, "episodes": 5120, "mini_batch_size": 8}}, {"steps": "look"}),
        ({"ppo": {"epochs": 12, "mini_batch_size": 64}}, {"ppo.epochs": "look"}),
        ({"ppo": {"episodes": 64}}, {"updates": "look"}),
        ({"ppo": {"kl_coef": 0, "kl_controller": "fixed"}}, {"ppo.kl_coef": "look"}),
        ({"ppo": {"kl_coef": 9}}, {"ppo.kl_coef": "look"}),
        ({"ppo": {"kl_target": 6}, "rollout": {"response_tokens": [1, 2]}}, {"ppo.kl_target": "look"}),
        ({"rollout": {"temperature": 3}}, {"rollout.temperature": "look"}),
        ({"ppo": {"gamma": 0.5, "clip": 2, "baseline_samples": 4}},
         {"ppo.gamma": "look", "ppo.clip": "look", "ppo.baseline_samples": "look"}),
    ):  # fmt: skip
        assert levels(check_settings(job(**settings))) == told, settings


def test_prompts_that_are_nearly_the_same_are_found_and_short_ones_that_share_a_beginning_are_not() -> None:
    long = "please write a friendly letter to the neighbours about the party on saturday"
    same, near = leaked([long, "今日の天気は", "The CAT."], [f"{long}!!", f"{long} night", "今日の夕食は", "the cat"])
    assert same == {f"{long}!!": long, "the cat": "The CAT."} and near == {f"{long} night": long}
    texts = [f"number {i} {'abcdefghij'[i % 10] * 12} {i * i}" for i in range(200)]
    held_out = [Prompt(f"{text} {i}") for i, text in enumerate("klmno" * 8)]
    assert levels(check_prompts(job(), list(map(Prompt, texts)), held_out)) == {}
    again = [Prompt(text) for text in (*texts, *(f"{text}." for text in texts[:50]))]
    told = check_prompts(job(ppo={"episodes": 64_000}), again, held_out[:10])
    assert levels(told) == {"held-out prompts": "look", "prompts to train on": "look", "passes over the prompts": "look"}


def drawn(scores: Any, **changes: Any) -> Drawn:
    texts = [f"{i} {'x' * (5 + 7 * i % 11)}" for i in range(48)]
    facts = {"responses": texts, "tokens": [8] * 48, "ended": [False] * 48, **changes}
    return Drawn(4, scores=np.asarray(scores, dtype=np.float64), **facts)


def test_scores_are_looked_at_from_every_side() -> None:
    noise = np.random.default_rng(0).normal(size=48)
    prompts = np.repeat(np.arange(12.0), 4)
    assert levels(check_scores(drawn(noise))) == levels(check_scores(drawn(1e6 * noise))) == {}
    assert levels(check_scores(drawn(1e6 * noise), normalized=False)) == {"reward": "look"}
    assert levels(check_scores(drawn([1.0, *[0.0] * 47]))) == {"reward": "look"}
    hangs = 9 * prompts + 0.1 * noise
    assert levels(check_scores(drawn(hangs), compared=False)) == {"responses to one prompt": "look"}
    assert levels(check_scores(drawn(hangs))) == {}
    for share, behind, level in ((0.9, True, "broken"), (0.2, True, "look"), (0.9, False, "look")):
        assert levels(check_scores(drawn(noise, cut=share, behind=behind))) == {"what the reward reads": level}
    longest = job(rollout={"stop": "eos"})
    assert levels(check_responses(job(), drawn(noise), 2.0)) == {}
    assert levels(check_responses(longest, drawn(noise), 2.0)) == {"responses": "look"}
    assert levels(check_responses(longest, drawn(noise, ended=[True] * 48), 2.0)) == {}
    assert levels(check_responses(job(), drawn(noise, responses=[""] * 48), 2.0)) == {"responses": "look"}
    assert levels(check_responses(job(), drawn(noise), 0.01)) == {"responses": "look"}


def test_memory_says_what_would_make_a_job_fit() -> None:
    shape, gpu = Shape(128_256, 4096, 14_336, 32, 32, 8, 128, tied=False), torch.device("meta")
    needs = plan(shape, Setting(copies=True), 1.0, gpu)
    assert needs["lora.rank = 16"] < needs['ppo.optimizer = "adam8"'] < needs["as it is"]
    too_small = check_memory(needs, 100 * 10**9, gpu)
    assert too_small.level == "broken" and too_small.do.startswith("it fits with lora.rank = 16 (")
    assert check_memory(needs, 10**9, gpu).do.startswith("take a smaller model")
    assert check_memory(needs, 210 * 10**9, gpu).level == "look"
    assert (check_memory(needs, 400 * 10**9, gpu).level, check_memory(needs, 0, gpu).level) == ("fine", "fine")


def test_disk_has_room_for_what_was_trained_beside_where_it_lands() -> None:
    shape = Shape(128_256, 4096, 14_336, 32, 32, 8, 128, tied=False)
    for setting, weights in ((Setting(), 4 * shape.weights), (Setting(rank=64), 4 * shape.adapters(64))):
        seen = [check_disk(shape, setting, 2, lands).seen for lands in (False, True)]
        plain, lands = (float(each.partition(" GB for 3 checkpoints and the model")[0]) for each in seen)
        assert lands - plain == pytest.approx(weights / 1e9, abs=0.11) and "before and after it lands" in seen[1]


def test_free_memory_is_within_the_limit_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_GROUP", tmp_path)
    whole = environment.free_memory()
    assert whole > 10**7
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    (tmp_path / "memory.current").write_text("3000000\n", encoding="utf-8")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 500000\n", encoding="utf-8")
    assert environment.free_memory() > 10**7
    (tmp_path / "memory.max").write_text("4000000\n", encoding="utf-8")
    assert environment.free_memory() == 1_500_000


def reward_run(root: Path, grade: str, writer: str = "lm") -> RunDir:
    """What `konomi reward` leaves, without a model, and the samples that set its scale."""
    samples = root / "samples"
    samples.mkdir(exist_ok=True)
    (samples / "manifest.json").write_text(json.dumps({"models": {"a": {"name": writer}}}), encoding="utf-8")
    config = {"model": {"name": "lm"}, "data": {}, "train": {}, "normalize": {"samples": str(samples / "candidates.jsonl")}}
    run = RunDir.create(root, grade, config, seed=0, extra={"verb": "reward"})
    run.set_status("finished")
    accuracy = {"value": 0.7, "low": 0.6, "high": 0.8}
    told = {"prompts": 90, "accuracy": accuracy, "verdict": {"grade": grade, "en": "A verdict.", "ja": ""}}
    run.write_json("eval.json", {"version": 1, "task": "preference", "held_out": told, "normalisation": {}})
    run.model.mkdir()
    return run


def test_a_reward_model_is_judged_by_its_own_run(tmp_path: Path) -> None:
    for grade, level in (("enough", "fine"), ("wide", "fine"), ("few", "look"), ("chance", "broken")):
        run = reward_run(tmp_path, grade)
        asks = job(model={"name": "lm"}, reward={"kind": "model", "name": str(run.path)})
        (line,) = check_reward_models(asks)
        assert (line.level, "70.0 % (60.0 % to 80.0 %) on 90 held-out prompts, of today" in line.seen) == (level, True)
        assert konomi("doctor", str(run.path)).exit_code == int(level == "broken")
    (run.path / "eval.json").unlink()
    assert levels(check_reward_models(asks)) == {"reward: reward model": "look"}
    part = {"kind": "model", "name": str(reward_run(tmp_path, "length", "another").model)}
    asks = job(reward={"kind": "sum", "parts": {"a": part}}, judges={"b": {**part, "normalized": False}})
    told = levels(check_reward_models(asks))
    assert told == {"reward: reward model": "look", "reward: scale": "look", "judge b: reward model": "look"}
    several = [str(tmp_path / grade) for grade in ("wide", "few")]
    asks = job(model={"name": "another"}, reward={"kind": "model", "name": several})
    told = levels(check_reward_models(asks))
    assert list(told.items()) == [(f"reward {several[1]}: reward model", "look")]
    (tmp_path / "wide/model/model.safetensors").write_bytes(b"\0" * 3000)
    (tmp_path / "few/model/model.safetensors").write_bytes(b"\0" * 5000)
    assert reward_gb(asks.reward) == 8e-6


def ppo_run(root: Path, name: str, marked: int = 0, approxkl: float = 4.0, rise: float = 0.1) -> RunDir:
    """A run of 16 updates whose score rises so much in each; the last ``marked`` of them with a ratio out of range."""
    run = RunDir.create(root, name, PPOJob().model_dump(mode="json"), seed=0)
    for update in range(1, 17):
        ratio = {"ppo/policy/ratio": 1.2, "ppo/policy/approxkl": approxkl * (update == 16), "out_of_range": ["ppo/policy/ratio"]}
        out = ratio if update > 16 - marked else {}
        figures = {"objective/kl": update * 0.4, "objective/kl_coef": 0.2, "ppo/std_scores": 1.0}
        run.append_metrics(update, {**figures, "ppo/mean_scores": rise * update, **out})
        said = "again" if marked > 1 and approxkl > 1 else f"text {update}"
        run.append_samples(update, [{"prompt": "a", "response": said, "score": 1.0, "kl": 0.0}])
    return run


def compared(run: RunDir, low: float, high: float, **after: float) -> None:
    same = {"score_mean": 1.0, "kl": 6.2, "repetition": 0.03, "distinct_2": 0.7, "perplexity": 24.0}
    gap = {"mean": (low + high) / 2, "low": low, "high": high, "wins": 1, "losses": 0, "ties": 0}
    judges = {"kind": {"before": 1.0, "after": 0.5, "difference": {"mean": -0.5, "low": -0.8, "high": -0.2}}} if after else {}
    run.write_json("compare.json", {
        "version": 1, "prompts": 60, "samples": 1, "before": same, "after": same | after, "difference": gap, "judges": judges,
    })  # fmt: skip


def test_a_run_that_went_well_is_told_so(tmp_path: Path) -> None:
    for marked in (0, 15):  # a rule of thumb that was broken is no fault by itself
        run = ppo_run(tmp_path, f"well-{marked}", marked=marked, approxkl=0.5)
        compared(run, 0.4, 0.9)
        run.set_status("finished")
        found = asked(str(run.path), code=0)
        assert [line for line in found["lines"] if line["level"] != "fine"] == [] and found["verb"] == "ppo"


def test_a_score_that_does_not_rise_is_noise_unless_the_before_and_after_shows_more(tmp_path: Path) -> None:
    for low, level in ((0.4, "fine"), (-0.1, "look")):
        run = ppo_run(tmp_path, f"flat-{level}", rise=0.0)
        compared(run, low, 0.9)
        run.set_status("finished")
        told = {line["checked"]: line["level"] for line in asked(str(run.path), code=0)["lines"]}
        assert told["score over the run"] == level


def test_of_a_run_that_did_not_land_it_says_what_to_change(tmp_path: Path) -> None:
    run = ppo_run(tmp_path, "aloft")
    for grade, end, do in (
        ("missed", 8.0, "raise land.prompts, or land.samples; another KL: konomi blend RUN --kl 8.00"),
        ("short", 0.0, "raise ppo.episodes, or land.most"),
    ):
        run.write_json("land.json", {"landed": False, "end_kl": end, "verdict": {"grade": grade, "en": "It did not."}})
        found = konomi("doctor", str(run.path), "--json").stdout
        told = {line["checked"]: line for line in json.loads(found)["lines"]}
        assert (told["landing"]["level"], told["landing"]["seen"], told["landing"]["do"]) == ("look", "It did not.", do)


def test_the_texts_of_a_landing_take_their_time() -> None:
    pace = Pace(rollout=0.25, reward=0.25, score=1.0, step=0.0)
    without, landing = (pace.around(PPOJob.model_validate({"land": {"kl": kl, "prompts": 10}}), 50) for kl in (None, 6.0))
    assert landing - without == 7 * 20 * (0.25 + 0.25 + 2 * 1.0)


def test_of_a_run_that_went_wrong_it_says_what_since_when_and_what_to_change(tmp_path: Path) -> None:
    run = ppo_run(tmp_path, "killed", marked=5)
    event = {"update": 7, "guard": "judge", "action": "warned", "en": "A text. Mend it.", "ja": ""}
    run.note(pid=2**22 + 1, guards=[event, event])  # no process has this number
    compared(run, 0.4, 0.9, repetition=0.4)
    with locked(run.path, dict):  # by a process that has another number, on another machine
        assert any("still running, 16 updates" in line["seen"] for line in asked(str(run.path), code=1)["lines"])
    found = asked(str(run.path), code=1)
    told = {line["checked"]: line for line in found["lines"]}
    assert told["guard judge"]["level"] == "broken" and "from update 7 on, 2 times: A text" in told["guard judge"]["seen"]
    assert told["guard ratio"]["seen"].startswith("from update 16 on: In a single update")
    assert "Lower ppo.learning_rate" in told["guard ratio"]["do"]
    assert told["the run"]["level"] == "broken" and f"ppo --resume {run.path}" in told["the run"]["do"]
    assert "first in update 12" in told["ppo/policy/ratio"]["seen"] and "5 of 16 updates" in told["ppo/policy/ratio"]["seen"]
    assert told["ppo/policy/ratio"]["do"].startswith("lower ppo.learning_rate")
    assert told["price of the score"]["level"] == "look" and "repetition" in told["price of the score"]["seen"]
    assert told["judge kind"]["level"] == "broken"
    assert (told["texts"]["level"], "15 of the last 16 kept repeat another: 'again'" in told["texts"]["seen"]) == ("look", True)
    order = [["broken", "look", "fine"].index(line["level"]) for line in found["lines"]]
    assert order == sorted(order)
    worse = ppo_run(tmp_path, "worse")
    compared(worse, -0.9, -0.4)
    worse.set_status("failed", "RunError: reward")
    told = {line["checked"]: line for line in asked(str(worse.path), code=1)["lines"]}
    assert told["before/after"]["level"] == told["the run"]["level"] == "broken" and "RunError: reward" in told["the run"]["seen"]
    tuned = RunDir.create(tmp_path, "tuned", {"sft": {}}, seed=0)
    for update, loss in ((0, 2.0), (8, 2.5)):
        tuned.append_metrics(update, {"eval/loss": loss, "eval/perplexity": 9.0})
    tuned.set_status("stopped", "SIGTERM after update 8")
    told = {line["checked"]: line for line in asked(str(tuned.path), code=1)["lines"]}
    assert told["evaluation"]["level"] == "broken" and "sft.learning_rate" in told["evaluation"]["do"]
    assert (told["the run"]["level"], f"konomi sft --resume {tuned.path}" in told["the run"]["do"]) == ("look", True)
    assert "--set" in konomi("doctor", str(run.path), "--set", "ppo.clip=1", code=2).stderr


def test_the_verb_of_a_job_file_is_told_by_what_is_in_it() -> None:
    examples = Path(__file__).resolve().parents[2] / "examples"
    verbs = {"sft-ja": "sft", "sample": "sample", "reward": "reward", "demo": "ppo", "write-up": "run", "judge-ja": "run"}
    assert {name: verb_of(read_toml(examples / f"{name}.toml")) for name in verbs} == verbs
    assert verb_of({"candidates": "c.jsonl", "reward": {"kind": "function"}}) == "judge"

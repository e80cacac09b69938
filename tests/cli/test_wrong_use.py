"""Wrong use of any verb: one message that says what is wrong and how to mend it, exit code 2, and nothing written.

Settings that contradict each other are in tests/config; here is what each verb checks beyond them, and one of those each.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

import tiny
from command_line import assert_mistakes, konomi, sets, write_rows
from furnished import PIPE
from konomi.data.records import Prompt, is_held_out

COMMANDS = {
    "ppo": ["CONFIG.toml", "--resume"],
    "ppo none.toml": ["none.toml", "no such file"],
    "ppo ppo.toml --set gamma": ["section.key=value"],
    "ppo --resume none": ["none"],
    "ppo --resume none --set ppo.clip=0.1": ["--set", "resumed"],
    "compare none": ["none"],
    "report .": ["run.json"],
    "blend none --kl 3": ["none"],
    "blend lm --kl 3": ["lm: not a run"],
    "generate lm -p ' '": ["blank"],
    "doctor ppo.toml --out none/found.json": ["--out none/found.json: there is no directory", "make it first"],
    "doctor ppo.toml --out lm": ["--out lm: is a directory"],
    "generate lm -p a --tokens 500": ["500", "context of 128"],
    "generate lm -p a --temperature nan": ["temperature"],
    "judge empty.toml": ["empty.toml: candidates: Field required"],
    "sft empty.toml": ["empty.toml: data: Field required"],
    "judge judge.toml --set candidate=x": ["section.key=value"],
    "config trim": ["trim: no verb with a job file", "ppo", "reward"],
    "run pipe.toml --set stages.nobody.ppo.episodes=1": ["no stage 'nobody'", "candidates, rank, policy, after"],
    "run pipe.toml --set stages.policy.ppo.episods=1": ["stages.policy: ppo.episods: unknown key; did you mean episodes?"],
    "run pipe.toml --set stages.policy=1": ["no stage 'policy=1'"],
    "run pipe.toml --set names=x": ["write section.key=value"],
    "run pipe.toml --from nobody": ["--from nobody: no such stage; the stages are: candidates, rank, policy, after"],
}
SETTINGS: dict[str, dict[str, list[str]]] = {
    "ppo": {
        "ppo.episods=3": ["episods", "did you mean episodes"],
        "data.prompts=none.jsonl": ["none.jsonl"],
        "model.name=./none": ["none"],
        "reward.name=taste.py:nothing": ["nothing"],
        "rollout.response_tokens='[4, 200]'": ["200", "context of 128"],
        "data.max_query_tokens=2": ["max_query_tokens"],
        "compare.extra='[\" \"]'": ["compare.extra"],
        "rollout.stop=length rollout.missing_eos=replace": ["missing_eos", "length"],
        "rollout.missing_eos_score=2": ["missing_eos_score is of no use with missing_eos", '"subtract" or "replace"'],
        'lora.rank=4 lora.targets=\'["c_attn", "q_proj"]\'': ["is named q_proj; there are: c_attn, c_fc, c_proj"],
        "lora.alpha=8": ["lora: alpha is of no use without rank"],
    },
    "sft": {
        "data.texts=none.jsonl": ["none.jsonl", "no such file"],
        "data.texts=empty.jsonl": ["empty.jsonl: no rows in it"],
        "data.prompt_column=prmpt": ["needed:", "data.prompt_column"],
        "data.kind=text": ["completions.jsonl:1: no column 'text'", "data.text_column"],
        "data.kind=pairs": ["data.kind", "prompt-completion"],
        "data.split=test": ["data.split", "is a file"],
        "data.held_out=0": ["held_out = 0", "above 0 and below 1"],
        "data.limit=1": ["held out"],
        "data.texts=texts.txt sft.loss=completion": ["plain texts", 'sft.loss = "all"', "completion columns"],
        "sft.max_length=5": ["completions.jsonl:", "the prompt alone has 5 tokens", "sft.max_length = 5"],
        "sft.max_length=1": ["sft.max_length", "greater than or equal to 2"],
        "data.texts=long.txt sft.max_length=500": ["202 tokens", "context of 128", "set sft.max_length = 128"],
        "sft.batch_size=6": ["batch_size = 6 is not a multiple of micro_batch_size = 4", "4, 8"],
        "sft.warmup=1": ["sft.warmup", "less than 1"],
        "model.top_layers=5": ["model.top_layers = 5: the model has 2 layers"],
        "model.top_layers=1 lora.rank=4": ["model.top_layers = 1 with lora.rank = 4", "set one of them"],
        "model.name=./none": ["none"],
    },
    "sample": {
        "sample.candidates=1": ["sample.candidates", "greater than or equal to 2"],
        "models.a.nam=x": ["models.a.nam: unknown key; did you mean name?"],
        "models.a.name=./none": ["none"],
        "models.b.name=./none": ["none"],
        "data.prompts=none.jsonl": ["none.jsonl"],
        "data.held_out=0.001 sample.prompts=held_out": ["none is held out", "data.held_out = 0.001"],
        "rollout.response_tokens='[4, 200]'": ["200", "context of 128"],
        "data.max_query_tokens=2": ["max_query_tokens"],
    },
    "judge": {
        "candidates=none.jsonl": ["none.jsonl"],
        "candidates=taste.py": ["taste.py"],
        "judge.agreement=0.5": ["judge.agreement", "greater than 0.5"],
        "judge.agreement=1.1": ["judge.agreement", "less than or equal to 1"],
        "judge.overlap=2": ["judge.overlap"],
        "reward.name=taste.py:nothing": ["nothing"],
        """run.sinks='["mlflow", "tensorboard"]'""": ['tensorboard is not installed; pip install "konomi[tensorboard]"'],
    },
    "pick": {
        "candidates=none.jsonl": ["none.jsonl"],
        "pick.rankings=none.jsonl": ["none.jsonl"],
        "pick.candidates=1": ["pick.candidates", "greater than or equal to 2"],
        "pick.tasks=0": ["pick.tasks", "greater than 0"],
    },
    "reward": {
        "data.file=nowhere.jsonl": ["nowhere.jsonl: no such file"],
        "normalize.samples=nowhere.jsonl": ["nowhere.jsonl: no such file"],
        "normalize.samples=candidates.jsonl normalize.model=n": [
            "fewer than two candidates of the model n (normalize.model; there are: a, b) in it"
        ],
        "normalize.samples=candidates.jsonl train.task=classification": ['for scores; task = "classification" has labels'],
        "model.precision=fp64": ['trained in "fp32" or "bf16"'],
        "train.strength_margin=1 train.task=score": ['strength_margin is for task = "preference"'],
        "ensemble.text_weight=1": ["ensemble.text_weight", "less than 1"],
        "ensemble.text_weight=0.5 train.task=score": ['ensemble.text_weight is for task = "preference"'],
        "data.label=x": ['data.label is for task = "classification"'],
        "data.subset=x": ["subset: for data sets of the hub"],
        "data.held_out=0.9999": ["no prompt is left to train on that has a comparison"],
        "data.held_out=1e-9": ["no prompt is left to evaluate on that has a comparison", "change data.held_out"],
        "train.batch_size=6 train.micro_batch_size=4": ["batch_size = 6 is not a multiple of micro_batch_size = 4"],
        "model.name='nowhere/at all'": ["no such directory"],
        "model.top_layers=9": ["model.top_layers = 9: the model has 2 layers"],
    },
    "dpo": {
        "data.file=nowhere.jsonl": ["nowhere.jsonl: no such file"],
        "data.file=candidates.jsonl": ["candidates, not comparisons", "ranked first"],
        "data.held_out=1e-9": ["no prompt is left to evaluate on that has a comparison"],
        "data.prompts=prompts.txt": ["data.prompts without reward", "name what it scores with under [reward]"],
        "judges.x.kind=classifier": ["judges without reward"],
        "reward.kind=function reward.name=taste.py:nothing": ["nothing"],
        "reward.kind=function reward.name=taste.py:count_a data.prompts=none.txt": ["none.txt"],
        "reward.kind=function reward.name=taste.py:count_a rollout.response_tokens='[4, 200]'": ["200", "context of 128"],
        f"reward.kind=function reward.name=taste.py:count_a dpo.max_length=60 compare.extra='[\"{'a' * 70}\"]'": [
            "of the before/after has 71 tokens, more than dpo.max_length = 60",
            "compare.extra",
        ],
        "dpo.label_smoothing=0.5": ["dpo.label_smoothing", "less than 0.5"],
        "dpo.batch_size=6": ["batch_size = 6 is not a multiple of micro_batch_size = 4"],
        "dpo.max_length=3": ["leaves no room for a response within dpo.max_length = 3"],
        "dpo.loss=hinge": ["dpo.loss", "'sigmoid' or 'ipo'"],
        "data.evaluation=pairs.jsonl data.evaluation_split=test": ["set one of them"],
        "data.chat=true": ["no chat template"],
        "model.top_layers=9": ["model.top_layers = 9: the model has 2 layers"],
    },
}
"""Verb -> settings -> words of the message."""
CHANGES: list[tuple[str, str, list[str]]] = [
    ('name = "tiny"', "", ["pipe.toml: name: Field required"]),
    ('name = "tiny"', 'name = "../tiny"', ["'../tiny'", "letters, digits, _ and - only"]),
    ('name = "tiny"', 'nam = "tiny"', ["pipe.toml: nam: unknown key; did you mean name?"]),
    ("[stages.rank]", '[stages."a.b"]', ["'a.b'", "letters, digits, _ and - only"]),
    ("[stages.rank]", "[stages.mlartifacts]", ["mlartifacts"]),
    ('do = "judge"', 'do = "rank"', ["pipe.toml: stages.rank: do = 'rank'", "sft, sample, judge, label, pick, reward, dpo,"]),
    ('do = "judge"', "", ["pipe.toml: stages.rank: do = None"]),
    ('do = "judge"', 'do = "judge"\njudge.agree = 0.8', ["stages.rank: judge.agree: unknown key; did you mean agreement?"]),
    ("episodes = 96", "episodes = 97", ["stages.policy: ppo: episodes = 97 is not a multiple"]),
    ("run = { save_every = 1 }", "run = 3", ["stages.policy: run has to be a section, [stages.policy.run]"]),
    ("save_every = 1", 'name = "x"', ["stages.policy: run.name is decided by the pipeline"]),
    ("@candidates.candidates", "@nobody.candidates",
     ["stages.rank: candidates = '@nobody.candidates'", "there is no stage 'nobody'", "here: @candidates.candidates"]),
    ("@candidates.candidates", "@candidates.rankings",
     ["stage candidates (sample) has no output 'rankings'", "to be had here: @candidates.candidates"]),
    ("@candidates.candidates", "@policy.model", ["stage policy does not come before this one"]),
    ('models.a.name = "lm"', 'models.a.name = "@rank.truth"',
     ["stages.candidates: models.a.name", "to be had here: nothing, this is the first stage"]),
    ("[stages", "[stag", ["pipe.toml: stag: unknown key"]),
]  # fmt: skip
"""What may be wrong in a pipeline's file: a text in it, what stands there instead, words of the message."""


def test_wrong_use_is_one_message_exit_2_and_nothing_written(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    Path("empty.toml").write_text("[judge]\nagreement = 0.8\n", encoding="utf-8")
    assert_mistakes(world, ((shlex.split(command), words) for command, words in COMMANDS.items()), monkeypatch)
    for verb, cases in SETTINGS.items():
        job = [verb, f"{verb}.toml"]
        assert_mistakes(world, (([*job, *sets(*shlex.split(each))], words) for each, words in cases.items()), monkeypatch)
    for old, new, words in CHANGES:
        assert old in PIPE
        Path("pipe.toml").write_text(PIPE.replace(old, new), encoding="utf-8")
        assert_mistakes(world, [(["run", "pipe.toml"], words)], monkeypatch)


def test_names_that_are_no_paths(world: Path) -> None:
    name = "お茶はいかがですか。" * 40
    before = sorted(world.rglob("*"))
    for arguments in (
        *(["ppo", "ppo.toml", "--set", f"{key}={name}"] for key in ("data.prompts", "model.name")),
        ["ppo", "ppo.toml", "--set", f"reward.name={name}.py:f"],
        *(
            ["ppo", "ppo.toml", "--set", "reward.kind=" + kind, "--set", f"reward.name={name}"]
            for kind in ("classifier", "model")
        ),
        *(
            [verb, name]
            for verb in ("ppo", "sft", "reward", "dpo", "sample", "pick", "judge", "run", "compare", "report", "label", "watch")
        ),
        ["ppo", "--resume", name],
        ["ppo", "ppo.toml", "--out", name],
        ["generate", name, "-p", "a"],
        ["trim", name, "--scripts", "ja", "--out", "x"],
        ["convert", name, "o.jsonl", "--to", "pairs"],
        ["convert", "~nobody-of-this-name/x.jsonl", "o.jsonl", "--to", "pairs"],
        ["convert", "pairs.jsonl", "o" * 245 + ".jsonl", "--to", "pairs"],
        ["label", "people", "--chat", name],
        ["label", "people", "--chat", "~nobody-of-this-name/x"],
        ["ppo", "ppo.toml", "--set", "model.name=~nobody-of-this-name/x"],
        ["ppo", "ppo.toml", "--set", 'data.prompts="a\\u0000b"'],
    ):
        result = konomi(*arguments)
        assert result.exit_code == 2 and "Traceback" not in result.stderr, (arguments, result.stderr)
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert re.search("no such (file|directory)|cannot be imported", result.stderr), result.stderr
    assert sorted(world.rglob("*")) == before


def test_a_token_that_the_model_has_no_embedding_for_is_refused_before_anything_is_written(world: Path) -> None:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(world / "lm")
    texts = [f"<new>{a}{b}" for a in "abcd" for b in "abcd"]
    held_out = next(text for text in texts if is_held_out(Prompt(text).key, 0.2))
    trained = next(text for text in texts if not is_held_out(Prompt(text).key, 0.2))
    plain = (world / "prompts.txt").read_text(encoding="utf-8")
    for text in (held_out, trained):
        (world / "prompts.txt").write_text(f"{plain}{text}\n", encoding="utf-8")
        write_rows("pairs.jsonl", ({"prompt": each, "chosen": "a", "rejected": "b"} for each in [*plain.split(), text]))
        for verb, key in (
            ("ppo", "data.prompts"),
            ("sample", "data.prompts"),
            ("sft", "data.texts"),
            ("reward", ""),
            ("dpo", ""),
        ):
            result = konomi(verb, f"{verb}.toml", *sets(*([f"{key}=prompts.txt"] if key else [])), code=2)
            assert text in result.stderr and "has the token '<new>' (id 29), but the model has embeddings for 29" in result.stderr
            assert not (world / "runs").exists()
    assert konomi("generate", "lm", "-p", "a<new>").exit_code == 2

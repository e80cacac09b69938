"""What comes from outside of a run: a full disk, a closed terminal, variables of another program; through the command line."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tiny
from konomi.cli import app

TASTE = '''
import os, resource

asked = 0

def count_a(responses):
    return [float(text.count("a")) for text in responses]

def letters(texts):
    return [float(sum(map(ord, text))) for text in texts]

def filling(responses):
    """From the fourth call on no file may be larger than 60 kB, where there is a file "full"."""
    global asked
    asked += 1
    if asked == 4 and os.path.exists("full"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    return count_a(responses)
'''
PPO = """
[model]
name = "lm"
[data]
prompts = "prompts.txt"
[rollout]
response_tokens = [4, 8]
[reward]
kind = "function"
name = "taste.py:count_a"
[ppo]
episodes = 64
batch_size = 16
mini_batch_size = 8
baseline_samples = 16
[compare]
prompts = 4
samples = 1
[run]
save_every = 1
mlflow = false
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with all that small jobs need; it is the current one."""
    tiny.save_tiny(tmp_path / "lm", "gpt2")
    words = [a + b + c for a in "abcdefgh" for b in "xyz" for c in "uvw"]
    pairs = [{"prompt": word, "chosen": "aaa", "rejected": "b"} for word in words]
    files = {
        "prompts.txt": "\n".join(words) + "\n",
        "texts.jsonl": "".join(json.dumps({"text": f"{word} and {word}"}) + "\n" for word in words),
        "pairs.jsonl": "".join(json.dumps(pair) + "\n" for pair in pairs),
        "taste.py": TASTE,
        "ppo.toml": PPO,
        "sft.toml": '[model]\nname = "lm"\n[data]\ntexts = "texts.jsonl"\n[sft]\nepochs = 1\n[run]\nmlflow = false\n',
        "reward.toml": '[model]\nname = "lm"\n[data]\nfile = "pairs.jsonl"\n[train]\nepochs = 1\n[run]\nmlflow = false\n',
        "sample.toml": '[models.a]\nname = "lm"\n[data]\nprompts = "prompts.txt"\n[rollout]\nresponse_tokens = [3, 6]\n'
        "[run]\nmlflow = false\n",
        "judge.toml": 'candidates = "made/one/candidates.jsonl"\n[reward]\nkind = "function"\nname = "taste.py:letters"\n'
        "[run]\nmlflow = false\n",
        "pipe.toml": 'name = "pipe"\nmlflow = false\n[stages.learn]\ndo = "sft"\nmodel.name = "lm"\ndata.texts = "texts.jsonl"\n'
        "sft.epochs = 1\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def _save_bpe(directory: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(["the cat and the hat"] * 9, trainer)
    tiny.tiny_model("gpt2", vocab=inner.get_vocab_size(), bos_token_id=0, eos_token_id=0).save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>").save_pretrained(directory)


def konomi(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


# -- a full disk -------------------------------------------------------------------------------------------------------


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """Stands in for a full disk: what is written beyond ``size`` bytes of a file fails."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_disk_that_is_full_is_one_message(world: Path) -> None:
    assert konomi("sample", "sample.toml", "--out", "made", "--set", "run.name=one").exit_code == 0
    assert konomi("ppo", "ppo.toml", "--out", "made", "--set", "run.name=ppo").exit_code == 0
    _save_bpe(world / "bpe")
    weights = 60_000
    table: dict[str, tuple[int, str]] = {
        "ppo ppo.toml": (weights, "checkpoints/update-00001"),
        "ppo ppo.toml --set run.save_every=99": (weights, "checkpoints/update-00004"),
        "ppo ppo.toml --profile --set run.save_every=99": (20_000, "trace.json.gz"),
        "sft sft.toml": (weights, "model"),
        "reward reward.toml": (weights, ".best.safetensors"),
        "run pipe.toml": (weights, "out/pipe/learn/model"),
        "trim bpe --scripts ja --out trimmed": (2_000, "trimmed"),
        "sample sample.toml": (3_000, "candidates.jsonl"),
        "judge judge.toml": (3_000, "rankings.jsonl"),
        "convert pairs.jsonl made/out.jsonl --to rankings": (1_000, "made/out.jsonl"),
        "label project --candidates made/one/candidates.jsonl": (1_000, "project"),
        "compare made/ppo": (100, "compare.json"),
        "report made/ppo": (100, "report.html"),
    }
    for command, (size, place) in table.items():
        run = command.split()[0] in ("ppo", "sft", "reward", "sample", "judge", "run")
        with no_file_over(size):
            result = konomi(*command.split(), *(("--out", "out") if run else ()))
        last = result.stderr.splitlines()[-1]
        assert result.exit_code == 1, (command, result.stderr, result.exception)
        assert last.startswith("konomi: ") and place in last, (command, last)
        assert any(why in last for why in ("File too large", "cut short", "is there space")), (command, last)
        assert "Traceback" not in result.stderr
        left = [path for path in world.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
        assert left == [], command
    reasons = [json.loads(path.read_text("utf-8")) for path in world.glob("out/*/run.json")]
    assert {(info["status"], "cannot be written: " in info["reason"]) for info in reasons} == {("failed", True)}


def test_a_run_that_filled_the_disk_goes_on_once_there_is_room(world: Path) -> None:
    job = ("ppo", "ppo.toml", "--set", "reward.name=taste.py:filling", "--set", "run.save_every=1")
    (world / "full").touch()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        full = konomi(*job, "--set", "run.name=full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert full.exit_code == 1
    assert "checkpoints/update-00003: cannot be written: File too large" in full.stderr.splitlines()[-1]
    assert [path.name for path in Path("runs/full/checkpoints").iterdir()] == ["update-00002"]
    (world / "full").unlink()
    resumed = konomi("ppo", "--resume", "runs/full", "--json")
    assert resumed.exit_code == 0, resumed.stderr
    whole = konomi(*job, "--set", "run.name=whole", "--json")
    assert json.loads(resumed.stdout)["compare"] == json.loads(whole.stdout)["compare"]

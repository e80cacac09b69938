"""What comes from outside of a run: a full disk, a closed terminal, variables of another program; through the command line."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import tiny
from command_line import child, konomi, sets, started, wait_until, write_rows
from furnished import WORDS


def save_bpe(directory: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(["the cat and the hat"] * 9, trainer)
    tiny.tiny_model("gpt2", vocab=inner.get_vocab_size(), bos_token_id=0, eos_token_id=0).save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>").save_pretrained(directory)


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
    assert konomi("ppo", "ppo.toml", "--out", "made", "--set", "run.name=ppo").exit_code == 0
    save_bpe(world / "bpe")
    weights = 60_000
    table: dict[str, tuple[int, str]] = {
        "ppo ppo.toml": (weights, "checkpoints/update-00001"),
        "ppo ppo.toml --set run.save_every=99": (weights, "checkpoints/update-00004"),
        "ppo ppo.toml --profile --set run.save_every=99": (20_000, "trace.json.gz"),
        "sft sft.toml": (weights, "model"),
        "reward reward.toml": (weights, "checkpoints/best.safetensors"),
        "run pipe.toml": (3_000, "out/tiny/candidates/drawn.jsonl"),
        "trim bpe --scripts ja --out trimmed": (2_000, "trimmed"),
        "sample sample.toml": (3_000, "drawn.jsonl"),
        "judge judge.toml": (3_000, "rankings.jsonl"),
        "convert pairs.jsonl made/out.jsonl --to rankings": (1_000, "made/out.jsonl"),
        "label project --candidates candidates.jsonl": (1_000, "project"),
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
    job = ("ppo", "ppo.toml", *sets("reward.name=taste.py:filling", "run.save_every=1"))
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
    resumed = konomi("ppo", "--resume", "runs/full", "--json", code=0)
    whole = konomi(*job, "--set", "run.name=whole", "--json")
    assert json.loads(resumed.stdout)["compare"] == json.loads(whole.stdout)["compare"]


# -- variables of another program --------------------------------------------------------------------------------------


def test_variables_that_a_launcher_has_left(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29587",
        "ACCELERATE_USE_CPU": "maybe", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "abc", "ACCELERATE_MIXED_PRECISION": "fp99",
        "FSDP_VERSION": "x", "OMPI_COMM_WORLD_SIZE": "many", "ACCELERATE_USE_DEEPSPEED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert konomi("--help").exit_code == 0 and os.environ["RANK"] == "0"
    # one of them with all modules read after the variables were set
    for arguments, fresh in (
        (["ppo", "ppo.toml", "--set", "ppo.episodes=16"], {"env": dict(os.environ)}),
        (["sft", "sft.toml"], {}),
    ):
        done = finished(*arguments, **fresh)
        assert done.returncode == 0, done.stderr
    for size in ("WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.setenv(size, "2")
        result = konomi("generate", "lm", "-p", "a")
        last = result.stderr.splitlines()
        assert (result.exit_code, len(last)) == (2, 1), result.stderr
        assert last[0].startswith(f"konomi: {size} = 2 is set") and "MASTER_PORT" in last[0]
        monkeypatch.delenv(size)


# -- where output goes, and signals ------------------------------------------------------------------------------------


def finished(*arguments: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    with started(*arguments, **streams) as process:
        output, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


def status(run: str) -> dict[str, Any]:
    info: dict[str, Any] = json.loads(Path(run, "run.json").read_text("utf-8"))
    return info


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    wait_until(lambda: path.exists() and path.stat().st_size > 0, process)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
def test_what_nobody_reads_ends_no_run(world: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        assert finished("ppo", "ppo.toml", *sets("run.name=full", "ppo.episodes=16"), stderr=full).returncode == 0
        for arguments in (["convert", "pairs.jsonl", "out.jsonl", "--to", "rankings"], ["convert", "--help"]):
            done = finished(*arguments, stdout=full)
            assert done.returncode == 1
            assert done.stderr.splitlines()[-1] == "konomi: standard output: cannot be written: No space left on device"
            assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert len(Path("out.jsonl").read_text("utf-8").splitlines()) == 72
    short = sets("run.name=head", "ppo.episodes=32")
    with started("ppo", "ppo.toml", *short, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        assert process.wait(timeout=120) == 0
    assert [(status(f"runs/{name}")["status"], status(f"runs/{name}")["reason"]) for name in ("full", "head")] == [
        ("finished", None)
    ] * 2
    with started("generate", "lm", "-p", "a") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait(timeout=120)) == ("", 1)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a signal of POSIX")
def test_a_closed_terminal_is_a_wish_to_stop(world: Path) -> None:
    long = ("ppo", "ppo.toml", *sets("ppo.episodes=160000", "run.save_every=5000"))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = world / "runs"
    with started(*long, "--set", "run.name=one", **quiet) as process:
        wait_for(run / "one" / "metrics.jsonl", process)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 130
    info = status("runs/one")
    assert info["status"] == "stopped" and info["reason"].startswith("SIGHUP after update ")
    assert len(list((run / "one" / "checkpoints").iterdir())) == 1
    ignoring = "import runpy, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    ignoring += "; runpy.run_module('konomi', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", ignoring, *long, "--set", "run.name=two"]
    with child(command, fork=True, **quiet) as process:  # as nohup does it
        metrics = run / "two" / "metrics.jsonl"
        wait_for(metrics, process)
        process.send_signal(signal.SIGHUP)
        lines = len(metrics.read_bytes().splitlines())
        wait_until(lambda: len(metrics.read_bytes().splitlines()) >= lines + 3, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 130
    assert status("runs/two")["reason"].startswith("SIGTERM after update ")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a signal of POSIX")
def test_a_closed_terminal_ends_a_server_well(world: Path) -> None:
    for number in (signal.SIGHUP, signal.SIGTERM):
        with started("label", f"project-{number}", "--candidates", "candidates.jsonl") as process:
            assert process.stdout is not None
            address = urlsplit(process.stdout.readline().split()[1])
            with socket.create_connection((str(address.hostname), address.port or 0), timeout=60) as wire:
                wire.sendall(b"GET /static/icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert wire.recv(99).startswith(b"HTTP/1.1 200")  # it has begun to serve
                process.send_signal(number)
                _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert "Traceback" not in said and said.splitlines()[-1].startswith("stopped; all answers are in")


# -- a reward that is not as it should be ------------------------------------------------------------------------------


def test_a_reward_that_needs_a_column_fails_before_training(world: Path) -> None:
    write_rows("rows.jsonl", ({"text": f"{word} {word}", "weight": 2} for word in WORDS))
    Path("weighing.py").write_text(
        "def weigh(responses, weight):\n    return [w * len(text) for text, w in zip(responses, weight)]\n"
        "def careful(responses, weight):\n    return [(w or 1) * len(text) for text, w in zip(responses, weight)]\n",
        encoding="utf-8",
    )
    rows = ("--set", "data.prompts=rows.jsonl", "--set", 'compare.extra=["hello"]')
    for settings in (["reward.name=weighing.py:weigh"], ["judges.j.kind=function", "judges.j.name=weighing.py:weigh"]):
        result = konomi("ppo", "ppo.toml", *rows, *sets(*settings), code=2)
        assert "compare.extra: its prompts have no column 'weight'" in result.stderr and "weighing.py:weigh" in result.stderr
    assert not Path("runs").exists()
    konomi("ppo", "ppo.toml", *rows, *sets("reward.name=weighing.py:careful", "run.name=one"), code=0)
    konomi("ppo", "ppo.toml", *rows[:2], *sets("reward.name=weighing.py:weigh", "run.name=two"), code=0)
    again = konomi("compare", "runs/two", "--prompt", "hello")
    assert (again.exit_code, "no column 'weight'" in again.stderr) == (2, True)


def test_a_reward_that_exits_is_named(world: Path) -> None:
    Path("leaving.py").write_text("import sys\ndef leave(responses):\n    sys.exit(0)\n", encoding="utf-8")
    Path("leaves.py").write_text("import sys\nsys.exit('no licence')\n", encoding="utf-8")
    called = konomi("ppo", "ppo.toml", *sets("reward.name=leaving.py:leave", "run.name=one"), code=1)
    assert called.stderr.splitlines()[-1].startswith("konomi: reward leaving.py:leave: SystemExit: 0")
    assert status("runs/one")["status"] == "failed" and "leaving.py:leave" in status("runs/one")["reason"]
    imported = konomi("ppo", "ppo.toml", "--set", "reward.name=leaves.py:leave", code=2)
    assert "leaves.py:leave: cannot be imported: SystemExit: no licence" in imported.stderr and "line 2" in imported.stderr

"""The verbs in two processes give what they give in one; one that ends ends both, with one message.

The processes run this file: python test_verbs_in_processes.py, in the world of the tests.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import child, konomi, lines_of, sets, wait_until
from konomi.config import VERBS, DPOJob, SFTJob, load_config, load_pipeline
from konomi.data.examples import load_examples, split_examples
from konomi.errors import ConfigError, RunError
from konomi.jobs.dpo_data import prepare_dpo
from konomi.jobs.inputs import resumed_job
from konomi.jobs.pipeline import run_pipeline, runner
from konomi.runs import processes
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer
from launching import environment, launched, run_in_processes

SETTINGS = {
    # 65 texts: in the last step of an epoch one process has none
    "sft": ["model.precision=fp64", "data.limit=90", "sft.epochs=1", "sft.evaluate_every=5"],
    "reward": ["model.precision=fp32", "train.batch_size=4", "train.evaluations=2", "train.lm_weight=0.05"],
    # 61 prompts: as above
    "dpo": ["model.precision=fp64", "dpo.epochs=1", "dpo.batch_size=4", "reward.kind=function",
            "reward.name=taste.py:count_a"],
}  # fmt: skip
STOPPED = "sft", [*SETTINGS["sft"], "run.save_every=4", "run.name=stopped"]
PIPELINE = [
    "stages.candidates.models.a.precision=fp64", "stages.after.models.tuned.precision=fp64",
    "stages.policy.model.precision=fp64", "stages.policy.ppo.episodes=64", "stages.policy.compare.best_of=0",
    "stages.policy.land.kl=1", "stages.policy.land.prompts=7", "stages.policy.land.samples=1",
    "stages.policy.land.kl=0.02", "stages.policy.land.most=3", "stages.policy.land.prompts=6",
]  # fmt: skip


class OneSignal(Observer):
    """Of several processes the last one gets a signal in a training's sixth step, which ends them all after it."""

    def progress(self, what: str, done: int, *_: Any) -> None:
        if (what, done, processes.index()) == ("training", 6, processes.count() - 1):
            signal.raise_signal(signal.SIGTERM)


def stopped_and_resumed(out: Path) -> str:
    """What is said when a signal ends the run "stopped", which then goes on to its end."""
    verb, settings = STOPPED
    with pytest.raises(KeyboardInterrupt) as stopped:
        runner(verb)(load_config(Path(f"{verb}.toml"), VERBS[verb].job, settings), out, OneSignal())
    run = out / "stopped"
    runner(verb)(resumed_job(run, verb, []), out, resume=run)
    return str(stopped.value)


def everything(out: Path) -> dict[str, Any]:
    """What this process sees of all verbs, whose runs are in ``out``."""
    seen: dict[str, Any] = {}
    for verb, changes in SETTINGS.items():
        job = load_config(Path(f"{verb}.toml"), VERBS[verb].job, [*changes, f"run.name={verb}"])
        seen[verb] = runner(verb)(job, out)
    pipeline, stages = load_pipeline(Path("pipe.toml"), out, PIPELINE)
    seen["run"] = run_pipeline(pipeline, stages, out / "tiny")
    if processes.several():
        seen["stopped"] = stopped_and_resumed(out)
        refused = {"raising": ("reward.name=taste.py:raising", RunError), "mini": ("ppo.mini_batch_size=1", ConfigError)}
        for name, (change, kind) in refused.items():
            job = load_config(Path("ppo.toml"), VERBS["ppo"].job, [change, f"run.name={name}"])
            with pytest.raises(kind) as error:
                runner("ppo")(job, out)
            seen[name] = str(error.value)
        job = load_config(Path("sft.toml"), VERBS["sft"].job, ["sft.batch_size=9", "sft.micro_batch_size=3"])
        with pytest.raises(ConfigError, match=r"sft\.batch_size = 9 cannot be divided"):
            runner("sft")(job, out)
    Path(f"seen-{processes.count()}-{processes.index()}.json").write_text(json.dumps(seen, default=str), encoding="utf-8")
    processes.leave()
    return seen


def figures(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics, but for times and memory, and shares of values that are equal but for rounding."""
    left_out = ("time", "memory/", "time/")
    return {
        name: value for name, value in line.items()
        if isinstance(value, float) and not name.startswith(left_out) and not name.endswith(("per_second", "clipfrac"))
    }  # fmt: skip


@pytest.mark.usefixtures("fresh_accelerator")
def test_two_processes_give_what_one_gives(world: Path) -> None:
    sft, dpo = (load_config(Path(f"{verb}.toml"), VERBS[verb].job, SETTINGS[verb]) for verb in ("sft", "dpo"))
    assert isinstance(sft, SFTJob) and isinstance(dpo, DPOJob)
    learned = len(split_examples(load_examples(sft.data, str)[1], sft.data)[0]), len(prepare_dpo(dpo, Observer()).train)
    assert learned == (65, 61)
    run_in_processes(2, __file__, "two")
    one = everything(Path("one"))
    first, second = (json.loads(Path(f"seen-2-{i}.json").read_text("utf-8")) for i in (0, 1))
    assert first == second  # both have the main one's results
    for run in ("sft", "reward", "dpo", "tiny/policy"):
        pairs = list(zip(lines_of(f"one/{run}/metrics.jsonl"), lines_of(f"two/{run}/metrics.jsonl"), strict=True))
        assert len(pairs) > 1
        for alone, both in pairs:
            assert figures(both) == pytest.approx(figures(alone), rel=1e-4 if run == "reward" else 1e-6, abs=1e-6), run
        assert RunDir.open(f"two/{run}").info["status"] == "finished" and Path(f"two/{run}/model/config.json").is_file()
    for file in ("candidates/candidates.jsonl", "rank/rankings.jsonl", "after/candidates.jsonl"):
        assert Path("two/tiny", file).read_bytes() == Path("one/tiny", file).read_bytes()
    one_compare, two_compare = (json.loads(Path(out, "tiny/policy/compare.json").read_text("utf-8")) for out in ("one", "two"))
    lands = [json.loads(Path(out, "tiny/policy/land.json").read_text("utf-8")) for out in ("one", "two")]
    assert [(each["share"], each["kl"]) for each in lands[1]["points"]] == [
        (each["share"], pytest.approx(each["kl"], abs=1e-6)) for each in lands[0]["points"]
    ]
    assert [text["after"] for text in two_compare["texts"]] == [text["after"] for text in one_compare["texts"]]
    one_land, two_land = (json.loads(Path(out, "tiny/policy/land.json").read_text("utf-8")) for out in ("one", "two"))
    assert two_land["share"] == one_land["share"] and two_land["kl"] == pytest.approx(one_land["kl"], rel=1e-6)
    assert [stage["status"] for stage in first["run"]["stages"]] == [stage["status"] for stage in one["run"]["stages"]]
    assert "stopped after update 6" in first["stopped"]
    whole, resumed = ([{**line, "time": 0} for line in lines_of(f"two/{run}/metrics.jsonl")] for run in ("sft", "stopped"))
    assert resumed == whole
    assert "ZeroDivisionError" in first["raising"] and RunDir.open("two/raising").info["status"] == "failed"
    assert lines_of("two/raising/failed_texts.jsonl")[0].keys() == {"index", "prompt", "response"}
    assert "cannot be divided among 2 processes" in first["mini"] and not Path("two/mini").exists()


def ranks_of(launcher: int) -> dict[int, int]:
    """Rank -> process."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True, check=True)
    found = {}
    for pid in map(int, children.stdout.split()):
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"RANK="):
                found[int(variable[5:])] = pid
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
def test_a_process_that_is_killed_ends_the_others_and_the_run_goes_on_in_one(world: Path) -> None:
    Path("slow").touch()
    command = launched(
        2, "-m", "konomi", "ppo", "ppo.toml", *sets("run.name=killed", "reward.name=taste.py:slow", "ppo.episodes=160")
    )
    with child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as launcher:
        wait_until(lambda: len(list(Path("runs/killed/checkpoints").glob("update-*"))) > 0, launcher)
        os.kill(ranks_of(launcher.pid)[1], signal.SIGKILL)
        killed = time.monotonic()
        output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 1 and time.monotonic() - killed < 60 and output == ""
    assert errors.count("konomi: another of 2 processes has ended") == 1, errors
    assert errors.count("update 1/10") == 1 == errors.count("processes: 2")  # only one of them speaks
    info = RunDir.open("runs/killed").info
    assert info["status"] == "failed" and "another of 2 processes has ended" in info["reason"]
    Path("slow").unlink()
    konomi("ppo", "--resume", "runs/killed", code=0)
    assert [line["update"] for line in lines_of("runs/killed/metrics.jsonl")] == list(range(1, 11))


if __name__ == "__main__":
    import sys

    torch.set_num_threads(1)
    everything(Path(sys.argv[1]))

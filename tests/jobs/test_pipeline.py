"""Pipelines on tiny models, through the command line: what runs, what does not run again, stops, kills, bad files."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import filelock

from command_line import konomi, sets, started, wait_until
from konomi.config import VERBS, PPOJob, load_pipeline
from konomi.jobs.inputs import file_of
from konomi.jobs.pipeline import run_pipeline, runner
from konomi.jobs.stages import decide

STAGES = ["candidates", "rank", "policy", "after"]


def ran(*arguments: str) -> list[str]:
    """Run the pipeline to its end; the stages that were not skipped."""
    result = konomi("run", "pipe.toml", "--json", *arguments, code=0)
    told = json.loads(result.stdout)
    assert [stage["stage"] for stage in told["stages"]] == STAGES
    return [stage["stage"] for stage in told["stages"] if stage["status"] == "finished"]


def planned(*arguments: str) -> dict[str, str]:
    """Stage -> action: why."""
    result = konomi("run", "pipe.toml", "--dry-run", "--json", *arguments, code=0)
    return {step["stage"]: f"{step['action']}: {step['why']}" for step in json.loads(result.stdout)}


def status(stage: str) -> str:
    return str(json.loads(Path("runs/tiny/pipeline.json").read_text(encoding="utf-8"))["stages"][stage]["status"])


def rewrite(name: str, old: str, new: str) -> None:
    text = Path(name).read_text(encoding="utf-8")
    assert old in text
    Path(name).write_text(text.replace(old, new), encoding="utf-8")


SKIP = "skip: nothing that it depends on has changed"


def test_what_is_finished_is_run_again_only_when_something_changed(world: Path) -> None:
    assert planned() == dict.fromkeys(STAGES, "run: it has not run yet")
    assert not (world / "runs").exists()
    first = konomi("run", "pipe.toml", code=0)
    for number, (name, do) in enumerate(zip(STAGES, ("sample", "judge", "ppo", "sample"), strict=True), start=1):
        assert f"Stage {number} of 4, {name} ({do}): runs, it has not run yet" in first.stderr
        assert f"Stage {number} of 4, {name} ({do}): finished in 0:" in first.stderr
    for place in ("rank.truth  runs/tiny/rank/truth.jsonl", "policy.report  runs/tiny/policy/report.html"):
        assert place in first.stdout
    assert ran() == []
    assert planned() == planned("--set", "stages.rank.run.sinks=[]") == dict.fromkeys(STAGES, SKIP)

    # a setting of one stage: that stage alone, for nothing reads its output
    assert planned("--set", "stages.rank.judge.agreement=0.8")["rank"] == "run: judge.agreement is 0.8 and was 0.75"
    assert ran("--set", "stages.rank.judge.agreement=0.8") == ["rank"]
    assert (world / "runs/tiny/.previous/rank/rankings.jsonl").is_file()

    # a local file: the stages that name it, and those that read what these make if that has changed
    rewrite("taste.py", "len(text) / 8", "len(text) / 4")
    plan = planned()
    assert plan["candidates"] == SKIP
    assert plan["policy"] == "run: taste.py:fine has changed"
    assert plan["rank"] == "run: judge.agreement is 0.75 and was 0.8; taste.py:fine has changed"
    assert plan["after"] == "run: what it reads from policy may change"
    assert ran() == ["rank", "policy", "after"]

    # an output that comes out the same again moves nothing behind it
    (world / "runs/tiny/candidates/candidates.jsonl").unlink()
    assert planned()["candidates"] == "run: its output candidates is gone"
    assert ran() == ["candidates"]

    # an output that somebody has changed by hand
    rankings = world / "runs/tiny/candidates/candidates.jsonl"
    rankings.write_text("".join(rankings.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    assert planned()["rank"] == "run: @candidates.candidates has changed"
    assert ran() == ["rank"]

    # the directory of all runs and the name in MLflow say nothing of the result
    os.rename(world / "runs", world / "elsewhere")
    assert ran("--out", "elsewhere", "--set", "experiment=other") == []

    assert planned("--from", "policy", "--out", "elsewhere")["policy"] == "run: it is to run again (--from)"
    assert ran("--from", "policy", "--out", "elsewhere") == ["policy", "after"]
    assert ran("--out", "elsewhere") == []


def test_the_seed_is_that_of_all_stages(world: Path) -> None:
    _, stages = load_pipeline("pipe.toml", world, ["seed=7", "stages.rank.run.seed=3"])
    assert [stage.job.run.seed for stage in stages] == [7, 3, 7, 7]  # type: ignore[attr-defined]
    assert planned("--seed", "5").keys() == set(STAGES)


def test_a_failed_stage_is_named_and_the_next_command_goes_on_from_it(world: Path) -> None:
    broken = konomi("run", "pipe.toml", "--set", "stages.rank.reward.name=taste.py:broken", code=1)
    assert "konomi: stage rank: reward taste.py:broken: returned nan" in broken.stderr
    assert (status("candidates"), status("rank")) == ("finished", "failed")
    assert planned()["rank"] == "run: it failed"
    stopped = konomi("run", "pipe.toml", "--set", "stages.rank.reward.name=taste.py:stopping", "--seed", "0")
    assert stopped.exit_code == 130
    command = "konomi run pipe.toml --out runs --set stages.rank.reward.name=taste.py:stopping --set seed=0"
    assert "konomi: Stage 2 of 4, rank (judge): stopped; go on with: " in stopped.stderr and command in stopped.stderr
    assert status("rank") == "stopped"
    assert planned()["rank"] == "run: it was stopped"


def test_a_policy_that_ran_away_stops_the_pipeline(world: Path) -> None:
    wild = ("ppo.learning_rate=0.05", "ppo.kl_target=1", "ppo.kl_cap=1.5", "guard.retries=0")
    result = konomi("run", "pipe.toml", *(word for item in wild for word in ("--set", f"stages.policy.{item}")), code=1)
    assert "konomi: stage policy: " in result.stderr and "kl_cap" in result.stderr
    assert "the run is in runs/tiny/policy" in result.stderr
    assert (status("policy"), Path("runs/tiny/after").exists()) == ("failed", False)


def test_killed_in_the_middle_of_ppo_it_goes_on_as_if_nothing_had_been(world: Path) -> None:
    longer = ("stages.policy.ppo.episodes=256", "stages.policy.run.save_every=3")
    slow = sets("stages.policy.reward.name=taste.py:slow", "mlflow=true", *longer)
    (world / "slow").touch()

    def done() -> int:
        metrics = world / "runs/tiny/policy/metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0

    with started("run", "pipe.toml", *slow) as process:
        wait_until(lambda: done() >= 1, process)
        taken = konomi("run", "pipe.toml")
        wait_until(lambda: done() >= 5, process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    (world / "slow").unlink()
    assert (taken.exit_code, f"another process (pid {process.pid}) works on this run" in taken.stderr) == (1, True)
    parent = json.loads(Path("runs/tiny/pipeline.json").read_text(encoding="utf-8"))["mlflow_run_id"]
    assert planned(*slow)["policy"] == "resume: it was killed"
    assert planned()["policy"] == "run: it was killed"  # with another reward it is another run
    assert ran(*slow) == ["policy", "after"]
    assert ran(*slow, "--out", "whole", "--set", "mlflow=false") == STAGES
    for file in ("policy/model/model.safetensors", "policy/compare.json", "after/candidates.jsonl"):
        assert (world / "runs/tiny" / file).read_bytes() == (world / "whole/tiny" / file).read_bytes()

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{world}/runs/tiny/mlflow.db")
    experiment = client.get_experiment_by_name("konomi")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = {run.info.run_name: run.data.tags["mlflow.parentRunId"] for run in runs if run.info.run_id != parent}
    assert (len(runs), children) == (5, dict.fromkeys(STAGES, parent))
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert set(client.get_run(parent).data.metrics) == {f"seconds/{name}" for name in STAGES}
    for run in runs:  # what was done again after the kill has no second point
        for key in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
            assert len(steps) == len(set(steps)), (run.info.run_name, key)


def test_a_stage_without_a_page_that_was_killed_after_its_end_is_kept(world: Path) -> None:
    (world / "few.toml").write_text(
        'name = "few"\nmlflow = false\n[stages.some]\ndo = "pick"\ncandidates = "candidates.jsonl"\n', encoding="utf-8"
    )
    (pipeline, stages), notes = load_pipeline("few.toml", Path("runs")), Path("runs/few/pipeline.json")
    run_pipeline(pipeline, stages, "runs/few")
    done = json.loads(Path("runs/few/some/stage.json").read_text("utf-8"))
    Path("runs/few/some/stage.json").unlink()
    notes.write_text(notes.read_text("utf-8").replace("finished", "running"), encoding="utf-8")
    assert [stage["status"] for stage in run_pipeline(pipeline, stages, "runs/few")["stages"]] == ["skipped"]
    assert json.loads(Path("runs/few/some/stage.json").read_text("utf-8"))["key"] == done["key"]
    assert not Path("runs/few/some/report.html").exists()


def test_directories_that_are_not_a_pipelines(world: Path) -> None:
    (world / "runs/tiny").mkdir(parents=True)
    (world / "runs/tiny/diary.txt").write_text("mine", encoding="utf-8")
    result = konomi("run", "pipe.toml")
    assert (result.exit_code, "exists and is not a pipeline's directory" in result.stderr) == (2, True)
    (world / "runs/tiny/pipeline.json").write_text('{"version": 99, "stages": {}}', encoding="utf-8")
    result = konomi("run", "pipe.toml")
    assert (result.exit_code, "not a description of a pipeline that this konomi reads" in result.stderr) == (2, True)
    result = konomi("run", "pipe.toml", "--out", "prompts.txt")
    assert (result.exit_code, "the pipeline's directory cannot be made" in result.stderr) == (2, True)


def test_one_at_a_time(world: Path) -> None:
    (world / "runs/tiny").mkdir(parents=True)
    with filelock.FileLock(world / "runs/tiny/.lock"):
        result = konomi("run", "pipe.toml")
    assert (result.exit_code, "works on this run; wait for it or stop it" in result.stderr) == (1, True)


# what a stage depends on


def test_references_are_paths_and_texts_may_begin_with_at(world: Path) -> None:
    rewrite("pipe.toml", "run = { save_every = 1 }", 'compare.extra = ["@@home", "at home"]')
    _, stages = load_pipeline("pipe.toml", Path("runs"))
    policy = stages[2].job
    assert isinstance(policy, PPOJob) and policy.compare.extra == ("@home", "at home")
    assert stages[1].references == {"candidates": ("candidates", "candidates")}
    assert decide(stages[1], {}).inputs["candidates"] == {"name": "@candidates.candidates", "sha256": None}


def test_files_are_known_among_settings(world: Path) -> None:
    (world / "train").mkdir()
    prompts = world / "prompts.txt"
    assert file_of("prompts", "embedded:openings-ja").name == "openings-ja.jsonl"  # type: ignore[union-attr]
    for setting, value, file in (
        ("name", "lm", Path("lm")), ("name", "taste.py:fine", Path("taste.py")), ("anything", str(prompts), prompts),
        ("split", "train", None), ("name", "embedded:asari", None), ("name", "owner/model", None), ("name", "x" * 5000, None),
        ("name", "a\0b", None),
    ):  # fmt: skip
        assert file_of(setting, value) == file, value


def test_every_verb_is_there() -> None:
    for name, verb in VERBS.items():
        assert "run" in verb.job.model_fields and callable(runner(name))

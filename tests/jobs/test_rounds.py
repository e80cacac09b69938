"""Pipelines in rounds on tiny models: what each round reads, when they end, kills, the page, what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from command_line import konomi, lines_of, sets, started, wait_until
from konomi.config import LabelJob, PickJob, PPOJob, RewardJob, Stage, load_pipeline
from konomi.errors import ConfigError
from konomi.jobs.stages import decide, plan

STAGES = ["candidates", "choose", "rank", "taste", "policy", "verdict"]
ROUNDS = """
name = "tiny"
mlflow = false
rounds = 3
initial = "lm"

[stages.candidates]
do = "sample"
models.initial.name = "@initial.model"
models.newest.name = "@newest.model"
rollout.response_tokens = [3, 6]
data = { prompts = "prompts.txt", limit = 40, held_out = 0.5 }

[stages.choose]
do = "pick"
candidates = "@candidates.candidates"
pick = { rankings = "@rank.rankings*", tasks = 40, candidates = 4 }

[stages.rank]
do = "judge"
candidates = "@choose.candidates"
reward = { kind = "function", name = "taste.py:fine" }
judge.agreement = 1.0

[stages.taste]
do = "reward"
model.name = "other"
data.file = "@rank.rankings*"
train = { batch_size = 8, learning_rate = 3e-3 }
normalize = { samples = "@candidates.candidates", model = "newest" }
run.save_every = 2

[stages.policy]
do = "ppo"
model.name = "@newest.model"
data = { prompts = "prompts.txt", limit = 40, held_out = 0.5 }
rollout.response_tokens = [4, 8]
reward = { kind = "function", name = "taste.py:early" }
judges.watching = { kind = "function", name = "taste.py:slow" }
ppo = { episodes = 256, batch_size = 64, baseline_samples = 32, learning_rate = 3e-2, kl_coef = 0.02, kl_cap = 200 }
run.save_every = 1

[stages.verdict]
do = "compare"
model.name = "@policy.model"
before = "@newest.model"
initial = "@initial.model"
data = { prompts = "prompts.txt", limit = 40, held_out = 0.5 }
rollout.response_tokens = [4, 8]
reward = { kind = "model", name = "@taste.model" }
judges.early = { kind = "function", name = "taste.py:early" }
compare.samples = 2
"""


@pytest.fixture
def here(world: Path) -> Path:
    (world / "rounds.toml").write_text(ROUNDS, encoding="utf-8")
    return world


def run(*arguments: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(konomi("run", "rounds.toml", "--json", *arguments, code=0).stdout)
    return told


def planned(*arguments: str) -> dict[str, str]:
    steps = json.loads(konomi("run", "rounds.toml", "--dry-run", "--json", *arguments, code=0).stdout)
    return {step["stage"]: f"{step['action']}: {step['why']}" for step in steps}


def test_rounds_until_one_does_not_win(here: Path) -> None:
    """A text has one of four letters or none: after the first round almost all have, and the second cannot win any more."""
    every = [f"round-{number}/{name}" for number in (1, 2, 3) for name in STAGES]
    assert planned() == dict.fromkeys(every, "run: it has not run yet")
    told, runs = run(), here / "runs/tiny"
    assert [(stage["stage"], stage["status"]) for stage in told["stages"]] == [(name, "finished") for name in every[:12]]
    first, second = told["rounds"]
    assert first["won"] and first["by"] == "early" and first["difference"]["low"] > 0
    assert not second["won"] and told["reason"].startswith("Round 2 does not win against round 1: judge early ")
    assert told["model"] == "runs/tiny/round-1/policy/model"
    assert (
        second["kl"]["before"] == first["kl"]["after"] > 0 == first["kl"]["before"]
    )  # from the initial model, on the same draws
    assert second["judges"]["early"]["before"] == first["judges"]["early"]["after"]
    assert second["learned"]["comparisons"] > first["learned"]["comparisons"]
    ranked = [lines_of(runs / f"round-{number}/rank/rankings.jsonl") for number in (1, 2)]
    assert lines_of(runs / "round-2/rank.rankings.jsonl") == ranked[0] + ranked[1]
    assert "initial, newest" in {row["source"] for row in ranked[1]}
    texts = [{(row["prompt"], text.strip()) for row in rows for text in row["responses"]} for rows in ranked]
    assert not texts[0] & texts[1]  # what is ranked is not picked again

    # killed in the second round, it ends the same
    shutil.copytree(runs, here / "killed/tiny")
    for name in ("policy", "verdict"):
        shutil.rmtree(here / "killed/tiny/round-2" / name)
    metrics = here / "killed/tiny/round-2/policy/metrics.jsonl"
    (here / "slow").touch()
    with started("run", "rounds.toml", "--out", "killed") as process:
        wait_until(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= 2, process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    (here / "slow").unlink()
    assert planned("--out", "killed")["round-2/policy"] == "resume: it was killed"
    again = run("--out", "killed")
    assert [stage["status"] for stage in again["stages"]] == ["skipped"] * 10 + ["finished"] * 2
    assert again["reason"] == told["reason"]
    for file in ("policy/model/model.safetensors", "policy/compare.json", "verdict/compare.json"):
        assert (here / "killed/tiny/round-2" / file).read_bytes() == (runs / "round-2" / file).read_bytes(), file

    # killed between the end of a stage and the note of it
    note = runs / "round-1/taste/stage.json"
    before, notes = json.loads(note.read_text("utf-8")), json.loads((runs / "pipeline.json").read_text("utf-8"))
    notes["stages"]["round-1/taste"]["status"] = "running"
    (runs / "pipeline.json").write_text(json.dumps(notes), encoding="utf-8")
    for lost in (note, runs / "round-1/taste/report.html"):
        lost.unlink()
    assert planned()["round-1/taste"] == "skip: it was killed after its end"
    shown = konomi("run", "rounds.toml", code=0)
    assert shown.stderr.count(": skipped, ") == 12
    assert json.loads(note.read_text("utf-8")) | {"seconds": 0} == before | {"seconds": 0}
    assert (runs / "round-1/taste/report.html").is_file()
    assert "Round 1 wins against the initial model: judge early +" in shown.stdout


def with_people(here: Path) -> list[Stage]:
    """The stages where people rank."""
    judge = 'do = "judge"', 'reward = { kind = "function", name = "taste.py:fine" }\njudge.agreement = 1.0\n'
    people = ROUNDS.replace(judge[0], 'do = "label"\nlabel.project = "people/"').replace(judge[1], "")
    (here / "people.toml").write_text(people, encoding="utf-8")
    return load_pipeline("people.toml", Path("runs"))[1]


def test_what_people_rank_again_moves_what_learns_from_it_in_all_later_rounds(here: Path) -> None:
    stages = with_people(here)
    for stage in stages:
        for path in stage.outputs.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("", encoding="utf-8")
        (stage.directory / "stage.json").write_text(json.dumps({"key": decide(stage, {}).key}), encoding="utf-8")
    assert {step.action for step in plan(here / "runs/tiny", stages)} == {"skip"}
    (here / "runs/tiny/round-1/rank/stage.json").unlink()
    moving = {step.stage.name for step in plan(here / "runs/tiny", stages) if step.action == "run"}
    learns = {f"round-{number}/{name}" for number in (1, 2, 3) for name in ("taste", "verdict")}
    picked = {f"round-{number}/{name}" for number in (2, 3) for name in ("choose", "rank")}
    assert moving == {"round-1/rank"} | learns | picked


def test_what_a_round_reads(here: Path) -> None:
    _, stages = load_pipeline("rounds.toml", Path("runs"), ["seed=7", "stages.rank.run.seed=3"])
    by_name = {stage.name: stage for stage in stages}
    assert len(by_name) == 18
    seeds = {name: stage.job.run.seed for name, stage in by_name.items()}  # type: ignore[attr-defined]
    assert (seeds["round-1/policy"], seeds["round-1/rank"]) == (7, 3)
    assert len(set(seeds.values())) == 6  # two in each round
    models = [by_name[f"round-{number}/policy"].job for number in (1, 2, 3)]
    assert [job.model.name for job in models if isinstance(job, PPOJob)] == [
        "lm", "runs/tiny/round-1/policy/model", "runs/tiny/round-2/policy/model",
    ]  # fmt: skip
    taste = by_name["round-3/taste"]
    assert isinstance(taste.job, RewardJob) and taste.job.data.file == "runs/tiny/round-3/rank.rankings.jsonl"
    assert taste.gathered == {"data.file": tuple(by_name[f"round-{i}/rank"].outputs["rankings"] for i in (1, 2, 3))}
    picks = [by_name[f"round-{number}/choose"] for number in (1, 2, 3)]
    assert [each.job.pick.rankings for each in picks if isinstance(each.job, PickJob)] == [
        None, "runs/tiny/round-1/rank/rankings.jsonl", "runs/tiny/round-2/rank.rankings.jsonl",
    ]  # fmt: skip
    assert picks[1].references["pick.rankings"] == ("round-1/rank", "rankings")
    assert picks[2].gathered == {"pick.rankings": taste.gathered["data.file"][:2]}
    assert by_name["round-2/candidates"].references == {"models.newest.name": ("round-1/policy", "model")}

    # any setting that may be left out can have what later stages made in the rounds before
    checked = (
        '[stages.check]\ndo = "judge"\ncandidates = "@candidates.candidates"\nreward = { kind = "function", name = "f.py:f" }\n'
    )
    (here / "checked.toml").write_text(ROUNDS.replace("[stages.verdict]", f"{checked}[stages.verdict]"), encoding="utf-8")
    _, stages = load_pipeline("checked.toml", Path("runs"), ["stages.taste.data.truth=@check.truth*"])
    tastes = [stage for stage in stages if stage.name.endswith("/taste")]
    assert [each.job.data.truth for each in tastes if isinstance(each.job, RewardJob)] == [
        None, "runs/tiny/round-1/check/truth.jsonl", "runs/tiny/round-2/check.truth.jsonl",
    ]  # fmt: skip

    _, once = load_pipeline("rounds.toml", Path("runs"), ["rounds=1"])
    assert [stage.name for stage in once] == STAGES and not any(stage.gathered for stage in once)
    assert isinstance(once[1].job, PickJob) and once[1].job.pick.rankings is None
    assert isinstance(once[3].job, RewardJob) and once[3].job.data.file == "runs/tiny/rank/rankings.jsonl"

    stages = with_people(here)
    jobs = [stage.job for stage in stages]
    projects = [(job.label.project, job.label.people) for job in jobs if isinstance(job, LabelJob)]
    assert projects == [("people-round-1", None), ("people-round-2", "people-round-1"), ("people-round-3", "people-round-2")]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('initial = "lm"\n', "", "stages.candidates: models.initial.name = '@initial.model': which model does it begin with?"),
        ('"@newest.model"\ninitial', '"@newest.adapter"\ninitial', "to be had here: @initial.model, @newest.model"),
        ('file = "@rank.rankings*"', 'file = "@rank.ranking*"', "stage rank (judge) has no output 'ranking'"),
        ('{ rankings = "@rank.rankings*"', '{ rankings = "@rank.ranking*"', "stage rank (judge) has no output 'ranking'"),
        ('{ rankings = "@rank.rankings*"', '{ rankings = "@rank.rankings"', "stage rank does not come before this one"),
        ('name = "@taste.model" }\njudges', 'name = "@taste.model*" }\njudges', "only rankings, truth, pairs, scores"),
        (
            '"@choose.candidates"',
            '"@rank.rankings*"',
            "rank does not come before this one, so that in round 1 there is nothing of it",
        ),
        ('file = "@rank.rankings*"', 'file = "@verdict.comparison*"', "only rankings, truth, pairs, scores"),
        ('do = "pick"', 'do = ["pick"]', "stages.choose: do = ['pick']: no such verb"),
    ],
)
def test_what_is_refused(here: Path, old: str, new: str, words: str) -> None:
    assert ROUNDS.count(old) == 1
    (here / "rounds.toml").write_text(ROUNDS.replace(old, new), encoding="utf-8")
    for rounds in (3, 1):
        with pytest.raises(ConfigError) as caught:
            load_pipeline("rounds.toml", Path("runs"), [f"rounds={rounds}"])
        assert words in str(caught.value)


def test_rounds_need_a_comparison_and_a_model_that_is_trained(here: Path) -> None:
    upto = ROUNDS.partition("[stages.verdict]")[0]
    (here / "rounds.toml").write_text(upto, encoding="utf-8")
    result = konomi("run", "rounds.toml", *sets("rounds=2"), code=2)
    assert 'rounds = 2: there is no stage with do = "compare"' in result.stderr
    (here / "rounds.toml").write_text(upto.partition("[stages.policy]")[0], encoding="utf-8")
    assert "all rounds would be the same" in konomi("run", "rounds.toml", code=2).stderr
    assert not (here / "runs").exists()

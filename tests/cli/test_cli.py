"""The command line on the tiny world: whole jobs, stops, resumption, bad input, with a real MLflow store."""

from __future__ import annotations

import gzip
import json
import signal
from pathlib import Path
from typing import Any

import pytest

import tiny
from command_line import konomi, lines_of, sets, started, wait_until
from furnished import TASTE


def test_a_whole_job(world: Path) -> None:
    larger = ("ppo.episodes=256", "ppo.batch_size=32", "ppo.mini_batch_size=16", "ppo.baseline_samples=32", "run.save_every=2")
    more = ("run.name=first", "run.mlflow=true", 'compare.extra=["hello"]', "land.kl=0.5", "land.prompts=8")
    result = konomi("ppo", "ppo.toml", "--out", "runs", "--json", *sets(*larger, *more), code=0)
    told = json.loads(result.stdout)
    assert told["status"] == "finished"
    assert told["updates"] == 8
    run = world / "runs" / "first"
    lines = lines_of(run / "metrics.jsonl")
    assert [line["update"] for line in lines] == list(range(1, 9))
    assert "ends at: <eos> (1)" in " ".join(result.stderr.split())
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["eos_ids"] == [1]
    assert lines[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["ppo/mean_scores"] > lines[0]["ppo/mean_scores"]
    compared = json.loads((run / "compare.json").read_text(encoding="utf-8"))
    assert compared == told["compare"]
    assert compared["difference"]["mean"] > 0
    assert f"{compared['prompts']} held-out prompts are too few to judge the run by: hold out 30" in result.stderr
    assert compared["verdict"]["grade"] == "few" and compared["verdict"]["en"] in (run / "report.html").read_text(
        encoding="utf-8"
    )
    assert [text["held_out"] for text in compared["texts"]].count(False) == 1
    page = (run / "report.html").read_text(encoding="utf-8")
    assert '"status":"finished"' in page
    progress = [line for line in result.stderr.splitlines() if line.startswith("update ")]
    assert len(progress) == 8
    assert not {"\x1b", "\r"} & set(result.stderr)

    from mlflow import MlflowClient

    client = MlflowClient(told["mlflow"])
    (experiment,) = [e for e in client.search_experiments() if e.name == "konomi"]
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.data.params["ppo.kl_target"] == "8.0"
    history = client.get_metric_history(logged.info.run_id, "ppo/mean_scores")
    assert [m.value for m in history] == [line["ppo/mean_scores"] for line in lines]
    artifacts = {f.path for f in client.list_artifacts(logged.info.run_id)}
    assert artifacts >= {"report.html", "compare.json", "land.json", "samples.jsonl"}
    landed, figures = told["land"], {name: value for name, value in logged.data.metrics.items() if name.startswith("land/")}
    (place,) = [point for point in landed["points"] if point["share"] == landed["share"]]
    assert figures == {"land/score": place["score"], **{f"land/{name}": landed[name] for name in ("share", "kl", "end_kl")}}

    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(run / "model")
    assert model.config.model_type == "gpt2"
    assert (run / "model" / "value_head.safetensors").is_file()
    texts = konomi("generate", str(run / "model"), "-p", "hel", "-n", "3", "--json", code=0)
    rows = json.loads(texts.stdout)
    assert [row["prompt"] for row in rows] == ["hel"] * 3
    assert texts.stdout == konomi("generate", str(run), "-p", "hel", "-n", "3", "--json").stdout  # a run is its model
    assert "function taste.py:count_a" in (run / "model" / "README.md").read_text(encoding="utf-8")

    wrong = konomi("compare", str(run), "--seed", "-1")
    assert (wrong.exit_code, "seed" in wrong.stderr) == (2, True)
    again = konomi("compare", str(run), "--samples", "3", "--prompt", "bye", "--json", code=0)
    assert "texts of the initial model" in again.stderr and "texts of the tuned model" in again.stderr
    compared_again = json.loads(again.stdout)["compare"]
    assert compared_again["samples"] == 3
    assert compared_again["verdict"]["en"] in (run / "model" / "README.md").read_text(encoding="utf-8")
    assert compared_again["verdict"] != compared["verdict"]
    assert [text["prompt"] for text in compared_again["texts"] if not text["held_out"]] == ["hello", "bye"]
    logged = client.get_run(logged.info.run_id)  # the new before/after is there in place of the old one
    assert logged.info.status == "FINISHED"
    assert (
        logged.data.metrics["compare/difference/mean"] == compared_again["difference"]["mean"] != compared["difference"]["mean"]
    )
    kept = client.download_artifacts(logged.info.run_id, "compare.json", str(world))
    assert json.loads(Path(kept).read_text(encoding="utf-8")) == compared_again
    (run / "report.html").unlink()
    assert konomi("report", str(run)).exit_code == 0
    assert (run / "report.html").is_file()
    assert "finished" in konomi("ppo", "--resume", str(run)).stderr


def test_judges_parts_and_the_best_of_n(world: Path) -> None:
    text = Path("ppo.toml").read_text("utf-8")
    parts = (
        'kind = "sum"\nweights = {short = -0.1}\n[reward.parts.a]\nkind = "function"\nname = "taste.py:count_a"\n'
        '[reward.parts.short]\nkind = "function"\nname = "taste.py:along"\n'
        '[judges.b]\nkind = "function"\nname = "taste.py:count_b"'
    )
    Path("judged.toml").write_text(text.replace('kind = "function"\nname = "taste.py:count_a"', parts), encoding="utf-8")
    result = konomi("ppo", "judged.toml", "--json", *sets("run.name=judged", "ppo.episodes=32", "compare.best_of=4"), code=0)
    told = json.loads(result.stdout)
    line = told["last_update"]
    assert line["ppo/mean_scores"] == pytest.approx(line["reward/a/mean"] - 0.1 * line["reward/short/mean"])
    updates = [text for text in result.stderr.splitlines() if text.startswith("update ")]
    assert [f"  b {line['judge/b/mean']:.3g}  KL nats" in text for text in updates] == [False, True]
    assert "reward: sum +1 a -0.1 short" in result.stderr and "judges: b: not trained against" in result.stderr
    compared = told["compare"]
    assert set(compared["judges"]["b"]) == {"before", "after", "difference"}
    assert [row["n"] for row in compared["best_of_n"]] == [1, 2, 4]
    page = (world / "runs" / "judged" / "report.html").read_text(encoding="utf-8")
    assert '"judge/b/mean":' in page and '"best_of_n":[{"n":1,' in page
    again = konomi("compare", "runs/judged", "--best-of", "2", code=0)
    assert "judge b" in again.stdout and "Judge b: difference " in again.stdout
    assert "The initial model, best of 2 by the reward: score " in again.stdout
    wrong = konomi("ppo", "judged.toml", "--set", "judges.b.name=taste.py:no")
    assert (wrong.exit_code, "judges.b.name: taste.py has no 'no'" in wrong.stderr) == (2, True)


def test_a_profile_of_the_second_update(world: Path) -> None:
    result = konomi("ppo", "ppo.toml", "--profile", "--json", *sets("run.name=looked-at", "ppo.episodes=48"), code=0)
    assert json.loads(result.stdout)["updates"] == 3
    run = Path("runs") / "looked-at"
    (line,) = [line for line in result.stderr.splitlines() if "ui.perfetto.dev" in line]
    assert str(run / "trace.json.gz") in line and str(run / "profile.txt") in line
    with gzip.open(run / "trace.json.gz", "rt", encoding="utf-8") as file:
        spans = {event["name"] for event in json.load(file)["traceEvents"] if event["ph"] == "X"}
    assert spans >= {"update 2", "rollout", "reward", "score", "train"}
    assert "update 2" in (run / "profile.txt").read_text(encoding="utf-8")
    konomi("ppo", "ppo.toml", "--json", *sets("run.name=not-looked-at", "ppo.episodes=48"), code=0)
    assert not (world / "runs" / "not-looked-at" / "trace.json.gz").exists()
    assert _without_clock(run) == _without_clock(world / "runs" / "not-looked-at")


def _without_clock(run: Path) -> list[dict[str, Any]]:
    rows = lines_of(run / "metrics.jsonl")
    clock = ("time", "memory/", "episodes/per_second", "tokens/per_second")
    return [{k: v for k, v in row.items() if not k.startswith(clock)} for row in rows]


def test_stopped_killed_and_resumed_is_as_never_stopped(world: Path) -> None:
    (world / "slow").touch()
    run = world / "runs" / "stopped"
    # so many updates that it is over neither before it is stopped nor before it is killed
    slow = sets("reward.name=taste.py:slow", "ppo.episodes=320", "run.save_every=2")
    new, on = ("ppo.toml", "--set", "run.name=stopped", *slow), ("--resume", str(run))
    for arguments, update, how in ((new, 2, signal.SIGINT), (on, 6, signal.SIGKILL)):
        with started("ppo", *arguments) as process:
            wait_until((run / "checkpoints" / f"update-{update:05d}").is_dir, process)
            taken = konomi("ppo", "--resume", str(run))
            process.send_signal(how)
            _, said = process.communicate(timeout=60)
        assert (taken.exit_code, str(process.pid) in taken.stderr) == (1, True)
        if how == signal.SIGINT:
            assert process.returncode == 130
            assert f"konomi ppo --resume {Path('runs') / 'stopped'}" in said
            assert json.loads((run / "run.json").read_text(encoding="utf-8"))["status"] == "stopped"
    (world / "slow").unlink()
    resumed = konomi("ppo", "--resume", str(run), "--json", code=0)
    whole = konomi("ppo", "ppo.toml", "--set", "run.name=whole", *slow, "--json", code=0)
    assert _without_clock(run) == _without_clock(world / "runs" / "whole")
    weights = "model/model.safetensors"
    assert (run / weights).read_bytes() == (world / "runs" / "whole" / weights).read_bytes()
    assert json.loads(resumed.stdout)["compare"] == json.loads(whole.stdout)["compare"]


def test_kl_cap_ends_with_the_last_good_model_or_the_initial_one(world: Path) -> None:
    wild = sets("ppo.learning_rate=0.05", "ppo.kl_target=1", "ppo.kl_cap=1.5", "guard.retries=0")
    for save_every in (1, 9):
        result = konomi("ppo", "ppo.toml", "--json", *wild, *sets(f"run.save_every={save_every}"), code=1)
        told = json.loads(result.stdout)
        assert told["status"] == "stopped"
        assert "kl_cap" in told["reason"] and "kl_cap" in result.stderr
        assert told["compare"]["after"]["kl"] < 1.5 < told["last_update"]["objective/kl"]
    assert "no complete checkpoint is left. The model is the initial one" in result.stderr
    assert told["compare"]["after"]["kl"] == 0


def test_a_run_is_not_gone_on_with_or_compared_on_other_inputs(world: Path) -> None:
    from konomi.runs.directory import RunDir

    code = "def letters(responses):\n    return [float(len(text)) for text in responses]\n"
    (world / "judge.py").write_text(code, encoding="utf-8")
    judge = sets("judges.b.kind=function", "judges.b.name=judge:letters")
    rows = (world / "prompts.jsonl").read_text("utf-8")
    asked = sets("data.prompts=prompts.jsonl", "ppo.episodes=16")
    konomi("ppo", "ppo.toml", "--set", "run.name=one", *asked, *judge, code=0)
    run = RunDir.open(world / "runs" / "one")
    run.set_status("stopped")
    assert (run.inputs / "reward.name.py").read_text("utf-8") == TASTE
    assert (run.inputs / "judges.b.name.py").read_text("utf-8") == code
    tiny.save_tiny(world / "other", "gpt2", seed=1)
    copy = run.inputs / "reward.name.py"
    changes = {
        "lm/model.safetensors": ((world / "other/model.safetensors").read_bytes(), "model.name = lm."),
        "lm/config.json": (b" " + (world / "lm/config.json").read_bytes(), "model.name = lm."),
        "lm/tokenizer_config.json": (b" " + (world / "lm/tokenizer_config.json").read_bytes(), "model.name = lm."),
        "taste.py": (TASTE.replace('"a"', '"b"').encode(), f"reward.name = taste.py:count_a (as it was: {copy})"),
        "judge.py": (code.replace("float", "-float").encode(), "judges.b.name = judge:letters (as it was: "),
        "prompts.jsonl": (rows.replace('"topic": "a"}', '"topic": "z"}', 1).encode(), "data.prompts (columns_digest is "),
    }
    for file, (content, named) in changes.items():
        old = (world / file).read_bytes()
        (world / file).write_bytes(content)
        for arguments in (["ppo", "--resume", str(run.path)], ["compare", str(run.path)]):
            result = konomi(*arguments)
            assert (result.exit_code, named in result.stderr) == (2, True), (file, result.stderr)
            assert "has changed since it began" in result.stderr
        (world / file).write_bytes(old)
    assert run.info["status"] == "stopped"
    run.note(inputs=None, model_revision=None)  # as an older konomi wrote it
    assert konomi("compare", str(run.path)).exit_code == 0
    assert konomi("ppo", "--resume", str(run.path)).exit_code == 0


def test_failing_reward_fails_the_run_and_keeps_the_texts(world: Path) -> None:
    broken = sets("reward.name=taste.py:broken", "run.mlflow=true")
    result = konomi("ppo", "ppo.toml", "--set", "run.name=bad", *broken, code=1)
    run = world / "runs" / "bad"
    assert "failed_texts.jsonl" in result.stderr
    assert len((run / "failed_texts.jsonl").read_text(encoding="utf-8").splitlines()) == 16
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert info["status"] == "failed"
    raising = konomi("ppo", "ppo.toml", "--set", "reward.name=taste.py:raising", code=1).stderr
    assert "Traceback" in raising and "taste.py" in raising
    assert raising.rstrip().splitlines()[-1].startswith("konomi: reward taste.py:raising: ZeroDivisionError")

    from mlflow import MlflowClient

    logged = MlflowClient(f"sqlite:///{world / 'runs' / 'mlflow.db'}").get_run(info["mlflow_run_id"])
    assert logged.info.status == "FAILED"


def test_what_a_reward_may_not_read_is_told_before_the_run_counted_in_it_or_refused(world: Path) -> None:
    import transformers

    transformers.GPT2ForSequenceClassification(tiny.tiny_config("gpt2", num_labels=2)).save_pretrained(world / "labels")
    tiny.tiny_tokenizer().save_pretrained(world / "labels")
    text = (world / "ppo.toml").read_text(encoding="utf-8").replace('kind = "function"', 'kind = "classifier"\nlabel = 1')
    (world / "ppo.toml").write_text(text.replace("taste.py:count_a", "labels"), encoding="utf-8")
    before = sorted(world.rglob("*"))
    refused = konomi("ppo", "ppo.toml", "--set", "reward.max_length=4")
    assert (refused.exit_code, sorted(world.rglob("*"))) == (2, before)
    assert "labels: it reads 4 tokens of a text, and of a longer one not the end; 72 of 72 prompts" in refused.stderr
    for limit, told, shares in ((6, "72 of 72 prompts may be over that (the longest has 4)", {1.0}), (20, "", {0.0})):
        settings = sets("ppo.episodes=64", f"reward.max_length={limit}", "compare.extra=[]", "rollout.stop=length")
        result = konomi("ppo", "ppo.toml", "--set", f"run.name=at-{limit}", *settings, code=0)
        assert (told in result.stderr) and ("may be over" in result.stderr) == bool(told)
        assert {line["reward/cut_share"] for line in lines_of(world / "runs" / f"at-{limit}" / "metrics.jsonl")} == shares

"""`konomi sft` on the tiny world: whole jobs, what they leave behind, stops, bad input."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from command_line import konomi, lines_of, sets, started, wait_until, write_rows
from furnished import COMPLETIONS
from konomi.config import ModelConfig
from konomi.data.records import Prompt
from konomi.models.load import load_causal_lm


def ran(*settings: str) -> dict[str, Any]:
    result = konomi("sft", "sft.toml", "--json", *sets(*settings), code=0)
    return {**json.loads(result.stdout), "said": result.stderr}


def lines(run: Path) -> list[dict[str, Any]]:
    return lines_of(run / "metrics.jsonl")


@torch.no_grad()
def slow_loss(model: Path, texts: list[tuple[str, str]]) -> float:
    """Mean cross-entropy of the completions' tokens, one at a time."""
    loaded = load_causal_lm(ModelConfig(name=str(model)))
    losses = []
    for prompt, completion in texts:
        ids = loaded.tokenizer(prompt + completion)["input_ids"] + [tiny.EOS_ID]
        for n in range(1 + len(prompt), len(ids)):
            logits = loaded.model(torch.tensor([ids[:n]])).logits[0, -1].double()
            losses.append(-float(logits.log_softmax(-1)[ids[n]]))
    return sum(losses) / len(losses)


# -- whole jobs --------------------------------------------------------------------------------------------------------


def test_a_whole_job(world: Path) -> None:
    told = ran("run.name=first", "run.mlflow=true")
    assert (told["status"], told["reason"]) == ("finished", None)
    assert told["after"]["loss"] < told["before"]["loss"] - 0.5
    held_out = [p for p in COMPLETIONS if int(Prompt(p["prompt"]).key, 16) < 0.25 * 2**128]
    assert told["held_out"] == len(held_out)
    texts = [(p["prompt"], p["completion"]) for p in held_out]
    assert slow_loss(Path("lm"), texts) == pytest.approx(told["before"]["loss"], abs=1e-4)
    assert slow_loss(Path(told["model"]), texts) == pytest.approx(told["after"]["loss"], abs=1e-4)
    assert told["after"]["perplexity"] == pytest.approx(math.exp(told["after"]["loss"]))
    run = world / "runs" / "first"
    rows = lines(run)
    evaluations = {row["update"]: row["eval/loss"] for row in rows if "eval/loss" in row}
    assert evaluations[told["best_update"]] == told["after"]["loss"] == min(evaluations.values())
    assert [row["update"] for row in rows if "sft/loss" in row] == list(range(1, told["updates"] + 1))
    assert {file.name for file in run.iterdir()} - {".lock"} == {
        "config.json", "run.json", "metrics.jsonl", "model", "report.html",
    }  # fmt: skip
    page = (run / "report.html").read_text(encoding="utf-8")
    assert '"status":"finished"' in page and json.dumps(told["after"]["perplexity"]) in page
    kinds = {file.suffix for file in run.rglob("*") if file.is_file()}
    assert kinds <= {".json", ".jsonl", ".safetensors", ".jinja", ".html", ".md", ""}
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
    for word in ("texts: completions.jsonl", "prompt-completion", "training", "eval/perplexity"):
        assert word in told["said"]

    from mlflow import MlflowClient

    client = MlflowClient(told["mlflow"])
    (logged,) = client.search_runs([client.get_experiment_by_name("konomi").experiment_id])  # type: ignore[union-attr]
    assert (logged.info.status, logged.data.params["sft.max_length"]) == ("FINISHED", "40")
    history = client.get_metric_history(logged.info.run_id, "eval/perplexity")
    assert [m.step for m in history] == list(evaluations)
    copied = Path(client.download_artifacts(logged.info.run_id, "run.json", str(world)))
    assert json.loads(copied.read_text(encoding="utf-8"))["status"] == "finished"

    konomi("generate", told["model"], "-p", "bal ", "-n", "2", "--json", code=0)


def test_ppo_goes_on_from_it(world: Path) -> None:
    told = ran("run.name=first", "sft.epochs=1")
    konomi("ppo", "ppo.toml", *sets(f"model.name={told['run']}", "data.prompts=texts.txt", "ppo.episodes=16"), code=0)


def test_the_result_in_words(world: Path) -> None:
    result = konomi("sft", "sft.toml", *sets("run.name=a b", "sft.epochs=1"), code=0)
    for words in ("held-out texts", "perplexity", "nats/token", "konomi", "generate 'runs/a b/model'", "ppo"):
        assert words in result.stdout


def test_plain_texts_and_conversations_and_packing(world: Path) -> None:
    plain = ran("data.texts=texts.txt", "sft.epochs=1")
    assert "to learn from (text)" in plain["said"]
    packed = ran("sft.packing=true", "sft.epochs=2", "sft.batch_size=4", "sft.micro_batch_size=2")
    apart = ran("sft.epochs=1")
    assert packed["before"]["loss"] == pytest.approx(apart["before"]["loss"], abs=1e-5)
    assert packed["updates"] < 2 * apart["updates"]
    talks = ([("user", row["prompt"].strip()), ("assistant", row["completion"])] for row in COMPLETIONS)
    write_rows("talks.jsonl", ({"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks))
    missing = konomi("sft", "sft.toml", "--set", "data.texts=talks.jsonl")
    assert (missing.exit_code, "no chat template" in missing.stderr) == (2, True)
    (world / "lm" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role[0] }} {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}a {% endif %}",
        encoding="utf-8",
    )
    talked = ran("data.texts=talks.jsonl", "sft.epochs=1")
    assert "(messages)" in talked["said"]
    assert (Path(talked["model"]) / "chat_template.jinja").is_file()
    everything = ran("data.texts=talks.jsonl", "sft.epochs=1", "sft.loss=all")
    assert everything["before"]["loss"] != pytest.approx(talked["before"]["loss"], abs=1e-4)


def test_a_learning_rate_that_only_harms_ends_early_and_is_said(world: Path) -> None:
    harm = ("sft.learning_rate=3.0", "sft.warmup=0")
    told = ran(*harm, "sft.epochs=30", "sft.patience=1", "sft.schedule=constant")
    assert told["reason"] == "1 evaluations without a lower loss" and told["updates"] < 30 * 12
    assert "no evaluation was better than that of the initial model" in told["said"]
    assert "lower sft.learning_rate" in told["said"]
    assert told["best_update"] == 0 and told["after"] == told["before"]
    kept, initial = (load_causal_lm(ModelConfig(name=str(name))).model.state_dict() for name in (told["model"], "lm"))
    assert all(torch.equal(kept[name], initial[name]) for name in initial)
    shown = konomi("sft", "sft.toml", *sets(*harm, "sft.epochs=1"))
    assert "-> after 0 of " in shown.stdout and "no later one was better: the model is the initial one" in shown.stdout


def test_long_texts_are_cut_and_that_is_said(world: Path) -> None:
    told = ran("data.texts=texts.txt", "sft.max_length=6", "sft.epochs=1")
    assert "longer than sft.max_length = 6 tokens and cut: " in told["said"] and "the longest has 9" in told["said"]


def test_a_tokenizer_without_an_end_is_told(world: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json"):
        path = world / "lm" / name
        if path.exists():
            config = json.loads(path.read_text(encoding="utf-8"))
            config.pop("eos_token", None)
            config |= {"eos_token_id": None} if "eos_token_id" in config else {}
            path.write_text(json.dumps(config), encoding="utf-8")
    assert "name an end-of-text token" in ran("sft.epochs=1")["said"]


# -- stops -------------------------------------------------------------------------------------------------------------


def test_a_stop_says_what_there_is_and_leaves_nothing_half_written(world: Path) -> None:
    endless = sets("run.name=stopped", "sft.epochs=100000", "sft.patience=100000", "sft.learning_rate=1e-4")
    command = ["sft", "sft.toml", *endless]
    run = world / "runs" / "stopped"

    def evaluated() -> bool:
        return (run / "metrics.jsonl").exists() and any("eval/loss" in line and line["update"] for line in lines(run))

    with started(*command) as process:
        wait_until(evaluated, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    last = lines(run)[-1]["update"]
    assert f"konomi: stopped after update {last}" in said
    assert f"{Path('runs') / 'stopped' / 'model'} is the best so far (evaluation loss" in said
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (info["status"], info["reason"]) == ("stopped", f"SIGINT after update {last}")
    assert "; go on with: " in said and "konomi sft --resume " in said
    left = {"config.json", "run.json", "metrics.jsonl", "model", "report.html", "checkpoints"}
    assert {file.name for file in run.iterdir()} - {".lock"} == left
    load_causal_lm(ModelConfig(name=str(run / "model")))


def test_a_stop_before_the_first_evaluation(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from konomi.config import SFTJob, load_config
    from konomi.jobs.sft import run_sft
    from konomi.runs.observer import Observer

    class Impatient(Observer):
        def progress(self, what: str, done: int, total: int, figures: Any = None) -> None:
            if what == "training" and done == 1:
                signal.raise_signal(signal.SIGTERM)

    job = load_config("sft.toml", SFTJob, ["run.name=early"])
    with pytest.raises(KeyboardInterrupt, match=r"stopped after update 1; no evaluation was better yet.*sft.evaluate_every"):
        run_sft(job, Path("runs"), Impatient())
    load_causal_lm(ModelConfig(name=str(world / "runs" / "early" / "model")))  # the initial one


@pytest.mark.real
def test_the_example_in_short(tmp_path: Path) -> None:
    from konomi.config import SFTJob, load_config
    from konomi.jobs.sft import run_sft

    example = Path(__file__).resolve().parents[2] / "examples" / "sft-ja.toml"
    short = ["run.mlflow=false", "data.limit=40", "sft.epochs=1", "sft.batch_size=8", "sft.micro_batch_size=8"]
    told = run_sft(load_config(example, SFTJob, short), tmp_path)
    assert told["after"]["loss"] < told["before"]["loss"] - 0.2
    assert {file.suffix for file in Path(told["model"]).iterdir()} <= {".json", ".safetensors", ".jinja", ".model", ".md"}

"""What is done with a model after its run: compare again, let it write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from konomi.config import CompareConfig, ModelConfig, PPOJob, RolloutConfig, build
from konomi.engine.device import autocast, choose_precision, find_device
from konomi.engine.sampler import make_draws, sample
from konomi.errors import DataError
from konomi.jobs.common import open_sink
from konomi.jobs.compare import compare_models, told
from konomi.jobs.inputs import check_unchanged, describe_inputs, given_function
from konomi.jobs.ppo import as_read, check_context, check_lengths, check_reading, find_prompts, job_of
from konomi.models.load import Loaded, load_causal_lm
from konomi.report.model_card import write_card
from konomi.report.report import write_report
from konomi.rewards import build_judges, build_reward
from konomi.rewards.base import check_without_columns
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer


def compare_run(path: Path, config: CompareConfig, observer: Observer) -> dict[str, Any]:
    """Make ``compare.json``, the report and the model card of a run anew, with the settings given."""
    run = RunDir.open(path)
    job = job_of(run)
    if not (run.model / "config.json").is_file():
        raise DataError(f"{run.model}: no model there yet; the run has to end first ({run.info['status']})")
    sides = find_prompts(job, say=observer.say)
    device = find_device()
    reward = build_reward(job.reward, columns=sides[0][0].columns, device=device)
    judges = build_judges(job.judges, columns=sides[0][0].columns, device=device)
    prompts, held_out = as_read(sides, [reward, *judges.values()], job.data.prompts, observer.say)
    check_without_columns([reward, *judges.values()], config.extra, prompts[0])
    before, after = load_pair(job.model, run.model, observer.say)
    tokens = before.tokens
    again = job.model_copy(update={"compare": config})
    check_lengths(again, tokens, prompts, held_out, before)
    check_reading(again, tokens, held_out, [reward, *judges.values()], observer)
    both = prompts + held_out
    check_unchanged(run, describe_inputs(job, before, both, function=given_function(run, reward)), both)
    precision = run.info.get("precision") or choose_precision(job.model.precision)
    observer.say("Both models answer held-out prompts")
    comparison = compare_models(
        before.model.to(device), after.model.to(device), tokens, held_out, reward,
        rollout=job.rollout, data=job.data, config=config, autocast=lambda: autocast(device, precision),
        judges=judges,
    )  # fmt: skip
    run.write_json("compare.json", comparison)
    write_card(run)
    report = write_report(run)
    _log_again(run, job, comparison, report, observer)
    return {"run": str(run.path), "report": str(report), "compare": comparison}


def _log_again(run: RunDir, job: PPOJob, comparison: Mapping[str, Any], report: Path, observer: Observer) -> None:
    """Replace the before/after of the run in MLflow, if it has a place there."""
    info = run.info
    if info.get("mlflow_run_id") and (sink := open_sink(job.run, run, observer, job.data.prompts)):
        metrics = run.read_metrics()
        sink.log(metrics[-1]["update"] if metrics else 0, told(comparison))
        sink.log_artifacts([report, run.compare])
        sink.end("FINISHED" if info["status"] == "finished" else "FAILED" if info["status"] == "failed" else "KILLED")


def load_pair(initial: ModelConfig, tuned: Path, progress: Callable[[str], None]) -> tuple[Loaded, Loaded]:
    """The model that a run began with and the one it ended with."""
    after = initial.model_copy(update={"name": str(tuned), "revision": None})
    return load_causal_lm(initial, progress=progress), load_causal_lm(after, progress=progress)


def generate_texts(
    model: ModelConfig, prompts: list[str], samples: int, length: int, temperature: float, seed: int, observer: Observer
) -> list[dict[str, str]]:
    """Let a model continue prompts, ``samples`` times each, until its end of text or ``length`` tokens."""
    blank = [text for text in prompts if not text.strip()]
    if blank:
        raise DataError("--prompt: a blank text; give the beginning of what the model is to write")
    loaded = load_causal_lm(model, progress=observer.say)
    tokens = loaded.tokens
    settings = {"response_tokens": [1, length], "stop": "eos", "temperature": temperature}
    config = build(RolloutConfig, settings, where="generate")
    items = [(text, i) for text in prompts for i in range(samples)]
    queries = [tokens.query(text, None) for text, _ in items]
    check_context(max(map(len, queries)), length, loaded)
    draws = make_draws(config, seed, [("generate", *item) for item in items])
    rollout = sample(loaded.model.to(find_device()), tokens, queries, draws, config, model.name)
    texts = [tokens.split(text, *row) for (text, _), *row in zip(items, queries, rollout.response_ids(), strict=True)]
    return [dict(zip(("prompt", "response"), each, strict=True)) for each in texts]

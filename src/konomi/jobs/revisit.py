"""`konomi compare` and `konomi generate`: use a model after its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from konomi.config import CompareConfig, ModelConfig, PPOJob, RolloutConfig, build
from konomi.engine.device import autocast, find_device
from konomi.engine.sampler import make_draws, sample
from konomi.errors import DataError
from konomi.jobs.compare import compare_models, comparison_metrics
from konomi.jobs.prepare import check_context, job_of, prepare
from konomi.models.load import load_causal_lm
from konomi.report.model_card import write_card
from konomi.report.page import write_report
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer
from konomi.runs.sinks import open_sinks, sink_names


def compare_run(path: Path, config: CompareConfig, observer: Observer) -> dict[str, Any]:
    """Make ``compare.json``, the report and the model card of a run anew with these settings."""
    run = RunDir.open(path)
    job = job_of(run)
    sink_names(job.run)  # a missing package is reported before the models run
    if not (run.model / "config.json").is_file():
        raise DataError(f"{run.model}: no model there yet; the run has to end first ({run.info['status']})")
    ready = prepare(job, observer, run, compare=config)
    tuned = job.model.model_copy(update={"name": str(run.model), "revision": None})
    after, device = load_causal_lm(tuned, progress=observer.say), find_device()
    observer.say("Both models answer held-out prompts")
    comparison = compare_models(
        ready.loaded.model.to(device), after.model.to(device), ready.tokens, ready.held_out, ready.reward,
        rollout=job.rollout, data=job.data, config=config, autocast=lambda: autocast(device, ready.precision),
        judges=ready.judges, progress=observer.progress,
    )  # fmt: skip
    run.write_json("compare.json", comparison)
    write_card(run)
    report = write_report(run)
    _log_again(run, job, comparison, report, observer)
    return {"run": str(run.path), "report": str(report), "compare": comparison}


def _log_again(run: RunDir, job: PPOJob, comparison: Mapping[str, Any], report: Path, observer: Observer) -> None:
    """Replace the before/after in the run's sinks; in MLflow only if the run is there."""
    info, metrics = run.info, run.read_metrics()
    settings = job.run.model_copy(update={"mlflow": job.run.mlflow and bool(info.get("mlflow_run_id"))})
    sinks = open_sinks(settings, run, observer.warn, job.data.prompts)
    sinks.log(metrics[-1]["update"] if metrics else 0, comparison_metrics(comparison))
    sinks.artifacts(report, run.compare)
    sinks.end("FINISHED" if info["status"] == "finished" else "FAILED" if info["status"] == "failed" else "KILLED")


def generate_texts(
    model: ModelConfig, prompts: list[str], samples: int, length: int, temperature: float, seed: int, observer: Observer
) -> list[dict[str, str]]:
    """Let a model continue prompts, ``samples`` times each, until its end of text or ``length`` tokens."""
    if not all(text.strip() for text in prompts):
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
    texts = tokens.split_all([text for text, _ in items], queries, rollout.response_ids())
    return [{"prompt": prompt, "response": response} for prompt, response in zip(*texts, strict=True)]

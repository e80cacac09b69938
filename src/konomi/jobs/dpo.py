"""`konomi dpo`: from rankings, pairs or scores to a language model, without a reward model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from konomi.config import DPOJob
from konomi.data.messages import Answered
from konomi.data.records import Group
from konomi.engine.device import autocast, peak_memory_gb
from konomi.jobs.common import Work, result_of, resume_command, running, saved_until, saving_of
from konomi.jobs.compare import compare_models, comparison_metrics
from konomi.jobs.dpo_data import Prepared, prepare_dpo
from konomi.jobs.inputs import check_unchanged, job_inputs
from konomi.jobs.prepare import described
from konomi.models.load import load_causal_lm, quiet
from konomi.models.lora import adapted_layers, save_model, without_adapters
from konomi.report.advice import too_few
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer
from konomi.statistics import evaluate_preferences
from konomi.statistics.bootstrap import mean_interval
from konomi.text import plural
from konomi.training.callback import Outcome
from konomi.training.checkpoints import Checkpoints
from konomi.training.dpo import ResponseLogprobs, figures, per_token, response_logprobs, train_dpo


def run_dpo(
    job: DPOJob, root: str | Path, observer: Observer | None = None, resume: Path | None = None, *, parent: str | None = None
) -> dict[str, Any]:
    """Train a language model on comparisons, or go on in the directory ``resume`` of a run; return what ``--json`` prints.

    The run directory gets model/, eval.json, metrics.jsonl and report.html, and compare.json where the job names a reward; after
    a stop there is no model.

    Raises:
        ConfigError, DataError, ModelError: an input is not usable, or has changed; nothing was written.
        RunError: training failed; the directory says why.
        KeyboardInterrupt: stopped by a signal; says how to go on. No model was written.
    """
    observer, started = observer or Observer(), time.monotonic()
    old = RunDir.open(resume) if resume else None
    ready = prepare_dpo(job, observer, old)
    fields = {
        "data_digest": ready.digest, "verb": "dpo", "precision": ready.precision, "model_revision": ready.loaded.revision,
        "licence": ready.loaded.note, "inputs": job_inputs(job),
    }  # fmt: skip
    if old:
        check_unchanged(old, fields, data="data.file")
    with running(job, root, observer, fields=fields, parent=parent, resume=old) as work:
        work.start(job.data.file, _facts(job, ready))
        if few := too_few(len({group.key for group in ready.groups})):
            observer.warn(few)
        checkpoints = Checkpoints(work.run.checkpoints, keep=1)
        with resume_command(work, "dpo", lambda: saved_until(checkpoints)):
            outcome, references = _train(job, work, checkpoints, ready, going_on=old is not None)
            if outcome.best_step == 0:
                observer.warn(
                    "no evaluation was better than that of the initial model, which is the model of this run: lower "
                    "dpo.learning_rate, or give more comparisons"
                )
            observer.say("The model is evaluated on what was held out")
            result = _evaluate(job, ready, references)
            with quiet():
                save_model(ready.loaded, work.run.model, work.run.adapter)
            work.run.write_json("eval.json", result)
            held_out = result["held_out"]
            measured = {name: held_out[name]["value"] for name in ("accuracy", "margin")} | {"loss": held_out["loss"]}
            work.sinks.log(outcome.steps, {f"held_out/{name}": value for name, value in measured.items()})
            comparison = _compare(job, work, ready, outcome.steps)
        report = work.finish()
        checkpoints.clear()
        return result_of(
            work, started, updates=outcome.steps, epochs=outcome.epochs, best_update=outcome.best_step, early=outcome.early,
            peak_gb=peak_memory_gb(), model=str(work.run.model), report=str(report), eval=result, compare=comparison,
        )  # fmt: skip


def _train(job: DPOJob, work: Work, checkpoints: Checkpoints, ready: Prepared, going_on: bool) -> tuple[Outcome, list[Tensor]]:
    checkpoints.make()
    lm = ready.loaded.model
    with work.stop.patience():
        outcome, references = train_dpo(
            lm, ready.train, ready.held_out, job.dpo, seed=job.run.seed, precision=ready.precision,
            directory=checkpoints.directory, identity=repr(work.run.info["inputs"].get("model.name", job.model.name)),
            record=work.log, progress=work.observer.progress, stop=work.stop,
            saving=saving_of(work, checkpoints, job.run.save_every, going_on),
        )  # fmt: skip
    if signal := work.stop.signal:
        work.run.set_status("stopped", f"{signal} after update {outcome.steps}")
        raise KeyboardInterrupt(f"stopped after update {outcome.steps}; there is no model yet")
    return outcome, references


def _evaluate(job: DPOJob, ready: Prepared, references: Sequence[Tensor]) -> dict[str, Any]:
    """The content of eval.json: the model's implicit rewards against what was held out, as those of a reward model."""
    lm = ready.loaded.model
    logprobs = response_logprobs(ResponseLogprobs(lm), ready.held_out, lambda: autocast(lm.device, ready.precision))
    measured = figures(logprobs, references, ready.held_out, job.dpo)
    scores = []
    for choices, own, reference in zip(ready.held_out, logprobs, references, strict=True):
        lengths = torch.tensor(list(map(len, choices.responses))) if per_token(job.dpo) else 1
        scores.append((job.dpo.beta * (own - reference).double() / lengths).tolist())
    held_out = evaluate_preferences(ready.groups, scores, seed=job.run.seed, train_comparisons=ready.comparisons)
    held_out |= {"loss": measured["loss"], "margin": _margin(ready.groups, scores)}
    held_out |= {key: measured[key] for key in ("preferred", "other")}
    rows = [
        {**Answered(group.prompt, response, group.messages).shown, "score": score}
        for group, own in zip(ready.groups, scores, strict=True)
        for response, score in zip(group.responses, own, strict=True)
    ]
    rows.sort(key=lambda row: -row["score"])
    return {"version": 1, "task": "preference", "held_out": held_out, "texts": rows[:8] + rows[8:][-8:]}


def _margin(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """How much higher a preferred response is scored than the other: the mean over prompts, with its interval."""
    gaps: dict[str, list[float]] = {}
    for group, own in zip(groups, scores, strict=True):
        for c in group.comparisons:
            if c.label != 0.5:
                gaps.setdefault(group.key, []).append((own[c.better] - own[c.worse]) * (1 if c.label > 0.5 else -1))
    return dict(mean_interval(np.array([np.mean(each) for each in gaps.values()])))


def _compare(job: DPOJob, work: Work, ready: Prepared, updates: int) -> dict[str, Any] | None:
    """Make the before/after, if the job names a reward."""
    if (asked := ready.questions) is None:
        return None
    work.observer.say("Before/after: both models answer held-out prompts")
    lm = ready.loaded.model
    comparison = compare_models(
        _initial(job, ready, work.observer), lm, ready.loaded.tokens, asked.prompts, asked.reward, rollout=job.rollout,
        data=asked.data, config=job.compare, autocast=lambda: autocast(lm.device, ready.precision),
        failed_texts=work.run.path / "failed_texts.jsonl", judges=asked.judges, progress=work.observer.progress,
    )  # fmt: skip
    work.run.write_json("compare.json", comparison)
    work.sinks.log(updates, comparison_metrics(comparison))
    return comparison


def _initial(job: DPOJob, ready: Prepared, observer: Observer) -> PreTrainedModel:
    """The initial model once more: training keeps no second copy."""
    lm = ready.loaded.model
    if adapted_layers(lm):
        return without_adapters(lm)
    initial = load_causal_lm(job.model, progress=observer.say).model
    return (initial.double() if ready.precision == "fp64" else initial).to(lm.device)


def _facts(job: DPOJob, ready: Prepared) -> dict[str, str]:
    dpo = job.dpo
    after = "" if ready.questions is None else f"; before/after on {plural(len(ready.questions.prompts), 'prompt')}"
    return {
        "model": described(job, ready.loaded, ready.precision),
        "data": f"{job.data.file}: {plural(ready.comparisons, 'comparison')} of {plural(len(ready.train), 'prompt')} to learn "
        f"from, {plural(len(ready.held_out), 'prompt')} held out{after}",
        "job": f"{dpo.loss}, beta {dpo.beta:g}, {plural(dpo.epochs, 'epoch')}, {plural(dpo.batch_size, 'prompt')} a step",
    }

"""`konomi reward`: from rankings, scores or labels to a reward model, its evaluation and its page."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from konomi.config import RewardJob
from konomi.data.formats import read_tasks
from konomi.data.messages import Answered
from konomi.engine.device import autocast, find_device, peak_memory_gb
from konomi.engine.recompute import recompute_layers
from konomi.errors import DataError, RunError
from konomi.files import file_sha256, local_path, new_directory
from konomi.jobs.common import Work, precision_of, result_of, resume_command, running, saved_until, saving_of
from konomi.jobs.inputs import check_unchanged, job_inputs
from konomi.jobs.reward_data import Learned, Scores, load
from konomi.models.lora import adapted_layers, require_peft, save_adapter
from konomi.models.reward import Normalisation, RewardModel
from konomi.models.reward_files import NewRewardModel, make_reward_model, rescale_head
from konomi.models.text_baseline import fit_text_baseline, make_ensemble
from konomi.report.advice import too_few
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer
from konomi.runs.processes import is_main
from konomi.seeds import stream_seed
from konomi.statistics.regression import OF_FLOAT32, beyond_rounding
from konomi.text import plural
from konomi.training.batches import micro_batch_size
from konomi.training.callback import Outcome
from konomi.training.checkpoints import Checkpoints
from konomi.training.reward import train_reward_model

HEAD_TEXTS = 64
"""Elements on which the size of a new head's numbers is measured."""


def run_reward(
    job: RewardJob, root: str | Path, observer: Observer | None = None, resume: Path | None = None, *,
    parent: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a reward model (or a classifier), or go on in the directory ``resume`` of a run, and say how far it can be trusted;
    return what ``--json`` prints.

    The run directory gets model/, eval.json, metrics.jsonl and report.html; after a stop there is no model.

    Raises:
        ConfigError, DataError, ModelError: an input is not usable, or has changed; nothing was written.
        RunError: training failed; the directory says why.
        KeyboardInterrupt: stopped by a signal; says how to go on. No model was written.
    """
    observer, started = observer or Observer(), time.monotonic()
    micro_batch_size(job.train, "train")
    old = RunDir.open(resume) if resume else None
    learned, samples, built = prepare_reward(job, observer)
    if job.model.gradient_checkpointing:
        recompute_layers(built.model.model)
    model = built.model.to(find_device())
    precision = precision_of(job.model.precision, old)
    fields = {
        "data_digest": learned.digest, "verb": "reward", "precision": precision, "model_revision": built.revision,
        "licence": built.note, "inputs": job_inputs(job),
    }  # fmt: skip
    if old:
        check_unchanged(old, fields, data="data.file")
    with running(job, root, observer, fields=fields, parent=parent, resume=old) as work:
        work.start(job.data.file, _facts(job, model, learned, precision))
        if few := too_few(learned.prompts()):
            observer.warn(few)
        if built.summed and not built.fresh and not job.ensemble.text_weight:
            observer.warn(_network_alone(job))
        if built.fresh:
            rescale_head(model, [e.texts for e in learned.train[:HEAD_TEXTS]], lambda: autocast(model.device, precision))
        checkpoints = Checkpoints(work.run.checkpoints, keep=1)
        with resume_command(work, "reward", lambda: saved_until(checkpoints)):
            outcome = _train(job, work, checkpoints, model, learned, precision, going_on=old is not None)
            if outcome.best_step == 0:
                _nothing_learned(built.fresh, observer)
            observer.say("The model is evaluated on what was held out")
            result = _evaluate(job, model, learned, samples)
            _save(job, work.run, model, learned)
        work.run.write_json("eval.json", result)
        figures = _flat(result["held_out"], "held_out/") | _flat(result.get("truth", {}), "truth/")
        work.sinks.log(outcome.steps, figures)
        report = work.finish()
        checkpoints.clear()
        return result_of(
            work, started, steps=outcome.steps, epochs=outcome.epochs, best_step=outcome.best_step, early=outcome.early,
            peak_gb=peak_memory_gb(), model=str(work.run.model), report=str(report), eval=result,
        )  # fmt: skip


def prepare_reward(job: RewardJob, observer: Observer) -> tuple[Learned, Samples | None, NewRewardModel]:
    """Load and check all that a run needs: the data, the samples that set the scale, the model.

    Raises:
        ConfigError, DataError, ModelError: an input is not usable.
    """
    require_peft(job.lora)
    learned = load(job, observer.say, observer.warn)
    samples = _samples(job)
    built = make_reward_model(
        job.model, outputs=len(learned.labels) or 1, labels=learned.labels, seed=stream_seed(job.run.seed, "reward head") % 2**31,
        max_length=job.train.max_length, chat=job.data.chat or (None if learned.talks else False), progress=observer.say,
        lora=job.lora, language=job.train.lm_weight > 0,
    )  # fmt: skip
    _check_texts(built.model, learned, samples, observer)
    return learned, samples, built


def _train(
    job: RewardJob, work: Work, checkpoints: Checkpoints, model: RewardModel, learned: Learned, precision: str, going_on: bool
) -> Outcome:
    checkpoints.make()
    with work.stop.patience():
        outcome = train_reward_model(
            model, learned.train, learned.held_out, job.train, seed=job.run.seed, precision=precision,
            directory=checkpoints.directory, record=work.log, stop=work.stop,
            progress=lambda what, *done: work.observer.progress(f"{what} step", *done),
            saving=saving_of(work, checkpoints, job.run.save_every, going_on),
        )  # fmt: skip
    if signal := work.stop.signal:
        work.run.set_status("stopped", f"{signal} after step {outcome.steps}")
        raise KeyboardInterrupt(f"stopped after step {outcome.steps}; there is no model yet")
    return outcome


def _save(job: RewardJob, run: RunDir, model: RewardModel, learned: Learned) -> None:
    if not is_main():
        return
    with new_directory(run.model) as draft:
        model.save(draft, {"task": job.train.task, "model": job.model.name, "labels": list(learned.labels)})
    if adapted_layers(model.model):
        with new_directory(run.adapter) as draft:
            save_adapter(model.model, draft)


def _network_alone(job: RewardJob) -> str:
    again = "; set ensemble.text_weight to have one again, fitted anew" if job.train.task == "preference" else ""
    return (
        f"{job.model.name}: its score is a sum with a text baseline, of which only the network is taken and trained: the new "
        f"model's score is without a text baseline{again}"
    )


def _nothing_learned(fresh: bool, observer: Observer) -> None:
    """The best model is the initial one: raise RunError if its head is random, warn if it was trained before."""
    what = "no evaluation was better than that before training"
    mend = "lower train.learning_rate, or give more data"
    if fresh:
        raise RunError(f"{what}, of a head drawn at random: nothing was learned, and no model is written; {mend}")
    observer.warn(f"{what}: the model is as it began; {mend}")


def _check_texts(model: RewardModel, learned: Learned, samples: Samples | None, observer: Observer) -> None:
    """Encode all texts once: refuse unknown tokens, warn about texts that are cut."""
    if learned.talks and model.reader.render is None:
        observer.say("Conversations are read as plain text: the model has no chat template (see model.chat_template)")
    written = model.tokenizer.chat_template and model.reader.render is None
    if samples and written and any(text.messages for texts in samples.texts for text in texts):
        observer.warn(
            "the samples (normalize.samples) are conversations, what the model learns from (data.file) is not, and both are read "
            "as plain text. To have both written by the chat template, set data.chat = true"
        )
    groups = [example.texts for example in learned.train + learned.held_out]
    groups += samples.texts if samples else []
    alike = 0
    for group in groups:
        rows = {tuple(row) for row in model.encode(group)}
        alike += len(rows) < len(set(group))
    model.reader.warn(observer.warn)
    if alike and model.reader.cut:
        observer.warn(
            f"to {alike} of {plural(len(groups), 'prompt')} different responses are the same to the model: what differs is cut "
            "off. Raise train.max_length, up to the places that the model has, or shorten the prompts"
        )


@dataclass(frozen=True)
class Samples:
    """What the initial model wrote: the responses to each prompt, and their file's hash."""

    texts: list[tuple[Answered, ...]]
    sha256: str


def _samples(job: RewardJob) -> Samples | None:
    """The samples that set the scale, chosen by the seed."""
    name, model = job.normalize.samples, job.normalize.model
    if name is None:
        return None
    tasks = read_tasks(name)
    digest = file_sha256(local_path(name))
    places: Counter[str] = Counter()  # a prompt may have several tasks
    drawn = []
    for task in tasks:
        key = task.key
        drawn.append((stream_seed(job.run.seed, "normalize", key, places[key]), task))
        places[key] += 1
    chosen: list[tuple[Answered, ...]] = []
    count = 0
    for _, task in sorted(drawn, key=lambda item: item[0]):
        own = [c.text for c in task.candidates if model is None or c.source.get("model") == model]
        texts = tuple(Answered(task.prompt, text, task.messages) for text in own)
        if texts and (not chosen or count + len(texts) <= job.normalize.count):
            chosen.append(texts)
            count += len(texts)
    if count < 2:
        known = ", ".join(sorted({str(c.source.get("model")) for task in tasks for c in task.candidates}))
        of = f" of the model {model} (normalize.model; there are: {known})" if model else ""
        raise DataError(f"{name}: fewer than two candidates{of} in it; a scale needs some dozens. See normalize.samples")
    return Samples(chosen, digest)


def _normalise(model: RewardModel, samples: Samples) -> list[dict[str, Any]]:
    """Score the initial model's samples, set the scale, and return the texts with their normalised scores."""
    numbers = model.predict(samples.texts)
    raw: list[float] = torch.cat(numbers)[:, 0].double().tolist()
    std = beyond_rounding(statistics.stdev(raw), max(map(abs, raw)), OF_FLOAT32)
    if not std:
        raise RunError("the model gives all samples the same score, so that there is no scale; it has learned nothing")
    model.normalisation = Normalisation(statistics.fmean(raw), std, len(raw), samples.sha256)
    each = [text for texts in samples.texts for text in texts]
    scored = zip(each, raw, strict=True)
    return [{**answer.shown, "score": model.normalised(score)} for answer, score in scored]


def _evaluate(job: RewardJob, model: RewardModel, learned: Learned, samples: Samples | None) -> dict[str, Any]:
    """The content of eval.json; the model gets what else gives its score, and its scale."""
    numbers = model.predict(learned.texts())  # in float32, as it is saved
    baselines: dict[str, Scores] = {}
    if learned.groups:
        text_baseline = fit_text_baseline(learned.train_groups, job.run.seed)
        scores = text_baseline.scores([text for group in learned.groups for text in group.responses])
        ends = np.cumsum([len(group.responses) for group in learned.groups])
        baselines["text"] = [own.tolist() for own in np.split(scores, ends[:-1])]
        if job.ensemble.text_weight:
            network = baselines["network"] = [each[:, 0].tolist() for each in numbers]
            both = [np.concatenate(each) for each in (network, baselines["text"])]
            model.ensemble = make_ensemble(text_baseline, job.ensemble.text_weight, *both)
            numbers = model.ensemble.sum(numbers, learned.texts())
    evaluated = learned.evaluate(numbers, job.run.seed, baselines)
    result: dict[str, Any] = {"version": 1, "task": job.train.task, **evaluated}
    texts: list[dict[str, Any]] = []
    if samples:
        texts = _normalise(model, samples)
        result["normalisation"] = {k: v for k, v in vars(model.normalisation).items() if k != "data_sha256"}
    elif job.train.task != "classification":
        texts = learned.shown(numbers)
    texts.sort(key=lambda text: -text["score"])
    result["texts"] = texts[:8] + texts[8:][-8:]
    return result


def _facts(job: RewardJob, model: RewardModel, learned: Learned, precision: str) -> dict[str, str]:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "model": f"{job.model.name}, {trained / 1e6:,.0f} M parameters trained, {precision} on {model.device}",
        "data": f"{job.data.file}: {learned.described}",
        "job": f"{job.train.task}, {plural(job.train.epochs, 'epoch')}, {job.train.batch_size} a step",
    }


def _flat(values: dict[str, Any], prefix: str) -> dict[str, float]:
    """The figures of an evaluation that are one number, and those that have an interval."""
    values = {**values, **{f"baselines/{name}": each["accuracy"] for name, each in values.get("baselines", {}).items()}}
    numbers = {k: v["value"] if isinstance(v, dict) and "low" in v else v for k, v in values.items()}
    return {f"{prefix}{k}": float(v) for k, v in numbers.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}

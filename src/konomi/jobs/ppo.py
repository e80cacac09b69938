"""`konomi ppo`: from a configuration to a run directory with the model, the before/after and the report."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from konomi import files
from konomi.config import PPOJob
from konomi.data.prompts import as_prompts
from konomi.engine.device import peak_memory_gb
from konomi.errors import NotFiniteError, RunError
from konomi.jobs.common import Work, go_on, result_of, resume_command, running, saved_until
from konomi.jobs.compare import compare_models, comparison_metrics
from konomi.jobs.evaluation import Evaluations, best_of
from konomi.jobs.guards import Guards
from konomi.jobs.land import Dial, landing_metrics
from konomi.jobs.prepare import Prepared, keep_prompts, longest_asked, models_of, prepare
from konomi.models.lora import adapted_layers, require_peft, reset_adapters
from konomi.reading import written_by_konomi
from konomi.report.advice import kl_missed, too_few
from konomi.report.ranges import over_the_run
from konomi.rewards import reward_config
from konomi.runs import processes
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer, StepResult
from konomi.text import plural
from konomi.training.checkpoint_files import load_weights
from konomi.training.checkpoints import Checkpoints
from konomi.training.optimizers import check_optimizer
from konomi.training.ppo import PPOTrainer
from konomi.training.profile import profiled
from konomi.training.served import serving
from konomi.training.sharding import check_divisible
from konomi.training.shares import check_mini_batch


@dataclass(frozen=True)
class _Training:
    """A PPO run under way."""

    job: PPOJob
    work: Work
    trainer: PPOTrainer
    checkpoints: Checkpoints
    guards: Guards
    evaluations: Evaluations


def run_ppo(
    job: PPOJob, root: str | Path, observer: Observer | None = None, resume: Path | None = None, profile: bool = False,
    parent: str | None = None, prompts: Iterable[Any] | None = None, reward: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """Run a job, or continue the one in the directory ``resume``; return what ``--json`` prints.

    Args:
        job: the settings.
        root: directory of all runs.
        observer: gets its progress.
        resume: directory of the run to continue.
        profile: write trace.json.gz and profile.txt of one update; see :mod:`konomi.training.profile`.
        parent: the MLflow run that this one belongs to.
        prompts, reward: instead of those that the job names: strings or rows with a text; a Python function.

    Raises:
        ConfigError, DataError, ModelError: an input is not usable; nothing was written.
        RunError: the run failed; its directory says why.
        KeyboardInterrupt: a signal stopped it; the state is saved.
    """
    observer, started = observer or Observer(), time.monotonic()
    require_peft(job.lora)
    old = RunDir.open(resume) if resume else None
    check_optimizer(job.ppo.optimizer)
    check_divisible(job)
    check_mini_batch(job.ppo)
    own = None if prompts is None else as_prompts(itertools.islice(prompts, job.data.limit), job.data, observer.say)
    named = job if reward is None else job.model_copy(update={"reward": reward_config(reward)})
    ready = prepare(named, observer, old, prompts=own, reward=reward)
    policy, reference = models_of(job, ready.loaded)
    with (
        serving(job.rollout.server, longest_asked(job, ready), policy, observer.warn) as sampler,
        running(named, root, observer, fields=ready.fields, parent=parent, resume=old) as work,
    ):
        job = named if own is None or old else processes.first(partial(keep_prompts, named, work.run, own))
        trainer = PPOTrainer(
            policy, reference, ready.tokens, ready.prompts, ready.reward, ppo=job.ppo, rollout=job.rollout, data=job.data,
            seed=job.run.seed, precision=ready.precision, failed_texts=work.run.path / "failed_texts.jsonl", judges=ready.judges,
            sampler=sampler, algorithm=job.algorithm,
        )  # fmt: skip
        checkpoints = Checkpoints(work.run.checkpoints, job.run.keep)
        _take_up(work, trainer, checkpoints, resume is not None)
        guards, evaluations = Guards(job, work, trainer, checkpoints), Evaluations(job, work, trainer, ready)
        training = _Training(job, work, trainer, checkpoints, guards, evaluations)
        work.start(job.data.prompts, _facts(training, ready), job.ppo.updates)
        if few := too_few(min(len(ready.held_out), job.compare.prompts)):
            observer.warn(few)
        with resume_command(work, "ppo", lambda: saved_until(training.checkpoints)):
            _train(training, profile)
            landed = _keep_model(training, ready)
        comparison = _compare(training, ready, landed)
        report = work.finish("finished" if trainer.stop_reason is None else "stopped", trainer.stop_reason)
        return result_of(
            work, started, status=work.run.info["status"], reason=trainer.stop_reason, updates=trainer.update,
            peak_gb=peak_memory_gb(), model=str(work.run.model), report=str(report), compare=comparison, land=landed,
            best=best_of(work.run.info, checkpoints), guards=work.run.info.get("guards") or [],
            last_update=next(reversed(work.run.read_metrics()), None),
        )  # fmt: skip


def _take_up(work: Work, trainer: PPOTrainer, checkpoints: Checkpoints, going_on: bool) -> None:
    """Load the newest checkpoint of a run that goes on; make sure that an inference server takes the weights."""
    if going_on:
        go_on(work, checkpoints, trainer.load)
    if trainer.sampler:
        trainer.sampler.probe(trainer, work.run.path)


def _train(training: _Training, profile: bool) -> None:
    """Run the updates until the last one, or until a guard, the KL cap or a signal ends the run."""
    job, trainer, run, observer = training.job, training.trainer, training.work.run, training.work.observer
    if trainer.scale is None:
        observer.say("The initial model writes and is scored: its mean and deviation scale the reward")
        samples = trainer.baseline()
        run.append_samples(0, samples[: job.run.samples])
        observer.before(samples)
    training.evaluations.begin()
    with training.work.stop.patience():
        steps = profiled(trainer, run.path, observer.say) if profile and processes.is_main() else trainer
        while _goes_back(training, steps):
            steps = trainer


def _goes_back(training: _Training, steps: Iterable[StepResult]) -> bool:
    """Run the remaining updates. Returns True as soon as a guard has rolled the run back: call it again."""
    job, work, trainer, checkpoints = training.job, training.work, training.trainer, training.checkpoints
    run, stop = work.run, work.stop
    try:
        for result in steps:
            warned, alarm = training.guards.see(result)
            if alarm and training.guards.back(alarm):
                return True
            if alarm and trainer.stop_reason is None:
                raise RunError(f"update {result.update}: {alarm.detail} is not finite")
            goes_on, marks = trainer.stop_reason is None, {"out_of_range": result.out_of_range}
            metrics = result.metrics | (training.evaluations.after(result.update) if goes_on else {})
            run.append_metrics(result.update, {"episodes": result.episodes, **metrics, **marks})
            run.append_samples(result.update, result.samples[: None if warned else job.run.samples])
            work.sinks.log(result.update, metrics)
            work.observer.step(result)
            if not goes_on:
                checkpoints.drop_from(result.update - 1)
                break
            checkpoints.prune(measured=result.update)
            training.evaluations.keep_best(metrics, checkpoints, trainer.save)
            stop.agree()
            last = result.update == job.ppo.updates
            if last or stop.signal or result.update % job.run.save_every == 0:
                checkpoints.save(trainer.update, trainer.save)
            if stop.signal:
                run.set_status("stopped", f"{stop.signal} after update {result.update}")
                raise KeyboardInterrupt(f"stopped after update {result.update}")
    except NotFiniteError as error:
        if not training.guards.back_from(error):
            raise
        return True
    return False


def _keep_model(training: _Training, ready: Prepared) -> dict[str, Any] | None:
    """Save the final model: the trained one, or the one it lands at. Returns the result of landing."""
    trainer, run = training.trainer, training.work.run
    trainer.engine.optimizer.zero_grad(set_to_none=True)
    with trainer.engine.unsharded():
        if trainer.stop_reason is not None:
            _roll_back(training)
        landed = None if training.job.land.kl is None else _land(training, ready, training.job.land.kl)
        if processes.is_main():
            _save_model(training, run.model)
            if adapted_layers(trainer.policy.lm):
                _save_adapter(training, run.adapter)
    return landed


def _save_model(training: _Training, directory: Path) -> None:
    with files.new_directory(directory) as draft:
        training.trainer.policy.save(draft)
        training.trainer.tokens.tokenizer.save_pretrained(draft)


def _save_adapter(training: _Training, directory: Path) -> None:
    with files.new_directory(directory) as draft:
        training.trainer.policy.save_adapter(draft)


def _land(training: _Training, ready: Prepared, target: float) -> dict[str, Any]:
    """Save the trained model, then move the policy along the line to where its KL is ``target``."""
    job, trainer, run, observer = training.job, training.trainer, training.work.run, training.work.observer
    observer.say(f"Landing: on the line between initial and trained weights, at a KL of {target:g} nats/response")
    if processes.is_main():
        (_save_adapter if adapted_layers(trainer.policy.lm) else _save_model)(training, run.end)
    trainer.engine.optimizer.state.clear()  # no step follows, and the line needs room for the trained weights
    dial = Dial(
        trainer.policy, trainer.reference, job, ready, job.land, trainer.engine.autocast, observer.progress, trainer.failed_texts
    )  # fmt: skip
    landing = dial.land_at(target)
    run.write_json(run.land.name, landing)
    training.work.sinks.log(trainer.update, landing_metrics(landing))
    (observer.say if landing["landed"] else observer.warn)(landing["verdict"]["en"])
    return landing


def _compare(training: _Training, ready: Prepared, landed: Mapping[str, Any] | None) -> dict[str, Any]:
    """Make the before/after and warn of anything out of order."""
    job, trainer, run, observer = training.job, training.trainer, training.work.run, training.work.observer
    observer.say("Before/after: both models answer held-out prompts")
    comparison = compare_models(
        trainer.reference, trainer.policy.lm, trainer.tokens, ready.held_out, ready.reward,
        rollout=job.rollout, data=job.data, config=job.compare, autocast=trainer.engine.autocast,
        failed_texts=trainer.failed_texts, judges=ready.judges, progress=observer.progress,
    )  # fmt: skip
    run.write_json("compare.json", comparison)
    kl = comparison["after"]["kl"]
    if trainer.stop_reason is None and kl > job.ppo.kl_cap:
        gone = f"{kl:.1f} nats/response from the initial one, over ppo.kl_cap = {job.ppo.kl_cap:g}"
        observer.warn(f"the model is {gone}; the checkpoints before it are in {run.checkpoints}")
    elif trainer.stop_reason is None and (not landed or landed["end_kl"] <= job.ppo.kl_cap):
        training.checkpoints.prune(measured=trainer.update + 1)
    training.work.sinks.log(trainer.update, comparison_metrics(comparison))
    with written_by_konomi(run.path):
        _warn_of_the_run(job, run.read_metrics(), kl, observer)
    return comparison


def _warn_of_the_run(job: PPOJob, lines: list[dict[str, Any]], kl: float, observer: Observer) -> None:
    """Warn about its metrics; ``kl``: that of the before/after."""
    if job.ppo.kl_controller != "fixed" and job.land.kl is None and lines:
        coefficients = lines[0]["objective/kl_coef"], lines[-1]["objective/kl_coef"]
        course = [line["objective/kl"] for line in lines]
        if missed := kl_missed(kl, job.ppo.kl_target, coefficients, course, job.ppo.kl_controller):
            observer.warn(missed)
    if marked := over_the_run(lines):
        observer.warn(f"out of the healthy range (updates, worst value, range): {'; '.join(marked)}. See docs/metrics.md")


def _roll_back(training: _Training) -> None:
    """Give the policy the weights of the last good checkpoint, or else those that it began with."""
    trainer, warn = training.trainer, training.work.observer.warn
    try:
        update = training.checkpoints.load_newest(lambda path: load_weights(trainer.policy, path), warn)
    except RunError as error:
        warn(str(error))
        update = None
    if update is not None:
        warn(f"{trainer.stop_reason}. The model is the one after update {update}, the last good checkpoint")
    else:
        if adapted_layers(trainer.policy.lm):
            reset_adapters(trainer.policy.lm)
        else:
            trainer.policy.lm.load_state_dict(trainer.reference.state_dict())
        warn(f"{trainer.stop_reason}, and no complete checkpoint is left. The model is the initial one; see run.save_every")


def _facts(training: _Training, ready: Prepared) -> Mapping[str, str]:
    job, trainer = training.job, training.trainer
    parameters = sum(p.numel() for p in trainer.policy.parameters())
    trained = sum(p.numel() for p in trainer.policy.parameters() if p.requires_grad)
    adapters = f", {trained / 1e6:.2f} M of them trained (adapters of rank {job.lora.rank})" if job.lora.rank else ""
    low, high = job.rollout.response_tokens
    done = f" (going on after update {trainer.update})" if trainer.update else ""
    target = f", target {job.ppo.kl_target:g} nats/response" if job.ppo.kl_controller != "fixed" else ""
    device = trainer.engine.accelerator.device
    each = job.ppo.responses_per_prompt
    facts = {
        "algorithm": job.algorithm.kind + (f", {each} responses a prompt" if each > 1 else ""),
        "model": f"{job.model.name}, {parameters / 1e6:,.0f} M parameters{adapters}, {ready.precision} on {device}",
        "reward": f"{job.reward.kind} {ready.reward.name}",
        "prompts": f"{job.data.prompts}: {len(ready.prompts)} to train on, {len(ready.held_out)} held out",
        "job": f"{plural(job.ppo.updates, 'update')} of {job.ppo.batch_size} responses of {low} to {high} tokens{done}",
        "ends at": trainer.tokens.stops() if job.rollout.stop != "length" else "its length alone",
        "held by": f"KL to the initial model, {job.ppo.kl_controller}{target}",
    }
    if job.land.kl is not None:
        facts["lands at"] = f"a KL of {job.land.kl:g} nats/response"
    if job.judges:
        facts["judges"] = f"{', '.join(job.judges)}: not trained against"
    return facts

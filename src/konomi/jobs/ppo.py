"""A whole `konomi ppo` job: from a configuration to a run directory with the model, the before/after and the report.

What the job does it tells an `Observer`; the command line draws it, Python code may ignore it.
"""

from __future__ import annotations

import itertools
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from konomi import files
from konomi.config import PPOJob, build
from konomi.data.records import Prompt
from konomi.data.sources import as_prompts, distinct_prompts, load_prompts, split_held_out
from konomi.data.tokens import Tokens
from konomi.engine.device import choose_precision, find_device
from konomi.errors import ConfigError, DataError, RunError
from konomi.jobs.common import ends, finish, held, logged, new_run
from konomi.jobs.compare import compare_models, told
from konomi.jobs.inputs import check_unchanged, describe_inputs, given_function
from konomi.models.load import Loaded, load_causal_lm
from konomi.models.policy import Policy, make_reference
from konomi.models.reading import check_room
from konomi.report.advice import too_few
from konomi.report.healthy import kl_missed, over_the_run
from konomi.rewards import as_reward, build_judges, reward_config
from konomi.rewards.base import Reward, check_without_columns, columns_read, readers
from konomi.runs.directory import RunDir, Status
from konomi.runs.environment import forget_peak_memory, peak_memory_gb, typed
from konomi.runs.observer import Observer
from konomi.runs.signals import Stop, stop_on_signal
from konomi.runs.sinks import MlflowSink
from konomi.text import plural
from konomi.training.accelerator import load_weights
from konomi.training.checkpoints import Checkpoints
from konomi.training.ppo import PPOTrainer
from konomi.training.profile import profiled

PROMPTS = "prompts.jsonl"
"""In a run whose prompts came from Python: the prompts."""


def run_ppo(
    job: PPOJob, root: str | Path, observer: Observer | None = None, resume: Path | None = None, profile: bool = False,
    parent: str | None = None, prompts: Iterable[Any] | None = None, reward: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """Run a job, or go on with the one in the directory ``resume``; return the result that ``--json`` prints.

    ``profile``: write trace.json.gz and profile.txt of one update; see :mod:`konomi.training.profile`.
    ``parent``: the MLflow run that this one is a part of.
    ``prompts``, ``reward``: used in place of those that the job names: strings or rows with a text; a Python function.
    Nothing is written before the configuration, the prompts, the reward and the model were found to be usable.

    Raises:
        ConfigError, DataError, ModelError: something given is not usable.
        RunError: the run failed after it had begun; its directory says why.
        KeyboardInterrupt: stopped by a signal; the state is saved.
    """
    observer, started = observer or Observer(), time.monotonic()
    old = RunDir.open(resume) if resume else None
    own = None if prompts is None else as_prompts(itertools.islice(prompts, job.data.limit), job.data.column, observer.say)
    source = job.data.prompts if own is None else "prompts"
    sides = find_prompts(job, own, observer.say)
    function = reward if callable(reward) else None
    if reward is not None:
        job = job.model_copy(update={"reward": reward_config(reward)})
    reward = as_reward(job.reward if reward is None else reward, sides[0][0].columns, find_device())
    judges = build_judges(job.judges, columns=sides[0][0].columns, device=find_device())
    asked, held_out = as_read(sides, [reward, *judges.values()], source, observer.say)
    check_without_columns([reward, *judges.values()], job.compare.extra, asked[0])
    loaded = load_causal_lm(job.model, progress=observer.say)
    precision = (old and old.info.get("precision")) or choose_precision(job.model.precision)
    tokens = loaded.tokens
    check_lengths(job, tokens, asked, held_out, loaded)
    check_reading(job, tokens, asked + held_out, [reward, *judges.values()], observer)
    if function is None and old:
        function = given_function(old, reward)
    began_with = describe_inputs(job, loaded, asked + held_out, own is not None, function)
    if old:
        check_unchanged(old, began_with, asked + held_out)
    policy = Policy(loaded.model, job.model.freeze == "embeddings", job.model.top_layers)
    reference = make_reference(policy)
    noted = {"precision": precision, "eos_ids": sorted(tokens.eos_ids), "licence": loaded.note}
    run = old or new_run(job, root, {**noted, **began_with})
    with held(run), ends(run), stop_on_signal(observer.stopping) as stop:
        if own is not None and not old:
            job = _keep_prompts(job, run, own)
        trainer = PPOTrainer(
            policy, reference, tokens, asked, reward, ppo=job.ppo, rollout=job.rollout, data=job.data,
            seed=job.run.seed, precision=precision, failed_texts=run.path / "failed_texts.jsonl", judges=judges,
        )  # fmt: skip
        checkpoints = Checkpoints(run.checkpoints, job.run.keep)
        if resume:
            _go_on(run, trainer, checkpoints, observer)
        with logged(job.run, run, observer, data=job.data.prompts, parent=parent) as sink:
            observer.start(run, _facts(job, loaded, precision, trainer, reward.name, asked, held_out), job.ppo.updates)
            if few := too_few(min(len(held_out), job.compare.prompts)):
                observer.warn(few)
            _train(trainer, run, checkpoints, sink, job, observer, stop, profile)
            return _finish(trainer, run, checkpoints, sink, job, held_out, reward, judges, observer, started)


def _train(
    trainer: PPOTrainer, run: RunDir, checkpoints: Checkpoints, sink: MlflowSink | None, job: PPOJob,
    observer: Observer, stop: Stop, profile: bool,
) -> None:  # fmt: skip
    if trainer.scale is None:
        observer.say("The initial model writes and is scored: its mean and deviation scale the reward")
        samples = trainer.baseline()
        run.append_samples(0, samples[: job.run.samples])
        observer.before(samples)
    with stop.patience():
        for result in profiled(trainer, run.path, observer.say) if profile else trainer:
            marks = {"out_of_range": result.out_of_range}
            run.append_metrics(result.update, {"episodes": result.episodes, **result.metrics, **marks})
            run.append_samples(result.update, result.samples[: job.run.samples])
            if sink:
                sink.log(result.update, result.metrics)
            observer.step(result)
            if trainer.stop_reason is not None:
                checkpoints.drop_from(result.update - 1)
                return
            checkpoints.prune(measured=result.update)
            last = result.update == job.ppo.updates
            if last or stop.signal or result.update % job.run.save_every == 0:
                checkpoints.save(trainer)
            if stop.signal:
                run.set_status("stopped", f"{stop.signal} after update {result.update}")
                again = f"{typed('konomi')} ppo --resume {shlex.quote(str(run.path))}"
                raise KeyboardInterrupt(f"stopped after update {result.update}; go on with: {again}")


def _finish(
    trainer: PPOTrainer, run: RunDir, checkpoints: Checkpoints, sink: MlflowSink | None, job: PPOJob,
    held_out: list[Prompt], reward: Reward, judges: Mapping[str, Reward], observer: Observer, started: float,
) -> dict[str, Any]:  # fmt: skip
    if trainer.stop_reason is not None:
        _roll_back(trainer, checkpoints, observer)
    trainer.engine.optimizer.zero_grad(set_to_none=True)
    with files.new_directory(run.model) as draft:
        trainer.policy.save(draft)
        trainer.tokens.tokenizer.save_pretrained(draft)
    observer.say("Before/after: both models answer held-out prompts")
    comparison = compare_models(
        trainer.reference, trainer.policy.lm, trainer.tokens, held_out, reward,
        rollout=job.rollout, data=job.data, config=job.compare, autocast=trainer.engine.autocast,
        failed_texts=trainer.failed_texts, judges=judges,
    )  # fmt: skip
    run.write_json("compare.json", comparison)
    if trainer.stop_reason is None and comparison["after"]["kl"] > job.ppo.kl_cap:
        gone = f"{comparison['after']['kl']:.1f} nats/response from the initial one, over ppo.kl_cap = {job.ppo.kl_cap:g}"
        observer.warn(f"the model is {gone}; the checkpoints before it are in {run.checkpoints}")
    elif trainer.stop_reason is None:
        checkpoints.prune(measured=trainer.update + 1)
    status: Status = "finished" if trainer.stop_reason is None else "stopped"
    if sink:
        sink.log(trainer.update, told(comparison))
    for note in _notes(run, job, comparison):
        observer.warn(note)
    report = finish(run, sink, status, trainer.stop_reason)
    if sink:
        sink.end("FINISHED" if trainer.stop_reason is None else "KILLED")
    return {
        "run": str(run.path),
        "status": status,
        "reason": trainer.stop_reason,
        "updates": trainer.update,
        "seconds": time.monotonic() - started,
        "peak_gb": peak_memory_gb(),
        "model": str(run.model),
        "report": str(report),
        "mlflow": sink.address if sink else None,
        "compare": comparison,
        "last_update": run.read_metrics()[-1],
    }


def _notes(run: RunDir, job: PPOJob, comparison: Mapping[str, Any]) -> list[str]:
    """What of the run is not as it should be."""
    lines, notes = run.read_metrics(), []
    if job.ppo.kl_controller == "adaptive" and lines:
        ends = lines[0]["objective/kl_coef"], lines[-1]["objective/kl_coef"]
        notes.append(kl_missed(comparison["after"]["kl"], job.ppo.kl_target, ends))
    if marked := over_the_run(lines):
        notes.append(f"out of the healthy range (updates, worst value, range): {'; '.join(marked)}. See docs/metrics.md")
    return [note for note in notes if note]


def _roll_back(trainer: PPOTrainer, checkpoints: Checkpoints, observer: Observer) -> None:
    """Give the policy the weights of the last good checkpoint, or else those that it began with."""
    try:
        update = checkpoints.load_newest(lambda path: load_weights(trainer.policy, path), observer.warn)
    except RunError as error:
        observer.warn(str(error))
        update = None
    if update is not None:
        observer.warn(f"{trainer.stop_reason}. The model is the one after update {update}, the last good checkpoint")
    else:
        trainer.policy.lm.load_state_dict(trainer.reference.state_dict())
        observer.warn(f"{trainer.stop_reason}, and no whole checkpoint is left. The model is the initial one; see run.save_every")


def _go_on(run: RunDir, trainer: PPOTrainer, checkpoints: Checkpoints, observer: Observer) -> None:
    """Load the newest checkpoint that is whole. Raises RunError if none of them is."""
    forget_peak_memory()
    try:
        checkpoints.load_newest(trainer.load, observer.warn)
    except RunError as error:
        advice = "Put a copy of one back, or remove that directory to train from the beginning"
        raise RunError(f"{error}, and nothing was trained. {advice}") from error
    run.truncate_after(trainer.update if trainer.update else -1)
    run.set_status("running")


def resumed_job(path: Path, overrides: list[str]) -> PPOJob:
    """The configuration of a run to go on with.

    Raises:
        ConfigError: something was to be changed that a run cannot change midway; it is finished already.
    """
    if overrides:
        raise ConfigError(f"--set {overrides[0]}: a resumed run goes on as it began; start a new one to change a setting")
    run = RunDir.open(path)
    run.check_verb("ppo")
    if run.info["status"] == "finished":
        raise ConfigError(f"{path}: this run is finished; there is nothing to go on with")
    return job_of(run)


def job_of(run: RunDir) -> PPOJob:
    """The configuration of a run, with the prompts that it keeps, wherever it lies now."""
    job = build(PPOJob, run.config, where=str(run.path / "config.json"))
    kept = run.path / PROMPTS
    return job.model_copy(update={"data": job.data.model_copy(update={"prompts": str(kept)})}) if kept.is_file() else job


def _keep_prompts(job: PPOJob, run: RunDir, prompts: list[Prompt]) -> PPOJob:
    """Write prompts that came from Python into the run, so that it can be resumed and compared without them."""
    rows = ({**each.columns, job.data.column: each.text} for each in prompts)
    files.write_atomic(run.path / PROMPTS, b"".join(map(files.line, rows)))
    job = job_of(run)
    run.write_json("config.json", job.model_dump(mode="json"))
    return job


def find_prompts(
    job: PPOJob, given: list[Prompt] | None = None, say: Callable[[str], None] = lambda _: None
) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to train on and those held out; neither holds an extra prompt of the before/after.

    ``given``: instead of those that the job names. Those of the same text that differ in any column are all there, until
    :func:`as_read` is asked. ``say``: is told what was left out.
    """
    prompts = load_prompts(job.data, None, say) if given is None else given
    extra = {Prompt(text).key for text in job.compare.extra}
    train, held_out = split_held_out([p for p in prompts if p.key not in extra], job.data.held_out)
    if not held_out:
        raise DataError(
            f"{job.data.prompts if given is None else 'prompts'}: of its {len(prompts)} prompts none is held out for the "
            f"before/after; give more prompts, or raise data.held_out = {job.data.held_out:g}"
        )
    return train, held_out


def as_read(
    sides: tuple[list[Prompt], list[Prompt]], rewards: Iterable[Reward], name: str, say: Callable[[str], None]
) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to train on and those held out, without those that are the same to all rewards; ``say`` is told how many."""
    held_out = {prompt.key for prompt in sides[1]}
    found = distinct_prompts([*sides[0], *sides[1]], columns_read(rewards), say, name)
    return [p for p in found if p.key not in held_out], [p for p in found if p.key in held_out]


def check_lengths(job: PPOJob, tokens: Tokens, prompts: list[Prompt], held_out: list[Prompt], loaded: Loaded) -> None:
    """Make sure before anything is written that every prompt can be asked and answered within the model's context.

    Raises:
        DataError: a query is too long or empty.
        ConfigError: query and response together are longer than the model's context.
    """
    queries = tokens.queries([*prompts, *held_out], longest_cut(job), job.run.seed, 0, job.data.max_query_tokens)
    queries += tokens.queries([Prompt(text) for text in job.compare.extra], None, 0, 0, job.data.max_query_tokens)
    check_context(max(map(len, queries)), job.rollout.response_tokens[1], loaded)


def check_reading(job: PPOJob, tokens: Tokens, prompts: list[Prompt], rewards: list[Reward], observer: Observer) -> None:
    """Warn where a reward or judge may read a text only in part; see :func:`konomi.models.reading.check_room`."""
    if cutting := readers(*rewards):
        queries = tokens.queries(prompts, longest_cut(job), job.run.seed, 0, job.data.max_query_tokens)
        texts = [tokens.split(prompt.text, query, [])[0] for prompt, query in zip(prompts, queries, strict=True)]
        check_room(cutting, [*texts, *job.compare.extra], job.rollout.response_tokens[1], observer.warn)


def longest_cut(job: PPOJob) -> tuple[int, int] | None:
    """The longest queries that any epoch can draw."""
    return None if job.data.query_tokens is None else (job.data.query_tokens[1],) * 2


def check_context(query: int, response: int, loaded: Loaded) -> None:
    """Raise ConfigError if so many tokens are more than the model's context."""
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if context and query + response > context:
        raise ConfigError(
            f"{loaded.source}: a query of {query} and a response of {response} tokens are more than its context of {context}; "
            "ask for shorter ones (data.query_tokens, rollout.response_tokens; generate: --tokens)"
        )


def _facts(
    job: PPOJob, loaded: Loaded, precision: str, trainer: PPOTrainer, reward: str, prompts: list[Prompt], held_out: list[Prompt]
) -> dict[str, str]:
    parameters = sum(p.numel() for p in trainer.policy.parameters())
    low, high = job.rollout.response_tokens
    done = f" (going on after update {trainer.update})" if trainer.update else ""
    facts = {
        "model": f"{job.model.name}, {parameters / 1e6:,.0f} M parameters, {precision} on {trainer.engine.accelerator.device}",
        "reward": f"{job.reward.kind} {reward}",
        "prompts": f"{job.data.prompts}: {len(prompts)} to train on, {len(held_out)} held out",
        "job": f"{plural(job.ppo.updates, 'update')} of {job.ppo.batch_size} responses of {low} to {high} tokens{done}",
        "ends at": trainer.tokens.stops() if job.rollout.stop != "length" else "its length alone",
        "held by": f"KL to the initial model, {job.ppo.kl_controller}"
        + (f", target {job.ppo.kl_target:g} nats/response" if job.ppo.kl_controller == "adaptive" else ""),
    }
    if job.judges:
        facts["judges"] = f"{', '.join(job.judges)}: not trained against"
    return facts | ({"licence": loaded.note} if loaded.note else {})

"""A whole `konomi ppo` job: from a configuration to a run directory with the model, the before/after and the report.

What the job does it tells an `Observer`; the command line draws it, Python code may ignore it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from konomi.compare import compare_models
from konomi.config import CompareConfig, ModelConfig, PPOJob, RolloutConfig, build
from konomi.data.records import Prompt
from konomi.data.sources import load_prompts, split_held_out
from konomi.data.tokens import Tokens
from konomi.environment import peak_memory_gb
from konomi.errors import ConfigError, DataError
from konomi.models.load import Loaded, load_causal_lm
from konomi.models.policy import Policy, make_reference
from konomi.observer import Observer
from konomi.report import write_report
from konomi.rewards import build_reward
from konomi.rewards.base import Reward
from konomi.rollout.sampler import make_draws, sample
from konomi.runs import RunDir
from konomi.tracking import MlflowSink
from konomi.train.checkpoints import Checkpoints
from konomi.train.loop import choose_precision, load_weights, stop_on_signal
from konomi.train.ppo import PPOTrainer


def run_ppo(job: PPOJob, root: Path, observer: Observer | None = None, resume: Path | None = None) -> dict[str, Any]:
    """Run a job, or go on with the one in the directory ``resume``; return the result that ``--json`` prints.

    Nothing is written before the configuration, the prompts, the reward and the model were found to be usable.

    Raises:
        ConfigError, DataError, ModelError: something given is not usable.
        RunError: the run failed after it had begun; its directory says why.
        KeyboardInterrupt: stopped by a signal; the state is saved.
    """
    observer, started = observer or Observer(), time.monotonic()
    prompts, held_out = _prompts(job)
    reward = build_reward(job.reward, columns=prompts[0].columns)
    loaded = load_causal_lm(job.model, progress=observer.say)
    precision = choose_precision(job.model.precision)
    tokens = Tokens(loaded.tokenizer)
    tokens.queries(prompts, job.data.query_tokens, job.run.seed, 0, job.data.max_query_tokens)  # all can be asked
    policy = Policy(loaded.model, freeze_embeddings=job.model.freeze == "embeddings")
    reference = make_reference(policy)
    config = job.model_dump(mode="json")
    if resume is None:
        run = RunDir.create(root, job.run.name, config, seed=job.run.seed, extra={"precision": precision})
    else:
        run = RunDir.open(resume)
    with _ends(run):
        trainer = PPOTrainer(
            policy, reference, tokens, prompts, reward, ppo=job.ppo, rollout=job.rollout, data=job.data,
            seed=job.run.seed, precision=precision, failed_texts=run.path / "failed_texts.jsonl",
        )  # fmt: skip
        checkpoints = Checkpoints(run.checkpoints, job.run.keep)
        if resume is not None:
            _go_on(run, trainer, checkpoints)
        sink = _sink(job, run, prompts + held_out, observer)
        observer.start(run, _facts(job, loaded, precision, trainer, prompts, held_out), job.ppo.updates)
        try:
            _train(trainer, run, checkpoints, sink, job, observer)
            result = _finish(trainer, run, checkpoints, sink, job, held_out, reward, observer, started)
        except BaseException as error:
            if sink:
                sink.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
    return result


def _train(
    trainer: PPOTrainer, run: RunDir, checkpoints: Checkpoints, sink: MlflowSink | None, job: PPOJob, observer: Observer
) -> None:
    if trainer.scale is None:
        observer.say("The initial model writes and is scored: its mean and deviation scale the reward")
        samples = trainer.baseline()
        run.append_samples(0, samples[: job.run.samples])
        observer.before(samples)
    with stop_on_signal() as signals:
        for result in trainer:
            run.append_metrics(result.update, {"episodes": result.episodes, **result.metrics})
            run.append_samples(result.update, result.samples[: job.run.samples])
            if sink:
                sink.log(result.update, result.metrics)
            observer.step(result)
            if trainer.stop_reason is not None:
                checkpoints.drop_from(result.update - 1)
                break
            checkpoints.prune(measured=result.update)
            last = result.update == job.ppo.updates
            if last or signals or result.update % job.run.save_every == 0:
                checkpoints.save(trainer)
            if signals and not last:
                run.set_status("stopped", f"{signals[0]} after update {result.update}")
                raise KeyboardInterrupt(f"stopped after update {result.update}; go on with: konomi ppo --resume {run.path}")


def _finish(
    trainer: PPOTrainer, run: RunDir, checkpoints: Checkpoints, sink: MlflowSink | None, job: PPOJob,
    held_out: list[Prompt], reward: Reward, observer: Observer, started: float,
) -> dict[str, Any]:  # fmt: skip
    if trainer.stop_reason is not None:
        _roll_back(trainer, checkpoints, observer)
    trainer.engine.optimizer.zero_grad(set_to_none=True)
    trainer.policy.save(run.model)
    trainer.tokens.tokenizer.save_pretrained(run.model)
    observer.say("Before/after: both models answer held-out prompts")
    comparison = compare_models(
        trainer.reference, trainer.policy.lm, trainer.tokens, held_out, reward,
        rollout=job.rollout, data=job.data, config=job.compare, autocast=trainer.engine.accelerator.autocast,
        failed_texts=trainer.failed_texts,
    )  # fmt: skip
    run.write_json("compare.json", comparison)
    status = "finished" if trainer.stop_reason is None else "stopped"
    run.set_status(status, trainer.stop_reason)  # type: ignore[arg-type]
    report = write_report(run)
    if sink:
        sides = ("before", "after", "difference")
        sink.log(trainer.update, {f"compare/{side}/{k}": v for side in sides for k, v in comparison[side].items()})
        sink.log_artifacts([report, run.compare, run.samples, run.metrics, run.path / "config.json", run.path / "run.json"])
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


def _roll_back(trainer: PPOTrainer, checkpoints: Checkpoints, observer: Observer) -> None:
    saved = checkpoints.all()
    if saved:
        update, path = saved[-1]
        load_weights(trainer.policy, path)
        observer.warn(f"{trainer.stop_reason}. The model is the one after update {update}, the last good checkpoint")
    else:
        trainer.policy.lm.load_state_dict(trainer.reference.state_dict())
        observer.warn(f"{trainer.stop_reason}, before a checkpoint was saved. The model is the initial one; see run.save_every")


def _go_on(run: RunDir, trainer: PPOTrainer, checkpoints: Checkpoints) -> None:
    saved = checkpoints.all()
    if saved:
        trainer.load(saved[-1][1])
    run.truncate_after(trainer.update if saved else -1)
    run.set_status("running")


def resumed_job(path: Path, overrides: list[str]) -> PPOJob:
    """The configuration of a run to go on with.

    Raises:
        ConfigError: something was to be changed that a run cannot change midway; it is finished already.
    """
    if overrides:
        raise ConfigError(f"--set {overrides[0]}: a resumed run goes on as it began; start a new one to change a setting")
    run = RunDir.open(path)
    if run.info["status"] == "finished":
        raise ConfigError(f"{path}: this run is finished; there is nothing to go on with")
    return build(PPOJob, run.config, where=str(run.path / "config.json"))


def compare_run(path: Path, config: CompareConfig, observer: Observer) -> dict[str, Any]:
    """Make ``compare.json`` and the report of a run anew, with the settings given."""
    run = RunDir.open(path)
    job = build(PPOJob, run.config, where=str(run.path / "config.json"))
    if not (run.model / "config.json").is_file():
        raise DataError(f"{run.model}: no model there yet; the run has to end first ({run.info['status']})")
    _, held_out = _prompts(job)
    reward = build_reward(job.reward)
    before, after = load_pair(job.model, run.model, observer.say)
    from accelerate import Accelerator

    precision = choose_precision(job.model.precision)
    autocast = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no").autocast
    observer.say("Both models answer held-out prompts")
    comparison = compare_models(
        before.model, after.model, Tokens(before.tokenizer), held_out, reward,
        rollout=job.rollout, data=job.data, config=config, autocast=autocast,
    )  # fmt: skip
    run.write_json("compare.json", comparison)
    return {"run": str(run.path), "report": str(write_report(run)), "compare": comparison}


def load_pair(initial: ModelConfig, tuned: Path, progress: Callable[[str], None]) -> tuple[Loaded, Loaded]:
    """The model that a run began with and the one it ended with."""
    return load_causal_lm(initial, progress=progress), load_causal_lm(ModelConfig(name=str(tuned)), progress=progress)


def _prompts(job: PPOJob) -> tuple[list[Prompt], list[Prompt]]:
    prompts = load_prompts(job.data)
    extra = {Prompt(text).key for text in job.compare.extra}
    train, held_out = split_held_out([p for p in prompts if p.key not in extra], job.data.held_out)
    if not train or not held_out:
        missing = "for training" if not train else "held out for the before/after"
        raise DataError(
            f"{job.data.prompts}: of its {len(prompts)} prompts none is left {missing}; give more prompts, or change "
            f"data.held_out = {job.data.held_out:g}"
        )
    return train, held_out


def _sink(job: PPOJob, run: RunDir, prompts: list[Prompt], observer: Observer) -> MlflowSink | None:
    if not job.run.mlflow:
        return None
    info = run.info
    digest = hashlib.blake2b("".join(sorted(p.key for p in prompts)).encode(), digest_size=16).hexdigest()
    sink = MlflowSink(
        job.run.experiment, run.path.name, run.config, run.path.parent, observer.warn,
        run_id=info.get("mlflow_run_id"), git=info.get("git"),
        data={"name": job.data.prompts, "digest": digest, "source": job.data.prompts},
    )  # fmt: skip
    run.note(mlflow_run_id=sink.run_id)
    return sink


def _facts(
    job: PPOJob, loaded: Loaded, precision: str, trainer: PPOTrainer, prompts: list[Prompt], held_out: list[Prompt]
) -> dict[str, str]:
    parameters = sum(p.numel() for p in trainer.policy.parameters())
    low, high = job.rollout.response_tokens
    done = f" (going on after update {trainer.update})" if trainer.update else ""
    facts = {
        "model": f"{job.model.name}, {parameters / 1e6:,.0f} M parameters, {precision} on {trainer.engine.accelerator.device}",
        "reward": f"{job.reward.kind} {job.reward.name}",
        "prompts": f"{job.data.prompts}: {len(prompts)} to train on, {len(held_out)} held out",
        "job": f"{job.ppo.updates} updates of {job.ppo.batch_size} responses of {low} to {high} tokens{done}",
        "held by": f"KL to the initial model, {job.ppo.kl_controller}"
        + (f", target {job.ppo.kl_target:g} nats/response" if job.ppo.kl_controller == "adaptive" else ""),
    }
    return facts | ({"licence": loaded.note} if loaded.note else {})


@contextmanager
def _ends(run: RunDir) -> Iterator[None]:
    """See to it that a run that is left in any way does not say "running"."""
    try:
        yield
    except KeyboardInterrupt:
        if run.info["status"] == "running":
            run.set_status("stopped", "interrupted")
        raise
    except BaseException as error:
        run.set_status("failed", f"{type(error).__name__}: {error}")
        raise


def generate_texts(
    model: str, prompts: list[str], samples: int, length: int, temperature: float, seed: int, observer: Observer
) -> list[dict[str, str]]:
    """Let a model continue prompts, ``samples`` times each, until its end of text or ``length`` tokens."""
    blank = [text for text in prompts if not text.strip()]
    if blank:
        raise DataError("--prompt: a blank text; give the beginning of what the model is to write")
    loaded = load_causal_lm(ModelConfig(name=model), progress=observer.say)
    tokens = Tokens(loaded.tokenizer)
    config = RolloutConfig(response_tokens=(1, length), stop="eos", temperature=temperature)
    items = [(text, i) for text in prompts for i in range(samples)]
    queries = [tokens.query(text, None) for text, _ in items]
    rollout = sample(loaded.model, tokens, queries, make_draws(config, seed, [("generate", *item) for item in items]), config)
    pairs = zip(rollout.query_ids(), rollout.response_ids(), strict=True)
    return [dict(zip(("prompt", "response"), tokens.split(query, response), strict=True)) for query, response in pairs]

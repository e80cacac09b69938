"""The doctor before a PPO run: load what the run would load, write a few texts, and take two steps in memory."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from konomi.config import PPOJob
from konomi.data.records import Prompt
from konomi.engine.device import choose_precision, find_device, free_memory, peak_memory_gb
from konomi.engine.forward import reference_logprobs
from konomi.engine.sampler import Generation, generate, make_draws
from konomi.errors import RunError
from konomi.jobs.doctor import machine
from konomi.jobs.doctor.lines import Line, WarningLines, broken, look
from konomi.jobs.doctor.prompts import check_prompts, check_queries
from konomi.jobs.doctor.reward_models import check_reward_models, check_scale
from konomi.jobs.doctor.rewards import Drawn, check_responses, check_scores, failed_reward
from konomi.jobs.doctor.settings import check_settings
from konomi.jobs.doctor.tokens import check_tokens
from konomi.jobs.prepare import Prepared, find_prompts, models_of, prepare
from konomi.models.lora import require_peft
from konomi.models.policy import Policy
from konomi.rewards.base import columns_of, evaluate, readers, score
from konomi.runs.observer import Observer
from konomi.runs.sinks import sink_names
from konomi.training.experience import RATIO_TOLERANCE, ScoreScale, ratio_gap
from konomi.training.optimizers import check_optimizer
from konomi.training.ppo import PPOTrainer

PROMPTS, EACH = 12, 4
"""Prompts that are asked, and responses to each."""
COMPARED = 8
"""Responses that are scored in three ways."""


def examine_ppo(job: PPOJob, observer: Observer) -> tuple[list[Line], dict[str, Any]]:
    """Lines on a PPO job, and figures for programs: seconds, gigabytes, the plan. Nothing is written.

    Raises:
        ConfigError, DataError, ModelError: the run would refuse it.
    """
    require_peft(job.lora)
    check_optimizer(job.ppo.optimizer)
    sink_names(job.run)
    device = find_device()
    free, precision = free_memory(device), choose_precision(job.model.precision)
    train, held_out = find_prompts(job)
    lines = [*check_settings(job), *check_prompts(job, train, held_out), *check_reward_models(job)]
    lines += [machine.check_precision(job, precision, device), machine.check_versions()]
    shape = machine.shape_before_loading(job.model, observer.say)
    setting = machine.setting_of(job, precision, _query(job, train))
    beside = machine.LIBRARIES + sum(map(machine.reward_gb, (job.reward, *job.judges.values())))
    needs = machine.plan(shape, setting, beside, device)
    memory = machine.check_memory(needs, free, device)
    lines += [memory, machine.check_disk(shape, setting, job.run.keep, job.land.kl is not None)]
    figures: dict[str, Any] = {"gigabytes": needs[machine.AS_IS], "free_gb": free / 1e9, "plan": needs}
    if memory.level == "broken":
        return [*lines, look("model and reward", "not looked at: there is no room for them", "see memory")], figures
    warnings = WarningLines(observer, "what the reward reads", "shorten prompts (data.query_tokens), or raise reward.max_length")
    ready = prepare(job, warnings)
    lines += warnings.lines
    tried, more = _try(job, ready, observer)
    return [*lines, *tried], figures | more


def _query(job: PPOJob, prompts: list[Prompt]) -> int:
    """An estimate of the tokens of the longest query, before the tokenizer is loaded: its characters."""
    longest = max(len(prompt.text) for prompt in prompts)
    return min(job.data.max_query_tokens, job.data.query_tokens[1] if job.data.query_tokens else longest)


def _try(job: PPOJob, ready: Prepared, observer: Observer) -> tuple[list[Line], dict[str, Any]]:
    """Lines on what a policy, its reference and the reward do with a few texts, and on how long that takes."""
    prompts = ready.prompts + ready.held_out
    queries = ready.tokens.queries(prompts, job.data.query_tokens, job.run.seed, 0, job.data.max_query_tokens)
    chat = prompts[0].messages is not None
    lines = check_tokens(job, ready.loaded, queries, chat)
    lines.append(check_queries([len(row) - (0 if chat else len(ready.tokens.leading)) for row in queries]))
    policy, reference = models_of(job, ready.loaded)
    trainer = _trainer(job, ready, policy, reference)
    observer.say("The initial model writes and is scored, and takes two steps in memory; nothing is kept")
    try:
        drawn = _draw(job, trainer)
    except RunError as error:
        return [*lines, broken("responses", str(error), "mend the model before it is trained")], {}
    entropy = float(drawn.generation.entropy.sum() / drawn.generation.rollout.mask.sum())
    lines += _agreement(trainer, drawn.generation)
    try:
        scored = _score(ready, drawn)
    except RunError as error:
        return [*lines, failed_reward(error)], {}
    compared = job.ppo.responses_per_prompt > 1
    lines += [*check_responses(job, scored.texts, entropy), *check_scores(scored.texts, job.ppo.normalize_scores, compared)]
    lines += check_scale(job, scored.texts.scores)
    trainer.scale = ScoreScale.of(torch.from_numpy(scored.texts.scores))
    step_lines, figures = _steps(job, trainer, drawn, scored, len(ready.held_out))
    return lines + step_lines, figures


def _trainer(job: PPOJob, ready: Prepared, policy: Policy, reference: PreTrainedModel) -> PPOTrainer:
    """A trainer of two small updates of a step or so."""
    ppo = job.ppo
    size = math.lcm(ppo.mini_batch_size, ppo.responses_per_prompt)
    small = ppo.model_copy(update={"batch_size": size, "episodes": 2 * size, "epochs": 1})
    return PPOTrainer(
        policy, reference, ready.tokens, ready.prompts, ready.reward, ppo=small, rollout=job.rollout, data=job.data,
        seed=job.run.seed, precision=ready.precision, judges=ready.judges, algorithm=job.algorithm,
    )  # fmt: skip


@dataclass(frozen=True)
class _Draw:
    """Responses to some prompts."""

    prompts: list[Prompt]
    queries: list[list[int]]
    generation: Generation
    seconds: float


def _draw(job: PPOJob, trainer: PPOTrainer) -> _Draw:
    count = min(PROMPTS, len(trainer.queries.prompts))
    prompts, queries = trainer.queries.take(0, count)
    prompts, queries = [each for each in prompts for _ in range(EACH)], [each for each in queries for _ in range(EACH)]
    draws = make_draws(job.rollout, job.run.seed, [("doctor", i) for i in range(len(queries))])
    started = time.perf_counter()
    with trainer.engine.autocast():
        generation = generate(
            trainer.policy.lm, trainer.tokens, queries, draws, job.rollout, "the initial model",
            trainer.policy.values if job.algorithm.critic else None, trainer.models.trunk_layer,
        )  # fmt: skip
    return _Draw(prompts, queries, generation, time.perf_counter() - started)


@dataclass(frozen=True)
class _Scored:
    texts: Drawn
    seconds: float


def _score(ready: Prepared, drawn: _Draw) -> _Scored:
    """What the reward says of the responses; judges are asked too. Raises RunError if one fails."""
    rollout, columns = drawn.generation.rollout, columns_of(drawn.prompts)
    ids = rollout.response_ids()
    queries, responses = ready.tokens.split_all(drawn.prompts, drawn.queries, ids)
    cutting = readers(ready.reward)
    started = time.perf_counter()
    scores = evaluate(ready.reward, queries, responses, columns, save_to=None).totals
    for judge in ready.judges.values():
        score(judge, queries, responses, columns, save_to=None)
    seconds = time.perf_counter() - started
    read = sum(reader.texts for reader in cutting)
    texts = Drawn(
        EACH, responses, [len(row) for row in ids], rollout.ended.tolist(), np.asarray(scores, dtype=np.float64),
        cut=sum(reader.cut for reader in cutting) / read if read else 0.0,
        behind=any(reader.cut and reader.side == "end" for reader in cutting),
    )  # fmt: skip
    return _Scored(texts, seconds)


@torch.no_grad()
def _agreement(trainer: PPOTrainer, generation: Generation) -> list[Line]:
    """Lines on whether sampler, trainer and reference say the same of the same tokens."""
    rows = torch.arange(0, len(generation.rollout), max(1, len(generation.rollout) // COMPARED))
    part, temperature = generation.rollout.select(rows), trainer.rollout_config.temperature
    with trainer.engine.autocast():
        own = trainer.policy(part, temperature, with_entropy=False).logprobs
        reference = reference_logprobs(trainer.reference, part, temperature)
    mask = part.mask.to(own.device)
    gap = float(ratio_gap(own, generation.logprobs[rows.to(own.device), : mask.shape[1]], mask))
    distance = float((own - reference).abs().masked_fill(~mask, 0.0).max())
    return [_sampling(gap, trainer), _start(float((own - reference).sum(1).mean()), distance, trainer.engine.precision)]


def _sampling(gap: float, trainer: PPOTrainer) -> Line:
    allowed = RATIO_TOLERANCE["sampler"]
    seen = f"probabilities of sampler and trainer differ by {gap:.1e} at most"
    if gap > allowed and trainer.models.inexact:
        return Line("sampling = scoring", f"{seen}, by rounding: batches are computed again where that matters")
    if not gap <= allowed:
        return broken("sampling = scoring", f"{seen}; {allowed:g} is allowed", "is dropout on, or a layer random?")
    return Line("sampling = scoring", seen)


def _start(kl: float, distance: float, precision: str) -> Line:
    seen = f"KL to the reference {abs(kl):.2g} nats a response"
    if not distance <= RATIO_TOLERANCE[precision]:
        do = "the reference is not the model that training begins from: are adapters in it that have been trained?"
        return broken("KL at the start", f"{seen}, up to {distance:.2g} a token; it has to be 0", do)
    return Line("KL at the start", seen)


def _steps(job: PPOJob, trainer: PPOTrainer, drawn: _Draw, scored: _Scored, held_out: int) -> tuple[list[Line], dict[str, Any]]:
    """Take two steps, the second of which is measured: lines on what they did, and on how long the job takes."""
    try:
        first, second = trainer.step(), trainer.step()
    except RunError as error:
        return [broken("two steps", str(error), "mend that first: the run would stop here")], {}
    lines = [_ratio(first.metrics), _moved(job, second.metrics["objective/kl"])]
    size, count = trainer.ppo.batch_size, len(drawn.queries)
    seconds = {name: second.metrics[f"time/ppo/{name}"] for name in ("score", "train")}
    if trainer.stop_reason is None:
        pace = machine.Pace(
            drawn.seconds / count, scored.seconds / count, seconds["score"] / size,
            seconds["train"] * trainer.ppo.mini_batch_size / size,
        )  # fmt: skip
        lines += machine.check_time(job, pace, held_out)
        figures = {"seconds": job.ppo.updates * pace.update(job) + pace.around(job, held_out), "update_seconds": pace.update(job)}
    else:
        figures = {}
    return lines, figures | {"peak_gb": peak_memory_gb()}


def _ratio(metrics: dict[str, float]) -> Line:
    gap = metrics.get("ppo/policy/sampler_gap", 0.0)
    return Line("ratio at the start", f"1, as it has to be before the first step (sampler: off by {gap:.1e})")


def _moved(job: PPOJob, kl: float) -> Line:
    size, target = f"{kl:.2g}" if kl >= 0.001 else "less than 0.001", job.ppo.kl_target
    seen = f"{size} nats a response after one step"
    if kl > job.ppo.kl_cap:
        return broken("a step moves the model", f"{seen}, over ppo.kl_cap = {job.ppo.kl_cap:g}", "lower ppo.learning_rate")
    if kl > 0.5 * target:
        do = "lower ppo.learning_rate: a few such steps are past any target"
        return look("a step moves the model", f"{seen}; ppo.kl_target = {target:g}", do)
    return Line("a step moves the model", seen)

"""The doctor before the verbs other than PPO: what they check themselves, their data, and what is far from the usual."""

from __future__ import annotations

import numpy as np

from konomi.config import CompareJob, DPOJob, JudgeJob, PickJob, RewardJob, SampleJob, Section, SFTJob
from konomi.data.records import Task
from konomi.data.tokens import Tokens
from konomi.errors import RunError
from konomi.jobs.doctor.lines import Line, WarningLines, look
from konomi.jobs.doctor.machine import check_versions
from konomi.jobs.doctor.prompts import check_queries
from konomi.jobs.doctor.rewards import Drawn, check_scores, failed_reward
from konomi.jobs.doctor.settings import check_rate
from konomi.jobs.dpo_data import prepare_dpo
from konomi.jobs.judge import prepare_judge
from konomi.jobs.pick import prepare_pick
from konomi.jobs.reward import prepare_reward
from konomi.jobs.sample import check_models, prompts_of
from konomi.jobs.sft import prepare_sft
from konomi.report.advice import FEW_COMPARISONS, too_few
from konomi.rewards.base import Reward, evaluate
from konomi.runs.observer import Observer
from konomi.runs.sinks import sink_names
from konomi.text import plural

TASKS = 12
"""Tasks whose candidates are scored."""


def examine_stage(job: Section, observer: Observer) -> list[Line]:
    """Lines on a job of another verb than PPO. Nothing is written.

    Raises:
        ConfigError, DataError, ModelError: the run would refuse it.
    """
    sink_names(job.run)  # type: ignore[attr-defined]
    if isinstance(job, SFTJob):
        lines = _sft(job, observer)
    elif isinstance(job, RewardJob):
        lines = _reward(job, observer)
    elif isinstance(job, DPOJob):
        lines = _dpo(job, observer)
    elif isinstance(job, SampleJob):
        lines = _sample(job, observer)
    elif isinstance(job, JudgeJob):
        lines = _judge(job, observer)
    elif isinstance(job, PickJob):
        tasks, compared = prepare_pick(job, observer)
        lines = [Line("candidates", plural(len(tasks), "task")), Line("ranked so far", plural(len(compared), "prompt"))]
    elif isinstance(job, CompareJob):
        lines = [Line("before/after", f"{job.before} against {job.model.name}: examined when it begins")]
    else:  # people rank: their project is made when it begins
        lines = [Line("people", "nothing to examine before they begin")]
    return [*lines, check_versions()]


def _held_out(count: int) -> Line:
    few = too_few(count)
    do = "give more data, or raise data.held_out"
    return look("held out", few, do) if few else Line("held out", plural(count, "text"))


def _stops(tokens: Tokens) -> Line:
    if tokens.eos_ids:
        return Line("end of text", tokens.stops())
    return look("end of text", tokens.stops(), "name it in generation_config.json (eos_token_id)")


def _sft(job: SFTJob, observer: Observer) -> list[Line]:
    warnings = WarningLines(observer, "texts", "shorten them, or raise sft.max_length")
    ready = prepare_sft(job, warnings)
    learned, held_out = ready.texts
    same = {tuple(row.ids) for row in ready.rows} & {tuple(row.ids) for row in ready.held_out}
    steps = -(-len(ready.rows) // job.sft.batch_size) * job.sft.epochs
    rate = check_rate("sft.learning_rate", job.sft.learning_rate, job.lora.rank is not None, times=5)
    enough = held_out >= 10  # a loss is a mean over all their tokens
    lines = [*warnings.lines, Line("held out", plural(held_out, "text")) if enough else _held_out(held_out), rate]
    if same:
        lines.append(look("leaks", f"{plural(len(same), 'text')} learned and held out", "remove them from the texts"))
    seen = f"{plural(learned, 'text')} ({ready.kind}), {plural(steps, 'step')}"
    few = look("texts to learn from", seen, "give more texts, or lower sft.batch_size: so few steps teach little")
    return [*lines, few if steps < 8 else Line("texts to learn from", seen), _stops(ready.loaded.tokens)]


def _reward(job: RewardJob, observer: Observer) -> list[Line]:
    warnings = WarningLines(observer, "texts", "shorten them, or raise train.max_length")
    learned, samples, _ = prepare_reward(job, warnings)
    rate = check_rate("train.learning_rate", job.train.learning_rate, job.lora.rank is not None, times=5)
    lines = [*warnings.lines, _held_out(learned.prompts()), rate, _comparisons(learned.comparisons, learned.described)]
    if job.train.task != "classification" and samples is None:
        do = "set normalize.samples to candidates of the model that PPO begins with (konomi sample)"
        lines.append(look("scale of the scores", "none will be saved, and PPO asks for one", do))
    return lines


def _comparisons(count: int, seen: str) -> Line:
    if 0 < count < FEW_COMPARISONS // 10:
        return look("data", f"{seen}; under about {FEW_COMPARISONS:,} a model often barely beats chance", "collect more")
    return Line("data", seen)


def _dpo(job: DPOJob, observer: Observer) -> list[Line]:
    warnings = WarningLines(observer, "texts", "shorten them, or raise dpo.max_length")
    ready = prepare_dpo(job, warnings)
    rate = check_rate("dpo.learning_rate", job.dpo.learning_rate, job.lora.rank is not None)
    seen = f"{plural(ready.comparisons, 'comparison')} of {plural(len(ready.train), 'prompt')} to learn from"
    lines = [*warnings.lines, _held_out(len(ready.held_out)), rate, _comparisons(ready.comparisons, seen)]
    if ready.questions is None:
        do = "name a reward, or a classifier as one: how often the model ranks texts rightly does not say what it writes"
        lines.append(look("before/after", "there will be none: the job has no [reward]", do))
    return [*lines, _stops(ready.loaded.tokens)]


def _sample(job: SampleJob, observer: Observer) -> list[Line]:
    warnings = WarningLines(observer, "models", "see docs/config.md")
    prompts = prompts_of(job, warnings)
    writer, asked, about = check_models(job, prompts, warnings)
    queries = writer.loaded.tokens.queries(asked, None, job.run.seed, 0, job.data.max_query_tokens)
    written = [f"{each['name']}, {each['precision']}, ends at {each['ends_at']}" for each in about.values()]
    lines = [Line(f"model {name}", words) for name, words in zip(about, written, strict=True)]
    return [*warnings.lines, *lines, Line("prompts", f"{len(prompts):,}"), check_queries([len(row) for row in queries])]


def _judge(job: JudgeJob, observer: Observer) -> list[Line]:
    warnings = WarningLines(observer, "what the reward reads", "use a reward that reads more")
    tasks, reward = prepare_judge(job, warnings)
    return [*warnings.lines, Line("candidates", plural(len(tasks), "task")), *_scored(tasks, reward)]


def _scored(tasks: list[Task], reward: Reward) -> list[Line]:
    """Lines on the scores of some tasks that have equally many candidates."""
    each = len(tasks[0].candidates)
    chosen = [task for task in tasks if len(task.candidates) == each][:TASKS]
    prompts = [task.prompt for task in chosen for _ in range(each)]
    texts = [candidate.text for task in chosen for candidate in task.candidates]
    columns = {name: [task.columns.get(name) for task in chosen for _ in range(each)] for name in chosen[0].columns}
    try:
        scores = evaluate(reward, prompts, texts, columns, save_to=None).totals
    except RunError as error:
        return [failed_reward(error)]
    drawn = Drawn(each, texts, [0] * len(texts), [True] * len(texts), np.asarray(scores, dtype=np.float64))
    return check_scores(drawn)

"""What the jobs that train or ask a language model need, loaded and checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from konomi.config import CompareConfig, CompareJob, DPOJob, PPOJob, SFTJob, build
from konomi.data.messages import Answered, readable
from konomi.data.prompts import distinct_prompts, extra_prompts, load_prompts, split_held_out
from konomi.data.records import Prompt
from konomi.data.tokens import Tokens
from konomi.engine.device import choose_precision, find_device
from konomi.engine.forward import check_head
from konomi.engine.recompute import recompute_layers
from konomi.errors import ConfigError, DataError
from konomi.files import json_line, write_atomic
from konomi.jobs.inputs import check_unchanged, describe_inputs, given_function
from konomi.models.half import weights_to_bf16
from konomi.models.load import Loaded, load_causal_lm
from konomi.models.lora import add_adapters
from konomi.models.policy import Policy, make_reference, train_only
from konomi.models.reader import check_room
from konomi.rewards import as_reward, build_judges, in_precision, reward_config
from konomi.rewards.base import Reward, check_without_columns, columns_read, readers
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer

PROMPTS = "prompts.jsonl"
"""In a run whose prompts came from Python: the prompts."""


@dataclass(frozen=True)
class Prepared:
    """What a PPO run or its before/after works with."""

    loaded: Loaded
    precision: str
    prompts: list[Prompt]
    held_out: list[Prompt]
    reward: Reward
    judges: dict[str, Reward]
    fields: dict[str, Any]
    """Of run.json: what the run depends on."""

    @property
    def tokens(self) -> Tokens:
        """Of the initial model."""
        return self.loaded.tokens


def prepare(
    job: PPOJob, observer: Observer, run: RunDir | None = None, *, prompts: list[Prompt] | None = None, reward: Any = None,
    compare: CompareConfig | None = None,
) -> Prepared:  # fmt: skip
    """Load and check a job's prompts, rewards and model.

    Args:
        job: the settings.
        observer: gets what was left out or looks wrong.
        run: continues, or is compared again: what it depends on must not have changed.
        prompts, reward: instead of those that the job names.
        compare: the settings of another before/after, for which only the held-out prompts are read.

    Raises:
        ConfigError, DataError, ModelError: an input is not usable, or has changed.
    """
    source, own = job.data.prompts if prompts is None else "prompts", prompts is not None
    sides, device = find_prompts(job, prompts, observer.say), find_device()
    columns = sides[0][0].columns
    function = reward if callable(reward) else None
    scoring = run.info.get("reward_precision", "fp32") if run else choose_precision("auto", device)
    reward = reward if callable(reward) else in_precision(job.reward if reward is None else reward_config(reward), scoring)
    reward = as_reward(reward, columns, device)
    judges = build_judges({name: in_precision(each, scoring) for name, each in job.judges.items()}, columns, device)
    rewards = [reward, *judges.values()]
    train, held_out = as_read(sides, rewards, source, observer.say)
    asked = job if compare is None else job.model_copy(update={"compare": compare})
    check_without_columns(rewards, extra_prompts(asked.compare.extra, job.data, train[0]), train[0])
    loaded = load_causal_lm(job.model, progress=observer.say)
    if run and "eos_ids" in run.info:
        loaded = replace(loaded, eos_ids=tuple(run.info["eos_ids"]))
    check_lengths(asked, train + held_out, loaded)
    check_reading(asked, loaded.tokens, held_out if compare else train + held_out, rewards, observer)
    if function is None and run:
        function = given_function(run, reward)
    inputs = describe_inputs(job, loaded, train + held_out, own, function)
    if run:
        check_unchanged(run, inputs, train + held_out)
    precision = (run and run.info.get("precision")) or choose_precision(job.model.precision)
    fields = {
        "precision": precision, "reward_precision": scoring, "eos_ids": sorted(loaded.tokens.eos_ids), "licence": loaded.note,
        **inputs,
    }  # fmt: skip
    return Prepared(loaded, precision, train, held_out, reward, judges, fields)


def models_of(job: PPOJob, loaded: Loaded) -> tuple[Policy, PreTrainedModel]:
    """The policy that a job trains, made of the model in place, and its reference.

    Raises:
        ConfigError, ModelError: settings and model do not fit together.
    """
    if job.ppo.weights == "bf16":
        weights_to_bf16(loaded.model)
    add_adapters(loaded.model, job.lora, seed=job.run.seed, base=job.model.name, revision=loaded.commit)
    policy = Policy(loaded.model, job.model.freeze == "embeddings", job.model.top_layers, job.algorithm.critic)
    reference = make_reference(policy)
    if job.model.gradient_checkpointing:
        recompute_layers(policy.lm)
    return policy, reference


def make_trainable(job: SFTJob | DPOJob, loaded: Loaded) -> None:
    """Freeze what is not trained, in place. Raises ConfigError, ModelError: settings and model do not fit together."""
    check_head(loaded.model)
    train_only(loaded.model, job.model.freeze == "embeddings", job.model.top_layers)
    add_adapters(loaded.model, job.lora, seed=job.run.seed, base=job.model.name, revision=loaded.commit)
    if job.model.gradient_checkpointing:
        recompute_layers(loaded.model)


def check_end(loaded: Loaded, observer: Observer) -> None:
    """Warn where the model cannot learn to end a text."""
    if loaded.tokens.end_id is None:
        observer.warn(
            f"{loaded.source}: neither its tokenizer nor its settings name an end-of-text token, so the model does not learn "
            "where to stop"
        )


def described(job: SFTJob | DPOJob, loaded: Loaded, precision: str) -> str:
    """The model that is trained, in a line."""
    parameters = list(loaded.model.parameters())
    trained, size = (sum(p.numel() for p in parameters if p.requires_grad or all_) / 1e6 for all_ in (False, True))
    return f"{job.model.name}, {size:,.0f} M parameters, {trained:,.0f} M of them trained, {precision}"


def job_of(run: RunDir) -> PPOJob:
    """The configuration of a run, with the prompts that it keeps, wherever it lies now."""
    job = build(PPOJob, run.config, where=str(run.path / "config.json"))
    kept = run.path / PROMPTS
    return job.model_copy(update={"data": job.data.model_copy(update={"prompts": str(kept)})}) if kept.is_file() else job


def keep_prompts(job: PPOJob, run: RunDir, prompts: list[Prompt]) -> PPOJob:
    """Store prompts given from Python in the run, so that it can be resumed and compared without them."""
    rows = (_row(each, job.data.column) for each in prompts)
    write_atomic(run.path / PROMPTS, b"".join(map(json_line, rows)))
    job = job_of(run)
    run.write_json("config.json", job.model_dump(mode="json"))
    return job


def _row(prompt: Prompt, column: str) -> dict[str, Any]:
    """A prompt as a row, a conversation without the system message that the settings put in front of it."""
    talk = prompt.messages
    if talk is None:
        return {**prompt.columns, column: prompt.text}
    others = {name: value for name, value in prompt.columns.items() if value is not talk}
    return {**others, column: talk if readable(talk) == prompt.text else talk[1:]}


def find_prompts(
    job: PPOJob | CompareJob, prompts: list[Prompt] | None = None, say: Callable[[str], None] = lambda _: None
) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to train on and those held out, without the before/after's extra ones.

    ``prompts``: instead of those that the job names. Prompts of the same text that differ in a column are all kept:
    :func:`as_read` drops those that no reward can tell apart. ``say`` reports what was left out.
    """
    source = job.data.prompts if prompts is None else "prompts"
    prompts = load_prompts(job.data, None, say) if prompts is None else prompts
    extra = {Prompt(text).key for text in job.compare.extra}
    train, held_out = split_held_out([p for p in prompts if p.key not in extra], job.data.held_out)
    if not held_out:
        raise DataError(
            f"{source}: of its {len(prompts)} prompts none is held out for the "
            f"before/after; give more prompts, or raise data.held_out = {job.data.held_out:g}"
        )
    return train, held_out


def as_read(
    sides: tuple[list[Prompt], list[Prompt]], rewards: Iterable[Reward], name: str, say: Callable[[str], None]
) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to train on and those held out, without those that are the same to all rewards; ``say`` reports how many."""
    held_out = {prompt.key for prompt in sides[1]}
    distinct = distinct_prompts([*sides[0], *sides[1]], columns_read(rewards), say, name)
    return [p for p in distinct if p.key not in held_out], [p for p in distinct if p.key in held_out]


def check_lengths(job: PPOJob | CompareJob, prompts: Sequence[Prompt], loaded: Loaded) -> None:
    """Check that every prompt can be asked and answered within the model's context.

    Raises:
        DataError: a query is too long or empty.
        ConfigError: query and response together are longer than the model's context.
    """
    queries = _longest_queries(job, loaded.tokens, prompts)
    extra = extra_prompts(job.compare.extra, job.data, prompts[0])
    queries += loaded.tokens.queries(extra, None, 0, 0, job.data.max_query_tokens)
    check_context(max(map(len, queries)), job.rollout.response_tokens[1], loaded)


def longest_asked(job: PPOJob, ready: Prepared) -> int:
    """Tokens of the longest query of training with the longest response."""
    return max(map(len, _longest_queries(job, ready.tokens, ready.prompts))) + job.rollout.response_tokens[1]


def check_reading(
    job: PPOJob | CompareJob, tokens: Tokens, prompts: Sequence[Prompt], rewards: list[Reward], observer: Observer
) -> None:
    """Warn where a reward or judge may read a text only in part; see :func:`konomi.models.reader.check_room`."""
    if cutting := readers(*rewards):
        queries = _longest_queries(job, tokens, prompts)
        texts, _ = tokens.split_all(prompts, queries, [()] * len(prompts))
        extra = extra_prompts(job.compare.extra, job.data, prompts[0])
        asked = [(text, each.messages) for text, each in zip(texts, prompts, strict=True)]
        asked += [(each.text, each.messages) for each in extra]
        check_room(cutting, [Answered(text, "", talk) for text, talk in asked], job.rollout.response_tokens[1], observer.warn)


def _longest_queries(job: PPOJob | CompareJob, tokens: Tokens, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The longest queries that any epoch can draw."""
    cut = None if job.data.query_tokens is None else (job.data.query_tokens[1],) * 2
    return tokens.queries(prompts, cut, job.run.seed, 0, job.data.max_query_tokens)


def check_context(query: int, response: int, loaded: Loaded) -> None:
    """Raise ConfigError if so many tokens are more than the model's context."""
    context = context_of(loaded)
    if context and query + response > context:
        raise ConfigError(
            f"{loaded.source}: a query of {query} and a response of {response} tokens are more than its context of {context}; "
            "ask for shorter ones (data.query_tokens, rollout.response_tokens; generate: --tokens)"
        )


def context_of(loaded: Loaded) -> int | None:
    """The most tokens that a model reads at once, if its configuration says it."""
    context: int | None = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    return context

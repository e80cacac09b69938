"""What `konomi dpo` works with, loaded and checked before anything is written."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from konomi.config import DataConfig, DPOJob
from konomi.data.chat import template_render
from konomi.data.convert import convert
from konomi.data.formats import checked_comparisons, read_records
from konomi.data.messages import Answered
from konomi.data.prompts import as_prompts, extra_prompts, load_prompts
from konomi.data.records import Group, Pair, Prompt, Ranking, Score, is_held_out
from konomi.data.sources import Hub
from konomi.engine.device import choose_precision, find_device, manage_memory
from konomi.errors import ConfigError, DataError
from konomi.jobs.common import precision_of
from konomi.jobs.inputs import digest_of
from konomi.jobs.prepare import check_context, check_end, context_of, make_trainable
from konomi.jobs.reward_data import split_groups
from konomi.models.load import Loaded, load_causal_lm
from konomi.models.lora import require_peft
from konomi.models.reader import check_room
from konomi.rewards import Reward, as_reward, build_judges, in_precision
from konomi.rewards.base import check_without_columns, readers
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer
from konomi.text import plural, shortened
from konomi.training.batches import micro_batch_size
from konomi.training.preferences import Choices, encode


@dataclass(frozen=True)
class Questions:
    """The before/after: prompts that training never sees, what scores the answers, and how prompts are read."""

    prompts: list[Prompt]
    reward: Reward
    judges: dict[str, Reward]
    data: DataConfig


@dataclass(frozen=True)
class Prepared:
    """All that a run needs, checked."""

    loaded: Loaded
    precision: str
    train: list[Choices]
    held_out: list[Choices]
    groups: list[Group]
    """Those held out."""
    comparisons: int
    digest: str
    questions: Questions | None


def prepare_dpo(job: DPOJob, observer: Observer, run: RunDir | None = None) -> Prepared:
    """Load and check all that a run needs; ``run``: the one that goes on.

    Raises:
        ConfigError, DataError, ModelError: an input is not usable.
    """
    manage_memory()
    require_peft(job.lora)
    micro_batch_size(job.dpo, "dpo")
    train, _, held_out = split_groups(job.data, partial(_read, limit=job.data.limit), observer.say, observer.warn)
    if job.dpo.loss == "ipo" and any(c.margin for group in train for c in group.comparisons):
        observer.warn(f'{job.data.file}: its margins are not used: dpo.loss = "ipo" has a margin of its own')
    questions = _questions(job, train, held_out, observer) if job.reward else None
    loaded = load_causal_lm(job.model, progress=observer.say)
    if job.dpo.end_of_text:
        check_end(loaded, observer)
    sides = _encoded(job, (train, held_out), loaded, observer)
    if questions:
        _check_questions(job, questions, loaded, observer)
    make_trainable(job, loaded)
    digest = digest_of((repr((g.prompt, g.messages, g.responses, g.comparisons, g.ties)) for g in train + held_out), "\x1e")
    count = sum(len(group.comparisons) for group in train)
    return Prepared(loaded, precision_of(job.model.precision, run), *sides, held_out, count, digest, questions)


def _read(path: str, *, hub: Hub, say: Callable[[str], None], limit: int | None) -> list[Ranking | Pair]:
    """The comparisons in the first ``limit`` rows of a source; those of scores are rankings by score.

    Raises:
        DataError: the source cannot be read; nothing in it is preferred to anything.
    """
    records, format = read_records(path, hub=hub, say=say)
    if isinstance(records[0], Score):  # of thumbs too
        records = convert(records[:limit], "rankings", Counter())
        if not records:
            raise DataError(f"{path}: scores, and no prompt has two responses to compare; give scores of several responses each")
    return checked_comparisons(records, format, path)


def _encoded(
    job: DPOJob, sides: tuple[list[Group], list[Group]], loaded: Loaded, observer: Observer
) -> tuple[list[Choices], list[Choices]]:
    limit, chat = job.dpo.max_length, job.data.chat
    talks = chat or any(group.messages for side in sides for group in side)
    render = template_render(loaded.tokenizer) if talks else None
    encoded = [
        encode(side, loaded.tokens, max_length=limit, end_of_text=job.dpo.end_of_text, chat=chat, render=render) for side in sides
    ]
    (train, cut), (held_out, also) = encoded
    context = context_of(loaded)
    longest = max(each.longest for each in train + held_out)
    if context and longest > context:
        raise ConfigError(
            f"{loaded.source}: a prompt with a response of {longest} tokens is more than its context of {context}; set "
            f"dpo.max_length = {context}"
        )
    if texts := cut.texts + also.texts:
        observer.warn(
            f"longer than dpo.max_length = {limit} tokens and cut: {plural(texts, 'response')}; the longest has "
            f"{max(cut.longest, also.longest)} with its prompt"
        )
    return train, held_out


def _questions(job: DPOJob, train: Sequence[Group], held_out: Sequence[Group], observer: Observer) -> Questions:
    """What the before/after needs, of the prompts that it will ask."""
    assert job.reward is not None
    read = DataConfig(chat=job.data.chat, held_out=job.data.held_out, max_query_tokens=job.dpo.max_length)
    learned = {group.key for group in train}
    if job.data.prompts is None:
        given = [Prompt(group.prompt, {"messages": group.messages} if group.messages else {}) for group in held_out]
        prompts = as_prompts(given, read)
    else:
        named = load_prompts(read.model_copy(update={"prompts": job.data.prompts}), None, observer.say)
        prompts = [p for p in named if is_held_out(p.key, job.data.held_out) and p.key not in learned]
        if not prompts:
            raise DataError(
                f"{job.data.prompts}: of its {plural(len(named), 'prompt')} none is held out and new to training; give more, or "
                "leave data.prompts out"
            )
    columns, device = prompts[0].columns, find_device()
    scoring = choose_precision("auto", device)
    reward = as_reward(in_precision(job.reward, scoring), columns, device)
    judges = build_judges({name: in_precision(each, scoring) for name, each in job.judges.items()}, columns, device)
    check_without_columns([reward, *judges.values()], extra_prompts(job.compare.extra, read, prompts[0]), prompts[0])
    return Questions(prompts, reward, judges, read)


def _check_questions(job: DPOJob, questions: Questions, loaded: Loaded, observer: Observer) -> None:
    """Check that the before/after can be asked and answered, and warn where a reward may read a text in part."""
    extra = extra_prompts(job.compare.extra, questions.data, questions.prompts[0])
    asked = [*questions.prompts, *extra]
    queries, limit = loaded.tokens.queries(asked, None, 0, 0, sys.maxsize), job.dpo.max_length
    for each, query in zip(asked, queries, strict=True):
        if len(query) > limit:
            raise DataError(
                f"the prompt {shortened(each.text)!r} of the before/after has {len(query)} tokens, more than dpo.max_length = "
                f"{limit}; shorten or remove it (data.prompts, compare.extra), or raise the limit"
            )
    most = job.rollout.response_tokens[1]
    check_context(max(map(len, queries)), most, loaded)
    if cutting := readers(questions.reward, *questions.judges.values()):
        check_room(cutting, [Answered(each.text, "", each.messages) for each in asked], most, observer.warn)

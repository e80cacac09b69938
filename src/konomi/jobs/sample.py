"""`konomi sample`: from prompts and models to candidates that can be ranked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from konomi.config import SampleJob
from konomi.data.formats import manifest, write_records
from konomi.data.prompts import load_prompts, split_held_out
from konomi.data.records import Candidate, Prompt, Task
from konomi.data.tokens import Tokens
from konomi.engine.device import autocast, choose_precision, find_device
from konomi.engine.sampler import make_draws, sample
from konomi.errors import DataError, RunError
from konomi.jobs.common import Work, result_of, resume_command, running
from konomi.jobs.inputs import check_unchanged, job_inputs, prompts_digest
from konomi.jobs.prepare import check_context
from konomi.models.load import Loaded, load_causal_lm
from konomi.reading import written_by_konomi
from konomi.runs import processes
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer
from konomi.seeds import stream_seed
from konomi.text import plural


@dataclass
class _Draft:
    """A task in the making."""

    prompt: Prompt
    asked: Prompt
    """What the candidates answer: the prompt, or its beginning."""
    round: int
    candidates: dict[int, Candidate] = field(default_factory=dict)
    """Place -> candidate."""
    keys: set[str] = field(default_factory=set)

    def take(self, place: int, candidate: Candidate) -> bool:
        """Keep a candidate, unless it reads as another does."""
        key = Prompt(candidate.text).key
        if key in self.keys:
            return False
        self.keys.add(key)
        self.candidates[place] = candidate
        return True

    def task(self, seed: int) -> Task:
        """The task, with its candidates in an order that does not reveal who wrote them."""
        name = ("sample-order", self.prompt.stream, self.round)
        order = sorted(self.candidates, key=lambda place: stream_seed(seed, *name, place))
        return Task(self.asked.text, tuple(self.candidates[place] for place in order), self.prompt.columns)


class _Kept:
    """The batches that are drawn, each a line of drawn.jsonl."""

    def __init__(self, work: Work, going_on: bool) -> None:
        self.work = work
        if going_on:
            work.run.remove_drafts()
            work.run.set_status("running")
        rows = work.run.read_drawn() if going_on else []
        with written_by_konomi(work.run.path):
            self._batches = {tuple(row["batch"]): [_candidate(**each) for each in row["candidates"]] for row in rows}

    def batch(self, name: tuple[str, int, int], count: int, draw: Callable[[], list[Candidate]]) -> list[Candidate]:
        """A batch of ``count`` by model, attempt and place of its first candidate: drawn and kept, unless it is there."""
        if name not in self._batches:
            drawn = self._batches[name] = draw()
            self.work.run.append_drawn({"batch": name, "candidates": [vars(each) for each in drawn]})
        if len(kept := self._batches[name]) != count:
            raise DataError(f"{self.work.run.drawn}: {len(kept)} candidates, not {count}, of batch {name}; delete that line")
        return kept

    def saved(self) -> str:
        """What is kept, in words."""
        return f"{plural(sum(map(len, self._batches.values())), 'candidate')} kept"


def _candidate(text: str, source: dict[str, Any]) -> Candidate:
    if not isinstance(text, str):
        raise TypeError("a candidate that is no text")
    return Candidate(text, dict(source))


@dataclass(frozen=True)
class Writer:
    """A model that writes candidates."""

    name: str
    loaded: Loaded
    precision: str


def run_sample(
    job: SampleJob, root: str | Path, observer: Observer | None = None, resume: Path | None = None, *,
    parent: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Let models write candidates for prompts, or go on in the directory ``resume`` of a run; return what ``--json`` prints.

    The run directory gets candidates.jsonl and manifest.json. Each candidate has a random stream of its own: neither its
    neighbours nor the size of a batch change it. One model at a time is in memory; if there are several, each is loaded and
    checked before anything is written, and loaded again to write. Each batch is kept when it is drawn: a run that goes on draws
    the others.

    Raises:
        ConfigError, DataError, ModelError: an input is not usable, or has changed; nothing was written.
        RunError: no task has two different candidates, or a model's logits are not finite.
        KeyboardInterrupt: stopped by a signal; says how to go on.
    """
    observer, started = observer or Observer(), time.monotonic()
    old = RunDir.open(resume) if resume else None
    prompts = prompts_of(job, observer)
    fields = {"data_digest": prompts_digest(prompts), "inputs": job_inputs(job)}
    job = _as_begun(job, old, fields) if old else job
    writer, asked, about = check_models(job, prompts, observer)
    drafts = [_Draft(*pair, number) for pair in zip(prompts, asked, strict=True) for number in range(job.sample.rounds)]
    facts = {
        **{f"model {name}": f"{each['name']}, {each['precision']}, ends at {each['ends_at']}" for name, each in about.items()},
        "prompts": f"{job.data.prompts}: {len(prompts)} ({job.sample.prompts})",
        "job": f"{plural(len(drafts), 'task')} of {job.sample.candidates} candidates",
    }
    fields["precisions"] = {name: each["precision"] for name, each in about.items()}
    with running(job, root, observer, fields=fields, parent=parent, resume=old) as work:
        kept = _Kept(work, going_on=old is not None)
        work.start(job.data.prompts, facts)
        again = 0
        with resume_command(work, "sample", kept.saved):
            for name in reversed(job.models):  # the last one checked is still in memory
                writer = writer if writer.name == name else _load(job, name, observer)
                again += _write(job, writer, drafts, kept)
        tasks = _tasks(drafts, job.run.seed)
        if not tasks:
            raise RunError(
                f"{work.run.path}: of {len(drafts)} tasks none has two different candidates; raise rollout.temperature, "
                "rollout.response_tokens or sample.attempts"
            )
        path = work.run.path / "candidates.jsonl"
        figures = {
            "tasks": len(tasks),
            "candidates": sum(len(task.candidates) for task in tasks),
            "drawn_again": again,
            "tasks_with_fewer": sum(len(task.candidates) < job.sample.candidates for task in tasks),
            "tasks_dropped": len(drafts) - len(tasks),
        }
        _warn(figures, observer)
        if processes.is_main():
            write_records(path, tasks)
            described = work.run.write_json("manifest.json", {**manifest({"candidates": path}), "models": about, **figures})
            work.sinks.log(0, {f"sample/{name}": value for name, value in figures.items()})
            work.sinks.artifacts(described, work.run.path / "config.json")
            work.run.set_status("finished")
            work.run.drawn.unlink(missing_ok=True)
        return result_of(work, started, file=str(path), **figures)


def prompts_of(job: SampleJob, observer: Observer) -> list[Prompt]:
    """The prompts of ``sample.prompts``."""
    prompts = load_prompts(job.data, say=observer.say)
    if job.sample.prompts == "all":
        return prompts
    train, held_out = split_held_out(prompts, job.data.held_out)
    side = train if job.sample.prompts == "train" else held_out
    if not side:
        raise DataError(
            f"{job.data.prompts}: of its {len(prompts)} prompts none is held out; give more prompts, or raise "
            f"data.held_out = {job.data.held_out:g}"
        )
    return side


def check_models(
    job: SampleJob, prompts: Sequence[Prompt], observer: Observer
) -> tuple[Writer, list[Prompt], dict[str, dict[str, Any]]]:
    """Load all models in turn. Return the last, what candidates answer, and a description of each model."""
    asked: list[Prompt] = []
    about = {}
    for name in job.models:
        writer = _load(job, name, observer)
        asked = asked or _cut(job, writer.loaded.tokens, prompts)
        queries = _queries(job, writer, asked)
        check_context(max(map(len, queries)), job.rollout.response_tokens[1], writer.loaded)
        about[name] = {
            "name": job.models[name].name, "revision": writer.loaded.revision, "precision": writer.precision,
            "ends_at": writer.loaded.tokens.stops(),
        }  # fmt: skip
        if writer.loaded.note:
            about[name]["licence"] = writer.loaded.note
    return writer, asked, about


def _load(job: SampleJob, name: str, observer: Observer) -> Writer:
    config = job.models[name]
    loaded = load_causal_lm(config, progress=observer.say)
    precision = choose_precision(config.precision)
    model = loaded.model.to(find_device())
    if precision == "fp64":
        model.double()
    return Writer(name, loaded, precision)


def _as_begun(job: SampleJob, run: RunDir, fields: Mapping[str, Any]) -> SampleJob:
    """The job with the precisions in which a run began. Raises ConfigError if something that it depends on has changed."""
    check_unchanged(run, fields)
    precisions = run.info.get("precisions") or {}
    models = {
        name: each.model_copy(update={"precision": precisions.get(name, each.precision)}) for name, each in job.models.items()
    }
    return job.model_copy(update={"models": models})


def _cut(job: SampleJob, tokens: Tokens, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts, cut by the tokens of the first model, without half a character at the end."""
    if job.data.query_tokens is None:
        return list(prompts)
    queries = tokens.queries(prompts, job.data.query_tokens, job.run.seed, 0, job.data.max_query_tokens)
    cut = [tokens.decode(query) for query in queries]
    return [replace(prompt, text=text) if text.strip() else prompt for text, prompt in zip(cut, prompts, strict=True)]


def _queries(job: SampleJob, writer: Writer, asked: Sequence[Prompt]) -> list[list[int]]:
    return writer.loaded.tokens.queries(asked, None, job.run.seed, 0, job.data.max_query_tokens)


def _write(job: SampleJob, writer: Writer, drafts: Sequence[_Draft], kept: _Kept) -> int:
    """Let one model write its candidates of all tasks; return how many were drawn again."""
    places = [(draft, place) for draft in drafts for place in range(job.sample.candidates)]
    waiting = [each for each in places if _whose(job, *each) == writer.name]
    queries = dict(zip((id(draft) for draft in drafts), _queries(job, writer, [d.asked for d in drafts]), strict=True))
    again, total = 0, len(waiting)
    for attempt in range(1 + job.sample.attempts):
        again += len(waiting) if attempt else 0
        left = []
        for start in range(0, len(waiting), job.sample.batch_size):
            here = waiting[start : start + job.sample.batch_size]
            asked = [queries[id(draft)] for draft, _ in here]
            draw = partial(processes.divided, list(zip(here, asked, strict=True)), partial(_draw, job, writer, attempt))
            drawn = kept.batch((writer.name, attempt, start), len(here), draw)
            left += [each for each, candidate in zip(here, drawn, strict=True) if not each[0].take(each[1], candidate)]
            done = total - (len(waiting) - start - len(here)) - len(left)
            kept.work.observer.progress(f"candidates of {writer.name}", done, total)
        waiting = left
    return again


def _draw(job: SampleJob, writer: Writer, attempt: int, asked: Sequence[tuple[tuple[_Draft, int], list[int]]]) -> list[Candidate]:
    """One response for each place, to its query."""
    places, queries = zip(*asked, strict=True)
    names = [("sample", writer.name, draft.prompt.stream, draft.round, place, attempt) for draft, place in places]
    draws = make_draws(job.rollout, job.run.seed, names)
    model = writer.loaded.model
    with autocast(model.device, writer.precision):
        rollout = sample(model, writer.loaded.tokens, queries, draws, job.rollout, f"models.{writer.name}")
    candidates = []
    for (draft, _), query, ids, name in zip(places, queries, rollout.response_ids(), names, strict=True):
        source = {
            "model": writer.name, "revision": writer.loaded.revision, "seed": job.run.seed, "stream": list(name),
            "temperature": job.rollout.temperature, "tokens": len(ids),
        }  # fmt: skip
        candidates.append(Candidate(writer.loaded.tokens.split(draft.asked, query, ids)[1], source))
    return candidates


def _whose(job: SampleJob, draft: _Draft, place: int) -> str:
    """The model of this place: all have equally many, and which one has one more changes from task to task."""
    names = list(job.models)
    return names[(place + stream_seed(job.run.seed, "sample-share", draft.prompt.stream, draft.round)) % len(names)]


def _tasks(drafts: Sequence[_Draft], seed: int) -> list[Task]:
    """The tasks with at least two candidates, none of them twice."""
    tasks: dict[tuple[str, frozenset[str]], Task] = {}
    for draft in drafts:
        if len(draft.candidates) > 1:
            tasks.setdefault((draft.asked.key, frozenset(draft.keys)), draft.task(seed))
    return list(tasks.values())


def _warn(figures: dict[str, int], observer: Observer) -> None:
    if figures["tasks_dropped"]:
        observer.warn(
            f"left out: {plural(figures['tasks_dropped'], 'task')}, without two different candidates or equal to another"
        )
    if figures["tasks_with_fewer"]:
        observer.warn(f"fewer candidates than asked for in {plural(figures['tasks_with_fewer'], 'task')}: others were duplicates")

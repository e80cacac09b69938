"""`konomi pick`: of many candidates the few tasks whose ranking teaches most, from a file of them to a smaller one.

Uncertainty alone asks the same again and again; what is uncertain and unlike what was asked before saves labels (Melo et al.
2024, arXiv:2406.10023). Here responses are points by their characters, and the next task is the one whose differences are least
known from the comparisons before it. No answer is needed for that, so that the very first labels are chosen too.

Shape suffixes: M candidates, P pairs of one prompt's, D dimensions of a point.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from konomi.config import PickConfig, PickJob
from konomi.data.formats import manifest, read_comparisons, read_tasks, write_records
from konomi.data.messages import identity
from konomi.data.records import Candidate, Group, Task, groups, is_held_out, text_key
from konomi.errors import DataError
from konomi.files import content_sha256, local_path
from konomi.jobs.common import result_of, running
from konomi.models.text_baseline import Array, text_points
from konomi.runs.observer import Observer
from konomi.runs.processes import is_main
from konomi.seeds import stream_seed
from konomi.text import plural

DIMENSIONS = 128
"""Of a response's point."""
RIDGE = 0.05
"""What is known of each direction before any comparison, in squares of differences."""
PART = 65_536
"""Pairs whose variance is computed at a time."""


def run_pick(job: PickJob, root: str | Path, observer: Observer | None = None, *, parent: str | None = None) -> dict[str, Any]:
    """Pick tasks from a file of candidates; return what ``--json`` prints.

    The run directory gets candidates.jsonl and manifest.json. The same files and seed give the same tasks.

    Raises:
        ConfigError, DataError: an input is not usable, or all candidates are ranked; nothing was written.
        KeyboardInterrupt: stopped by a signal.
    """
    observer, started = observer or Observer(), time.monotonic()
    tasks, compared = prepare_pick(job, observer)
    picked = pick(tasks, compared, job.pick, job.run.seed)
    if not picked:
        raise DataError(f"{job.candidates}: every prompt has fewer than two candidates that are not ranked yet; sample more")
    if len(picked) < job.pick.tasks:
        observer.warn(f"there are {plural(len(picked), 'task')} to pick, not pick.tasks = {job.pick.tasks}")
    facts = {
        "candidates": f"{job.candidates}: {plural(len(tasks), 'task')}",
        "ranked so far": plural(len(compared), "prompt"),
    }
    digest = content_sha256(local_path(job.candidates))[:32]
    with running(job, root, observer, fields={"data_digest": digest}, parent=parent) as work:
        work.start(job.candidates, facts)
        path = work.run.path / "candidates.jsonl"
        figures = {"tasks": len(picked), "prompts": len({task.key for task in picked})}
        if is_main():
            write_records(path, picked)
            described = work.run.write_json("manifest.json", {**manifest({"candidates": path}), **figures})
            work.sinks.log(0, {f"pick/{name}": value for name, value in figures.items()})
            work.sinks.artifacts(described, work.run.path / "config.json")
        return result_of(work, started, file=str(path), **figures)


def prepare_pick(job: PickJob, observer: Observer) -> tuple[list[Task], list[Group]]:
    """Read the candidates, and what is ranked already. Raises DataError: a file is not usable."""
    tasks = read_tasks(job.candidates, observer.say)
    return tasks, groups(read_comparisons(job.pick.rankings, say=observer.say)) if job.pick.rankings else []


@dataclass(frozen=True)
class _Prompt:
    """What may be shown of a prompt: its candidates that are not ranked yet, in a random order.

    ranked: how many of its responses are ranked. lot: a random number.
    """

    task: Task
    candidates: tuple[Candidate, ...]
    ranked: int
    lot: int

    def shown(self, places: Iterable[int]) -> Task:
        """A task of some of the candidates."""
        return Task(self.task.prompt, tuple(self.candidates[place] for place in sorted(places)), self.task.columns)


def pick(tasks: Sequence[Task], compared: Sequence[Group], settings: PickConfig, seed: int) -> list[Task]:
    """The tasks to show next, in a random order.

    Args:
        tasks: candidates; those of one prompt are put together.
        compared: what is ranked already; its responses are not shown again.
        settings: how many tasks, of how many candidates. Of prompts that are held out tasks are drawn, not chosen.
        seed: of whatever is drawn.
    """
    sides: dict[bool, list[_Prompt]] = {False: [], True: []}
    for prompt in _prompts(tasks, compared, seed):
        sides[is_held_out(prompt.task.key, settings.held_out)].append(prompt)
    apart = round(settings.tasks * len(sides[True]) / max(1, len(sides[True]) + len(sides[False])))
    chosen = _informative(sides[False], compared, settings.tasks - apart, settings.candidates, seed)
    chosen += _random_tasks(sides[True], apart, settings.candidates)
    return sorted(chosen, key=lambda task: stream_seed(seed, "pick", task.key, *sorted(task.responses)))


def _prompts(tasks: Sequence[Task], compared: Sequence[Group], seed: int) -> list[_Prompt]:
    """The prompts that have two candidates to show, in a random order."""
    ranked: dict[str, set[str]] = {}
    for group in compared:
        ranked.setdefault(group.key, set()).update(map(text_key, group.responses))
    by_prompt: dict[tuple[str, str], list[Task]] = {}
    for task in tasks:
        by_prompt.setdefault((task.key, identity(task.messages)), []).append(task)
    prompts = []
    for (key, talk), own in by_prompt.items():
        known = ranked.get(key, set())
        left = {text_key(each.text): each for task in own for each in task.candidates}
        names = sorted(left.keys() - known, key=lambda name, key=key: stream_seed(seed, "pick", key, name))  # type: ignore[misc]
        if len(names) > 1:
            lot = stream_seed(seed, "pick", key, talk)
            prompts.append(_Prompt(own[0], tuple(left[name] for name in names), len(known), lot))
    return sorted(prompts, key=lambda prompt: prompt.lot)


def _random_tasks(prompts: Sequence[_Prompt], count: int, size: int) -> list[Task]:
    """Tasks at random: each prompt has one before any has a second."""
    sets = [
        (prompt.ranked / size + start / size, prompt.lot, prompt.shown(range(start, min(start + size, len(prompt.candidates)))))
        for prompt in prompts
        for start in range(0, len(prompt.candidates) - 1, size)
    ]
    return [task for *_, task in sorted(sets, key=lambda each: each[:2])[:count]]


def _informative(prompts: Sequence[_Prompt], compared: Sequence[Group], count: int, size: int, seed: int) -> list[Task]:
    """Tasks one after another, each of the candidates whose differences are least known from those before.

    The score is taken as linear in the points x of responses, with variance d' A^-1 d of a difference d = x_i - x_j, where
    A = RIDGE + sum d d' over the comparisons that are made: greedy D-optimal design.
    """
    texts = [each.text for prompt in prompts for each in prompt.candidates]
    if not texts:
        return []
    before = [text for group in compared for text in group.responses]
    x_MD = text_points([*texts, *before], DIMENSIONS, seed)
    known = _Known(x_MD[: len(texts)], _differences(x_MD[len(texts) :], compared))
    starts = np.cumsum([0, *(len(prompt.candidates) for prompt in prompts)])[:-1].tolist()
    whose = np.repeat(np.arange(len(prompts)), [len(prompt.candidates) for prompt in prompts])
    pairs_P2 = np.array([
        (start + i, start + j) for start, prompt in zip(starts, prompts, strict=True)
        for i, j in itertools.combinations(range(len(prompt.candidates)), 2)
    ])  # fmt: skip
    variance_P = known.variance(*pairs_P2.T)
    free_M = np.ones(len(texts), dtype=bool)
    chosen: list[Task] = []
    while len(chosen) < count and (open_P := free_M[pairs_P2].all(axis=1)).any():
        members = pairs_P2[np.where(open_P, variance_P, -1.0).argmax()].tolist()
        prompt = int(whose[members[0]])
        free_M[members] = False
        while len(members) < size and (rest := np.flatnonzero(free_M & (whose == prompt))).size:
            gain = sum(known.variance(rest, np.full_like(rest, member)) for member in members)
            members.append(int(rest[np.argmax(gain)]))
            free_M[members[-1]] = False
        for pair in itertools.combinations(members, 2):
            variance_P -= known.compare(*pair, pairs_P2)
        chosen.append(prompts[prompt].shown(place - starts[prompt] for place in members))
    return chosen


def _differences(x_ND: Array, compared: Sequence[Group]) -> Array:
    """[P, D]: the better response less the worse one of each comparison; ``x_ND`` are the points of all responses."""
    starts = np.cumsum([0, *(len(group.responses) for group in compared)]).tolist()
    rows = zip(starts, compared, strict=False)
    pairs = [(start + c.better, start + c.worse) for start, group in rows for c in group.comparisons]
    better_P, worse_P = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    difference_PD: Array = x_ND[better_P] - x_ND[worse_P]
    return difference_PD


class _Known:
    """What comparisons tell of the differences of points ``x_MD``; ``seen_PD``: the differences that were compared."""

    def __init__(self, x_MD: Array, seen_PD: Array) -> None:
        self.x_MD = x_MD
        self.inverse_DD = np.linalg.inv(RIDGE * np.eye(x_MD.shape[1]) + seen_PD.T @ seen_PD)

    def variance(self, first_P: Any, second_P: Any) -> Array:
        """[P]: that of the difference of each pair of points."""
        variances = []
        for start in range(0, len(first_P), PART):
            d_PD = self.x_MD[first_P[start : start + PART]] - self.x_MD[second_P[start : start + PART]]
            variances.append(((d_PD @ self.inverse_DD) * d_PD).sum(axis=1))
        return np.concatenate(variances)

    def compare(self, one: int, other: int, pairs_P2: Any) -> Array:
        """Take a comparison of two points as made; return by how much that lowers the variance of each pair, [P]."""
        d_D = self.x_MD[one] - self.x_MD[other]
        along_D = self.inverse_DD @ d_D
        size = 1 + float(d_D @ along_D)
        self.inverse_DD -= np.outer(along_D, along_D) / size
        along_M = self.x_MD @ along_D
        less_P: Array = (along_M[pairs_P2[:, 0]] - along_M[pairs_P2[:, 1]]) ** 2 / size
        return less_P

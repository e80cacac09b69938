"""`konomi judge`: a simulated rater ranks candidates, from a file of them to a file of rankings.

No person is asked. The rater is a reward with noise on its scores, so that it agrees with itself about as often as people
do; see :mod:`konomi.jobs.simulated_rater`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from konomi.config import JudgeJob
from konomi.data.formats import manifest, read_tasks, write_records
from konomi.data.records import Prompt, Ranking, Score, Task
from konomi.engine.device import find_device
from konomi.files import content_sha256, local_path
from konomi.jobs.common import result_of, running
from konomi.jobs.simulated_rater import gumbel, noise_scale, pairs_alike, ranks, rightly_ordered, score_gaps, self_agreement
from konomi.models.reader import check_room
from konomi.rewards import Reward, build_reward, score
from konomi.rewards.base import readers
from konomi.runs.observer import Observer
from konomi.seeds import stream_seed
from konomi.text import plural

RATERS = ("stand-in", "stand-in-2")
"""Names of the simulated rater, so that nobody takes its rankings for a person's."""
TRUTH = "stand-in-without-noise"
BATCH = 128
"""Texts that are scored at a time."""


def run_judge(job: JudgeJob, root: str | Path, observer: Observer | None = None, *, parent: str | None = None) -> dict[str, Any]:
    """Let the simulated rater rank all tasks of a file; return the result that ``--json`` prints.

    The run directory gets rankings.jsonl, truth.jsonl (the scores without noise) and manifest.json. The ranking of a task
    depends on the seed, the prompt and the candidates' texts alone, not on their order or on the other tasks; but the scale of
    the noise is one for all.

    Raises:
        ConfigError, DataError, ModelError: something given is not usable; the agreement that is wanted cannot be reached.
        RunError: the reward failed; its texts are in failed_texts.jsonl.
        KeyboardInterrupt: stopped by a signal.
    """
    observer, started = observer or Observer(), time.monotonic()
    tasks = read_tasks(job.candidates, observer.say)
    reward = build_reward(job.reward, columns=tasks[0].columns, device=find_device())
    _check_texts(tasks, reward, observer)
    facts = {
        "rater": f"a stand-in for people (no person is asked): {reward.name} with noise",
        "candidates": f"{job.candidates}: {plural(len(tasks), 'task')}",
        "agreement": f"{job.judge.agreement:g} of the pairs, with itself",
    }
    digest = content_sha256(local_path(job.candidates))[:32]
    with running(job, root, observer, fields={"data_digest": digest}, parent=parent) as work:
        work.start(job.candidates, facts)
        run = work.run
        scores = _scores(tasks, reward, observer, run.path / "failed_texts.jsonl")
        gaps = score_gaps(scores)
        scale = noise_scale(gaps, job.judge.agreement)
        twice = [[_ranking(task, each, rater, scale, job.run.seed) for rater in RATERS] for task, each in _zip(tasks, scores)]
        again = [_is_ranked_again(task, job.judge.overlap, job.run.seed) for task in tasks]
        first = [one for one, _ in twice]
        second = [other for (_, other), wanted in _zip(twice, again) if wanted]
        files = {"rankings": run.path / "rankings.jsonl", "truth": run.path / "truth.jsonl"}
        write_records(files["rankings"], [*first, *second])
        write_records(files["truth"], [truth for task, each in _zip(tasks, scores) for truth in _truth(task, each)])
        alike = [pairs_alike(one.ranks, other.ranks) for one, other in twice]
        figures = {
            "tasks": len(tasks),
            "tasks_ranked_twice": len(second),
            "pairs": len(gaps),
            "noise_scale": scale,
            "self_agreement_expected": self_agreement(gaps, scale),
            "self_agreement": sum(same for same, _ in alike) / len(gaps),
            "agreement_with_truth_expected": rightly_ordered(gaps, scale),
        }
        about = {"rater": facts["rater"], "people": False, "reward": job.reward.model_dump(mode="json"), **figures}
        described = run.write_json("manifest.json", {**manifest(files), **about})
        work.sinks.log(0, {f"stand_in/{name}": value for name, value in figures.items()})
        work.sinks.artifacts(described, run.path / "config.json")
        return result_of(work, started, rankings=str(files["rankings"]), truth=str(files["truth"]), **about)


def _check_texts(tasks: Sequence[Task], reward: Reward, observer: Observer) -> None:
    """Let a reward that cuts long texts read all of them, and warn of what it cuts."""
    check_room(readers(reward), [task.prompt for task in tasks], 0, observer.warn)
    for reader in readers(reward):
        before = [task.prompt if reader.reads_prompt else "" for task in tasks]
        reader.encode([text + each.text for text, task in _zip(before, tasks) for each in task.candidates])
        reader.warn(observer.warn)


def _zip(one: Sequence[Any], other: Sequence[Any]) -> zip[tuple[Any, Any]]:
    return zip(one, other, strict=True)


def _scores(tasks: Sequence[Task], reward: Reward, observer: Observer, failed: Path) -> list[list[float]]:
    """Of each task the scores of its candidates, without noise."""
    rows = [(task, each.text) for task in tasks for each in task.candidates]
    names = dict.fromkeys(name for task in tasks for name in task.columns)
    scores: list[float] = []
    for start in range(0, len(rows), BATCH):
        here = rows[start : start + BATCH]
        columns = {name: [task.columns.get(name) for task, _ in here] for name in names}
        scores += score(reward, [task.prompt for task, _ in here], [text for _, text in here], columns, save_to=failed)
        observer.progress("candidates scored", len(scores), len(rows))
    at = iter(scores)
    return [[next(at) for _ in task.candidates] for task in tasks]


def _ranking(task: Task, scores: Sequence[float], rater: str, scale: float, seed: int) -> Ranking:
    key = Prompt(task.prompt).key
    texts = tuple(each.text for each in task.candidates)
    noisy = [value + scale * gumbel(seed, "judge", rater, key, text) for value, text in _zip(scores, texts)]
    return Ranking(task.prompt, texts, ranks(noisy), rater, _source(task))


def _truth(task: Task, scores: Sequence[float]) -> list[Score]:
    return [Score(task.prompt, each.text, value, TRUTH, _source(task)) for each, value in _zip(task.candidates, scores)]


def _is_ranked_again(task: Task, share: float, seed: int) -> bool:
    return stream_seed(seed, "overlap", Prompt(task.prompt).key) < share * 2**63


def _source(task: Task) -> str | None:
    """The models that wrote the candidates."""
    models = sorted({str(each.source["model"]) for each in task.candidates if each.source.get("model")})
    return ", ".join(models) or None

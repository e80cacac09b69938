"""`konomi judge`: a simulated rater ranks candidates, from a file of them to a file of rankings.

No person is asked. The rater is a reward with noise on its scores, so that it agrees with itself about as often as people
do.

Gumbel noise of scale s on each score orders two candidates d apart rightly with probability p = sigmoid(d / s): the
difference of two Gumbel variables is logistic. So a ranking is a draw from the Plackett-Luce model, of which Bradley and
Terry's for pairs is a part. Two independent rankings order the pair alike with probability p^2 + (1 - p)^2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from konomi.config import JudgeJob
from konomi.data.formats import manifest, read_tasks, write_records
from konomi.data.messages import Answered
from konomi.data.records import Ranking, Score, Task
from konomi.engine.device import find_device
from konomi.errors import DataError
from konomi.files import content_sha256, local_path
from konomi.jobs.common import result_of, running
from konomi.models.reader import check_room
from konomi.rewards import Reward, build_reward, score
from konomi.rewards.base import readers
from konomi.runs.observer import Observer
from konomi.runs.processes import is_main
from konomi.seeds import stream_seed
from konomi.text import plural

Array = npt.NDArray[np.float64]

RATERS = {"simulated": "stand-in", "simulated-2": "stand-in-2"}
"""Names of the simulated rater, which no person has, and of the random streams of its noise: other streams would change every
ranking."""
TRUTH = "simulated-without-noise"
BATCH = 128
"""Texts that are scored at a time."""


def run_judge(job: JudgeJob, root: str | Path, observer: Observer | None = None, *, parent: str | None = None) -> dict[str, Any]:
    """Let the simulated rater rank all tasks of a file; return what ``--json`` prints.

    The run directory gets rankings.jsonl, truth.jsonl (the scores without noise) and manifest.json. The ranking of a task
    depends on the seed, the prompt and the candidates' texts alone, not on their order or on the other tasks; only the scale of
    the noise is common to all.

    Raises:
        ConfigError, DataError, ModelError: an input is not usable; nothing was written.
        DataError: the agreement cannot be reached (known only after scoring); the run exists and has failed.
        RunError: the reward failed; its texts are in failed_texts.jsonl.
        KeyboardInterrupt: stopped by a signal.
    """
    observer, started = observer or Observer(), time.monotonic()
    tasks, reward = prepare_judge(job, observer)
    facts = {
        "rater": f"a simulated rater (no person is asked): {reward.name} with noise",
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
        first, second = ([_ranking(*each, rater, scale, job.run.seed) for each in _zip(tasks, scores)] for rater in RATERS)
        again = [ranking for task, ranking in _zip(tasks, second) if _is_ranked_again(task, job.judge.overlap, job.run.seed)]
        files = {"rankings": run.path / "rankings.jsonl", "truth": run.path / "truth.jsonl"}
        alike = [pairs_alike(one.ranks, other.ranks) for one, other in _zip(first, second)]
        figures = {
            "tasks": len(tasks),
            "tasks_ranked_twice": len(again),
            "pairs": len(gaps),
            "noise_scale": scale,
            "self_agreement_expected": self_agreement(gaps, scale),
            "self_agreement": sum(same for same, _ in alike) / len(gaps),
            "agreement_with_truth_expected": rightly_ordered(gaps, scale),
        }
        about = {"rater": facts["rater"], "people": False, "reward": job.reward.model_dump(mode="json"), **figures}
        if is_main():
            write_records(files["rankings"], [*first, *again])
            write_records(files["truth"], [truth for task, each in _zip(tasks, scores) for truth in _truth(task, each)])
            described = run.write_json("manifest.json", {**manifest(files), **about})
            work.sinks.log(0, {f"simulated_rater/{name}": value for name, value in figures.items()})
            work.sinks.artifacts(described, run.path / "config.json")
        return result_of(work, started, rankings=str(files["rankings"]), truth=str(files["truth"]), **about)


def prepare_judge(job: JudgeJob, observer: Observer) -> tuple[list[Task], Reward]:
    """Read the tasks and make the reward that ranks them.

    Raises:
        ConfigError, DataError, ModelError: an input is not usable.
    """
    tasks = read_tasks(job.candidates, observer.say)
    reward = build_reward(job.reward, columns=tasks[0].columns, device=find_device())
    _check_texts(tasks, reward, observer)
    return tasks, reward


def _check_texts(tasks: Sequence[Task], reward: Reward, observer: Observer) -> None:
    """Let a reward that cuts long texts read all of them; warn about the ones it cuts."""
    check_room(readers(reward), [Answered(task.prompt, "", task.messages) for task in tasks], 0, observer.warn)
    for reader in readers(reward):
        reads_prompt = reader.reads_prompt
        answers = [Answered(task.prompt, each.text, task.messages) for task in tasks for each in task.candidates]
        reader.encode([each if reads_prompt else each.response for each in answers])
        reader.warn(observer.warn)


def _zip(one: Sequence[Any], other: Sequence[Any]) -> zip[tuple[Any, Any]]:
    return zip(one, other, strict=True)


def _scores(tasks: Sequence[Task], reward: Reward, observer: Observer, failed: Path) -> list[list[float]]:
    """The scores of each task's candidates, without noise."""
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
    key = task.key
    texts = tuple(each.text for each in task.candidates)
    noisy = [value + scale * gumbel(seed, "judge", RATERS[rater], key, text) for value, text in _zip(scores, texts)]
    return Ranking(task.prompt, texts, ranks(noisy), rater, _source(task), task.messages)


def _truth(task: Task, scores: Sequence[float]) -> list[Score]:
    source, messages = _source(task), task.messages
    return [Score(task.prompt, each.text, value, TRUTH, source, messages) for each, value in _zip(task.candidates, scores)]


def _is_ranked_again(task: Task, share: float, seed: int) -> bool:
    return stream_seed(seed, "overlap", task.key) < share * 2**63


def _source(task: Task) -> str | None:
    """The models that wrote the candidates."""
    models = sorted({str(each.source["model"]) for each in task.candidates if each.source.get("model")})
    return ", ".join(models) or None


# the mathematics


def score_gaps(tasks: Sequence[Sequence[float]]) -> Array:
    """Distances between the scores of each pair of a task's candidates, [pairs].

    >>> score_gaps([[1.0, 3.0, 6.0], [2.0, 2.0]]).tolist()
    [2.0, 5.0, 3.0, 0.0]
    """
    gaps = [abs(a - b) for scores in tasks for i, a in enumerate(scores) for b in scores[i + 1 :]]
    return np.asarray(gaps, dtype=np.float64)


def rightly_ordered(gaps: Array, scale: float) -> float:
    """Expected share of pairs that one ranking orders as the scores do; a pair of equal scores counts half, without noise 1."""
    return 1.0 if scale == 0 else float((1 + np.tanh(gaps / (2 * scale))).mean() / 2)  # sigmoid(x) = (1 + tanh(x / 2)) / 2


def self_agreement(gaps: Array, scale: float) -> float:
    """Expected share of pairs that two independent rankings order alike; without noise 1.

    >>> self_agreement(np.array([math.log(3.0)]), 1.0)  # p = 3/4, p^2 + (1 - p)^2
    0.625
    """
    return 1.0 if scale == 0 else float((1 + np.tanh(gaps / (2 * scale)) ** 2).mean() / 2)


def noise_scale(gaps: Array, agreement: float) -> float:
    """The scale of the noise with which :func:`self_agreement` is ``agreement``, by bisection; 0 for an agreement of 1.

    Args:
        gaps: [pairs], in units of the score.
        agreement: above 0.5, to 1.

    Raises:
        DataError: it cannot be reached, because two rankings agree about pairs of equal scores only by chance.
    """
    if agreement == 1:
        return 0.0
    equal = int((gaps == 0).sum())
    most = 1 - 0.5 * equal / len(gaps)
    if agreement >= most:
        raise DataError(
            f"judge.agreement = {agreement:g} cannot be reached: {equal} of the {len(gaps)} pairs of candidates have equal "
            f"scores, so two rankings agree on {most:.2f} of all pairs at most; lower it, or take a reward that tells the "
            "candidates apart"
        )
    low, high = 0.0, float(gaps.max())
    while self_agreement(gaps, high) > agreement:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if self_agreement(gaps, middle) > agreement else (low, middle)
    return high


def gumbel(seed: int, *name: str | int) -> float:
    """The standard Gumbel number of the stream ``name``."""
    # a hash is as good as a generator for one number; with 52 bits it is never 0 and never 1
    uniform = ((stream_seed(seed, *name) >> 11) + 0.5) / 2**52
    return -math.log(-math.log(uniform))


def ranks(scores: Sequence[float]) -> tuple[int, ...]:
    """Places of scores: 1 is the highest, equal ones share a place.

    >>> ranks([2.0, 5.0, 2.0, 1.0])
    (2, 1, 2, 4)
    """
    return tuple(1 + sum(other > score for other in scores) for score in scores)


def pairs_alike(one: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """How many pairs two rankings of the same candidates order alike, and of how many.

    >>> pairs_alike((1, 2, 3), (1, 3, 2))
    (2, 3)
    """
    pairs = [(i, j) for i in range(len(one)) for j in range(i)]
    alike = sum(np.sign(one[i] - one[j]) == np.sign(other[i] - other[j]) for i, j in pairs)
    return int(alike), len(pairs)

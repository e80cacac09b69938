"""How many labels buy what: accuracy against comparisons, of tasks that `konomi pick` chooses and of tasks at random.

A simulated rater (the judge of examples/judge-ja.toml, with its noise) answers; the learner is the text baseline, which takes
seconds; accuracy is against the judge without noise, on all pairs of held-out prompts. With --save the rankings are kept, for
`konomi reward` on the same labels.

    python benchmarks/labels.py --truth runs/judge/judge-ja/rank --write
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from demo_seeds import put

from konomi.config import PickConfig
from konomi.data.formats import read_scores, write_records
from konomi.data.records import Candidate, Group, Ranking, Task, groups, is_held_out
from konomi.jobs.judge import gumbel, ranks
from konomi.jobs.pick import pick
from konomi.models.text_baseline import fit_text_baseline

SIZES = (100, 200, 400, 800, 1600, 3200)
"""Comparisons; each size has those of the one before."""
SEEDS = (0, 1, 2)
HELD_OUT = 0.2
Truth = dict[tuple[str, str], float]
"""(prompt, response) -> the judge's score."""


def tasks_of(truth: Truth) -> list[Task]:
    """All candidates, by prompt."""
    by_prompt: dict[str, list[Candidate]] = {}
    for prompt, response in truth:
        by_prompt.setdefault(prompt, []).append(Candidate(response))
    return [Task(prompt, tuple(own)) for prompt, own in by_prompt.items()]


def answered(task: Task, truth: Truth, scale: float, seed: int) -> Ranking:
    """What the simulated rater says of a task."""
    noisy = [truth[task.prompt, text] + scale * gumbel(seed, "labels", task.key, text) for text in task.responses]
    return Ranking(task.prompt, task.responses, ranks(noisy), "simulated")


def accuracy(train: Sequence[Group], held_out: Sequence[Task], truth: Truth) -> float:
    """Share of all pairs of held-out prompts that a text baseline, which learned from ``train``, orders as the judge does."""
    learned, right, pairs = fit_text_baseline(train), 0.0, 0
    for task in held_out:
        true_M = np.array([truth[task.prompt, text] for text in task.responses])
        scores_M = learned.scores(task.responses)
        above = true_M[:, None] > true_M
        right += float(((np.sign(scores_M[:, None] - scores_M) + 1) / 2)[above].sum())
        pairs += int(above.sum())
    return right / pairs


def curve(
    tasks: Sequence[Task], truth: Truth, scale: float, seed: int, size: int, chosen: bool, save: Path | None = None
) -> list[float]:
    """Accuracy at each of SIZES, of tasks of ``size`` candidates."""
    train = [task for task in tasks if not is_held_out(task.key, HELD_OUT)]
    held_out = [task for task in tasks if is_held_out(task.key, HELD_OUT)]
    each = size * (size - 1) // 2
    rankings: list[Ranking] = []
    found: list[float] = []
    for comparisons in SIZES:
        settings = PickConfig(
            tasks=max(1, comparisons // each - len(rankings)), candidates=size, held_out=HELD_OUT if chosen else 1.0
        )
        rankings += [answered(task, truth, scale, seed) for task in pick(train, groups(rankings), settings, seed)]
        found.append(accuracy(groups(rankings), held_out, truth))
        if save:
            write_records(save / f"{'chosen' if chosen else 'random'}-{size}-{seed}-{comparisons}.jsonl", rankings)
    return found


def table(directory: Path, save: Path | None, show: Callable[[str], Any] = print) -> str:
    """Markdown of the curves; a row for each way of choosing."""
    truth = {(each.prompt, each.response): each.score for each in read_scores(directory / "truth.jsonl")}
    scale = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["noise_scale"]
    tasks = tasks_of(truth)
    lines = [f"| comparisons | {' | '.join(f'{size:,}' for size in SIZES)} |", "|---|" + "---|" * len(SIZES)]
    for size in (2, 4):
        curves = {}
        for chosen in (False, True):
            curves[chosen] = np.array([curve(tasks, truth, scale, seed, size, chosen, save) for seed in SEEDS])
            cells = [f"{own.mean():.3f} ({own.min():.3f} to {own.max():.3f})" for own in curves[chosen].T]
            lines.append(f"| {size} candidates a task, {'chosen' if chosen else 'at random'} | {' | '.join(cells)} |")
            show(lines[-1])
        ahead = (curves[True] - curves[False]).T
        cells = [f"{own.mean():+.3f} ({own.min():+.3f} to {own.max():+.3f})" for own in ahead]
        lines.append(f"| the same, chosen less at random | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", type=Path, default=Path("runs/judge/judge-ja/rank"), help="the run of `konomi judge`")
    parser.add_argument("--save", type=Path, help="directory for the rankings")
    parser.add_argument("--write", action="store_true", help="put it into docs/results.md")
    given = parser.parse_args()
    if given.save:
        given.save.mkdir(parents=True, exist_ok=True)
    text = table(given.truth, given.save)
    print(text)
    if given.write:
        put("labels", text)


if __name__ == "__main__":
    main()

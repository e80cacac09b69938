"""Evaluations while a run trains: the policy answers a few held-out prompts, and the best checkpoint by them is kept.

The draws are the same each time, and those of the before/after: what differs between two evaluations is the model. The initial
model answers once. evaluations.jsonl has scores and texts, and the figures are in the metrics of the update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from konomi.config import PPOJob
from konomi.engine.responses import forget_running
from konomi.jobs.common import Work
from konomi.jobs.compare import Questions, answers_of, first_of, paired_difference
from konomi.jobs.prepare import Prepared
from konomi.reading import written_by_konomi
from konomi.runs import processes
from konomi.training.checkpoints import Checkpoints
from konomi.training.ppo import PPOTrainer


class Evaluations:
    """The evaluations of a run under way."""

    def __init__(self, job: PPOJob, work: Work, trainer: PPOTrainer, ready: Prepared) -> None:
        self.run, self.observer, self.trainer = work.run, work.observer, trainer
        self.samples, self.updates = job.evaluation.samples, job.ppo.updates
        self.interval = job.evaluation.interval(self.updates)
        prompts = first_of(ready.held_out, job.evaluation.prompts)
        self.items = [(prompt, number) for prompt in prompts for number in range(self.samples)]
        cut = ready.tokens.queries(prompts, job.data.query_tokens, job.compare.seed, 0, job.data.max_query_tokens)
        self.queries = [query for query in cut for _ in range(self.samples)]
        self.ask = Questions(
            ready.tokens, ready.reward, {}, job.rollout, job.compare.seed, trainer.engine.autocast, trainer.failed_texts,
            lambda *_: None,
        )  # fmt: skip
        self.initial: list[float] = []
        """The initial model's scores."""

    def begin(self) -> None:
        """Evaluate the initial model, unless a resumed run already has its answers."""
        if not self.interval:
            return
        with written_by_konomi(self.run.path):
            first = next((line for line in processes.first(self.run.read_evaluations) if line["update"] == 0), None)
            self.initial = [float(score) for score in first["scores"]] if first else []
        if len(self.initial) != len(self.items):
            self.observer.say("The initial model answers held-out prompts, which the model will answer again while it trains")
            self.initial = self._answer(self.trainer.reference, 0)["scores"]
            forget_running(self.trainer.reference)

    def after(self, update: int) -> dict[str, float | None]:
        """Evaluate the policy if this update is one of those after which that is due; returns its metrics."""
        if not self.interval or (update % self.interval and update != self.updates):
            return {}
        started = time.perf_counter()
        answer = self._answer(self.trainer.policy.lm, update)
        return evaluation_metrics(answer) | {"time/evaluation": time.perf_counter() - started}

    def keep_best(self, metrics: Mapping[str, Any], checkpoints: Checkpoints, save: Callable[[Path], None]) -> None:
        """Keep the checkpoint of an update whose figures are better than those of all evaluations before it."""
        difference = metrics.get("eval/difference/mean")
        if difference is None:
            return
        best = processes.first(partial(best_of, self.run.info, checkpoints))
        if best is None or difference > best["difference"]:
            checkpoints.save_best(save)
            self.run.note(best={"update": self.trainer.update, "difference": difference})

    def _answer(self, model: PreTrainedModel, update: int) -> dict[str, Any]:
        """Evaluate a model; appends a line to evaluations.jsonl and returns it."""
        answers = answers_of(model, self.trainer.reference, self.items, self.queries, self.ask)
        difference = paired_difference(self.initial or answers.scores, answers.scores, self.samples)
        rows = zip(self.items, answers.prompts, answers.texts, answers.scores, strict=True)
        line = {
            "score": float(np.mean(answers.scores)),
            "kl": float(np.mean(answers.kl)),
            "difference": {end: difference[end] for end in ("mean", "low", "high")},
            "scores": answers.scores,
            "texts": [
                {"prompt": prompt, "response": text, "score": score} | ({"chat": True} if item.messages else {})
                for (item, number), prompt, text, score in rows if number == 0
            ],
        }  # fmt: skip
        self.run.append_evaluation(update, line)
        return line


def evaluation_metrics(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    """An evaluation as metrics."""
    flat = {f"eval/difference/{end}": evaluation["difference"][end] for end in ("mean", "low", "high")}
    return {"eval/score": evaluation["score"], "eval/kl": evaluation["kl"], **flat}


def best_of(info: Mapping[str, Any], checkpoints: Checkpoints) -> dict[str, Any] | None:
    """Update, difference and directory of the best checkpoint; None if there is none. Raises DataError if ``info``, run.json, has
    of it what konomi does not write."""
    best = info.get("best")
    if not best or not checkpoints.best.is_dir():
        return None
    with written_by_konomi(checkpoints.directory.parent):
        return {"update": int(best["update"]), "difference": float(best["difference"]), "path": str(checkpoints.best)}

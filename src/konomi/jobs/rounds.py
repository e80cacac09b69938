"""Rounds of a pipeline: what each gained over the one before it, when they end, and their page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from konomi.config import Pipeline, Stage
from konomi.config.pipeline import leaves
from konomi.files import write_atomic, writing
from konomi.reading import written_by_konomi
from konomi.report.page import write_rounds
from konomi.runs import processes
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer
from konomi.text import interval_words, signed


def gather(stage: Stage) -> None:
    """Write the files that a stage reads and that are put together from all rounds so far. Raises RunError: a file is missing."""
    settings = dict(leaves(stage.job.model_dump(mode="json")))
    for setting, parts in stage.gathered.items():
        target = Path(settings[setting])
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, b"".join(part.read_bytes() for part in parts))


class Rounds:
    """Follows the rounds of a pipeline; ``over`` once one did not win. One round alone is none."""

    def __init__(self, pipeline: Pipeline, stages: Sequence[Stage], directory: Path, observer: Observer) -> None:
        self.over = False
        self._pipeline, self._stages, self._directory, self._observer = pipeline, stages, directory, observer
        self._outcomes: list[dict[str, Any]] = []

    def ends_with(self, stage: Stage) -> bool:
        """Whether this is the last stage of a round."""
        return self._pipeline.rounds > 1 and stage is [each for each in self._stages if each.round == stage.round][-1]

    def see(self, number: int) -> dict[str, float]:
        """Note how a round that is finished went, say it, draw the page; return its figures.

        Raises DataError: a file of it is damaged.
        """
        own = [each for each in self._stages if each.round == number]
        outcome = processes.first(partial(_outcome, own, self._directory))
        self._outcomes.append(outcome)
        self.over = not outcome["won"]
        self._observer.say(in_words(outcome))
        if processes.is_main():
            write_rounds(self._directory, self._page())
        judges = {f"rounds/judge/{name}": judge["after"] for name, judge in outcome["judges"].items()}
        return {"rounds/score": outcome["score"]["after"], "rounds/kl": outcome["kl"]["after"], **judges}

    def result(self) -> dict[str, Any]:
        """What ``--json`` prints of the rounds; nothing of one alone."""
        if not self._outcomes:
            return {}
        last = self._outcomes[-1]
        return {
            "rounds": self._outcomes,
            "reason": None if last["won"] else in_words(last),
            "model": next((each["model"] for each in reversed(self._outcomes) if each["won"]), self._pipeline.initial),
            "report": str(self._directory / "report.html"),
        }

    def _page(self) -> dict[str, Any]:
        return {"name": self._pipeline.name, "planned": self._pipeline.rounds, "rounds": self._outcomes}


def in_words(outcome: Mapping[str, Any]) -> str:
    """How a round went."""
    gap, number = outcome["difference"], outcome["round"]
    by = "score" if outcome["by"] is None else f"judge {outcome['by']}"
    before = "the initial model" if number == 1 else f"round {number - 1}"
    measured = f"{by} {signed(gap['mean'])}, {interval_words(gap)}"
    if outcome["won"]:
        return f"Round {number} wins against {before}: {measured}"
    return f"Round {number} does not win against {before}: {measured}; the rounds end, and the newest model is that of {before}"


def _outcome(own: Sequence[Stage], directory: Path) -> dict[str, Any]:
    """The figures of a round: it wins where the interval of the first judge's difference, else of the score's, is above 0."""
    verdict = [each for each in own if each.do == "compare"][-1]
    with written_by_konomi(verdict.directory):
        comparison = RunDir(verdict.directory).read_json("compare.json")
        sides = ("before", "after")
        score = {side: comparison[side]["score_mean"] for side in sides} | {"difference": comparison["difference"]}
        by = next(iter(comparison["judges"]), None)
        gap = score["difference"] if by is None else comparison["judges"][by]["difference"]
        reports = {each.directory.name: each.directory / "report.html" for each in own}
        return {
            "round": verdict.round,
            "won": gap["low"] is not None and gap["low"] > 0,
            "by": by,
            "difference": gap,
            "score": score,
            "judges": comparison["judges"],
            "kl": {side: comparison[side]["kl"] for side in sides},
            "distinct_2": {side: comparison[side]["distinct_2"] for side in sides},
            "learned": _learned(own),
            "model": next((str(each.outputs["model"]) for each in reversed(own) if each.trains), None),
            "reports": {name: path.relative_to(directory).as_posix() for name, path in reports.items() if path.exists()},
        }


def _learned(own: Sequence[Stage]) -> dict[str, Any]:
    """What the round's reward model learned from, how good it is on held-out prompts, and how far its raters agree."""
    run = next((RunDir(each.directory) for each in reversed(own) if each.do == "reward"), None)
    held_out = (run.read_json("eval.json") or {}).get("held_out", {}) if run else {}
    shares = {"accuracy": held_out.get("accuracy"), "agreement": (held_out.get("agreement") or {}).get("share")}
    return {
        "comparisons": held_out.get("train_comparisons"),
        **{name: (each or {}).get("value") for name, each in shares.items()},
    }

"""Held-out prompts answered while a run trains: paired with the initial model, the same after a kill, the best one kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import konomi
from konomi.config.monitoring import EvaluationConfig
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer, StepResult
from tiny import save_tiny
from tiny_run import facts

TEXTS = [f"{a}{b} and so on" for a in "abcdefgh" for b in "xyz"]


class Killed(Observer):
    def __init__(self, update: int = 0) -> None:
        self.update = update

    def step(self, result: StepResult) -> None:
        if result.update == self.update:
            raise KeyboardInterrupt("killed")


def count_a(responses: list[str]) -> list[float]:
    return [text.count("a") for text in responses]


def lines_of(run: RunDir) -> list[dict[str, Any]]:
    return [{k: v for k, v in facts(line).items() if k != "time"} for line in run.read_metrics()]


def test_the_same_prompts_during_a_run(tmp_path: Path, fresh_accelerator: None) -> None:
    lm = save_tiny(tmp_path / "lm", "gpt2")

    def run(out: str, observer: Observer, **resume: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "episodes": 80, "batch_size": 8, "mini_batch_size": 4, "baseline_samples": 8, "response_tokens": (4, 8),
            "learning_rate": 3e-3, "data": {"held_out": 0.3}, "run": {"mlflow": False, "save_every": 4},
            "evaluation": {"samples": 2}, "compare": {"samples": 2},
        }  # fmt: skip
        return konomi.train(str(lm), TEXTS, count_a, out=str(tmp_path / out), observer=observer, **(resume or settings))

    result = run("whole", Killed())
    whole = RunDir.open(result["run"])
    evaluations, compare = whole.read_evaluations(), result["compare"]
    assert [line["update"] for line in evaluations] == [0, 2, 4, 6, 8, 10]
    differences = {line["update"]: line["eval/difference/mean"] for line in whole.read_metrics() if "eval/score" in line}
    assert differences == {line["update"]: line["difference"]["mean"] for line in evaluations[1:]}

    # paired, as the before/after is: the last evaluation is the same
    assert len(evaluations[0]["scores"]) == 2 * compare["prompts"] and len(evaluations[0]["texts"]) == compare["prompts"]
    assert differences[10] == compare["difference"]["mean"]
    assert (evaluations[0]["score"], evaluations[0]["kl"]) == (compare["before"]["score_mean"], 0.0)
    assert evaluations[-1]["kl"] == pytest.approx(compare["after"]["kl"])
    texts = [(text["prompt"], text["before"], text["after"]) for text in compare["texts"]]
    first, last = evaluations[0]["texts"], evaluations[-1]["texts"]
    assert texts == [(a["prompt"], a["response"], b["response"]) for a, b in zip(first, last, strict=True)]
    assert not {text["prompt"] for text in first} & {sample["prompt"] for sample in whole.read_samples() if sample["update"]}

    # the best checkpoint is there, and is that of the highest difference
    best = max(differences, key=lambda update: differences[update])
    assert result["best"] == {"update": best, "difference": differences[best], "path": str(whole.checkpoints / "best")}
    assert json.loads((whole.checkpoints / "best" / "trainer.json").read_text("utf-8"))["update"] == best

    # killed after the line of update 7 and gone on with from update 4: what is made again is the same
    with pytest.raises(KeyboardInterrupt):
        run("killed", Killed(7))
    [path] = (tmp_path / "killed").iterdir()
    again = run("killed", Killed(), resume=path)
    resumed = RunDir.open(path)
    assert lines_of(resumed) == lines_of(whole) and resumed.read_evaluations() == evaluations
    assert again["best"]["update"] == best


def test_how_often() -> None:
    assert [EvaluationConfig().interval(updates) for updates in (1, 9, 10, 16, 100)] == [0, 0, 2, 4, 20]
    assert [EvaluationConfig(every=every).interval(16) for every in (0, 3)] == [0, 3]

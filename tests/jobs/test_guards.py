"""What a run does when a guard fires: it goes back with smaller steps, also when it is killed meanwhile, or warns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import konomi
from konomi.errors import RunError
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer
from tiny import save_tiny
from tiny_run import facts

TEXTS = [f"{a}{b} and so on" for a in "abcdefgh" for b in "xyz"]
SETTINGS: dict[str, Any] = {
    "episodes": 80, "batch_size": 8, "mini_batch_size": 4, "baseline_samples": 8, "response_tokens": (4, 8),
    "learning_rate": 1e-2, "kl_controller": "fixed", "data": {"held_out": 0.2},
}  # fmt: skip


class Heard(Observer):
    """Keeps warnings; ``killer``: words of a warning at which the process dies."""

    def __init__(self, killer: str | None = None) -> None:
        self.warnings: list[str] = []
        self.killer = killer

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        if self.killer and self.killer in text:
            raise KeyboardInterrupt("killed")


def count_a(responses: list[str]) -> list[float]:
    return [text.count("a") for text in responses]


def run(lm: Path, where: Path, reward: Any = count_a, observer: Observer | None = None, **changed: Any) -> dict[str, Any]:
    keep = {"mlflow": False, "save_every": 2, "keep": 1}
    model = {"name": str(lm), "precision": "fp64"}  # what fires, and when, is then the same on every machine
    return konomi.train(
        model, TEXTS, reward, out=str(where), observer=observer or Heard(), **{**SETTINGS, "run": keep, **changed}
    )


def lines_of(directory: RunDir) -> list[dict[str, Any]]:
    return [{k: v for k, v in facts(line).items() if k != "time"} for line in directory.read_metrics()]


def test_a_run_over_the_cap_goes_back_takes_smaller_steps_and_ends_well(tmp_path: Path, fresh_accelerator: None) -> None:
    lm = save_tiny(tmp_path / "lm", "gpt2")
    free = RunDir.open(run(lm, tmp_path / "free", kl_cap=1e6)["run"])
    kls = [line["objective/kl"] for line in free.read_metrics()]
    over = next(i for i in range(4, len(kls)) if kls[i] > max(kls[:i])) + 1  # the update
    cap = {"kl_cap": (max(kls[: over - 1]) + 3 * kls[over - 1]) / 4, "guard": {"rate_factor": 0.1}}
    to = (over - 2) // 2 * 2  # the newest checkpoint whose policy the next update measured

    whole = run(lm, tmp_path / "whole", observer=(heard := Heard()), **cap)
    directory = RunDir.open(whole["run"])
    events = directory.info["guards"]
    [event, *_] = back = [each for each in events if each["action"] == "rolled_back"]
    assert whole["status"] == "finished"
    assert (event["update"], event["guard"], event["to"], event["rate_factor"]) == (over, "kl_cap", to, 0.1)
    assert event["value"] == kls[over - 1] and event["en"] in "".join(heard.warnings)
    lines, first = lines_of(directory), lines_of(free)
    assert [line["update"] for line in lines] == list(range(1, 11))
    assert lines[:to] == first[:to]
    for line, free_line in zip(lines, first, strict=True):  # the schedule, times the factor of the roll-backs up to there
        factor = 0.1 ** sum(each["to"] < line["update"] for each in back)
        assert line["ppo/learning_rate"] == pytest.approx(free_line["ppo/learning_rate"] * factor)
    assert {sample["update"] for sample in directory.read_samples()} == set(range(11))

    with pytest.raises(KeyboardInterrupt):  # after the event was written, before the lines were dropped
        run(lm, tmp_path / "killed", observer=Heard("Back to update"), **cap)
    [killed] = (tmp_path / "killed").iterdir()
    again = konomi.train(
        {"name": str(lm), "precision": "fp64"}, TEXTS, count_a, out=str(tmp_path / "killed"), resume=killed, observer=Heard()
    )
    assert again["status"] == "finished" and lines_of(RunDir.open(killed)) == lines
    assert RunDir.open(killed).info["guards"] == events


def test_numbers_that_are_not_finite(tmp_path: Path, fresh_accelerator: None) -> None:
    lm = save_tiny(tmp_path / "lm", "gpt2")
    calls = []

    def breaks_once(responses: list[str]) -> list[float]:
        calls.append(len(responses))
        return [float("nan") if len(calls) == 3 else float(text.count("a")) for text in responses]

    result = run(lm, tmp_path / "once", breaks_once, episodes=32)
    [event] = RunDir.open(result["run"]).info["guards"]
    assert result["status"] == "finished"  # call 1 is the baseline's, call 3 that of update 2, and there is no checkpoint yet
    assert (event["update"], event["guard"], event["action"], event["to"]) == (2, "not_finite", "rolled_back", 0)
    assert event["detail"] == "reward: nan for text 0"

    calls.clear()

    def breaks(responses: list[str]) -> list[float]:
        calls.append(len(responses))
        return [float("inf") if len(calls) > 1 and index == 5 else 0.0 for index, _ in enumerate(responses)]

    with pytest.raises(RunError, match=r"returned inf for text 5 .*failed_texts\.jsonl"):
        run(lm, tmp_path / "always", breaks, observer=(heard := Heard()))
    [directory] = (tmp_path / "always").iterdir()
    assert [event["action"] for event in RunDir.open(directory).info["guards"]] == ["rolled_back", "mend_reward"]
    assert any("Mend the reward" in text for text in heard.warnings)


def test_a_warning_keeps_all_texts_of_its_update(tmp_path: Path, fresh_accelerator: None) -> None:
    lm = save_tiny(tmp_path / "lm", "gpt2")
    result = run(lm, tmp_path / "runs", lambda responses: [1.0] * len(responses), observer=(heard := Heard()), episodes=32)
    directory = RunDir.open(result["run"])
    [event] = directory.info["guards"]
    assert (event["update"], event["guard"], event["action"]) == (2, "spread", "warned")
    assert sum("almost the same score" in text for text in heard.warnings) == 1
    texts = [sample["update"] for sample in directory.read_samples()]
    assert [texts.count(update) for update in range(5)] == [4, 4, 8, 4, 4]

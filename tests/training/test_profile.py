"""The profile of one update, through the trainer; through the command line in tests/cli/test_cli.py."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from konomi.errors import RunError
from konomi.training.profile import COSTLIEST, profiled
from tiny_run import Constant, facts, tiny_trainer


class Marked:
    name = "marked"

    def __call__(self, texts: Sequence[str], *, responses: Sequence[str], **_: Any) -> list[float]:
        with torch.profiler.record_function("letters"):
            return [float(response.count("a")) for response in responses]


def complete(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The events of a trace that have a begin and a duration, by name."""
    with gzip.open(path / "trace.json.gz", "rt", encoding="utf-8") as file:
        events = [event for event in json.load(file)["traceEvents"] if event["ph"] == "X"]
    found: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        assert event["dur"] >= 0 and event["ts"] > 0
        found.setdefault(event["name"], []).append(event)
    return found


def test_the_second_update_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    said: list[str] = []
    trainer = tiny_trainer(reward=Marked(), episodes=48)
    results = []
    for result in profiled(trainer, tmp_path, said.append):
        results.append(result)
        assert (tmp_path / "trace.json.gz").exists() == (result.update > 1)
    assert [result.update for result in results] == [1, 2, 3]
    events = complete(tmp_path)
    (whole,), (letters,) = events["update 2"], events["letters"]
    assert not {"update 1", "update 3"} & set(events)
    assert whole["ts"] <= letters["ts"] <= letters["ts"] + letters["dur"] <= whole["ts"] + whole["dur"]
    assert events["aten::mm"] or events["aten::addmm"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile.txt", "trace.json.gz"]
    assert len(said) == 1
    for part in ("update 2", str(tmp_path / "profile.txt"), str(tmp_path / "trace.json.gz"), "https://ui.perfetto.dev"):
        assert part in said[0]
    assert [facts(r.metrics) for r in results] == [facts(r.metrics) for r in tiny_trainer(reward=Marked(), episodes=48)]


def test_the_table_names_spans_and_the_costliest_operations(tmp_path: Path) -> None:
    for _ in profiled(tiny_trainer(reward=Marked(), episodes=32), tmp_path, print):
        pass
    spans, note, operations = (tmp_path / "profile.txt").read_text(encoding="utf-8").split("\n\n")
    assert note.startswith("Python: ")
    assert [line.split("  ")[0] for line in spans.splitlines()[:2]] == ["span", "update 2"]
    assert "letters" in spans and "100.0%" in spans.splitlines()[1]
    title, *rows = operations.splitlines()
    assert title.startswith("operation, on the ") and rows[-1].startswith("all others")
    assert len(rows) == COSTLIEST + 1
    assert any(row.startswith("aten::") for row in rows)  # which of them is the costliest depends on the machine
    times = [float(row.split()[-2]) for row in rows[:-1]]
    assert times == sorted(times, reverse=True)
    assert sum(float(row.split()[-1].rstrip("%")) for row in rows) == pytest.approx(100, abs=1)


def test_a_run_of_one_update_records_it_and_a_resumed_one_its_second(tmp_path: Path) -> None:
    assert [r.update for r in profiled(tiny_trainer(episodes=16), tmp_path, print)] == [1]
    assert complete(tmp_path)["update 1"]
    trainer = tiny_trainer(episodes=64)
    for _ in range(2):
        trainer.step()
    assert [r.update for r in profiled(trainer, tmp_path, print)] == [3, 4]
    assert complete(tmp_path)["update 4"]
    (tmp_path / "trace.json.gz").unlink()
    assert list(profiled(trainer, tmp_path, print)) == []
    assert not (tmp_path / "trace.json.gz").exists()


def test_what_cannot_be_written_or_fails_is_told_and_the_profiler_stops(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"trace\.json\.gz: cannot be written"):
        list(profiled(tiny_trainer(episodes=16), tmp_path / "none", print))
    with pytest.raises(RunError, match="reward constant"):
        list(profiled(tiny_trainer(episodes=16, reward=Constant(float("nan"))), tmp_path, print))
    assert list(tmp_path.iterdir()) == []
    assert len(list(profiled(tiny_trainer(episodes=16), tmp_path, print))) == 1

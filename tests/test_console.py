"""What a terminal shows, at widths from half a screen to a wide one: fewer columns, never half a figure."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from konomi import console
from konomi.cli.run import _show
from konomi.console import COLUMNS, LiveObserver
from konomi.evaluation.verdict import change
from konomi.runs import RunDir
from konomi.train.loop import StepResult

WIDTHS = (40, 60, 80, 120)
ANSI = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")
METRICS = {
    "time/ppo/total": 61.0, "episodes/per_second": 12.345, "ppo/mean_scores": -123.456, "ppo/std_scores": 45.678,
    "objective/kl": 104.32, "objective/kl_coef": 0.2041, "objective/entropy": 123.4, "ppo/policy/clipfrac": 0.3912,
    "ppo/val/var_explained": -0.5, "judge/length/mean": 17.25,
}  # fmt: skip


def screen(width: int) -> tuple[LiveObserver, io.StringIO]:
    text = io.StringIO()
    return LiveObserver(Console(file=text, width=width, height=30, force_terminal=True, highlight=False)), text


def lines(text: str) -> list[str]:
    return ANSI.sub("", text).replace("\r", "\n").splitlines()


def test_a_narrow_terminal_shows_fewer_columns_and_all_of_each_figure(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "run", {}, seed=0)
    counts = []
    for width in WIDTHS:
        observer, text = screen(width)
        observer.start(run, {"job": "a job"}, 1024)
        for update in (999, 1000):
            samples = [{"prompt": "今日の", "response": "天気は" * 30, "score": 1.0}]
            observer.step(StepResult(update, 64 * update, METRICS, samples))
        observer.end()
        shown = lines(text.getvalue())
        at = max(i for i, line in enumerate(shown) if line.lstrip().startswith("update "))
        labels, row = shown[at].replace("KL nats", "KL").replace("± std", "±").split(), shown[at + 2].split()
        assert len(labels) == len(row), (width, shown)
        found = dict(zip(labels, row, strict=True))
        assert {"update": "1000/1024", "score": "-123.46", "KL": "104.32", "left": "24:24"}.items() <= found.items(), width
        assert "…" not in "".join(shown)
        assert set(row) <= set(observer.rows[-1].values()), width
        counts.append(len(row))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == len(COLUMNS) + 1  # a judge beside them


def test_a_bar_has_its_count_at_any_width() -> None:
    for width in WIDTHS:
        observer, text = screen(width)
        observer.progress("training step", 1, 12000)
        observer.progress("training step", 11999, 12000)
        assert observer.bar is not None
        observer.bar.refresh()
        observer.end()
        assert any("training step" in line and "11999/12000" in line for line in lines(text.getvalue())), width


def compared(value: float) -> dict[str, Any]:
    figures = dict.fromkeys(("score_mean", "kl", "length", "distinct_1", "distinct_2", "repetition", "perplexity"), value)
    gap = {"mean": value, "low": value, "high": value, "wins": 10, "losses": 10, "ties": 0}
    texts = [{"prompt": "a", "before": "b", "after": "c", "score_before": 1.0, "score_after": 2.0, "held_out": True}]
    judges = {"length": {"before": value, "after": value, "difference": gap}}
    both = {"before": figures, "after": figures, "difference": gap, "judges": judges, "texts": texts, "verdict": change(gap, 20)}
    return {"report": "r", "compare": {"prompts": 20, "samples": 1, "best_of_n": [], **both}}


def test_results_keep_their_figures_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [{"stage": "a_stage_of_a_long_name", "do": "sample", "status": "finished before", "seconds": 36610.0}]
    pipeline = {"name": "p", "stages": [{**stage, "outputs": {}, "report": None} for stage in stages], "mlflow": None}
    for width in WIDTHS:
        monkeypatch.setenv("COLUMNS", str(width))
        console.print_result(compared(-1230.0))
        _show(pipeline)
        out = capsys.readouterr().out
        assert out.count("-1.23e+03") == 16, width
        assert "10:10:10" in out
        assert "…" not in out

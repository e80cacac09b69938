"""What a terminal shows, at widths from half a screen to a wide one: fewer columns, never half a figure."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from konomi.cli import app
from konomi.cli.results import show_comparison, show_pipeline
from konomi.report.advice import change
from konomi.runs import console
from konomi.runs.console import COLUMNS, LiveObserver, PlainObserver, Terminal
from konomi.runs.directory import RunDir
from konomi.runs.observer import StepResult

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
        show_comparison(compared(-1230.0))
        show_pipeline(pipeline)
        out = capsys.readouterr().out
        assert out.count("-1.23e+03") == 16, width
        assert "10:10:10" in out
        assert "…" not in out


HOSTILE = "a[/red][bold]b\x1b[31m\x1b]0;title\x07\x9b2J\u202ec\u200bd\U000e0041\r"
STEERS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202e\U000e0041]")


def test_nothing_in_a_text_steers_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir.create(tmp_path, "run", {}, seed=0)
    metrics = {**METRICS, f"judge/{HOSTILE}/mean": 1.0}
    samples = [{"prompt": HOSTILE, "response": HOSTILE, "score": 1.0}]
    text = io.StringIO()
    for observer in (LiveObserver(Terminal(file=text, width=250, force_terminal=True)), PlainObserver()):
        observer.start(run, {HOSTILE: HOSTILE}, 2)
        observer.say(HOSTILE)
        observer.warn(HOSTILE)
        observer.before(samples)
        observer.progress(HOSTILE, 1, 2, {HOSTILE: 1.0})
        observer.step(StepResult(1, 64, metrics, samples))
        observer.end()
    stage = {"stage": HOSTILE, "do": HOSTILE, "status": HOSTILE, "seconds": 1, "outputs": {HOSTILE: HOSTILE}, "report": HOSTILE}
    show_pipeline({"name": HOSTILE, "stages": [stage], "mlflow": HOSTILE})
    shown = capsys.readouterr()
    for each in (ANSI.sub("", text.getvalue()).replace("\r", ""), shown.out, shown.err):
        assert STEERS.search(each) is None, repr(each)
        assert "a[/red][bold]b␛[31m␛]0;title" in each and "U+202Ec" in each
    assert ANSI.findall(text.getvalue()).count("\x1b[31m") == 0


def test_errors_show_what_is_in_them(tmp_path: Path) -> None:
    table = tmp_path / "t\x1b[31m.csv"
    table.write_text("a\u202eb,\u200bc\x1b]0;x\n1,2\n", "utf-8")
    for arguments in (
        ["convert", str(table), "out.jsonl", "--to", "pairs"],
        ["label", f"{tmp_path}/\x1b[2J"],
        ["report", "\x1b[2J"],
    ):
        said = CliRunner().invoke(app, arguments)
        assert said.exit_code == 2, said.output
        assert STEERS.search(said.output) is None and "␛[" in said.output


def test_verbs_print_through_one_function() -> None:
    for path in sorted((Path(console.__file__).parents[1] / "cli").glob("*.py")):
        calls = [ast.unparse(each.func) for each in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(each, ast.Call)]
        allowed = {"common.py": {"typer.echo"}, "jobs.py": {"typer.echo"}}.get(path.name, set())  # files and JSON
        assert not ({"print", "typer.echo", "Console"} - allowed) & set(calls), path.name


def test_nothing_waits_in_a_buffer_where_python_is_told_not_to_keep_one() -> None:
    code = "from konomi.cli.streams import set_streams; import os; set_streams(); print('said'); os._exit(0)"
    found = subprocess.run([sys.executable, "-u", "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    assert found.stdout == "said\n"

"""Print a before/after and the result of a pipeline."""

from __future__ import annotations

import shlex
from typing import Any

from rich.table import Table
from rich.text import Text

from konomi.runs.console import Terminal, one_line
from konomi.runs.environment import typed
from konomi.text import duration, interval_words, plural

FIGURES = (
    ("mean score", "score_mean"), ("KL, nats/response", "kl"), ("length, tokens", "length"), ("distinct-1", "distinct_1"),
    ("distinct-2", "distinct_2"), ("repetition", "repetition"), ("perplexity under the initial model", "perplexity"),
)  # fmt: skip


def show_comparison(result: dict[str, Any]) -> None:
    """The before/after, and what may be done next."""
    console = Terminal()
    show_figures(result["compare"], result.get("land"))
    places = {"report": result["report"], "model": result.get("model"), "MLflow": result.get("mlflow")}
    for label, place in places.items():
        if place:
            console.print(Text(f"{label:8} {place}"), soft_wrap=True)
    if best := result.get("best"):
        words = f"after update {best['update']}, {best['difference']:+.2f} on the held-out prompts by which it was chosen"
        console.print(Text(f"best     {best['path']}  ({words})"), soft_wrap=True)
    if result.get("model"):
        _next(console, result)


def show_figures(comparison: dict[str, Any], land: dict[str, Any] | None = None) -> None:
    """The figures of a before/after, and some of its texts; ``land``: the landing before it."""
    console = Terminal()
    gap = comparison["difference"]
    console.print(_figures(comparison))
    console.print(
        f"Score difference {gap['mean']:+.2f}, {interval_words(gap)}; "
        f"better {gap['wins']}, worse {gap['losses']}, same {gap['ties']}. {comparison['verdict']['en']}",
        soft_wrap=True,
    )
    if land:
        console.print(f"Landing: {land['verdict']['en']}", soft_wrap=True)
    for name, judge in comparison["judges"].items():
        gap = judge["difference"]
        console.print(Text(f"Judge {one_line(name)}: difference {gap['mean']:+.2f}, {interval_words(gap)}"), soft_wrap=True)
    if comparison["best_of_n"]:
        best = comparison["best_of_n"][-1]
        judged = "".join(f", {one_line(name)} {value:.2f}" for name, value in best["judges"].items())
        words = f"score {best['score']:.2f}{judged}, KL {best['kl']:.2f} nats"
        console.print(Text(f"The initial model, best of {best['n']} by the reward: {words}"), soft_wrap=True)
    console.print()
    extra = [t for t in comparison["texts"] if not t["held_out"]]
    for text in (extra + [t for t in comparison["texts"] if t["held_out"]])[: len(extra) + 4]:
        console.print(Text(one_line(text["prompt"]), style="bold"))
        console.print(Text(f"  before {text['score_before']:+6.2f}  {one_line(text['before'])}"), soft_wrap=True)
        console.print(Text(f"  after  {text['score_after']:+6.2f}  {one_line(text['after'])}"), soft_wrap=True)
    console.print()


def _figures(comparison: dict[str, Any]) -> Table:
    before, after = comparison["before"], comparison["after"]
    title = f"Before / after on {plural(comparison['prompts'], 'held-out prompt')} × {comparison['samples']}"
    table = Table(title=title, title_justify="left")
    for label in ("", "before", "after"):
        table.add_column(label, justify="right" if label else "left", no_wrap=bool(label), overflow="fold")
    for label, key in FIGURES:
        table.add_row(label, f"{before[key]:.3g}", f"{after[key]:.3g}")
        for name, judge in comparison["judges"].items() if key == "score_mean" else ():
            table.add_row(Text(f"judge {one_line(name)}"), f"{judge['before']:.3g}", f"{judge['after']:.3g}")
    return table


def _next(console: Terminal, result: dict[str, Any]) -> None:
    konomi = typed("konomi")
    last = result["compare"]["texts"][-1]
    how, why = (
        (f"-p {shlex.quote(one_line(last['prompt']))} -n 5", "let it write") if "chat" not in last else ("--chat", "talk to it")
    )
    commands = {
        f"{konomi} generate {shlex.quote(result['model'])} {how}": why,
        f"{konomi} compare {shlex.quote(result['run'])} --samples 8": "compare on more draws",
        f"{konomi} ppo --help": "your own prompts, model and reward",
    }
    if str(result.get("mlflow") or "").startswith("sqlite:"):
        commands[f"{typed('mlflow')} ui --backend-store-uri {result['mlflow']}"] = "all runs side by side"
    console.print("\nNext:")
    for command, why in commands.items():
        console.print(Text(f"  {command}  # {why}"), soft_wrap=True)


def show_pipeline(result: dict[str, Any]) -> None:
    """The stages of a pipeline, their durations and outputs."""
    console = Terminal()
    table = Table(title=f"Pipeline {result['name']}", title_justify="left")
    for label in ("stage", "does", "", "time"):
        table.add_column(label, justify="right" if label == "time" else "left", no_wrap=label == "time", overflow="fold")
    for stage in result["stages"]:
        table.add_row(stage["stage"], stage["do"], stage["status"], duration(stage["seconds"]))
    console.print(table)
    for stage in result["stages"]:
        for label, place in {**stage["outputs"], "report": stage["report"]}.items():
            if place:
                console.print(Text(f"{stage['stage']}.{label}  {place}"), soft_wrap=True)
    if rounds := result.get("rounds"):
        from konomi.jobs.rounds import in_words

        for each in rounds:
            console.print(Text(in_words(each)), soft_wrap=True)
        console.print(Text(f"model   {result['model']}\nreport  {result['report']}"), soft_wrap=True)
    if result["mlflow"]:
        console.print(Text(f"MLflow  {result['mlflow']}"), soft_wrap=True)

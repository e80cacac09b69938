"""run: the stages of a pipeline file one after another."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from konomi.cli.common import Json, Out, Seed, echo, make_observer, show_json, verb
from konomi.runs.environment import typed


@verb
def run(
    config: Annotated[Path, typer.Argument(metavar="PIPELINE.toml", help="The stages; see docs/pipeline.md.")],
    out: Out = Path("runs"),
    seed: Seed = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="stages.NAME.SECTION.KEY=VALUE",
            help="Change one setting of a stage, or KEY=VALUE one of the pipeline; may be given several times.",
            show_default=False,
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Run this stage and all later ones again.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which stages would run and why, and run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Run a pipeline: sample, judge, reward, ppo and so on from one file.

    A stage that is finished is not run again unless what it depends on has changed. After a stop, or a crash, the same command
    goes on.
    """
    from konomi.config import load_pipeline
    from konomi.jobs.pipeline import run_pipeline
    from konomi.jobs.stages import plan

    overrides = [*(set_ or []), *([] if seed is None else [f"seed={seed}"])]
    pipeline, stages = load_pipeline(config, out, overrides)
    if dry_run:
        steps = plan(out / pipeline.name, stages, start)
        if as_json:
            show_json([{"stage": step.stage.name, "do": step.stage.do, "action": step.action, "why": step.why} for step in steps])
        for step in [] if as_json else steps:
            echo(f"{step.stage.name} ({step.stage.do}): {step.action}: {step.why}")
        return
    given = [str(config), "--out", str(out), *(word for item in overrides for word in ("--set", item))]
    again = f"{typed('konomi')} run {shlex.join(given)}"
    result = run_pipeline(pipeline, stages, out / pipeline.name, make_observer(), start=start, again=again)
    if as_json:
        show_json(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    """What was done, how long it took, where the outputs are."""
    from rich.table import Table
    from rich.text import Text

    from konomi.runs.console import Terminal
    from konomi.text import duration

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
    if result["mlflow"]:
        console.print(Text(f"MLflow  {result['mlflow']}"), soft_wrap=True)

"""reward: a model that learns what people like, or how texts are labelled."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from konomi.cli.common import Json, Out, Seed, Set, app, echo, make_observer, settings, show_json, told


@app.command()
@told
def reward(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The job; see examples/.")],
    out: Out = Path("runs"),
    seed: Seed = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Train a reward model and say how far it can be trusted.

    It learns from rankings or pairs (train.task = "preference"), from numbers ("score") or from labels ("classification").
    What it is held against are prompts that it never saw: accuracy with its interval, beside the rule "the longer one
    wins" and the agreement of people. RUN/report.html shows it; PPO takes the model with
    [bold]\\[reward] kind = "model", name = "RUN/model"[/bold].
    """
    from konomi.config import RewardJob, load_config

    job = load_config(config, RewardJob, settings(set_, seed))
    from konomi.jobs.reward import run_reward

    show(run_reward(job, out, make_observer()), as_json)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print what a reward model is worth, and what may be done with it."""
    if as_json:
        show_json(result)
        return
    from konomi.runs.environment import typed

    found = result["eval"]
    for part, title in (("held_out", "On what was held out"), ("truth", "Against the judge that is certain")):
        figures = {name: value for name, value in found.get(part, {}).items() if isinstance(value, dict) and "low" in value}
        if figures:
            echo(title)
        for name, value in figures.items():
            if value["value"] is not None:
                told_ = "" if value["low"] is None else f"  (95 % interval {value['low']:.3f} to {value['high']:.3f})"
                echo(f"  {name.replace('_', ' '):24} {value['value']:.3f}{told_}")
    if verdict := found["held_out"].get("verdict"):
        echo(f"\n{verdict['en']}")
    early = ", ended early: the loss fell no more" if result["early"] else ""
    echo(f"\nThe model is the one after step {result['best_step']} of {result['steps']}{early}")
    for label in ("report", "model", "mlflow"):
        if result[label]:
            echo(f"{label:8} {result[label]}")
    model = shlex.quote(result["model"])
    if found["task"] == "classification":
        echo(f"\nNext:\n  {typed('konomi')} ppo CONFIG.toml --set reward.name={model}  # its raw score as reward")
    elif "normalisation" not in found:
        echo("\nIt has no scale yet, and PPO asks for one: train it with normalize.samples (from konomi sample)")
    else:
        echo(f"\nNext:\n  {typed('konomi')} ppo CONFIG.toml --set reward.kind=model --set reward.name={model}")

"""reward: a model that learns what people like, or how texts are labelled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from konomi.cli.common import Json, Out, Seed, Set, app, make_observer, settings, told
from konomi.files import plain


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

    result = run_reward(job, out, make_observer())
    if as_json:
        typer.echo(json.dumps(plain(result), ensure_ascii=False, allow_nan=False, indent=2))
        return
    from konomi.console import print_reward

    print_reward(result)

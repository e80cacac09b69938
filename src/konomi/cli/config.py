"""config: the settings of a verb, with their defaults."""

from __future__ import annotations

from typing import Annotated

import typer

from konomi.cli.common import app, told
from konomi.errors import ConfigError


@app.command()
@told
def config(
    verb: Annotated[str, typer.Argument(metavar="VERB", help="Whose settings: ppo, sft, sample, judge, reward or label.")],
) -> None:
    """Print every setting of a verb as a TOML file, with its default and what it means. Start a job file from it.

    konomi config ppo > my_job.toml
    """
    from konomi.config import VERBS
    from konomi.config.defaults import commented

    if verb not in VERBS:
        raise ConfigError(f"{verb}: no verb with a job file; those that have one: {', '.join(VERBS)}")
    where = f"konomi {verb} FILE" if verb != "label" else 'a stage of `konomi run` with do = "label"'
    typer.echo(commented(VERBS[verb].job, f"The settings of {where}. Remove what you do not change."), nl=False)

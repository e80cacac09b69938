"""sample: models write candidates that can be ranked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from konomi.cli.common import Json, Out, Seed, Set, app, echo, make_observer, settings, show_json, told
from konomi.text import plural


@app.command()
@told
def sample(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The job; see docs/config.md.")],
    out: Out = Path("runs"),
    seed: Seed = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Let one or several models write candidates for prompts: what people, or their stand-in, rank.

    K different responses a prompt, each with the model, the seed and the settings that it came from.
    """
    from konomi.config import SampleJob, load_config

    job = load_config(config, SampleJob, settings(set_, seed))
    observer = make_observer()
    from konomi.jobs.sample import run_sample

    result = run_sample(job, out, observer)
    if as_json:
        show_json(result)
        return
    echo(f"{plural(result['tasks'], 'task')} with {plural(result['candidates'], 'candidate')}\n{result['file']}")

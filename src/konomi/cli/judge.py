"""judge: a stand-in for people ranks candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from konomi.cli.common import Json, Out, Seed, Set, app, echo, make_observer, settings, show_json, told
from konomi.text import plural


@app.command()
@told
def judge(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The job; see docs/config.md.")],
    out: Out = Path("runs"),
    seed: Seed = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Let a STAND-IN FOR PEOPLE rank candidates: a reward with noise. No person is asked.

    For trying the whole way before people take part, and for tests: it agrees with itself as often as you say, and what it
    really thinks is known. Its rankings carry the name "stand-in"; do not pass them off as people's.
    """
    from konomi.config import JudgeJob, load_config

    job = load_config(config, JudgeJob, settings(set_, seed))
    observer = make_observer()
    from konomi.jobs.judge import run_judge

    result = run_judge(job, out, observer)
    if as_json:
        show_json(result)
        return
    echo(
        f"A stand-in for people ranked {plural(result['tasks'], 'task')}, {result['tasks_ranked_twice']:,} of them twice. No "
        f"person was asked. It agrees with itself on {result['self_agreement']:.3f} of {plural(result['pairs'], 'pair')} "
        f"(expected {result['self_agreement_expected']:.3f}).\n{result['rankings']}\n{result['truth']}"
    )

"""doctor: examine a job before it runs, or a run afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from konomi.cli.common import Json, Seed, Set, make_observer, settings, show_json, verb
from konomi.errors import ConfigError
from konomi.files import local_path
from konomi.text import plural

STYLES = {"broken": "bold red", "look": "yellow", "fine": "green"}


@verb
def doctor(
    given: Annotated[Path, typer.Argument(metavar="CONFIG.toml | RUN", help="A job file of any verb, or a run's directory.")],
    seed: Seed = None,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the findings there, as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Examine a job before it runs, or a run: what was checked, what was seen,
    and what to do.

    [bold]Before a run[/bold] (konomi doctor my_job.toml) it loads what konomi ppo would load,
    lets the model write 48 texts, scores them, and takes two training steps
    in memory. Nothing is written, and the run begins as if nobody had looked.

    It looks at tokens (end of text, padding, what the model does not know);
    sampler, trainer and reference (the same probabilities, ratio 1, KL 0);
    the reward (scale and spread, one score for all, length in its place, what
    it cuts, speed) and, where it is a reward model, its own evaluation;
    prompts (held-out ones that are learned all the same, repetitions); memory,
    with what would make the job fit; time, precision, disk; and settings that
    are far from the usual. Jobs of other verbs get their own checks.

    [bold]After it[/bold] (konomi doctor RUN) it says whether the before/after shows anything
    and at what price, what the guards saw, which figures left their healthy
    range and when that began, what to change, and how to go on with a run that
    was stopped.

    A line is fine, look (worth a thought) or broken. Exit code 0: nothing is
    broken; 1: something is; 2: the file cannot be used at all, with the
    message that the run would give.
    """
    out = None if out is None else local_path(out, ConfigError)
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        wrong = "is a directory" if out.is_dir() else f"there is no directory {out.absolute().parent}; make it first"
        raise ConfigError(f"--out {out}: {wrong}")
    from konomi.jobs.doctor.check import examine

    result = examine(given, make_observer(), settings(set_, seed))
    if out is not None:
        from konomi.files import plain, utf8, write_atomic

        write_atomic(out, utf8(json.dumps(plain(result), ensure_ascii=False, allow_nan=False, indent=2) + "\n"))
    (show_json if as_json else _show)(result)
    if result["broken"]:
        raise typer.Exit(1)


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from konomi.runs.console import Terminal, one_line

    table = Table(title=Text(f"{result['subject']}: {result['verb']}"), title_justify="left", show_lines=False)
    for label in ("", "checked", "seen, and what to do"):
        table.add_column(label, overflow="fold", no_wrap=label == "")
    for line in result["lines"]:
        seen = Text(one_line(line["seen"]))
        if line["do"]:
            seen.append(f"\n-> {one_line(line['do'])}", style="bold")
        table.add_row(Text(line["level"], style=STYLES[line["level"]]), Text(one_line(line["checked"])), seen)
    console = Terminal()
    console.print(table)
    counts = f"{result['broken']} broken, {result['look']} to look at, {result['fine']} fine"
    console.print(Text(f"{plural(len(result['lines']), 'check')}: {counts}"), soft_wrap=True)

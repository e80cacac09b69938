"""convert: files of preferences from one form into another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from konomi.cli.common import Json, echo, make_observer, show_json, verb
from konomi.text import plural


@verb
def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A .jsonl, .csv or .parquet file, or the name of a data set of the hub.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="The file to write; it must not exist yet.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="pairs, rankings, scores or candidates.")],
    from_: Annotated[
        str, typer.Option("--from", metavar="FORMAT", help="pairs, hh, rankings or scores; auto: by the columns.")
    ] = "auto",
    drop_bad: Annotated[
        bool,
        typer.Option(
            "--drop-bad", help="Leave out rows that say nothing (a blank prompt, equal answers) and count them; else refused."
        ),
    ] = False,
    subset: Annotated[str | None, typer.Option(help="Subset of a hub data set.", show_default=False)] = None,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "train",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub data set.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Write preferences in another form: rankings, pairs or scores, Anthropic-HH and chat messages among them.

    A ranking of K responses becomes K(K-1)/2 pairs, less the ties, or K scores from 1 (best) to -1. OUT.jsonl.manifest.json
    says what was read, what was written, and what was left out.
    """
    from konomi.data.convert import convert_file
    from konomi.data.sources import Hub

    hub = Hub(subset, split, revision)
    said = convert_file(source, out, to, from_, drop_bad=drop_bad, hub=hub, say=make_observer().say)
    if as_json:
        show_json(said)
        return
    written = ", ".join(plural(count, name.removesuffix("s")) for name, count in said["files"][to]["counts"].items())
    left_out = ", ".join(f"{count:,} x {reason}" for reason, count in said["dropped"].items())
    echo(f"{to}: {written}" + (f"\nleft out: {left_out}" if left_out else "") + f"\n{out}")

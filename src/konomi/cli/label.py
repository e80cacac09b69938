"""export and forget: what people said, as files; and a person's answers, removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from konomi.cli.common import Json, app, told

Project = Annotated[Path, typer.Argument(metavar="PROJECT", help="The directory of a labelling project.")]


@app.command()
@told
def export(
    project: Project,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The directory to write; it must not exist yet.")],
    as_json: Json = False,
) -> None:
    """Write what people said as rankings, pairs and scores for konomi reward. The page may go on running.

    Several raters make a soft label of a pair. answers.jsonl keeps everything, with flags, comments and sources;
    other.jsonl what is no ranking: all bad, skipped, repeats.
    """
    from konomi.feedback.export import write_export
    from konomi.feedback.project import open_project

    opened = open_project(project)
    with opened.store() as store:
        said = write_export(store.export(), out, project=opened.title)
    if as_json:
        typer.echo(json.dumps(said, ensure_ascii=False, indent=2))
        return
    for name, file in said["files"].items():
        typer.echo(f"{name}: {', '.join(f'{count:,} {what}' for what, count in file['counts'].items())}")
    if "rankings" not in said["files"]:
        typer.echo("nobody has ranked anything yet: there are no rankings, pairs and scores", err=True)
    typer.echo(out)


@app.command()
@told
def forget(
    project: Project,
    person: Annotated[str, typer.Argument(metavar="PERSON", help="A name or a pseudonym.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a person from a project: tokens, answers, comments. It cannot be undone.

    The page may go on running. Exports that were made before are not touched: remove them yourself.
    """
    from konomi.feedback.project import open_project

    with open_project(project).store() as store:
        known = store.person(person)
        if not yes:
            typer.confirm(f"Remove {known.name} ({known.id}) and all their answers for good?", abort=True)
        count = store.forget(known.id)
    typer.echo(f"removed: {known.name} and {count:,} answers; rows of {known.id} in earlier exports are still there")

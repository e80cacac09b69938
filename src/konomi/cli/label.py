"""label, watch, export, forget: the pages, exports, and the removal of a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from konomi.cli.common import Json, echo, make_observer, show_json, verb
from konomi.errors import ConfigError, DataError
from konomi.files import local_path
from konomi.text import plural

if TYPE_CHECKING:
    from konomi.labelling.project import Project as LabelProject
    from konomi.web.chat import Policy

SOON = 2_000
"""With more answers than this, a line says that the figures take a while."""

Project = Annotated[Path, typer.Argument(metavar="PROJECT", help="The directory of a labelling project.")]

Host = Annotated[
    str, typer.Option(metavar="ADDRESS", help="The address to listen on. Others than this machine's own need --allow-network.")
]
AllowNetwork = Annotated[bool, typer.Option("--allow-network", help="Let other machines reach the page. It is not encrypted.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="The port; without it the one of the last time, or a free one.")]
Names = Annotated[
    list[str] | None,
    typer.Option(metavar="HOST", help="A further host name that the page is opened by; may be given several times."),
]
PublicUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="https://HOST of a proxy with TLS before the page: what people open.")
]


@verb
def label(
    project: Project,
    candidates: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Tasks from konomi sample: makes the project, or adds to it.")
    ] = None,
    strength: Annotated[
        bool, typer.Option("--strength", help="A new project: raters may say how much better the better of two texts is.")
    ] = False,
    chat: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A new project: raters write to this chat model and choose one of two answers."),
    ] = None,
    edit: Annotated[bool, typer.Option("--edit", help="A new project: raters may make a better text of one.")] = False,
    people: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Print an invite link for this person; may be given several times.")
    ] = None,
    host: Host = "127.0.0.1",
    allow_network: AllowNetwork = False,
    port: Port = None,
    name: Names = None,
    public_url: PublicUrl = None,
) -> None:
    """Let people rank candidates on a page. It prints the address to open; Ctrl-C ends it, and every answer is saved.

    The first time: konomi label PROJECT --candidates FILE, or --chat MODEL. Later konomi label PROJECT goes on.
    """
    from konomi.labelling.answers import collect
    from konomi.labelling.people import checked_name
    from konomi.web.network import check_host, public_of
    from konomi.web.serve import serve

    check_host(host, allow_network)
    public = None if public_url is None else public_of(public_url)
    invite = list(dict.fromkeys(checked_name(each) for each in people or []))
    options = {"strength": strength, "edit": edit}
    policy = _policy(project, candidates, chat, [name for name, wanted in options.items() if wanted])
    opened = _opened(project, candidates, options, chat)
    with opened.store() as store:
        collect(store)  # damage is reported before anything is served
    names = name or []
    echo(f"Ctrl-C ends the page; the answers are kept. Then: konomi export {project} --out DIR", err=True)
    serve(
        opened, host=host, port=port, allow_network=allow_network, names=names, public_url=public, say=echo, invite=invite,
        policy=policy,
    )  # fmt: skip
    echo(f"stopped; all answers are in {project}. konomi export {project} --out DIR writes them as files", err=True)


@verb
def watch(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of runs, going on or not.")],
    host: Host = "127.0.0.1",
    allow_network: AllowNetwork = False,
    port: Port = None,
    name: Names = None,
    public_url: PublicUrl = None,
) -> None:
    """Show runs live on a page: their curves, texts and before/after. It changes nothing in them. Ctrl-C ends it."""
    from konomi.web.serve import serve

    names = name or []
    serve(None, runs=runs, host=host, port=port, allow_network=allow_network, names=names, public_url=public_url, say=echo)


def _policy(project: Path, candidates: Path | None, model: str | None, ranks: Sequence[str]) -> Policy | None:
    """The model that raters talk with, loaded; None: they rank. Raises ConfigError, ModelError, DataError: it cannot be."""
    from konomi.labelling.project import is_project, open_project
    from konomi.labelling.records import ChatOptions

    there = open_project(project) if is_project(project) else None
    if model is not None and there is not None:
        raise ConfigError(f'--chat: {project} is there already; the model is "chat" in its project.json, or give another name')
    if model is not None and candidates is not None:
        raise ConfigError("--chat and --candidates: raters write the prompts themselves, and the model the answers; give one")
    if model is not None and ranks:
        raise ConfigError(f"--chat and --{ranks[0]}: that is for projects in which raters rank; leave one out")
    wanted = there.chat if there is not None else ChatOptions(model=_absolute(model)) if model is not None else None
    if wanted is None:
        return None
    from konomi.config import ModelConfig
    from konomi.jobs.revisit import Writer

    config = ModelConfig(name=wanted.model, chat_template=wanted.chat_template)
    seed = there.settings.seed if there is not None else 0
    writer = Writer(config, wanted.tokens, wanted.temperature, seed, make_observer())
    writer.check_chat()
    return writer


def _absolute(model: str) -> str:
    """A model's name as it holds wherever konomi is started next."""
    path = local_path(model, ConfigError)
    return str(path.absolute()) if path.exists() else model


def _opened(project: Path, candidates: Path | None, options: Mapping[str, bool], chat: str | None) -> LabelProject:
    """Open the project, or make it, and add the candidates. Raises DataError, ConfigError: that is not possible."""
    from konomi.labelling.project import create_project, is_project, open_project, provide, tasks_of
    from konomi.labelling.queue import Settings
    from konomi.labelling.records import ChatOptions, LabelOptions

    if chat is not None:
        own = ChatOptions(model=_absolute(chat))
        settings = Settings(overlap=1.0, repeats=0.0)
        return create_project(project, None, settings=settings, chat=own, models=[own.model])[0]

    if is_project(project):
        there = open_project(project).label.model_dump()
        if lacking := [name for name, wanted in options.items() if wanted and not there[name]]:
            name = lacking[0]
            raise ConfigError(f'--{name}: {project} is there already; set "{name}": true under "label" in its project.json')
    if candidates is None:
        if not is_project(project):
            raise ConfigError(f"{project}: no project yet; --candidates FILE makes one, with a file that konomi sample wrote")
        return open_project(project)
    opened, imported = provide(project, tasks_of(candidates), options=LabelOptions(**options))
    _report_import(imported.added, imported.known, imported.notes)
    return opened


def _report_import(added: int, known: int, notes: tuple[str, ...]) -> None:
    for note in notes[:20]:
        echo(note, err=True)
    if len(notes) > 20:
        echo(f"and {len(notes) - 20:,} more", err=True)
    echo(f"{plural(added, 'task')} added" + (f", {known:,} were there already" if known else ""), err=True)


def make_blind(run: Path, project: Path) -> None:
    """Make a project of a run's before/after texts, for people to compare blind. Raises DataError: there are none."""
    from konomi.labelling.answers import collect
    from konomi.labelling.blind import prompts_of, tasks_of_comparison
    from konomi.labelling.project import create_project
    from konomi.reading import written_by_konomi
    from konomi.runs.directory import RunDir
    from konomi.statistics.power import enough_votes

    opened = RunDir.open(run)
    comparison = opened.read_json("compare.json")
    if not isinstance(comparison, dict):
        raise DataError(f"{opened.compare}: there is no before/after yet; konomi compare {run} makes it")
    with written_by_konomi(opened.path / "config.json"):
        name = str(opened.config.get("model", {}).get("name", ""))
    with written_by_konomi(opened.compare):
        tasks = tasks_of_comparison(comparison, opened.path.absolute().name)
    created, imported = create_project(project, tasks, models=[name] if name else [])
    _report_import(imported.added, imported.known, imported.notes)
    with created.store() as store:
        exported = collect(store)
    planned, same = prompts_of(exported), sum(item.kind == "same" for item in exported.items.values())
    smallest = enough_votes(planned)["detectable"]
    shows = (
        "too few to show anything" if smallest is None else f"enough to show a true win rate of {100 * smallest:.0f} % or more"
    )
    echo(f"{plural(planned, 'prompt')}: {shows}, four times out of five", err=True)
    if same:
        echo(f"{plural(same, 'A/A item')}: two texts of the same model, which say how far a difference may be chance", err=True)
    else:
        few = "no prompt has several texts of the same model, or there are fewer than ten prompts: there are no A/A items"
        echo(f"{few}; konomi compare {run} --samples 2 makes such texts", err=True)
    echo(f"konomi label {project}")


@verb
def export(
    project: Project,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The directory to write; it must not exist yet.")],
    freeze: Annotated[bool, typer.Option("--freeze", help="Close the collection: no answers are accepted from now on.")] = False,
    final: Annotated[
        bool, typer.Option("--final", help="The owner's decisions take the place of the raters' rankings of these tasks.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write people's answers as rankings, pairs and scores for konomi reward. The page may go on running.

    Where several people compared a pair, its label is soft. answers.jsonl holds everything, with flags, comments and sources;
    other.jsonl what is no ranking: all bad, skipped, repeats. statistics.json says how far people agree and which model they
    like better; for a project of before/after texts, verdict.json gives win rates instead.
    """
    from konomi.labelling.answers import collect
    from konomi.labelling.blind import is_comparison, line, verdict
    from konomi.labelling.export import check_out, write_export
    from konomi.labelling.project import open_project
    from konomi.labelling.summary import lines, statistics

    opened = open_project(project)
    check_out(out)
    with opened.store() as store:
        thawed = not store.frozen
        exported = collect(store, freeze=freeze)
    try:
        if len(exported.judgements) > SOON:
            echo(f"computing figures of {plural(len(exported.judgements), 'answer')}", err=True)
        name, figures = ("verdict", verdict(exported)) if is_comparison(exported) else ("statistics", statistics(exported))
        files = write_export(exported, out, {f"{name}.json": figures}, final=final, project=opened.title)
    except BaseException:  # Ctrl-C too
        if freeze and thawed:  # nothing was written: nothing is final
            with opened.store() as store:
                store.freeze(False)
        raise
    if as_json:
        show_json(files | {name: figures})
        return
    for file in files["files"].values():
        echo(f"{file['name']}: {', '.join(plural(count, what.removesuffix('s')) for what, count in file['counts'].items())}")
    for each in [line(figures)] if name == "verdict" else lines(figures):
        echo(each)
    if "rankings" not in files["files"]:
        echo("nobody has ranked anything yet: there are no rankings, pairs and scores", err=True)
    echo(out)


@verb
def forget(
    project: Project,
    person: Annotated[str, typer.Argument(metavar="PERSON", help="A name or a pseudonym.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a person from a project: tokens, answers, comments. It cannot be undone.

    The page may go on running. Earlier exports are not touched: remove them yourself.
    """
    from konomi.labelling.people import find_person
    from konomi.labelling.people import forget as forget_person
    from konomi.labelling.project import open_project

    with open_project(project).store() as store:
        known = find_person(store, person)
        if not yes:
            typer.confirm(f"Remove {known.name} ({known.id}) and all their answers for good?", abort=True)
        count = forget_person(store, known.id)
    echo(f"removed: {known.name} and {plural(count, 'answer')}; rows of {known.id} in earlier exports are still there")

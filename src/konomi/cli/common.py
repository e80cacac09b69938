"""Shared by all verbs: the app, common options, errors as one message and an exit code."""

from __future__ import annotations

import functools
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer
import typer.core

from konomi.cli import japanese
from konomi.engine.device import is_out_of_memory
from konomi.errors import ConfigError, KonomiError, RunError
from konomi.files import local_path, plain
from konomi.runs import processes
from konomi.runs.environment import settle_processes
from konomi.text import visible
from konomi.version import __version__

if TYPE_CHECKING:
    from konomi.runs.observer import Observer

P = ParamSpec("P")
T = TypeVar("T")


class _Verbs(typer.core.TyperGroup):
    """Lists the verbs in the order of a workflow."""

    def list_commands(self, ctx: Any) -> list[str]:
        known = super().list_commands(ctx)
        return sorted(known, key=lambda verb: ORDER.index(verb) if verb in ORDER else len(ORDER))


ORDER = (
    *("demo", "run", "sft", "sample", "pick", "judge", "label", "export", "forget", "reward", "dpo", "ppo", "compare", "blend"),
    *("watch", "report", "doctor", "generate", "config", "convert", "trim"),
)

app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="RLHF end to end: move a language model toward what people like better, without letting it drift from where it began."
    "\n\nStart with [bold]konomi demo --quick[/bold] (a minute), then [bold]konomi demo[/bold].",
)

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; may be given several times.")
]
Resume = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped, from where it was last saved.")
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Directory that holds the runs; each run is a new one inside.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random. Same seed, same machine: same run.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout; progress stays on stderr.")]


SEVERAL = {"demo", "run", "sft", "sample", "judge", "reward", "dpo", "ppo", "compare"}
"""The verbs that a launcher may start in several processes."""


def verb(command: Callable[P, T]) -> Callable[P, T]:
    """Register a verb. Its errors become one message, in one of its processes, and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            settle_processes(f"konomi {command.__name__}", command.__name__ in SEVERAL)
            for value in kwargs.values():
                for path in value if isinstance(value, list) else [value]:
                    if isinstance(path, Path):
                        local_path(path)
            with processes.survivors():
                result = command(*args, **kwargs)
                processes.leave()
            return result
        except KonomiError as error:
            if processes.says(error):
                _print_error(error)
            raise typer.Exit(error.exit_code) from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            what = " ".join(str(error).split())[:200]
            echo(f'konomi: out of memory: {what}. What takes less: docs/quickstart.md, "It needs too much memory"', err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt as stopped:
            if processes.says(stopped):
                echo(f"konomi: {stopped or 'stopped'}", err=True)
            raise typer.Exit(130) from None

    app.command()(wrapped)
    return wrapped


def _print_error(error: KonomiError) -> None:
    if isinstance(error, RunError) and error.__cause__ is not None and _raised_in_a_reward(error.__cause__):
        echo("".join(traceback.format_exception(error.__cause__)), err=True)  # for the author of the reward
    sentence = japanese.sentence_of(error) if japanese.is_wanted(os.environ) else None
    echo(f"konomi: {sentence}\n{error}" if sentence else f"konomi: {error}", err=True)


def _raised_in_a_reward(cause: BaseException) -> bool:
    frames = traceback.walk_tb(cause.__traceback__)
    return any(frame.f_globals.get("__name__") == "konomi.rewards.base" for frame, _ in frames)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"konomi {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def settings(overrides: list[str] | None, seed: int | None) -> list[str]:
    """What was set on the command line, as ``section.key=value``."""
    return [*(overrides or []), *([] if seed is None else [f"run.seed={seed}"])]


def check_one(config: Path | None, resume: Path | None) -> None:
    """Raise ConfigError unless one of both is given."""
    if (config is None) == (resume is None):
        raise ConfigError("give a CONFIG.toml to start a run, or --resume RUN to go on with one")


def make_observer() -> Observer:
    """The observer that suits where stderr goes."""
    from konomi.runs import console

    return console.make_observer()


def echo(text: object = "", *, err: bool = False) -> None:
    """Print a text for people, without characters that control the terminal."""
    if err or processes.is_main():
        typer.echo(visible(text), err=err)


def show_json(result: Any) -> None:
    """Print a result for programs."""
    if processes.is_main():
        typer.echo(json.dumps(plain(result), ensure_ascii=False, allow_nan=False, indent=2))

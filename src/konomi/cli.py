"""The command line. Each verb imports what it needs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

import functools
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from konomi import __version__
from konomi.environment import manage_memory
from konomi.errors import ConfigError, KonomiError, RunError
from konomi.files import plain

if TYPE_CHECKING:
    from konomi.config import PPOJob
    from konomi.observer import Observer

P = ParamSpec("P")
T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="RLHF end to end: move a language model toward what people like better, without letting it drift from where it began."
    "\n\nStart with [bold]konomi demo --quick[/bold] (a minute), then [bold]konomi demo[/bold].",
)

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Change one setting; may be given several times.", show_default=False
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory that holds the runs; each run is a new one inside.")]
Seed = Annotated[
    int | None, typer.Option(help="Seed of everything random. Same seed, same machine: same run.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout; progress stays on stderr.")]


def _told(command: Callable[P, T]) -> Callable[P, T]:
    """Turn our errors into one message and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except KonomiError as error:
            if (
                isinstance(error, RunError) and error.__cause__ is not None
            ):  # of a reward function, for example: its author wants it
                traceback.print_exception(error.__cause__)
            typer.echo(f"konomi: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as stopped:
            typer.echo(f"konomi: {stopped or 'stopped'}", err=True)
            raise typer.Exit(130) from None

    return wrapped


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"konomi {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
@_told
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run of a minute: too short to learn much.")] = False,
    out: Out = Path("runs"),
    seed: Seed = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Run the whole job on the embedded models: no download, no GPU, nothing asked.

    Gemma 3 270M, with its Japanese vocabulary, continues Japanese openings; the reward is how positive a Japanese sentiment
    classifier finds the text; PPO moves the model toward it. At the end: before/after on openings it never saw, a report,
    the model.
    """
    from konomi.config import PPOJob, load_config
    from konomi.data.sources import examples

    overrides = _overrides(set_, seed)
    if quick:
        overrides = [*QUICK, *overrides]
    job = load_config(examples() / "demo.toml", PPOJob, overrides)
    _run(job, out, as_json, minutes="1" if quick else "3")


QUICK = (
    "ppo.episodes=48", "ppo.batch_size=16", "ppo.mini_batch_size=8", "ppo.baseline_samples=16", "compare.prompts=12",
    "compare.samples=1",
)  # fmt: skip


@app.command()
@_told
def ppo(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.toml", help="The job; see examples/.", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with a run that was stopped, from its last checkpoint.", show_default=False),
    ] = None,
    out: Out = Path("runs"),
    seed: Seed = None,
    set_: Set = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Record the second update: RUN/trace.json.gz for ui.perfetto.dev, and RUN/profile.txt."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a model with PPO toward a reward.

    Ctrl-C finishes the update, saves, and says how to go on; a second Ctrl-C stops at once.
    """
    from konomi.config import PPOJob, load_config

    if (config is None) == (resume is None):
        raise ConfigError("give a CONFIG.toml to start a run, or --resume RUN to go on with one")
    if config is not None:
        _run(load_config(config, PPOJob, _overrides(set_, seed)), out, as_json, profile=profile)
    elif resume is not None:
        from konomi.job import resumed_job

        _run(resumed_job(resume, _overrides(set_, seed)), resume.parent, as_json, resume=resume, profile=profile)


@app.command()
@_told
def compare(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run that has ended.")],
    prompts: Annotated[int | None, typer.Option(min=1, help="Held-out prompts at most.", show_default=False)] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Responses a prompt and model.", show_default=False)] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A further prompt, shown but not counted; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the draws.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Let the model before and the model after a run answer held-out prompts again, and compare."""
    from konomi.config import CompareConfig, PPOJob, build
    from konomi.runs import RunDir

    own = build(PPOJob, RunDir.open(run).config, where=str(run / "config.json")).compare
    given = {"prompts": prompts, "samples": samples, "extra": [*own.extra, *prompt] if prompt else None, "seed": seed}
    config = build(CompareConfig, {**own.model_dump(), **{k: v for k, v in given.items() if v is not None}}, where="compare")
    from konomi.revisit import compare_run

    observer = _observer()
    result = compare_run(run, config, observer)
    _result(result, as_json)


@app.command()
@_told
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, finished or not.")]) -> None:
    """Write RUN/report.html: curves, before/after and texts in one file that needs no network."""
    from konomi.report import write_report
    from konomi.runs import RunDir

    typer.echo(write_report(RunDir.open(run)))


@app.command()
@_told
def generate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="RUN/model, a directory, a hub name, a .gguf file, or embedded:gemma3-270m."),
    ],
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="What to go on from; may be repeated.")],
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Responses a prompt.")] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens at most.")] = 40,
    temperature: Annotated[float, typer.Option(min=0.01, help="Lower: safer, duller.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    trust_remote_code: Annotated[bool, typer.Option(help="Run Python code that the model's repository ships.")] = False,
    as_json: Json = False,
) -> None:
    """Let a model continue prompts: one line a response."""
    from konomi.config import ModelConfig
    from konomi.console import flat
    from konomi.revisit import generate_texts

    config = ModelConfig(name=model, trust_remote_code=trust_remote_code)
    rows = generate_texts(config, prompt, samples, tokens, temperature, seed, _observer())
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
    else:
        for row in rows:
            typer.echo(flat(row["prompt"] + row["response"]))


@app.command()
@_told
def trim(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="RUN/model, a directory, a hub name, a .gguf file, or embedded:gemma3-270m."),
    ],
    scripts: Annotated[
        str, typer.Option(metavar="NAMES", help="Scripts to keep, parted by commas: ja en zh ko latin ru el ar hi th.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The directory to write; it must not exist yet.")],
    keep: Annotated[int, typer.Option(min=0, help="How many of the commonest other tokens to keep.")] = 2048,
    trust_remote_code: Annotated[bool, typer.Option(help="Run Python code that the model's repository ships.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model with a smaller vocabulary: the tokens of some scripts only. Of a small model most is vocabulary.

    Kept are: special tokens; all tokens of the scripts, of digits, punctuation and white space; the tokens for single
    bytes; and the commonest of the rest. Kept tokens keep their logits. Texts of the scripts are tokenised as before;
    others still can be written and come back whole, in more tokens.

    A script is kept whole, and much of a vocabulary is English: of Gemma's 262,144 tokens --scripts ja keeps 32,630,
    ja,en 172,468. For a Japanese model that is to write some English words too, take ja and a larger --keep.
    """
    from konomi.config import ModelConfig
    from konomi.models.scripts import parse_scripts
    from konomi.models.trim import check_out, trim_loaded

    names = parse_scripts(scripts)
    check_out(out)
    config = ModelConfig(name=model, trust_remote_code=trust_remote_code)
    result = trim_loaded(config, names, out, keep, _observer().say)
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False, indent=2))
        return
    tokens, parameters = result["tokens"], result["parameters"]
    typer.echo(
        f"{tokens['before']:,} -> {tokens['after']:,} tokens: {tokens['special']:,} special, {tokens['bytes']:,} bytes, "
        f"{tokens['scripts']:,} of {', '.join(names)}, {tokens['others']:,} others, {tokens['parts']:,} parts of these\n"
        f"{parameters['before'] / 1e6:.1f} -> {parameters['after'] / 1e6:.1f} M parameters, {result['megabytes']:,} MB\n{out}"
    )


def _overrides(given: list[str] | None, seed: int | None) -> list[str]:
    return [*(given or []), *([] if seed is None else [f"run.seed={seed}"])]


def _observer() -> Observer:
    from konomi.console import make_observer

    return make_observer()


def _run(
    job: PPOJob, out: Path, as_json: bool, resume: Path | None = None, minutes: str | None = None, profile: bool = False
) -> None:
    observer = _observer()
    if minutes:
        observer.say(f"This takes about {minutes} minutes on two processor cores; nothing is asked. Ctrl-C saves and stops.")
    from konomi.job import run_ppo

    result = run_ppo(job, out, observer, resume, profile)
    _result(result, as_json)
    if result["status"] != "finished":
        raise typer.Exit(1)


def _result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(plain(result), ensure_ascii=False, allow_nan=False, indent=2))
    else:
        from konomi.console import print_result

        print_result(result)


def main() -> None:
    """Entry point of the ``konomi`` command."""
    manage_memory()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Japanese on a console of another encoding must not end the run
            stream.reconfigure(errors="backslashreplace")
    app()

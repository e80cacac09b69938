"""demo, ppo, compare, report: a PPO run and its results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from konomi.cli.common import Json, Out, Resume, Seed, Set, check_one, echo, make_observer, settings, show_json, verb
from konomi.errors import ConfigError

if TYPE_CHECKING:
    from konomi.config import PPOJob


@verb
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run of a minute: too short to learn much.")] = False,
    lang: Annotated[Literal["ja", "en"], typer.Option(help="The language of the prompts: Japanese or English.")] = "ja",
    out: Out = Path("runs"),
    seed: Seed = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Run the whole job on the embedded models: no download, no GPU, no questions.

    Gemma 3 270M continues openings, Japanese ones or with --lang en English ones; the reward is how positive a sentiment
    classifier finds the text; PPO moves the model toward it. At the end there are the model, a report, and a before/after on
    openings that it never saw.
    """
    from konomi.config import PPOJob, load_config
    from konomi.data.sources import examples_directory

    overrides = settings(set_, seed)
    if quick:
        overrides = [*QUICK, *overrides]
    job = load_config(examples_directory() / ("demo-en.toml" if lang == "en" else "demo.toml"), PPOJob, overrides)
    _run(job, out, as_json, minutes="a minute or two" if quick else "four to six minutes")


QUICK = (
    "ppo.episodes=48", "ppo.batch_size=16", "ppo.mini_batch_size=8", "ppo.baseline_samples=16", "compare.prompts=12",
    "compare.samples=1", "ppo.responses_per_prompt=4", "land.kl=",
)  # fmt: skip


@verb
def ppo(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG.toml", help="The job; see examples/.")] = None,
    resume: Resume = None,
    out: Out = Path("runs"),
    seed: Seed = None,
    set_: Set = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Record the second update: RUN/trace.json.gz for ui.perfetto.dev, and RUN/profile.txt."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a model toward a reward, with PPO or an algorithm without a critic.

    Ctrl-C finishes the update, saves, and says how to go on; a second Ctrl-C stops at once.
    """
    from konomi.config import PPOJob, load_config

    check_one(config, resume)
    if config is not None:
        _run(load_config(config, PPOJob, settings(set_, seed)), out, as_json, profile=profile)
    elif resume is not None:
        from konomi.jobs.inputs import resumed_run
        from konomi.jobs.prepare import job_of

        old = resumed_run(resume, "ppo", settings(set_, seed))
        _run(job_of(old), resume.parent, as_json, resume=resume, profile=profile)


@verb
def compare(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run that has ended.")],
    prompts: Annotated[int | None, typer.Option(min=1, help="Held-out prompts at most.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Responses a prompt and model.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A further prompt, shown but not counted; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the draws.")] = None,
    best_of: Annotated[
        int | None, typer.Option(min=0, help="Responses a prompt to take the best of, for 1, 2, 4, ... (0: none).")
    ] = None,
    people: Annotated[
        Path | None,
        typer.Option(metavar="PROJECT", help="Make a project of the texts of the last comparison, for people to compare blind."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Let the models before and after a run answer held-out prompts again, and compare them.

    With --people no model runs: the texts of the run's last comparison become a project for konomi label, and konomi export
    then gives the win rate.
    """
    if people is not None:
        from konomi.cli.label import make_blind

        if any(each is not None for each in (prompts, samples, prompt, seed, best_of)):
            raise ConfigError(
                "--people uses the texts of the last comparison: leave the other options out, or compare again with them first"
            )
        make_blind(run, people)
        return
    from konomi.config import CompareConfig, PPOJob, build
    from konomi.runs.directory import RunDir

    opened = RunDir.open(run)
    opened.check_verb("ppo")
    own = build(PPOJob, opened.config, where=str(run / "config.json")).compare
    extra = [*own.extra, *prompt] if prompt else None
    changed = {"prompts": prompts, "samples": samples, "extra": extra, "seed": seed, "best_of": best_of}
    config = build(CompareConfig, {**own.model_dump(), **{k: v for k, v in changed.items() if v is not None}}, where="compare")
    from konomi.jobs.revisit import compare_run

    observer = make_observer()
    result = compare_run(run, config, observer)
    show(result, as_json)


@verb
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, finished or not.")]) -> None:
    """Write RUN/report.html of a run of ppo, dpo, sft, reward or compare: results, curves and texts in one file."""
    from konomi.report.page import write_report

    echo(write_report(run))


def _run(
    job: PPOJob, out: Path, as_json: bool, resume: Path | None = None, minutes: str | None = None, profile: bool = False
) -> None:
    observer = make_observer()
    if minutes:
        observer.say(f"This takes about {minutes} on two processor cores; nothing is asked. Ctrl-C saves and stops.")
    from konomi.jobs.ppo import run_ppo

    result = run_ppo(job, out, observer, resume, profile)
    show(result, as_json)
    if result["status"] != "finished":
        raise typer.Exit(1)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a before/after."""
    from konomi.cli.results import show_comparison

    (show_json if as_json else show_comparison)(result)

"""sft, sample, judge, reward, dpo: the verbs that only take a job file; config: their settings; run: several of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from konomi.cli.common import Json, Out, Resume, Seed, Set, check_one, echo, make_observer, settings, show_json, verb
from konomi.errors import ConfigError
from konomi.runs.environment import typed
from konomi.text import plural

Show = Callable[[dict[str, Any]], None]


def job_verb(file_help: str, resumes: bool = True) -> Callable[[Show], Show]:
    """Make a verb that runs a job file. The decorated function prints the result; its name and docstring are the verb's.

    ``file_help``: the help of the file's argument. ``resumes``: it has --resume.
    """

    def decorate(show: Show) -> Show:
        name = show.__name__

        def goes_on(
            config: Path | None = None, resume: Resume = None, out: Out = Path("runs"), seed: Seed = None, set_: Set = None,
            as_json: Json = False,
        ) -> None:  # fmt: skip
            from konomi.config import VERBS, load_config

            check_one(config, resume)
            if config is not None:
                _run(load_config(config, VERBS[name].job, settings(set_, seed)), out, as_json)
            elif resume is not None:
                from konomi.jobs.inputs import resumed_job

                _run(resumed_job(resume, name, settings(set_, seed)), resume.parent, as_json, resume=resume)

        def begins(config: Path, out: Out = Path("runs"), seed: Seed = None, set_: Set = None, as_json: Json = False) -> None:
            goes_on(config, None, out, seed, set_, as_json)

        def _run(job: Any, out: Path, as_json: bool, **more: Any) -> None:
            observer = make_observer()
            from konomi.jobs.pipeline import runner  # imports torch: after what can be wrong with the file

            result = runner(name)(job, out, observer, **more)
            (show_json if as_json else show)(result)

        command = goes_on if resumes else begins
        command.__name__, command.__doc__ = name, show.__doc__
        kind = Path | None if resumes else Path
        command.__annotations__["config"] = Annotated[kind, typer.Argument(metavar="CONFIG.toml", help=file_help)]
        verb(command)
        return show

    return decorate


@job_verb("The job; see examples/sft-ja.toml.")
def sft(result: dict[str, Any]) -> None:
    r"""Fine-tune a model on texts of your own: the first step, before people rank and PPO.

    The smallest job is two lines: \[data] and texts = "my.jsonl". Then
    \[model] name = "..." and what else examples/sft-ja.toml shows.

    A row of the texts is {"text": ...}, a plain text; or {"prompt": ...,
    "completion": ...}; or {"messages": \[...]}, a conversation, for a model
    with a chat template. The file is .jsonl, .csv, .parquet or .txt (one text
    a line), or a hub data set.

    The model learns the completion, or what the assistant says, and where
    to stop; from plain texts it learns everything (sft.loss). Long texts are
    cut at sft.max_length tokens; sft.packing = true puts several short ones
    in one row.

    A tenth of the rows (data.held_out) is never learned. On it the model is
    evaluated before training and after each epoch: loss (nats a token) and
    perplexity. RUN/model is the best model so far, or the initial one if none
    is better; training ends early when sft.patience evaluations in a row are
    no better.

    Then: konomi generate RUN/model -p "..." to read what it writes, or
    model.name = "RUN/model" in a PPO job to go on from it.

    Ctrl-C finishes the update, saves, and says how to go on; a second Ctrl-C
    stops at once.
    """
    before, after = result["before"], result["after"]
    early = f", ended early: {result['reason']}" if result["reason"] else ""
    best = "the best" if result["best_update"] else "no later one was better: the model is the initial one"
    echo(
        f"Evaluation on {plural(result['held_out'], 'held-out text')}, before -> after {result['best_update']} of "
        f"{plural(result['updates'], 'update')} ({best}{early})\n"
        f"  loss        {before['loss']:.4f} -> {after['loss']:.4f} nats/token\n"
        f"  perplexity  {before['perplexity']:.2f} -> {after['perplexity']:.2f}\n"
    )
    for label, place in {"report": result["report"], "model": result["model"], "MLflow": result["mlflow"]}.items():
        if place:
            echo(f"{label:8} {place}")
    model = shlex.quote(result["model"])
    chat = "--chat " if result["kind"] == "messages" else ""
    echo(f"\nNext:\n  {typed('konomi')} generate {model} {chat}-p '...' -n 5  # let it write")
    echo(f"  {typed('konomi')} ppo CONFIG.toml --set model.name={model}  # move it toward a reward")


@job_verb("The job; see docs/config.md.")
def sample(result: dict[str, Any]) -> None:
    """Let one or several models write candidates for people, or a simulated rater, to rank.

    Each prompt gets K different responses, each with the model, the seed and the settings that it came from.

    What was drawn before a stop or a kill is kept; --resume draws the rest.
    """
    echo(f"{plural(result['tasks'], 'task')} with {plural(result['candidates'], 'candidate')}\n{result['file']}")


@job_verb("The job; see docs/config.md.", resumes=False)
def pick(result: dict[str, Any]) -> None:
    """Pick from many candidates the tasks whose ranking teaches most: fewer labels for the same reward model.

    It picks those whose differences, by their characters, are least known from what was picked and ranked before. The file goes
    to konomi label or konomi judge; what is ranked then goes to konomi reward, together with what was ranked before.
    """
    echo(f"{plural(result['tasks'], 'task')} of {plural(result['prompts'], 'prompt')}\n{result['file']}")


@job_verb("The job; see docs/config.md.", resumes=False)
def judge(result: dict[str, Any]) -> None:
    """Let a SIMULATED RATER rank candidates: a reward with noise. No person is asked.

    It is for trying everything before people take part, and for tests: it agrees with itself as often as you say, and its
    true scores are known. Its rankings carry the name "simulated"; do not pass them off as people's.
    """
    echo(
        f"A simulated rater ranked {plural(result['tasks'], 'task')}, {result['tasks_ranked_twice']:,} of them twice. No "
        f"person was asked. It agrees with itself on {result['self_agreement']:.3f} of {plural(result['pairs'], 'pair')} "
        f"(expected {result['self_agreement_expected']:.3f}).\n{result['rankings']}\n{result['truth']}"
    )


BASELINES = {"text": "text baseline", "network": "network alone"}


@job_verb("The job; see examples/.")
def reward(result: dict[str, Any]) -> None:
    r"""Train a reward model and say how far it can be trusted.

    It learns from rankings or pairs (train.task = "preference"), from numbers ("score") or from labels ("classification").
    It is evaluated on prompts that it never saw: accuracy with its interval, beside the rule "the longer one wins", a text
    baseline that counts characters, and the agreement of people. RUN/report.html shows it; PPO uses the model with
    [bold]\[reward] kind = "model", name = "RUN/model"[/bold].

    Ctrl-C finishes the step, saves, and says how to go on; a second Ctrl-C stops at once.
    """
    evaluation = result["eval"]
    _show_evaluation(evaluation)
    early = ", ended early: the loss fell no more" if result["early"] else ""
    echo(f"\nThe model is the one after step {result['best_step']} of {result['steps']}{early}")
    for label in ("report", "model", "mlflow"):
        if result[label]:
            echo(f"{label:8} {result[label]}")
    model = shlex.quote(result["model"])
    if evaluation["task"] == "classification":
        echo(f"\nNext:\n  {typed('konomi')} ppo CONFIG.toml --set reward.name={model}  # its raw score as reward")
    elif "normalisation" not in evaluation:
        echo("\nIt has no scale yet, and PPO asks for one: train it with normalize.samples (from konomi sample)")
    else:
        echo(f"\nNext:\n  {typed('konomi')} ppo CONFIG.toml --set reward.kind=model --set reward.name={model}")


def _show_evaluation(evaluation: dict[str, Any]) -> None:
    """The figures of an eval.json that have an interval, and its verdict."""
    for part, title in (("held_out", "On what was held out"), ("truth", "Against the judge that is certain")):
        measured = evaluation.get(part, {}).items()
        figures = {name: value for name, value in measured if isinstance(value, dict) and "low" in value}
        baselines = evaluation.get(part, {}).get("baselines") or {}
        figures |= {f"accuracy of the {BASELINES[name]}": each["accuracy"] for name, each in baselines.items()}
        if figures:
            echo(title)
        for name, value in figures.items():
            if value["value"] is not None:
                low, high = value["low"], value["high"]
                interval = "" if low is None else f"  (95 % interval {low:.3f} to {high:.3f})"
                echo(f"  {name.replace('_', ' '):28} {value['value']:.3f}{interval}")
    if verdict := evaluation["held_out"].get("verdict"):
        echo(f"\n{verdict['en']}")


@job_verb("The job; see examples/dpo-ja.toml.")
def dpo(result: dict[str, Any]) -> None:
    r"""Train a language model on what people preferred, without a reward model.

    It reads the files that konomi reward reads: rankings, pairs or scores, as
    texts or conversations. The smallest job is two lines: \[data] and file =
    "rankings.jsonl". Then \[model] name = "..." and what else
    examples/dpo-ja.toml shows.

    Direct preference optimisation makes the better of two responses likelier
    than under the initial model, the reference, and the other one less likely.
    dpo.beta holds the model near to the reference. dpo.loss = "ipo" stops at a
    fixed gap; dpo.label_smoothing allows for wrong labels; where several
    people judged the same pair, the share of their votes is the target.

    A fifth of the prompts (data.held_out) is never learned. On it the model is
    evaluated: loss, and how often it raises the preferred response more than
    the other (accuracy, with its interval). RUN/model is the best model so
    far. With \[reward], any that PPO takes, both models answer held-out prompts
    at the end: the before/after of konomi ppo, with the KL.

    It learns from texts that are there, and PPO from its own: for large gains
    go round (konomi sample, konomi label, konomi dpo on the new model).

    Ctrl-C finishes the step, saves, and says how to go on; a second Ctrl-C
    stops at once.
    """
    from konomi.cli.results import show_figures

    _show_evaluation(result["eval"])
    early = ", ended early: the loss fell no more" if result["early"] else ""
    echo(f"\nThe model is the one after update {result['best_update']} of {result['updates']}{early}\n")
    if result["compare"]:
        show_figures(result["compare"])
    for label in ("report", "model", "mlflow"):
        if result[label]:
            echo(f"{label:8} {result[label]}")
    model = shlex.quote(result["model"])
    echo(f"\nNext:\n  {typed('konomi')} generate {model} -p '...' -n 5  # let it write")
    echo(f"  {typed('konomi')} sample CONFIG.toml --set models.tuned.name={model}  # candidates for the next round")


@verb
def config(
    verb: Annotated[
        str, typer.Argument(metavar="VERB", help="Whose settings: ppo, sft, sample, pick, judge, reward, dpo, label or compare.")
    ],
) -> None:
    """Print every setting of a verb as a TOML file, with its default and what it means: the start of a job file.

    konomi config ppo > my_job.toml
    """
    from konomi.config import VERBS
    from konomi.config.defaults import commented

    if verb not in VERBS:
        raise ConfigError(f"{verb}: no verb with a job file; those that have one: {', '.join(VERBS)}")
    where = f"konomi {verb} FILE" if verb not in ("label", "compare") else f'a stage of `konomi run` with do = "{verb}"'
    typer.echo(commented(VERBS[verb].job, f"The settings of {where}. Remove what you do not change."), nl=False)


@verb
def run(
    config: Annotated[Path, typer.Argument(metavar="PIPELINE.toml", help="The stages; see docs/pipeline.md.")],
    out: Out = Path("runs"),
    seed: Seed = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="stages.NAME.SECTION.KEY=VALUE",
            help="Change one setting of a stage, or KEY=VALUE one of the pipeline; may be given several times.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Run this stage and all later ones again; in rounds round-2/NAME."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which stages would run and why, and run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Run a pipeline: sample, judge, reward, ppo and so on from one file, once or in rounds.

    A finished stage does not run again unless something that it depends on has changed. After a stop or a crash, the same
    command goes on.
    """
    from konomi.config import load_pipeline
    from konomi.jobs.pipeline import run_pipeline
    from konomi.jobs.stages import plan

    overrides = [*(set_ or []), *([] if seed is None else [f"seed={seed}"])]
    pipeline, stages = load_pipeline(config, out, overrides)
    if dry_run:
        steps = plan(out / pipeline.name, stages, start)
        if as_json:
            show_json([{"stage": step.stage.name, "do": step.stage.do, "action": step.action, "why": step.why} for step in steps])
        for step in [] if as_json else steps:
            echo(f"{step.stage.name} ({step.stage.do}): {step.action}: {step.why}")
        return
    arguments = [str(config), "--out", str(out), *(word for item in overrides for word in ("--set", item))]
    again = f"{typed('konomi')} run {shlex.join(arguments)}"
    result = run_pipeline(pipeline, stages, out / pipeline.name, make_observer(), start=start, again=again)
    from konomi.cli.results import show_pipeline

    (show_json if as_json else show_pipeline)(result)

"""sft: a language model goes on learning from texts of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from konomi.cli.common import Json, Out, Seed, Set, app, echo, make_observer, settings, show_json, told
from konomi.text import plural


@app.command()
@told
def sft(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The job; see examples/sft-ja.toml.", show_default=False)],
    out: Out = Path("runs"),
    seed: Seed = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    r"""Fine-tune a model on texts of your own: the first step, before people rank and PPO.

    The smallest job is two lines: \[data] and texts = "my.jsonl". Then
    \[model] name = "..." and what else examples/sft-ja.toml shows.

    A row of the texts is {"text": ...}, a plain text; or {"prompt": ...,
    "completion": ...}; or {"messages": \[...]}, a conversation, for a model
    with a chat template. Read are .jsonl, .csv, .parquet, .txt (one text a
    line) and hub data sets.

    The model learns the completion, or what the assistant says, and where
    to stop; of plain texts, everything (sft.loss). Long texts are cut at
    sft.max_length tokens; sft.packing = true puts several short ones in one
    row.

    A tenth of the rows (data.held_out) is never learned. On it the model is
    evaluated before training and after each epoch: loss (nats a token) and
    perplexity. RUN/model is the best model so far, not the last, and the
    initial one where none is better; training
    ends early when sft.patience evaluations in a row bring nothing.

    Then: konomi generate RUN/model -p "..." to read it, or model.name =
    "RUN/model" in a PPO job to go on from it.

    Ctrl-C finishes the update and says what was kept; a second Ctrl-C stops
    at once.
    """
    from konomi.config import SFTJob, load_config

    job = load_config(config, SFTJob, settings(set_, seed))
    observer = make_observer()
    from konomi.jobs.sft import run_sft

    show(run_sft(job, out, observer), as_json)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print what a run found."""
    if as_json:
        show_json(result)
        return
    from konomi.runs.environment import typed

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
    echo(f"\nNext:\n  {typed('konomi')} generate {model} -p '...' -n 5  # let it write")
    echo(f"  {typed('konomi')} ppo CONFIG.toml --set model.name={model}  # move it toward a reward")

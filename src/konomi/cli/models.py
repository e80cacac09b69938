"""generate, blend, trim, convert: verbs that make no run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from konomi.cli.common import Json, echo, make_observer, show_json, verb
from konomi.cli.streams import stdin_lines
from konomi.errors import ConfigError
from konomi.text import plural

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A run or its model, a directory, a hub name, a .gguf file, or embedded:gemma3-270m."),
]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run Python code that the model's repository ships.")]


@verb
def generate(
    model: Model,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="What to go on from, or with --chat to answer; may be repeated.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="For chat models: a prompt is a user's message. Without --prompt, talk line by line.")
    ] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system message, with --chat.")] = None,
    chat_template: Annotated[
        str | None, typer.Option(metavar="FILE", help="A chat template (Jinja) in the place of the model's own.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Responses a prompt.")] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens at most.")] = 40,
    temperature: Annotated[float, typer.Option(min=0.01, help="Lower: safer, duller.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Let a model continue prompts, or answer them: one line a response."""
    if not chat and (not prompt or system is not None or chat_template is not None):
        raise ConfigError("--prompt TEXT is needed; --chat takes messages instead, and --system and --chat-template go with it")
    if not prompt and samples > 1:
        raise ConfigError("--samples needs --prompt: in a conversation each line has one answer, from which the next one goes on")
    from konomi.config import ModelConfig
    from konomi.files import json_line
    from konomi.jobs.revisit import Writer, prompts_of
    from konomi.runs.console import one_line

    asked = prompts_of(prompt, chat, system) if prompt else []
    config = ModelConfig(name=model, trust_remote_code=trust_remote_code, chat_template=chat_template)
    writer = Writer(config, tokens, temperature, seed, make_observer())
    if not asked:
        for answer in writer.talk(stdin_lines(), system):
            echo(json_line(answer.shown).decode().strip() if as_json else one_line(answer.response))
        return
    answers = writer.answers(asked, samples)
    if as_json:
        show_json([each.shown for each in answers])
    else:
        for each in answers:
            echo(one_line(str(each)))


@verb
def blend(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Directory of a run of ppo that has ended; of several, their mean.")
    ],
    kl: Annotated[float | None, typer.Option(metavar="NATS", help="The KL that the model is to have, nats a response.")] = None,
    share: Annotated[
        float | None, typer.Option(min=0, max=3, help="Instead: how far along; 0 is the initial model, 1 the trained one.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The directory to write, new; by default RUN/blend-kl-4 and the like.")
    ] = None,
    most: Annotated[float | None, typer.Option(min=1, max=3, help="How far --kl may go along; above 1 is untrained.")] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="Prompts at most that it is measured on.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Responses a prompt.")] = None,
    as_json: Json = False,
) -> None:
    """Make the model at another distance from the initial one, out of finished runs, without training.

    It lies on the straight line through the initial and the trained weights. KL and score are measured on prompts that the
    before/after does not use; DIR/blend.json has them. DIR is a model for every verb.

    Give several runs of one job with other seeds, and the trained weights are their mean: what the runs have learnt in common
    stays and their noise averages out, so that the score usually gains more at the same KL. Prompts, reward and settings are
    those of the first run. Runs with adapters go one by one.
    """
    from konomi.config import LandConfig, PPOJob, build
    from konomi.runs.directory import RunDir

    if (kl is None) == (share is None):
        raise ConfigError("give --kl NATS or --share SHARE")
    opened = RunDir.open(runs[0])
    opened.check_verb("ppo")
    own = build(PPOJob, opened.config, where=str(runs[0] / "config.json")).land.model_dump() | {"kl": kl}
    changed = {"most": most, "prompts": prompts, "samples": samples}
    land = build(LandConfig, own | {name: value for name, value in changed.items() if value is not None}, where="blend")
    from konomi.jobs.blend import blend_runs

    result = blend_runs(runs, out, land, share, make_observer())
    if as_json:
        show_json(result)
        return
    echo(f"{result['verdict']['en']}\n{result['model']}")


@verb
def trim(
    model: Model,
    scripts: Annotated[
        str, typer.Option(metavar="NAMES", help="Scripts to keep, parted by commas: ja en zh ko latin ru el ar hi th.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The directory to write; it must not exist yet.")],
    keep: Annotated[int, typer.Option(min=0, help="How many of the commonest other tokens to keep.")] = 2048,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Write a model with a smaller vocabulary: the tokens of some scripts only. A small model is mostly vocabulary.

    It keeps special tokens; all tokens of the scripts, of digits, punctuation and white space; the tokens for single bytes;
    and the commonest of the rest. Kept tokens keep their logits. Texts in the scripts are tokenised as before; other texts
    take more tokens and come back whole.

    A script is kept whole, and much of a vocabulary is English: of Gemma's 262,144 tokens --scripts ja keeps 32,630,
    ja,en 172,468. For a Japanese model that is to write some English words too, take ja and a larger --keep.
    """
    from konomi.config import ModelConfig
    from konomi.models.trim.scripts import parse_scripts
    from konomi.models.trim.trim import check_out, trim

    names = parse_scripts(scripts)
    check_out(out)
    from konomi.models.load import load_causal_lm, quiet  # imports torch: after what can be wrong with the arguments

    say = make_observer().say
    loaded = load_causal_lm(ModelConfig(name=model, trust_remote_code=trust_remote_code), progress=say)
    if loaded.note:
        say(loaded.note)
    say(f"trimming the vocabulary of {model}")
    with quiet():
        result = {"model": model, **trim(loaded.model, loaded.tokenizer, names, out, keep=keep, name=model)}
    if as_json:
        show_json(result)
        return
    tokens, parameters = result["tokens"], result["parameters"]
    echo(
        f"{tokens['before']:,} -> {tokens['after']:,} tokens: {tokens['special']:,} special, {tokens['bytes']:,} bytes, "
        f"{tokens['scripts']:,} of {', '.join(names)}, {tokens['others']:,} others, {tokens['parts']:,} parts of these\n"
        f"{parameters['before'] / 1e6:.1f} -> {parameters['after'] / 1e6:.1f} M parameters, {result['megabytes']:,} MB\n{out}"
    )


@verb
def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A .jsonl, .csv or .parquet file, or the name of a data set of the hub.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="The file to write; it must not exist yet.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="pairs, rankings, scores or candidates.")],
    from_: Annotated[
        str, typer.Option("--from", metavar="FORMAT", help="pairs, hh, rankings or scores; auto: by the columns.")
    ] = "auto",
    drop_bad: Annotated[
        bool,
        typer.Option(
            "--drop-bad", help="Leave out rows that say nothing (a blank prompt, equal answers) and count them; else refused."
        ),
    ] = False,
    subset: Annotated[str | None, typer.Option(help="Subset of a hub data set.")] = None,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "train",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub data set.")] = None,
    as_json: Json = False,
) -> None:
    """Write preferences in another form: rankings, pairs, scores or candidates. It reads Anthropic-HH and chat messages too.

    A ranking of K responses becomes K(K-1)/2 pairs, less the ties, or K scores from 1 (best) to -1. OUT.jsonl.manifest.json
    says what was read, what was written, and what was left out.
    """
    from konomi.data.convert import convert_file
    from konomi.data.sources import Hub

    hub = Hub(subset, split, revision)
    report = convert_file(source, out, to, from_, drop_bad=drop_bad, hub=hub, say=make_observer().say)
    if as_json:
        show_json(report)
        return
    written = ", ".join(plural(count, name.removesuffix("s")) for name, count in report["files"][to]["counts"].items())
    left_out = ", ".join(f"{count:,} x {reason}" for reason, count in report["dropped"].items())
    echo(f"{to}: {written}" + (f"\nleft out: {left_out}" if left_out else "") + f"\n{out}")

"""generate, trim: what is done with a model by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from konomi.cli.common import Json, echo, make_observer, show_json, verb


@verb
def generate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A run or its model, a directory, a hub name, a .gguf file, or embedded:gemma3-270m."
        ),
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
    from konomi.jobs.revisit import generate_texts
    from konomi.runs.console import flat

    config = ModelConfig(name=model, trust_remote_code=trust_remote_code)
    rows = generate_texts(config, prompt, samples, tokens, temperature, seed, make_observer())
    if as_json:
        show_json(rows)
    else:
        for row in rows:
            echo(flat(row["prompt"] + row["response"]))


@verb
def trim(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A run or its model, a directory, a hub name, a .gguf file, or embedded:gemma3-270m."
        ),
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

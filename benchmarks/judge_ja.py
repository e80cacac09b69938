"""The pipeline of examples/judge-ja.toml from nothing: how good is the reward model, what did PPO make of it, in what time?

Prints what stands in docs/results.md; with --write it puts it there, between the marks.

    python benchmarks/judge_ja.py --out runs/judge --write
    python benchmarks/judge_ja.py --out runs/judge --again       only read what an earlier run left there
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from demo_seeds import ROOT, hardware, put

CONFIG = ROOT / "examples" / "judge-ja.toml"


def interval(figure: dict[str, float], form: str = ".3f") -> str:
    """A figure and its interval."""
    middle = figure["value"] if "value" in figure else figure["mean"]
    return f"{middle:{form}} ({figure['low']:{form}} to {figure['high']:{form}})"


def table(directory: Path) -> str:
    """Markdown of a finished pipeline."""

    def read(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((directory / name).read_text(encoding="utf-8"))
        return found

    taste, compare, ranked = read("taste/eval.json"), read("policy/compare.json"), read("rank/manifest.json")
    stages = read("pipeline.json")["stages"]
    held_out, truth, judge = taste["held_out"], taste["truth"], compare["judges"]["noise-free"]
    counts = ranked["files"]["rankings"]["counts"]
    lines = [
        "| what | figure (95 % interval) |",
        "|---|---|",
        f"| rankings by the simulated rater | {counts['records']:,} of {counts['prompts']} openings, {counts['comparisons']:,} "
        f"comparisons; it agrees with itself in {ranked['self_agreement']:.1%} |",
        f"| reward model, held-out comparisons with noise | {interval(held_out['accuracy'])}, {held_out['prompts']} openings |",
        f"| reward model against the judge without noise | **{interval(truth['accuracy'])}**, {truth['pairs']:,} pairs of "
        f"{truth['prompts']} openings |",
        f"| reward model's score, before → after PPO | {compare['before']['score_mean']:.2f} → "
        f"{compare['after']['score_mean']:.2f}, difference {interval(compare['difference'], '+.2f')} |",
        f"| judge without noise, before → after | {judge['before']:.2f} → {judge['after']:.2f}, difference "
        f"**{interval(judge['difference'], '+.2f')}** |",
        f"| KL, nats/response | {compare['after']['kl']:.1f} |",
        f"| distinct-2, after / before | {compare['after']['distinct_2'] / compare['before']['distinct_2']:.0%} |",
        f"| perplexity under the initial model | {compare['before']['perplexity']:.0f} → {compare['after']['perplexity']:.0f} |",
        "| minutes | "
        + ", ".join(f"{name} {stage['seconds'] / 60:.1f}" for name, stage in stages.items())
        + f"; in all {sum(stage['seconds'] for stage in stages.values()) / 60:.1f} |",
        "",
        "| best of n of the initial model, chosen by the reward model | KL, nats | reward model | judge without noise |",
        "|---|---|---|---|",
    ]
    for row in compare["best_of_n"]:
        lines.append(f"| {row['n']} | {row['kl']:.2f} | {row['score']:.2f} | {row['judges']['noise-free']:.2f} |")
    lines += ["", "| opening | before | after |", "|---|---|---|"]
    shown = [text for text in compare["texts"] if not text["held_out"]] + [t for t in compare["texts"] if t["held_out"]][:4]
    lines += [f"| {plain(t['prompt'])} | {plain(t['before'])} | {plain(t['after'])} |" for t in shown]
    return "\n".join(lines)


def plain(text: str) -> str:
    """A text that breaks no table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/judge"))
    parser.add_argument("--again", action="store_true", help="run nothing")
    parser.add_argument("--write", action="store_true", help="put it into docs/results.md")
    given = parser.parse_args()
    if not given.again:
        subprocess.run([sys.executable, "-m", "konomi", "run", str(CONFIG), "--out", str(given.out)], check=True)
    text = f"Hardware: {hardware()}.\n\n{table(given.out / 'judge-ja')}"
    print(text)
    if given.write:
        put("judge", text)


if __name__ == "__main__":
    main()

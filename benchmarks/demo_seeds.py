"""The demo with ten seeds: does the held-out reward rise, at what KL, in what time and memory?

Prints the table of docs/results.md; with --write it puts it there, between the marks. A seed that has run is not run again.

    python benchmarks/demo_seeds.py --out runs/seeds --write [--lang en]
    python benchmarks/demo_seeds.py --seeds 0 1 2 3 4 --out runs/seeds-bf16 --set model.precision=bf16
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results.md"


def run(seed: int, out: Path, arguments: list[str]) -> dict[str, Any]:
    """One demo in a process of its own; its result, which is kept in ``out``."""
    kept = out / f"seed-{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "konomi", "demo", "--seed", str(seed), "--out", str(out), "--json", *arguments]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
    kept.write_text(finished.stdout, encoding="utf-8")
    return json.loads(finished.stdout)


def table(results: dict[int, dict[str, Any]]) -> str:
    """Markdown: a line a seed."""
    lines = [
        "| seed | score before → after | difference (95 % interval) | KL, nats/response | distinct-2, after / before "
        "| perplexity under the initial model | minutes | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for seed, result in results.items():
        before, after, gap = (result["compare"][key] for key in ("before", "after", "difference"))
        lines.append(
            f"| {seed} | {before['score_mean']:.2f} → {after['score_mean']:.2f} "
            f"| {gap['mean']:+.2f} ({gap['low']:+.2f} to {gap['high']:+.2f}) | {after['kl']:.1f} "
            f"| {after['distinct_2'] / before['distinct_2']:.0%} | {before['perplexity']:.0f} → {after['perplexity']:.0f} "
            f"| {result['seconds'] / 60:.1f} | {result['peak_gb']:.1f} GB |"
        )
    return "\n".join([*lines, *means(list(results.values()))])


def means(results: list[dict[str, Any]]) -> list[str]:
    """Mean and standard error over seeds of the difference and of the KL."""
    if len(results) < 2:
        return []
    figures = [[r["compare"]["difference"]["mean"] for r in results], [r["compare"]["after"]["kl"] for r in results]]
    gain, kl = (f"{mean(each):.2f} ± {stdev(each) / len(each) ** 0.5:.2f}" for each in figures)
    return ["", f"Mean and its standard error over {len(results)} seeds: difference +{gain}, KL {kl} nats/response."]


def hardware() -> str:
    """The machine, in a line."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        name = found.group(1) if found else name
    import torch

    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def around(mark: str) -> tuple[str, str]:
    """docs/results.md up to what is between the marks of a name, and from there on. Ends the program if they are not there."""
    page, begin, end = RESULTS.read_text(encoding="utf-8"), f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{RESULTS}: nothing was written: there are no lines {begin.strip()} and {end} in it, in this order")
    return before + begin, end + after


def put(mark: str, text: str) -> None:
    """Put a text between the marks of that name in docs/results.md, or end the program."""
    before, after = around(mark)
    RESULTS.write_text(f"{before}{text}\n{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--write", action="store_true", help="put the table into docs/results.md")
    parser.add_argument("--lang", choices=["ja", "en"], default="ja", help="the language of the demo")
    parser.add_argument("--quick", action="store_true", help="the smoke run instead of the demo")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the demo")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    arguments = ["--lang", given.lang, *(["--quick"] if given.quick else []), *(f"--set={each}" for each in given.set)]
    results = {seed: run(seed, given.out, arguments) for seed in given.seeds}
    text = f"Hardware: {hardware()}.\n\n{table(results)}"
    print(text)
    if given.write:
        put("seeds" if given.lang == "ja" else "seeds-en", text)


if __name__ == "__main__":
    main()

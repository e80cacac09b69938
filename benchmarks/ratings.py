"""A reward model from what people said of English sentences, held against the text baseline on the same pairs.

The ratings are those of the paper on VADER (Hutto and Gilbert 2014, MIT licence), which the source package carries: 15 to 100
people rated each sentence of reviews, editorials and tweets from -4 to 4. A training pair is labelled by one rating of each
sentence, drawn at random (so with their noise); a held-out pair, of other sentences, by the mean of all.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python benchmarks/ratings.py vaderSentiment-3.3.2.tar.gz --out runs/ratings --write
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo_seeds import hardware, put
from judge_ja import interval

SOURCES = ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets")
INSIDE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
CHARACTERS = (10, 160)
HELD_OUT = 0.25
JOB = """
[model]
name = "embedded:gemma3-270m-en"
freeze = "embeddings"
[data]
file = "{train}"
evaluation = "{test}"
[train]
task = "preference"
epochs = 1
batch_size = 16
learning_rate = 5e-5
head_learning_rate = 2e-4
evaluations = 4
max_length = 96
"""


def sentences(package: Path) -> Iterator[tuple[str, str, float, list[int]]]:
    """Source, sentence, mean rating, ratings."""
    with tarfile.open(package) as outer:
        inner = outer.extractfile(INSIDE)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as files:
            for source in SOURCES:
                ratings = {name: json.loads(each) for name, _, _, each in _rows(files, source, "anonDataRatings")}
                for name, mean, text in _rows(files, source, "GroundTruth"):
                    known = ratings.get(name, [])
                    same = bool(known) and abs(sum(known) / len(known) - float(mean)) < 0.01  # some rows have moved
                    if same and CHARACTERS[0] <= len(text) <= CHARACTERS[1]:
                        yield source, text, float(mean), known


def _rows(files: tarfile.TarFile, source: str, part: str) -> list[list[str]]:
    file = files.extractfile(f"hutto_ICWSM_2014/{source}_{part}.txt")
    assert file is not None
    return [line.split("\t") for line in file.read().decode("utf-8-sig", errors="replace").splitlines()]


def pairs(package: Path, count: int, seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Pairs to train on and held-out ones, a third as many; no sentence is in two pairs."""
    rng = random.Random(seed)
    by_source: dict[str, list[Any]] = {source: [] for source in SOURCES}
    seen: set[str] = set()
    for source, text, *rest in sentences(package):
        if text not in seen:  # some stand there twice
            by_source[source].append((text, *rest))
            seen.add(text)
    sides: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for source, own in by_source.items():
        rng.shuffle(own)
        for n, ((a, a_mean, a_ratings), (b, b_mean, b_ratings)) in enumerate(zip(own[::2], own[1::2], strict=False)):
            held_out = rng.random() < HELD_OUT
            gap = a_mean - b_mean if held_out else rng.choice(a_ratings) - rng.choice(b_ratings)
            if gap:
                chosen, rejected = (a, b) if gap > 0 else (b, a)
                sides[held_out].append({"prompt": f"{source} {n}: ", "chosen": chosen, "rejected": rejected})
    for side in sides:
        rng.shuffle(side)
    return sides[0][:count], sides[1][: count // 3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="vaderSentiment-3.3.2.tar.gz")
    parser.add_argument("--out", type=Path, default=Path("runs/ratings"))
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put it into docs/results.md")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    places = [given.out / f"{side}.jsonl" for side in ("train", "test")]
    for place, rows in zip(places, pairs(given.package, given.pairs, given.seed), strict=True):
        place.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job = given.out / "job.toml"
    job.write_text(JOB.format(train=places[0], test=places[1]), encoding="utf-8")
    command = [sys.executable, "-m", "konomi", "reward", str(job), "--out", str(given.out), "--seed", str(given.seed), "--json"]
    result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    found = result["eval"]["held_out"]
    text = found["baselines"]["text"]
    lines = [
        f"Hardware: {hardware()}. {found['train_comparisons']:,} training pairs, {found['comparisons']:,} held-out ones; "
        f"{result['seconds'] / 60:.0f} minutes.",
        "",
        "| held-out pairs in the order of the mean rating | share (95 % interval) |",
        "|---|---|",
        f"| reward model on Gemma 3 270M | **{interval(found['accuracy'])}** |",
        f"| text baseline | {interval(text['accuracy'])} |",
        f"| difference | {interval(text['difference'], '+.3f')} |",
    ]
    print("\n".join(lines))
    if given.write:
        put("ratings", "\n".join(lines))


if __name__ == "__main__":
    main()

"""Score against KL: what does each way of training have at 2, 4, 6 and 8 nats, on openings that no setting was chosen on?

Each model is taken along the straight line through the initial weights and its own (`konomi blend` does the same); the score at a
KL is interpolated between the places that were measured. The openings are those that `data.held_out` keeps from training, without
the first 300 of the file, on which settings were chosen. Prints the table of docs/results.md; with --write it puts it there.

    python benchmarks/path.py --config examples/demo.toml ppo=runs/paths/ppo-0 ppo=runs/paths/ppo-1 rloo=runs/paths/rloo-0 \
        --best-of 16 --chooser runs/judge/judge-ja/taste/model --write policy

NAME=DIR: a finished run, a pipeline with one, or the directory of a model or of adapters; several of one name are seeds of it.
Of a run that has landed the trained weights are measured, not those that it landed on.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from demo_seeds import around, hardware, put

from konomi.config import LoraConfig, ModelReward, PPOJob, load_config
from konomi.data.prompts import load_prompts
from konomi.engine.device import autocast, find_device
from konomi.files import content_sha256
from konomi.jobs.best_of_n import best_of_n
from konomi.jobs.compare import Item, Questions, exact_kl, paired_difference
from konomi.jobs.inputs import job_inputs
from konomi.jobs.land import next_share
from konomi.jobs.prepare import models_of, prepare
from konomi.models.line import Line
from konomi.models.load import load_causal_lm
from konomi.models.lora import ADAPTER_FILE
from konomi.rewards import as_reward, score
from konomi.rewards.base import columns_of
from konomi.runs.observer import Observer
from konomi.statistics.bootstrap import mean_interval
from konomi.statistics.variety import distinct
from konomi.text import interval_words

FRESH = (300, 1000)
"""Rows of the file with openings that chose no setting; the first 300 did."""
Point = dict[str, Any]
"""A place on a path: share, KL (nats/response), gain with its interval, the gain of each opening, the share of distinct-2."""
MOST = 1.3
"""How far beyond the trained weights a KL is looked for."""


class Asked:
    """The fresh openings and the initial model, at which all trained models are measured."""

    def __init__(self, config: Path, first: int, end: int, samples: int) -> None:
        self.rows, self.samples = (first, end), samples
        self.job = all_weights(load_config(config, PPOJob))
        self.ready = prepare(self.job, Observer())
        rows = {prompt.key for prompt in load_prompts(self.job.data)[first:end]}
        self.prompts = [prompt for prompt in self.ready.held_out if prompt.key in rows]
        self.policy, self.initial = models_of(self.job, self.ready.loaded)
        self.autocast = partial(autocast, find_device(), self.ready.precision)
        self.ask = Questions(
            self.ready.tokens,
            self.ready.reward,
            {},
            self.job.rollout,
            self.job.compare.seed,
            self.autocast,
            None,
            lambda *_: None,
        )
        self.first = self._answers(self.samples)

    def _answers(self, samples: int, stream: str = "path") -> dict[str, Any]:
        items: list[Item] = [(prompt, i) for prompt in self.prompts for i in range(samples)]
        cut = self.ready.tokens.queries(self.prompts, None, 0, 0, self.job.data.max_query_tokens)
        queries = [query for query in cut for _ in range(samples)]
        ids: list[list[int]] = []
        kl: list[float] = []
        for rollout in self.ask.rollouts(self.policy.lm, "a model", stream, items, queries):
            ids += rollout.response_ids()
            kl += exact_kl(self.policy.lm, self.initial, rollout, self.ask) if stream == "path" else []
        texts = self.ask.texts(items, queries, ids)
        return {"ids": ids, "kl": kl, "texts": texts, "items": items, "scores": self.ask.scores(items, *texts)[0]}

    def best_of(self, chooser: Path, count: int) -> list[dict[str, Any]]:
        """The score of the best of n of the initial model, chosen by a reward model."""
        drawn = self._answers(count, "best of")
        reward = as_reward(ModelReward(kind="model", name=str(chooser)), self.prompts[0].columns)
        chosen = score(reward, *drawn["texts"], columns_of([prompt for prompt, _ in drawn["items"]]), save_to=None)
        grid = {"judge": np.asarray(drawn["scores"]).reshape(-1, count)}
        return best_of_n(np.asarray(chosen).reshape(-1, count), grid)

    def path(self, model: Path, targets: Sequence[float]) -> list[Point]:
        """Share, KL, difference with its interval, and the share of before's distinct-2, at share 1 and near each KL."""
        trained = self.job.model.model_copy(update={"name": str(model), "revision": None})
        own = {name: each.detach().clone() for name, each in self.policy.lm.state_dict().items()}
        self.policy.lm.load_state_dict(load_causal_lm(trained).model.state_dict())
        line, points = Line(self.policy, self.initial), []

        def measured(share: float) -> Point:
            line.move(share)
            here = self._answers(self.samples)
            gap = paired_difference(self.first["scores"], here["scores"], self.samples)
            pairs = list(zip(here["ids"], self.first["ids"], strict=True))
            variety = [distinct([a[: len(b)] for a, b in side], 2) for side in (pairs, [(b, a) for a, b in pairs])]
            found = {"share": share, "kl": float(np.mean(here["kl"])), "variety": variety[0] / variety[1]}
            each = np.subtract(here["scores"], self.first["scores"]).reshape(-1, self.samples).mean(1)
            return found | {key: gap[key] for key in ("mean", "low", "high")} | {"each": each.tolist()}

        start = {"share": 0.0, "kl": 0.0, "variety": 1.0, "mean": 0.0, "low": 0.0, "high": 0.0}
        points = [{**start, "each": [0.0] * len(self.prompts)}, measured(1.0)]
        for target in targets:
            share = next_share([(each["share"], each["kl"]) for each in points], target, MOST)
            if share is not None and min(abs(each["kl"] / target - 1) for each in points) > 0.05:
                points = sorted([*points, measured(share)], key=lambda each: each["share"])
        self.policy.lm.load_state_dict(own)
        return points


def all_weights(job: PPOJob) -> PPOJob:
    """A job that trains all weights, so that a line moves all of them, whichever were trained."""
    model = job.model.model_copy(update={"freeze": "none", "top_layers": None})
    return job.model_copy(update={"model": model, "lora": LoraConfig()})


def model_of(directory: Path) -> Path:
    """Where the trained weights of a run or a pipeline are, or the adapters that they are; else the directory itself."""
    places = [directory / "end", directory / "model", *sorted(directory.glob("*/end")), *sorted(directory.glob("*/model"))]
    return next((each for each in places if any((each / file).is_file() for file in ("config.json", ADAPTER_FILE))), directory)


def key_of(job: PPOJob, model: Path, rows: Sequence[int], samples: int, targets: Sequence[float]) -> str:
    """The name of a measurement, another one where anything that it depends on is."""
    depends = [job.model_dump(mode="json"), job_inputs(job), content_sha256(model), [*rows], samples, [*targets]]
    return f"{model} {hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]}"


def at(points: Sequence[Point], target: float) -> Point | None:
    """What a path has at a KL: between the two places around it, by the root of the KL; None: it does not reach so far, within
    5 % beyond its last place."""
    for low, high in itertools.pairwise(points):
        if low["kl"] <= target and target * (0.95 if high is points[-1] else 1.0) <= high["kl"]:
            part = (math.sqrt(target) - math.sqrt(low["kl"])) / (math.sqrt(high["kl"]) - math.sqrt(low["kl"]))
            return {key: low[key] + part * np.subtract(high[key], low[key]) for key in low}
    return None


def beside(one: Sequence[Sequence[Point]], other: Sequence[Sequence[Point]], target: float) -> str:
    """How much more the paths of one name have gained at a KL than those of another, with the interval over openings."""
    both = [[at(points, target) for points in seeds] for seeds in (one, other)]
    gains = [np.mean([each["each"] for each in places if each is not None], axis=0) for places in both if None not in places]
    if len(gains) < 2:
        return "not reached"
    gap = mean_interval(gains[0] - gains[1])
    return f"{gap['value']:+.2f} ({interval_words(gap)})"


def kl_of(points: Sequence[Point], gain: float) -> float | None:
    """The smallest KL at which a path has gained so much, nats/response."""
    for low, high in itertools.pairwise(points):
        if low["mean"] <= gain <= high["mean"]:
            part = (gain - low["mean"]) / (high["mean"] - low["mean"])
            return (math.sqrt(low["kl"]) + part * (math.sqrt(high["kl"]) - math.sqrt(low["kl"]))) ** 2
    return None


def cell(found: Sequence[Point | None]) -> str:
    """One seed: the gain and its interval; several: the mean and its standard error."""
    reached = [each for each in found if each is not None]
    if len(reached) < len(found) or not reached:
        return "not reached" if not reached else f"{len(reached)} of {len(found)} seeds reach it"
    gains, variety = [each["mean"] for each in reached], mean(each["variety"] for each in reached)
    if len(gains) == 1:
        return f"{gains[0]:+.2f} ({reached[0]['low']:+.2f} to {reached[0]['high']:+.2f}), {variety:.0%}"
    return f"{mean(gains):+.2f} ± {stdev(gains) / len(gains) ** 0.5:.2f}, {variety:.0%}"


def table(paths: dict[str, list[list[Point]]], targets: Sequence[float], gain: float) -> str:
    """Markdown: a line for each way of training."""
    heads = [f"{target:g} nats" for target in targets]
    lines = [
        f"| | seeds | {' | '.join(heads)} | KL for +{gain:g}, nats | KL of the trained model, nats |",
        "|---" * (len(heads) + 4) + "|",
    ]
    for name, seeds in paths.items():
        cells = [cell([at(points, target) for points in seeds]) for target in targets]
        needed = [kl_of(points, gain) for points in seeds]
        ends = [next(each["kl"] for each in points if each["share"] == 1.0) for points in seeds]
        spent = ", ".join("–" if each is None else f"{each:.1f}" for each in needed)
        lines.append(f"| {name} | {len(seeds)} | {' | '.join(cells)} | {spent} | {', '.join(f'{each:.1f}' for each in ends)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=DIR")
    parser.add_argument(
        "--config", type=Path, required=True, help="the job of the models: prompts, initial model; its reward judges"
    )
    parser.add_argument("--kl", type=float, nargs="+", default=[2, 4, 6, 8], help="nats/response")
    parser.add_argument("--gain", type=float, default=2.0, help="the gain whose KL is asked for")
    parser.add_argument("--best-of", type=int, default=0, help="also the best of so many of the initial model ...")
    parser.add_argument("--chooser", type=Path, help="... chosen by this reward model")
    parser.add_argument("--rows", type=int, nargs=2, default=FRESH, help="openings of the file: from which, to which (exclusive)")
    parser.add_argument("--samples", type=int, default=2, help="responses to each opening")
    parser.add_argument(
        "--beside", nargs=2, metavar="NAME", action="append", default=[], help="also the first one's gain less the second one's"
    )
    parser.add_argument("--keep", type=Path, help="a file: what was measured is not measured again")
    parser.add_argument("--write", metavar="MARK", help="put the table between these marks of docs/results.md")
    given = parser.parse_args()
    if given.write:
        around(given.write)  # rather than at the end
    if unknown := {name for pair in given.beside for name in pair} - {each.partition("=")[0] for each in given.models}:
        parser.error(f"--beside: no model has the name {', '.join(sorted(unknown))}")
    kept: dict[str, Any] = json.loads(given.keep.read_text()) if given.keep and given.keep.exists() else {}
    asked = Asked(given.config, *given.rows, given.samples)
    paths: dict[str, list[list[Point]]] = {}
    for each in given.models:
        name, _, directory = each.partition("=")
        model = model_of(Path(directory))
        key = key_of(asked.job, model, asked.rows, asked.samples, given.kl)
        kept[key] = kept.get(key) or asked.path(model, given.kl)
        paths.setdefault(name, []).append(kept[key])
        print(name, directory, json.dumps(kept[key]), flush=True)
        if given.keep:
            given.keep.write_text(json.dumps(kept, indent=1))
    text = [
        f"Hardware: {hardware()}. {len(asked.prompts)} openings, {given.samples} responses each.",
        "",
        table(paths, given.kl, given.gain),
    ]
    for one, other in given.beside:
        gaps = [f"{beside(paths[one], paths[other], target)} at {target:g} nats" for target in given.kl]
        text += ["", f"{one} less {other}, the same openings: {'; '.join(gaps)}."]
    if given.best_of:
        text += ["", "| best of n of the initial model, chosen by the reward model | KL, nats | gain |", "|---|---|---|"]
        start = float(np.mean(asked.first["scores"]))
        rows = asked.best_of(given.chooser, given.best_of)
        text += [f"| {row['n']} | {row['kl']:.2f} | {row['judges']['judge'] - start:+.2f} |" for row in rows]
    print("\n".join(text))
    if given.write:
        put(given.write, "\n".join(text))


if __name__ == "__main__":
    main()

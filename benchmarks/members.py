"""Reward models together: how often do several, and the text baseline, order two responses as a judge without noise does?

    python benchmarks/members.py runs/e1-0/model runs/e1-1/model --truth runs/judge/judge-ja/rank/truth.jsonl

The models are model/ of finished runs of `konomi reward` on the same comparisons, with ensemble.text_weight; the responses are
those of prompts that data.held_out keeps from training. Prints Markdown: each network, their mean, the text baseline, their sum.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from konomi.data.formats import read_scores
from konomi.data.messages import Answered
from konomi.data.records import is_held_out
from konomi.models.reward_files import open_reward_model
from konomi.statistics import evaluate_truth

HELD_OUT = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.5], help="shares of the text baseline in the sum")
    given = parser.parse_args()
    by_prompt: dict[str, list[Any]] = defaultdict(list)
    for each in read_scores(given.truth):
        if is_held_out(each.key, HELD_OUT):
            by_prompt[each.key].append(each)
    groups = [own for own in by_prompt.values() if len(own) > 1]
    texts = [[Answered(each.prompt, each.response) for each in own] for own in groups]
    networks = []
    for directory in given.models:
        model = open_reward_model(str(directory))
        ensemble, model.ensemble = model.ensemble, None
        networks.append(torch.cat(model.predict(texts))[:, 0].double().numpy())
        text = ensemble.text_baseline.scores([each.response for own in texts for each in own]) if ensemble else None
    unit = [each / each.std() for each in networks]
    rows = {f"network {n + 1} alone": each for n, each in enumerate(networks)}
    if len(networks) > 1:
        rows["mean of the networks"] = np.mean(unit, 0)
    if text is not None:
        rows["text baseline alone"] = text
        for share in given.weights:
            rows[f"{share:g} text, the rest network 1"] = (1 - share) * unit[0] + share * text / text.std()
            mean = np.mean(unit, 0)
            rows[f"{share:g} text, the rest the mean of the networks"] = (
                1 - share
            ) * mean / mean.std() + share * text / text.std()
    ends = np.cumsum([len(own) for own in groups])[:-1]
    print(f"| {len(groups)} held-out openings | accuracy against the judge without noise |\n|---|---|")
    for name, scores in rows.items():
        each = [part.tolist() for part in np.split(np.asarray(scores), ends)]
        truth = [(own[0].key, [one.score for one in own], part) for own, part in zip(groups, each, strict=True)]
        found = evaluate_truth(truth, seed=0)["accuracy"]
        print(f"| {name} | {found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f}) |", flush=True)


if __name__ == "__main__":
    main()

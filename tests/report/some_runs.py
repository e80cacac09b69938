"""Runs of each kind that has a page, as their directories hold them."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np

from konomi.data.records import Pair, groups
from konomi.report.advice import landing
from konomi.runs.directory import RunDir
from konomi.statistics import evaluate_labels, evaluate_preferences, evaluate_scores

MODEL = {"name": "embedded:gemma3-270m", "revision": None, "precision": "auto"}
PPO = {
    "model": MODEL,
    "reward": {"kind": "classifier", "name": "embedded:asari", "label": "positive", "use": "logit", "text": "both"},
    "ppo": {"episodes": 1024, "batch_size": 64, "kl_target": 6.0, "kl_controller": "adaptive"},
}
SFT = {"model": {"name": "embedded:gemma3-270m-ja"}, "data": {"texts": "texts.jsonl"}, "sft": {"epochs": 3}}
REWARD = {"model": MODEL, "data": {"file": "pairs.jsonl"}}
LABELS = ["bad", "neutral", "good"]
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; </style></script></textarea><svg onload=alert(1)>",
    "{{ 7 * 7 }} {% raw %} $data ${script} &lt;b&gt; &#60;i&#62;",
    "user\u202egnp.exe \u2066isolated\u2069 \u200fmark",
    "nul\x00 bell\x07 escape\x1b[31m lone\ud800 bom\ufeff",
    "javascript:alert(1) https://example.org/x?src=url(y) <!-- {reward}",
]


def ppo_run(root: Path, updates: int = 16, name: str = "run", config: dict[str, Any] = PPO, extra: Any = None) -> RunDir:
    rng = random.Random(0)
    run = RunDir.create(root, name, config, seed=3, extra={"precision": "fp32", **(extra or {})})
    for u in range(1, updates + 1):
        f = u / updates
        metrics = {
            "episodes": 64 * u,
            "objective/kl": 6 * f + 0.3 * rng.gauss(0, 1),
            "objective/kl_coef": 0.2 - 0.05 * f,
            "objective/entropy": 60 - 8 * f,
            "ppo/mean_scores": -0.5 + 2.2 * f + 0.1 * rng.gauss(0, 1),
            "ppo/std_scores": 1.5 - 0.5 * f,
            "ppo/loss/policy": 0.01 * rng.gauss(0, 1),
            "ppo/loss/value": 0.5 * math.exp(-2 * f),
            "ppo/learning_rate": 1.41e-5 * (1 - f),
            "tokens/responses_len_mean": 17.0 + u / 8,
        }
        run.append_metrics(u, metrics)
        run.append_samples(u, [{"prompt": f"書き出し{u}", "response": f"応答{u}", "score": 1.25, "kl": 3.5}])
    return run


def add_compare(run: RunDir, texts: list[dict[str, Any]] | None = None, **changed: Any) -> None:
    def figures(score: float, kl: float) -> dict[str, float]:
        rest = {"score_std": 1.4, "length": 17.0, "distinct_1": 0.31, "distinct_2": 0.74, "repetition": 0.03}
        return {"score_mean": score, "kl": kl, "perplexity": 24.0 + kl, **rest}

    pair = {"before": "退屈", "after": "素晴らしい", "score_before": -1.25, "score_after": 2.5}
    if texts is None:
        texts = [{"prompt": f"p{i}", "held_out": i < 20, **pair} for i in range(23)]
    difference = {"mean": 2.03, "low": 1.6, "high": 2.41, "level": 0.95, "wins": 52, "losses": 11, "ties": 1}
    found = {"version": 1, "prompts": 64, "samples": 1, "seed": 1, "temperature": 1.0, "before": figures(-0.48, 0.0)}
    found |= {"after": figures(1.55, 5.8), "difference": difference, "texts": texts}
    run.write_json("compare.json", found | changed)


def add_evaluations(run: RunDir, prompts: int = 5) -> None:
    """Of a run of 16 updates: after every fourth one the model answers the same prompts; lines of metrics follow."""
    for update in (0, 4, 8, 12, 16):
        texts = [{"prompt": f"同じ{i}", "response": f"{update}回目の答え{i}", "score": update / 4 + i} for i in range(prompts)]
        ends = (None, None) if update == 0 else (update / 8 - 0.5, update / 8 + 1.0)
        difference = {"mean": update / 8, "low": ends[0], "high": ends[1]}
        run.append_evaluation(update, {"score": 1.0, "kl": 0.0, "difference": difference, "scores": [], "texts": texts})
        if update:
            run.append_metrics(update, {f"eval/difference/{end}": value for end, value in difference.items()})


def judged_run(root: Path) -> RunDir:
    """Against a sum of rewards, with two judges and the best of n."""
    function = {"kind": "function", "name": "m:f"}
    parts = {"mood": {"kind": "classifier", "name": "embedded:asari", "label": "positive"}, "short": function}
    reward = {"kind": "sum", "parts": parts, "weights": {"short": -0.5}}
    judges = {"strict": function, "遠い": {"kind": "http", "url": "http://host:8000/score?key=geheim"}}
    run = RunDir.create(root, "judged", PPO | {"reward": reward, "judges": judges}, seed=0)
    for update in (1, 2, 3):
        metrics = {"objective/kl": 2.0 * update, "ppo/mean_scores": 1.0 * update, "judge/strict/mean": 0.5 * update}
        run.append_metrics(update, metrics | {"judge/遠い/mean": -1.0 * update, "reward/mood/mean": 0.1})
    gap = {"mean": 0.75, "low": 0.25, "high": 1.25, "level": 0.95, "wins": 3, "losses": 1, "ties": 0}
    best = [{"n": n, "kl": 0.6 * i, "score": 1.0 + i, "judges": {"strict": 0.1 * i}} for i, n in enumerate((1, 2, 4))]
    text = {"prompt": "p", "before": "b", "after": "a", "score_before": 0.0, "score_after": 1.0, "held_out": True}
    texts = [text | {"judges": {"strict": {"before": 7.25, "after": 8.5}}}]
    add_compare(run, texts, judges={"strict": {"before": 0.5, "after": 1.25, "difference": gap}, "遠い": {}}, best_of_n=best)
    return run


def landed(share: float = 0.5, target: float | None = 2.0, most: float = 1.5, **changed: Any) -> dict[str, Any]:
    """The line of a run whose KL is 8 times the square of the share, as land.json has it."""
    shares, gap = sorted({0.0, 0.5, 0.75, 1.0, share}), {"mean": 0.5, "low": 0.25, "high": 0.75}
    points = [{"share": x, "kl": 8 * x**2, "score": x, "difference": gap, "judges": {"strict": x / 2}, "length": 9.0,
               "distinct_2": 1 - x / 4, "repetition": 0.0} for x in shares]  # fmt: skip
    found: dict[str, Any] = {
        "version": 1, "target": target, "share": share, "kl": 8 * share**2, "end_kl": 8.0, "most": most, "samples": 2,
        "landed": target is not None and abs(8 * share**2 / target - 1) <= 0.1, "prompts": {"held_out": 0, "training": 64},
        "points": points, **changed,
    }  # fmt: skip
    return found | {"verdict": landing(found)}


def sft_run(root: Path, losses: list[float], name: str = "sft") -> RunDir:
    run = RunDir.create(root, name, SFT, seed=0)
    for i, loss in enumerate(losses):
        if i:
            run.append_metrics(4 * i, {"sft/loss": 3.0 - 0.1 * i, "sft/grad_norm": 1.0, "sft/learning_rate": 1e-4 / i})
        run.append_metrics(4 * i, {"eval/loss": loss, "eval/perplexity": math.exp(loss)})
    return run


def preference(train: int | None = 800) -> dict[str, Any]:
    rng = random.Random(0)
    records: list[Pair] = []
    for i in range(120):
        texts = ["x" * rng.randint(1, 40), "y" * rng.randint(1, 40)]
        for rater in ("ann", "bob"):
            one, other = texts if rng.random() < 0.8 else texts[::-1]
            records.append(Pair(f"p{i}", one, other, rater=rater, source="web" if i % 2 else None))
    made = groups(records)
    scores = [[rng.gauss(1 if text[0] == "x" else 0, 0.7) for text in group.responses] for group in made]
    shorter = [[-float(len(text)) for text in group.responses] for group in made]
    return evaluate_preferences(made, scores, train_comparisons=train, baselines={"text": shorter})


def classification(labels: list[str] = LABELS) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=90)
    said = rng.dirichlet([1, 1, 1], size=90) + 0.4 * np.eye(3)[truth]
    return evaluate_labels(truth.tolist(), said / said.sum(axis=1, keepdims=True), labels)


def score() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=60)
    return evaluate_scores(truth.tolist(), (truth + 0.5 * rng.normal(size=60)).tolist(), [str(i) for i in range(60)])


def scored_texts(count: int = 14) -> list[dict[str, Any]]:
    return [{"prompt": f"書き出し{i}", "response": f"応答{i}", "score": (5 * i) % count - 3.5} for i in range(count)]


def reward_run(
    root: Path, task: str = "preference", name: str = "run", config: dict[str, Any] = REWARD, **changed: Any
) -> RunDir:
    run = RunDir.create(root, name, config, seed=3, extra={"precision": "fp32", "verb": "reward"})
    for step in range(1, 13):
        run.append_metrics(step, {"epoch": step / 4, "train/loss": 0.7 - 0.03 * step, "train/learning_rate": 1e-5 / step})
        if step % 4 == 0:
            right = {} if task == "score" else {"eval/accuracy": 0.5 + 0.02 * step}
            run.append_metrics(step, {"epoch": step / 4, "eval/loss": 0.7 - 0.02 * step, **right})
    scale = {"mean": 1.5, "std": 0.75, "count": 64}
    held_out = {"preference": preference, "classification": classification, "score": score}[task]()
    result = {"version": 1, "task": task, "held_out": held_out, "normalisation": scale, "texts": scored_texts()}
    run.write_json("eval.json", result | changed)
    return run

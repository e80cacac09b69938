"""Guards on tiny runs: faults that are put in, with the update in which each is seen and what is said; and healthy runs.

    python benchmarks/guards.py [METRICS.jsonl ...]

Prints the table of docs/results.md. Further files are the metrics.jsonl of runs that went well: they are replayed, and no guard
may fire on them.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from konomi.errors import NotFiniteError
from konomi.statistics.variety import repeated_share
from konomi.training.guard import Alarm, Watch
from konomi.training.ppo import PPOTrainer
from tiny_run import tiny_trainer, without_dropout

UPDATES, BATCH = 40, 32
SEEDS = range(10)


class Scored:
    """A reward or judge: a number for each response."""

    def __init__(self, score: Callable[[str], float]) -> None:
        self.name, self.score = "tiny", score

    def __call__(self, texts: Any, *, prompts: Any, responses: Any, columns: Any) -> list[float]:
        return [float(self.score(response)) for response in responses]


def letters(response: str) -> float:
    return response.count("a")


def variety(response: str) -> float:
    return len(set(response) & set("aeiou"))


def trainer(
    reward: Callable[[str], float] = letters, *, judge: Callable[[str], float] | None = None, **changed: Any
) -> PPOTrainer:
    judges = {} if judge is None else {"sense": Scored(judge)}
    settings = {"episodes": UPDATES * BATCH, "batch_size": BATCH, "rollout": {"response_tokens": (8, 16)}}
    return tiny_trainer(reward=Scored(reward), judges=judges, **{**settings, **changed})


def without_limit(rate: float, **changed: Any) -> dict[str, Any]:
    return {"kl_coef": 0.0, "kl_controller": "fixed", "learning_rate": rate, "schedule": "constant", **changed}


def breaks_later() -> Callable[[str], float]:
    calls = iter(range(10**9))
    return lambda response: math.nan if next(calls) > 16 + 5 * BATCH else letters(response)


def broken(made: PPOTrainer, update: int) -> PPOTrainer:
    """A trainer whose weights have a NaN after so many updates."""
    prepare = made._prepare

    def breaking(number: int) -> Any:
        if number == update:
            with torch.no_grad():
                next(made.policy.lm.parameters())[5] = math.nan
        return prepare(number)

    made._prepare = breaking  # type: ignore[method-assign]
    return made


def sharp() -> Any:
    return without_dropout("gpt2", initializer_range=0.3)


FAULTS: dict[str, Callable[[], PPOTrainer]] = {
    "the reward is NaN from update 6 on": lambda: trainer(breaks_later()),
    "a weight is NaN before update 6": lambda: broken(trainer(), 5),
    "the learning rate is 100 times too high": lambda: trainer(learning_rate=0.1, value_learning_rate=1.0),
    "distance costs nothing, and the rate is high": lambda: trainer(**without_limit(1e-2)),
    "the same with no cap: entropy collapses": lambda: trainer(**without_limit(1e-2, kl_cap=1e9)),
    "the reward is the length": lambda: trainer(
        len, **without_limit(3e-3, kl_cap=1e9), rollout={"response_tokens": (60, 60), "stop": "eos"}
    ),
    "the reward counts repetition": lambda: trainer(
        lambda response: repeated_share(list(map(ord, response))), **without_limit(3e-3, kl_cap=1e9)
    ),
    "the value head hardly learns": lambda: trainer(value_learning_rate=1e-12),
    "the value head's rate is absurd": lambda: trainer(value_learning_rate=3.0),
    "the reward is the same for all texts": lambda: trainer(lambda _: 1.0),
    "the reward likes what a judge dislikes": lambda: trainer(judge=lambda r: -letters(r), **without_limit(1e-3)),
    "the reward likes what the model never writes": lambda: trainer(
        lambda r: -sum(r.count(c) for c in "etaoin "), model=sharp(), **without_limit(3e-3, kl_cap=1e9)
    ),
}  # fmt: skip


def watched(made: PPOTrainer) -> list[Alarm]:
    """All alarms of a run that goes on after each, but for a number that is not finite or a KL over the cap."""
    watch = Watch(made.ppo.batch_size, made.ppo.kl_cap)
    alarms: list[Alarm] = []
    try:
        for step in made:
            alarms += watch.see(step.update, step.metrics)
    except NotFiniteError as error:
        alarms.append(Alarm(made.update + 1, "not_finite", math.nan, 0.0, error.what))
    return alarms


def replayed(path: Path) -> list[Alarm]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    watch = Watch(lines[0]["episodes"], 30.0)
    return [alarm for line in lines for alarm in watch.see(line["update"], line)]


def main() -> None:
    print("| Fault | Seen in update: guard | What the first one says |\n| --- | --- | --- |")
    for name, make in FAULTS.items():
        alarms = watched(make())
        seen = ", ".join(f"{alarm.update}: `{alarm.guard}`" for alarm in alarms) or "never"
        print(f"| {name} | {seen} | {alarms[0].event('warned')['en'] if alarms else ''} |", flush=True)
    quiet = {f"seed {seed}": watched(trainer(variety, judge=len, seed=seed)) for seed in SEEDS}
    quiet |= {path: replayed(Path(path)) for path in sys.argv[1:]}
    for name, alarms in quiet.items():
        print(name, [(alarm.update, alarm.guard, alarm.value) for alarm in alarms] or "silent", flush=True)


if __name__ == "__main__":
    main()

"""Reward models that `konomi reward` trained, as rewards and judges of a PPO job: how good they are, and of what they know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from konomi.config import ModelReward, PPOJob, RewardConfig, SumReward
from konomi.files import local_path, model_path
from konomi.jobs.doctor.lines import Line, broken, look
from konomi.jobs.doctor.rewards import Floats
from konomi.reading import written_by_konomi
from konomi.runs.directory import RunDir
from konomi.text import number, percent, plural

LEVEL_OF_VERDICT = {"worse": broken, "chance": broken, "none": look, "few": look, "length": look, "text": look}
"""Verdict of `konomi.report.advice` -> what it means for a run; with others the model can be used."""


def check_reward_models(job: PPOJob) -> list[Line]:
    """Lines on each reward model of a job, from what its own run left beside it. Raises DataError if that is damaged."""
    lines = []
    for name, config in [("reward", job.reward), *((f"judge {name}", each) for name, each in job.judges.items())]:
        for model in _models(config):
            for each in model.names:
                lines += _check(name if len(model.names) == 1 else f"{name} {each}", model_path(each), model, job)
    return lines


def _models(config: RewardConfig) -> Iterator[ModelReward]:
    if isinstance(config, SumReward):
        for part in config.parts.values():
            yield from _models(part)
    elif isinstance(config, ModelReward):
        yield config


def _check(name: str, path: Path, config: ModelReward, job: PPOJob) -> list[Line]:
    if not (path.parent / "run.json").is_file():
        do = "its evaluation is not beside it: name the run that trained it (reward.name = RUN)"
        return [look(f"{name}: reward model", "nobody knows how good it is", do)]
    run = RunDir.open(path.parent)
    with written_by_konomi(run.path):
        lines = [quality(name, run.read_json("eval.json") or {}, _age(run.info))]
        if config.normalized and (others := _other_writers(run.config, job.model.name)):
            seen = f"its scale was measured on texts of {', '.join(others)}, and the job begins with {job.model.name}"
            do = "train it with normalize.samples of the model that begins (konomi sample)"
            lines.append(look(f"{name}: scale", seen, do))
    return lines


def quality(name: str, evaluation: Mapping[str, Any], age: str) -> Line:
    """A line on how good a reward model is, from its eval.json; ``age`` in words."""
    held_out = evaluation.get("held_out") or {}
    verdict, accuracy, checked = held_out.get("verdict"), held_out.get("accuracy"), f"{name}: reward model"
    if not held_out:
        return look(checked, "nobody knows how good it is: its run has no evaluation", "train it again, to the end")
    if not verdict or not accuracy:
        rank = (held_out.get("spearman") or {}).get("value")
        return Line(checked, f"rank correlation {number(rank)} on held-out texts{age}" if rank is not None else f"evaluated{age}")
    low, high = accuracy.get("low"), accuracy.get("high")
    between = f" ({percent(low)} to {percent(high)})" if low is not None and high is not None else ""
    seen = f"accuracy {percent(accuracy['value'])}{between} on {plural(held_out['prompts'], 'held-out prompt')}{age}"
    if (level := LEVEL_OF_VERDICT.get(verdict["grade"])) is None:
        return Line(checked, seen)
    return level(checked, seen, f"{verdict['en']} PPO finds whatever it overrates")


def _age(info: Mapping[str, Any]) -> str:
    """How long ago a run ended, in words."""
    if not info.get("ended"):
        return ""
    days = (datetime.now(timezone.utc) - datetime.fromisoformat(info["ended"])).days
    return f", {plural(days, 'day')} old" if days > 0 else ", of today"


def _other_writers(config: Mapping[str, Any], model: str) -> list[str]:
    """The models whose texts set a reward model's scale, if they are known and ``model`` is none of them."""
    samples = (config.get("normalize") or {}).get("samples")
    manifest = samples and RunDir(Path(samples).parent).read_json("manifest.json")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("models"), dict):
        return []
    chosen = config["normalize"].get("model")
    names = [each["name"] for name, each in manifest["models"].items() if chosen in (None, name)]
    return [] if _place(model) in map(_place, names) else names


def _place(name: str) -> str:
    """A model's name; of a directory its path."""
    path = local_path(name)
    return str(path.resolve()) if path.exists() else name


def check_scale(job: PPOJob, scores: Floats) -> list[Line]:
    """A line where a reward model's scale is not that of this job's initial model."""
    mean, std = float(scores.mean()), float(scores.std(ddof=1))
    on_its_scale = isinstance(job.reward, ModelReward) and job.reward.normalized and not job.reward.pessimism
    if not on_its_scale or (abs(mean) <= 1.5 and 0.3 <= std <= 3):
        return []
    seen = f"mean {number(mean)}, deviation {number(std)} on this model's texts, and 0 and 1 on those that it was scaled by"
    return [look("reward: scale", seen, "train the reward model with normalize.samples of the model that begins")]

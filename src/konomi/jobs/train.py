"""A whole PPO run from Python in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from konomi.config import ModelConfig, PPOConfig, PPOJob, RolloutConfig, Section, build
from konomi.errors import ConfigError
from konomi.jobs.inputs import resumed_run
from konomi.jobs.ppo import run_ppo
from konomi.jobs.prepare import job_of
from konomi.rewards import reward_config
from konomi.rewards.function import IMPORTING
from konomi.runs.environment import settle_processes
from konomi.runs.observer import Observer

_FLAT: dict[str, type[Section]] = {"ppo": PPOConfig, "rollout": RolloutConfig}
"""Sections whose settings are given by their own names."""


def train(
    model: str | Path | ModelConfig | Mapping[str, Any],
    prompts: str | Path | Iterable[Any],
    reward: Any,
    *,
    out: str | Path = "runs",
    resume: str | Path | None = None,
    observer: Observer | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train a model with PPO toward a reward, compare it before and after, and write a run directory.

    >>> def polite(responses):
    ...     return [response.count("please") for response in responses]
    >>> result = konomi.train("Qwen/Qwen3-0.6B", "prompts.jsonl", polite, episodes=512)  # doctest: +SKIP
    >>> result["model"], result["compare"]["difference"]  # doctest: +SKIP

    Args:
        model: a hub name, a directory, a .gguf file, ``embedded:...``, or the settings of ``[model]``.
        prompts: a list of strings or of rows with a ``text`` (a ``datasets.Dataset`` too); or a file, a hub data set's name or
            ``embedded:...``. A fifth of them is held out for the before/after.
        reward: a function that is called with the lists it names, out of ``texts``, ``prompts``, ``responses`` and the prompts'
            other columns, and returns one number a text; or ``"file.py:function"``, ``"embedded:asari"``, the directory of a
            reward model, a classifier's name, ``"http://..."``, or the settings of ``[reward]``.
        out: the directory that holds the runs.
        resume: the directory of a run to continue, with the same model, prompts and reward; it keeps its settings.
        observer: gets its progress; by default the command line's table.
        settings: those of ``[ppo]`` and ``[rollout]`` by their names (``episodes=512, response_tokens=(8, 16)``), those of other
            sections as a dict (``compare={"samples": 3}``).

    Returns:
        What ``konomi ppo --json`` prints: ``run``, ``model``, ``report``, ``compare`` and more.

    Raises:
        ConfigError, DataError, ModelError: an input is not usable; nothing was written.
        RunError: the run failed; its directory says why.
        KeyboardInterrupt: Ctrl-C stopped it after the update under way, or a second one at once; if the updates had begun, it
            says how to go on.
    """
    from konomi.runs.console import make_observer

    settle_processes("konomi.train", several=True)
    if IMPORTING:
        raise ConfigError(
            f"{IMPORTING[-1]}: it calls konomi.train when its function is imported; put that call under "
            'if __name__ == "__main__":'
        )
    named = isinstance(prompts, str | Path)
    job = _job(model, str(prompts) if named else None, reward, settings)
    if resume is not None:
        job = _resumed(Path(resume), job, named, settings)
    try:
        return run_ppo(
            job, out, observer or make_observer(), None if resume is None else Path(resume),
            prompts=None if isinstance(prompts, str | Path) else prompts, reward=reward,
        )  # fmt: skip
    except KeyboardInterrupt as stopped:  # its traceback would show where in konomi it struck, which helps nobody
        raise KeyboardInterrupt(*stopped.args) from None


def _job(model: Any, prompts: str | None, reward: Any, settings: Mapping[str, Any]) -> PPOJob:
    data: dict[str, Any] = {
        "model": {"name": str(model)} if isinstance(model, str | Path) else dict(model),
        "reward": reward_config(reward).model_dump(),
        "data": {} if prompts is None else {"prompts": prompts},
    }
    for name, value in settings.items():
        section = next((section for section, kind in _FLAT.items() if name in kind.model_fields), None)
        if section is not None:
            data.setdefault(section, {})[name] = value
        elif name in PPOJob.model_fields and isinstance(value, Mapping):
            data[name] = {**data.get(name, {}), **value}
        else:
            raise ConfigError(f"{name}: not a setting of [ppo] or [rollout], nor a section given as a dict; see docs/config.md")
    return build(PPOJob, data, where="konomi.train")


def _resumed(run: Path, wanted: PPOJob, named: bool, settings: Mapping[str, Any]) -> PPOJob:
    """The job of a run to continue. Raises ConfigError if it began with another model, reward or prompts' name."""
    if settings:
        raise ConfigError(f"{', '.join(settings)}: a resumed run keeps its settings; leave them out, or start a new run")
    job = job_of(resumed_run(run, "ppo", []))
    pairs: list[tuple[str, Any, Any]] = [("model", job.model.name, wanted.model.name), ("reward", job.reward, wanted.reward)]
    pairs += [("prompts", job.data.prompts, wanted.data.prompts)] if named else []
    for section, then, now in pairs:
        if then != now:
            raise ConfigError(f"{run}: began with {section} {then!r}, not {now!r}; a resumed run goes on as it began")
    return job

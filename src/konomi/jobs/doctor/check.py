"""What `konomi doctor` is given: a job file of any verb, a pipeline, or the directory of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from konomi.config import VERBS, PPOJob, Section, build
from konomi.config.pipeline import verb_of
from konomi.config.section import read_toml
from konomi.errors import ConfigError
from konomi.jobs.doctor.lines import Line, result_of
from konomi.jobs.doctor.runs import examine_run
from konomi.runs.observer import Observer


def examine(given: Path, observer: Observer, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Examine a job before it runs, or a run; return what ``--json`` prints. Nothing is written.

    Args:
        given: a job file, or the directory of a run.
        observer: told what takes time.
        overrides: settings of the job, ``section.key=value``.

    Returns:
        ``subject``, ``verb``; how many lines are ``broken``, ``look`` and ``fine``; ``lines``, the most important first, each
        with ``checked``, ``seen``, ``do`` and ``level``. Of a PPO job that fits: ``seconds`` it takes, ``gigabytes`` it needs, and
        ``plan``, GB by what could be changed.

    Raises:
        ConfigError, DataError, ModelError: the job cannot be read, or the run would refuse it; the run is damaged.
    """
    if given.is_dir():
        if overrides:
            raise ConfigError(f"--set {overrides[0]}: the settings of a run are what they were; give its job file")
        verb, lines = examine_run(given)
        return result_of(str(given), verb, lines)
    data = read_toml(given)
    verb = verb_of(data)
    if verb == "run":
        raise ConfigError(f"{given}: a pipeline")
    job = build(VERBS[verb].job, data, overrides, where=str(given))
    lines, figures = _examined(job, observer)
    return result_of(str(given), verb, lines, **figures)


def _examined(job: Section, observer: Observer) -> tuple[list[Line], dict[str, Any]]:
    if isinstance(job, PPOJob):
        from konomi.jobs.doctor.ppo import examine_ppo

        return examine_ppo(job, observer)
    return [], {}

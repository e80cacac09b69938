"""`konomi blend`: another place of a finished run's line, as a model of its own.

Of several runs the trained weights are their mean (model soups, Wortsman et al. 2022, arXiv:2203.05482; of policies: WARP, Rame
et al. 2024, arXiv:2406.16768): what the runs have learnt in common stays, their noise averages out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from konomi.config import LandConfig, PPOJob
from konomi.engine.device import autocast, find_device
from konomi.errors import ConfigError, DataError
from konomi.files import new_directory, plain
from konomi.jobs.land import Dial
from konomi.jobs.prepare import job_of, models_of, prepare
from konomi.models.load import load_causal_lm
from konomi.models.lora import ADAPTER_FILE, adapter_weights
from konomi.models.policy import Policy
from konomi.models.trim.trim import check_out
from konomi.report.model_card import NAME, blend_card
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer
from konomi.training.checkpoint_files import load_weights

FILE = "blend.json"
"""In the directory of a blend: what land.json is in a run."""
ENDS = (0.0, 1.0)


def blend_runs(
    paths: Sequence[Path], out: Path | None, land: LandConfig, share: float | None, observer: Observer
) -> dict[str, Any]:
    """Write the model at ``land.kl``, or at ``share``, of the line through the initial and the trained weights of a run.

    Args:
        paths: the run; of several, which have to be alike, the mean of their trained weights is taken, and the first one's
            prompts, reward and settings.
        out: the directory to write; None: ``blend-kl-4`` and the like in the first run.
        land: KL, and how it is measured.
        share: instead of a KL.
        observer: gets its progress.

    Returns:
        What `FILE` holds (of several runs also ``runs``), with ``run``, the first one, and ``model``, the directories.

    Raises:
        ConfigError: the KL is out of reach; another verb's run; runs that are not alike, or that have adapters; what the first
            run began with has changed.
        DataError, ModelError: no run, no model in it, no initial model; ``out`` is there already.
    """
    runs = [RunDir.open(path) for path in paths]
    for each in runs:
        each.check_verb("ppo")
    jobs = [job_of(each) for each in runs]
    run, job = runs[0], jobs[0]
    out = out or run.path / (f"blend-share-{share:g}" if share is not None else f"blend-kl-{land.kl:g}")
    check_out(out)
    _check_alike(runs, jobs)
    ends = [_end_of(*each) for each in zip(runs, jobs, strict=True)]
    ready = prepare(job, observer, run)
    policy, reference = models_of(job, ready.loaded)
    if ready.precision == "fp64":
        policy.double()
        reference.double()
    _load_ends(policy, job, ends, observer)
    device = find_device()
    policy.to(device)
    dial = Dial(
        policy, reference.to(device), job, ready, land, partial(autocast, device, ready.precision), observer.progress
    )  # fmt: skip
    landing = dial.put_at(1.0 if share is None else share) if land.kl is None else dial.land_at(land.kl, ENDS)
    if land.kl is not None and not landing["landed"]:
        raise ConfigError(f"--kl {land.kl:g}: {landing['verdict']['en']}")
    landing |= {"runs": [str(each.path) for each in runs]} if len(runs) > 1 else {}
    with new_directory(out) as draft:
        policy.save_lm(draft)
        ready.tokens.tokenizer.save_pretrained(draft)
        (draft / FILE).write_text(json.dumps(plain(landing), indent=2), encoding="utf-8")
        (draft / NAME).write_bytes(blend_card(run, landing))
    return {"run": str(run.path), "model": str(out), **landing}


def _end_of(run: RunDir, job: PPOJob) -> Path:
    """The directory of a run's trained weights. Raises DataError if there is none."""
    end = run.end if run.end.is_dir() else run.adapter if job.lora.rank else run.model
    if not (end / (ADAPTER_FILE if job.lora.rank else "config.json")).is_file():
        raise DataError(f"{end}: no model there yet; the run has to end first ({run.info['status']})")
    return end


def _check_alike(runs: Sequence[RunDir], jobs: Sequence[PPOJob]) -> None:
    """Raise ConfigError unless several runs began with the same model and trained the same weights of it, without adapters."""
    if len(runs) == 1:
        return
    first = _origin(runs[0], jobs[0])
    for i, (run, job) in enumerate(zip(runs, jobs, strict=True)):
        if any(run.path.samefile(other.path) for other in runs[:i]):
            raise ConfigError(f"{run.path}: named twice; name each run once")
        if job.lora.rank:
            raise ConfigError(
                f"{run.path}: lora.rank = {job.lora.rank}: the mean of adapters' B and of their A is not the mean of their "
                "products B A; blend runs with adapters one by one"
            )
        for what, own in _origin(run, job).items():
            if own != first[what]:
                raise ConfigError(
                    f"{run.path}: {what} is {own or 'not set'}, and {first[what] or 'not set'} in {runs[0].path}. A mean is of "
                    "runs that began with the same model and trained the same weights of it; blend this run alone"
                )


def _origin(run: RunDir, job: PPOJob) -> dict[str, Any]:
    """What runs have to have in common for a mean of their weights."""
    info, model = run.info, job.model
    noted = (info.get("inputs") or {}).get("model.name", {})
    return {
        "the initial model": info.get("model_revision") or noted.get("sha256") or noted.get("commit") or model.name,
        "model.freeze": model.freeze, "model.top_layers": model.top_layers, "ppo.weights": job.ppo.weights,
    }  # fmt: skip


def _load_ends(policy: Policy, job: PPOJob, ends: Sequence[Path], observer: Observer) -> None:
    """Give a policy that is at the initial weights the trained ones, or the mean of several."""
    if adapter_weights(policy.lm):
        load_weights(policy, ends[0])
        return
    trained = [job.model.model_copy(update={"name": str(end), "revision": None}) for end in ends]
    mean = load_causal_lm(trained[0], progress=observer.say).model
    for count, each in enumerate(trained[1:], 2):
        _take_in(mean, load_causal_lm(each, progress=observer.say).model, count)
    policy.lm.load_state_dict(mean.state_dict())


@torch.no_grad()
def _take_in(mean: nn.Module, model: nn.Module, count: int) -> None:
    """Make a mean of ``count`` - 1 models, in float32, that of ``count``, in place."""
    for x, each in zip(mean.parameters(), model.parameters(), strict=True):
        x.lerp_(each, 1 / count)

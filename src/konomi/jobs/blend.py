"""`konomi blend`: another place of a finished run's line, as a model of its own."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

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
from konomi.training.checkpoints import load_weights

FILE = "blend.json"
"""In the directory of a blend: what land.json is in a run."""
ENDS = (0.0, 1.0)


def blend_run(path: Path, out: Path | None, land: LandConfig, share: float | None, observer: Observer) -> dict[str, Any]:
    """Write the model at ``land.kl``, or at ``share``, of the line through a run's initial and trained weights.

    Args:
        path: the run.
        out: the directory to write; None: ``blend-kl-4`` and the like in the run.
        land: KL, and how it is measured.
        share: instead of a KL.
        observer: told how it goes.

    Returns:
        What `FILE` holds, with ``run`` and ``model``, the directories.

    Raises:
        ConfigError: the KL is out of reach; another verb's run; what the run began with has changed.
        DataError, ModelError: no run, no model in it, no initial model; ``out`` is there already.
    """
    run = RunDir.open(path)
    run.check_verb("ppo")
    job = job_of(run)
    out = out or run.path / (f"blend-share-{share:g}" if share is not None else f"blend-kl-{land.kl:g}")
    check_out(out)
    end = _end_of(run, job)
    ready = prepare(job, observer, run)
    policy, reference = models_of(job, ready.loaded)
    _load_end(policy, job, end, observer)
    device = find_device()
    policy.to(device)
    dial = Dial(
        policy, reference.to(device), job, ready, land, partial(autocast, device, ready.precision), observer.progress
    )  # fmt: skip
    found = dial.put_at(1.0 if share is None else share) if land.kl is None else dial.land_at(land.kl, ENDS)
    if land.kl is not None and not found["landed"]:
        raise ConfigError(f"--kl {land.kl:g}: {found['verdict']['en']}")
    with new_directory(out) as draft:
        policy.save_lm(draft)
        ready.tokens.tokenizer.save_pretrained(draft)
        (draft / FILE).write_text(json.dumps(plain(found), indent=2), encoding="utf-8")
        (draft / NAME).write_bytes(blend_card(run, found))
    return {"run": str(run.path), "model": str(out), **found}


def _end_of(run: RunDir, job: PPOJob) -> Path:
    """The directory of a run's trained weights. Raises DataError if there is none."""
    end = run.end if run.end.is_dir() else run.adapter if job.lora.rank else run.model
    if not (end / (ADAPTER_FILE if job.lora.rank else "config.json")).is_file():
        raise DataError(f"{end}: no model there yet; the run has to end first ({run.info['status']})")
    return end


def _load_end(policy: Policy, job: PPOJob, end: Path, observer: Observer) -> None:
    """Give a policy that is at the initial weights the trained ones."""
    if adapter_weights(policy.lm):
        load_weights(policy, end)
        return
    trained = job.model.model_copy(update={"name": str(end), "revision": None})
    policy.lm.load_state_dict(load_causal_lm(trained, progress=observer.say).model.state_dict())

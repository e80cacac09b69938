"""This machine and a PPO job: whether it fits, how long it takes, in which precision, by which versions."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from konomi.config import FunctionReward, HttpReward, ModelConfig, ModelReward, PPOJob, RewardConfig, SumReward
from konomi.engine.device import MICRO_BATCH_TOKENS, choose_precision, is_processor
from konomi.engine.memory import Setting, Shape, gigabytes, parts, shape_of
from konomi.errors import ModelError
from konomi.files import model_path
from konomi.jobs.doctor.lines import Line, broken, look
from konomi.jobs.land import WHOLE_DIAL
from konomi.models.embedded import embedded_model, gguf_model
from konomi.models.find import adapter_settings, find_files
from konomi.models.load import explained, quiet
from konomi.runs import environment
from konomi.text import percent, plural

LIBRARIES = 1.0
"""GB of a process beside its tensors."""
KEPT, KEPT_ON_GPU = 1.5, 1.2
"""Factor on the memory of a process's tensors, as its allocator keeps freed blocks (docs/results.md#memory)."""
AS_IS = "as it is"
CHANGES: dict[str, dict[str, Any]] = {
    "model.gradient_checkpointing = true": {"recompute": True},
    'ppo.optimizer = "adam8"': {"adam8": True},
    'model.freeze = "embeddings"': {"frozen_embeddings": True},
    "lora.rank = 16": {"rank": 16, "top_layers": None, "frozen_embeddings": False},
    "model.top_layers = 2": {"top_layers": 2, "rank": None},
    'lora.rank = 16, ppo.weights = "bf16"': {"rank": 16, "top_layers": None, "frozen_embeddings": False, "half": True},
    'lora.rank = 16, lora.quantize = "nf4", ppo.weights = "bf16"': {
        "rank": 16, "top_layers": None, "frozen_embeddings": False, "half": True, "four_bits": True,
    },
}  # fmt: skip
"""Settings that reduce the memory of a job, from the smallest change to the largest."""
DAY = 86_400


def shape_before_loading(config: ModelConfig, say: Callable[[str], None]) -> Shape:
    """The shape of a model whose files are at hand, of which only the configuration is read.

    Raises:
        ModelError: there is no such model, or it cannot be reached or read.
    """
    path = model_path(config.name, ModelError)
    if config.revision is None and (adapter := adapter_settings(path)) is not None:
        return shape_before_loading(config.model_copy(update={"name": adapter["base_model_name_or_path"]}), say)
    if config.name.startswith("embedded:"):
        files = embedded_model(config.name.removeprefix("embedded:"), say).path
    else:
        files = gguf_model(path, say).path if path.suffix == ".gguf" else find_files(config.name, config.revision, say)[0]
    trust = config.trust_remote_code
    with explained(config.name, "config"), torch.device("meta"), quiet():
        described = AutoConfig.from_pretrained(files, trust_remote_code=trust)
        return shape_of(AutoModelForCausalLM.from_config(described, trust_remote_code=trust))


def setting_of(job: PPOJob, precision: str, query: int) -> Setting:
    """What the memory of a job depends on; ``query``: tokens of its longest query."""
    length, ppo = query + job.rollout.response_tokens[1], job.ppo
    tokens = max(length, min(ppo.micro_batch_tokens or MICRO_BATCH_TOKENS, ppo.mini_batch_size * length))
    return Setting(
        top_layers=job.model.top_layers, rank=job.lora.rank, frozen_embeddings=job.model.freeze == "embeddings",
        half=ppo.weights == "bf16", four_bits=job.lora.quantize == "nf4", adam8=ppo.optimizer == "adam8",
        recompute=job.model.gradient_checkpointing, copies=precision == "bf16", tokens=tokens, responses=ppo.batch_size,
        length=length, cache_gb=job.rollout.cache_gb or 2.0,
    )  # fmt: skip


def plan(shape: Shape, setting: Setting, beside: float, device: torch.device) -> dict[str, float]:
    """GB of a job `AS_IS`, and with each change that makes it smaller. ``beside``: GB of what is not the policy."""

    def need(one: Setting) -> float:
        loading = 4 * shape.weights / 1e9 if is_processor(device) else 0.0  # weights are read in float32
        return max(gigabytes(shape, one), loading) + beside

    needs = {AS_IS: need(setting)}
    for words, change in CHANGES.items():
        if "rank" not in change or setting.rank is None or "half" in change:
            needs[words] = need(replace(setting, **change))
    return {words: each for words, each in needs.items() if words == AS_IS or each < 0.95 * needs[AS_IS]}


def check_memory(needs: dict[str, float], free: int, device: torch.device) -> Line:
    """A line on whether a job fits, from its `plan`. ``free``: bytes, 0 if the system does not tell."""
    where = "free memory of this machine" if is_processor(device) else "free memory of the GPU"
    need, have, kept = needs[AS_IS], free / 1e9, KEPT if is_processor(device) else KEPT_ON_GPU
    seen = f"about {need:.1f} GB of {have:.1f} GB {where}"
    if not free:
        return Line("memory", f"about {need:.1f} GB; how much is free here, the system does not tell")
    fitting = [f"{words} ({each:.1f} GB)" for words, each in needs.items() if words != AS_IS and each * kept <= have]
    do = f"it fits with {fitting[0]}" if fitting else ""
    if fitting and (lora := [each for each in fitting[1:] if each.startswith("lora")]):
        do += f", or {lora[0]}"
    if need > have:
        return broken("memory", f"{seen}: it does not fit", do or "take a smaller model, or a machine with more memory")
    if need * kept > have:
        do = do or "close what else is running"
        return look("memory", f"{seen}: tight, since freed blocks are kept for reuse", do)
    return Line("memory", f"{seen}: it fits")


def reward_gb(config: RewardConfig) -> float:
    """GB of the files of a reward's models, as far as they are here."""
    if isinstance(config, SumReward):
        return sum(map(reward_gb, config.parts.values()))
    if isinstance(config, FunctionReward | HttpReward):
        return 0.0
    names = config.names if isinstance(config, ModelReward) else () if config.name.startswith("embedded:") else (config.name,)
    return sum(each.stat().st_size for name in names for each in model_path(name).glob("*.safetensors")) / 1e9


def check_disk(shape: Shape, setting: Setting, keep: int, lands: bool) -> Line:
    """A line on room for a run's checkpoints, and its model, where the command was called. ``lands``: what was trained, all
    weights or adapters, is kept beside the model."""
    each = parts(shape, setting)
    end = 4 * shape.adapters(setting.rank) if setting.rank else each["weights"]
    need = (each["weights"] + lands * end + (keep + 1) * (each["weights"] + each["Adam"])) / 1e9
    have = shutil.disk_usage(Path.cwd()).free / 1e9
    what = "the model, before and after it lands" if lands else "the model"
    seen = f"{need:.1f} GB for {plural(keep + 1, 'checkpoint')} and {what}; {have:.0f} GB are free"
    if need > have:
        return broken("disk", seen, "free some, or give --out on another disk")
    return Line("disk", seen)


@dataclass(frozen=True)
class Pace:
    """Seconds of a job, as measured on a piece of it."""

    rollout: float
    """A response."""
    reward: float
    """A text, judges included."""
    score: float
    """Log-probabilities of a response."""
    step: float
    """An optimiser step."""

    def update(self, job: PPOJob) -> float:
        """Seconds of an update."""
        ppo = job.ppo
        steps = ppo.batch_size // ppo.mini_batch_size * ppo.epochs
        return ppo.batch_size * (self.rollout + self.reward + self.score) + steps * self.step

    def around(self, job: PPOJob, held_out: int) -> float:
        """Seconds of what is before, between and after the updates."""
        prompts, compare = min(held_out, job.compare.prompts), job.compare
        texts = 2 * (prompts * compare.samples + len(compare.extra))
        drawn = job.ppo.baseline_samples + texts + compare.best_of * prompts
        every = job.evaluation.interval(job.ppo.updates)
        on_the_way = job.ppo.updates // every * min(held_out, job.evaluation.prompts) * job.evaluation.samples if every else 0
        places = len(WHOLE_DIAL) + 2 if job.land.kl is not None else 0  # as a rule
        landing = places * job.land.prompts * job.land.samples
        asked = drawn + on_the_way + landing
        return asked * (self.rollout + self.reward) + (1.5 * texts + on_the_way + 2 * landing) * self.score


def check_time(job: PPOJob, pace: Pace, held_out: int) -> list[Line]:
    """Lines on how long a job takes, and on the reward's part in it."""
    update, around = pace.update(job), pace.around(job, held_out)
    total = job.ppo.updates * update + around
    share = job.ppo.batch_size * pace.reward / update
    each = f"{update:.2g} s" if update < 99 else about(update).removeprefix("about ")
    seen = f"{about(total)}: {plural(job.ppo.updates, 'update')} of {each}, what is around them {about(around)}"
    do = 'train less of the model (lora.rank, model.top_layers, model.freeze = "embeddings"), or shorter texts, or on a GPU'
    slow = f"{pace.reward:.2g} s a text, {percent(share)} of an update"
    return [
        look("time", seen, do) if total > 7 * DAY else Line("time", seen),
        look("speed of the reward", slow, "let it score many texts at once: it gets the whole batch") if share > 0.5
        else Line("speed of the reward", slow),
    ]  # fmt: skip


def about(seconds: float) -> str:
    """A time in words.

    >>> about(42), about(2400), about(9000), about(300_000)
    ('about 42 s', 'about 40 minutes', 'about 2.5 hours', 'about 3.5 days')
    """
    units = (("s", 1, 100), ("minutes", 60, 6000), ("hours", 3600, 2 * DAY), ("days", DAY, math.inf))
    unit, length = next((unit, length) for unit, length, most in units if seconds < most)
    return f"about {seconds / length:.{0 if length < 3600 else 1}f} {unit}"


def check_precision(job: PPOJob, precision: str, device: torch.device) -> Line:
    """A line on the precision of products."""
    hardware = choose_precision("auto", device)
    chosen = "chosen for this machine" if job.model.precision == "auto" else "as set"
    has = "bf16 in hardware" if hardware == "bf16" else "no bf16 in hardware"
    seen = f"{precision}, {chosen}; {device.type} with {has}"
    if precision == "bf16" and hardware != "bf16":
        return look("precision", seen, 'set model.precision = "auto": bf16 is slower than fp32 here')
    return Line("precision", seen)


def check_versions() -> Line:
    """A line on what runs it; packages that a job needs beyond these were looked for when it was read."""
    versions = environment.versions()
    shown = ("konomi", "python", "torch", "transformers", "accelerate")
    named = ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
    return Line("versions", f"{named}; {plural(torch.get_num_threads(), 'thread')} on {plural(os.cpu_count() or 1, 'core')}")

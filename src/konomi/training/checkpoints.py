"""Checkpoints: what is in one, and which of a run are kept.

A checkpoint is a directory of safetensors and JSON, never a pickle: opening one runs no code. It is written under another
name and renamed, so that a kill leaves the previous one complete.
"""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from konomi.errors import RunError
from konomi.files import new_directory, writing
from konomi.models.lora import ADAPTER_FILE, adapted_layers, adapter_weights
from konomi.models.policy import VALUE_HEAD_FILE, Policy
from konomi.training.experience import ScoreScale
from konomi.training.optimizers import expected_state, set_state, state_of

STATE_FILE, OPTIMIZER_FILE, RANDOM_FILE = "trainer.json", "optimizer.safetensors", "random.safetensors"


class Checkpoints:
    """The checkpoints of a run. One is *good* once the KL of its policy was measured to be under the cap."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep

    def all(self) -> list[tuple[int, Path]]:
        """(update, path), oldest first."""
        paths = self.directory.glob("update-*") if self.directory.is_dir() else iter(())
        numbered = ((path.name.removeprefix("update-"), path) for path in paths)
        return sorted((int(number), path) for number, path in numbered if re.fullmatch("[0-9]+", number))

    def load_newest(self, load: Callable[[Path], None], warn: Callable[[str], None]) -> int | None:
        """Load the newest complete checkpoint and return its update; None: there are no checkpoints.

        Raises:
            RunError: there are some, and none is complete.
        """
        saved = self.all()
        for left, (update, path) in zip(reversed(range(len(saved))), reversed(saved), strict=True):
            try:
                load(path)
                return update
            except RunError as error:
                if left == 0:
                    raise RunError(f"{error}. No complete checkpoint is left in {self.directory}") from error
                warn(f"{error}. The one before it is tried")
        return None

    def save(self, update: int, save: Callable[[Path], None]) -> None:
        """Have ``save`` write the checkpoint of an update."""
        with writing(self.directory):
            self.directory.mkdir(exist_ok=True)
            for left in self.directory.glob(".update-*"):  # of a save that was killed
                shutil.rmtree(left)
        save(self.directory / f"update-{update:05d}")  # replaces a damaged one

    def prune(self, measured: int) -> None:
        """Keep the newest good ones and all that are newer; the policy after update ``measured`` - 1 is good."""
        good = [path for update, path in self.all() if update < measured]
        for path in good[: -self.keep]:
            shutil.rmtree(path)

    def drop_from(self, update: int) -> None:
        """Remove the checkpoints of ``update`` and later: their policy is over the KL cap."""
        for number, path in self.all():
            if number >= update:
                shutil.rmtree(path)


def save_checkpoint(directory: Path, policy: Policy, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Write policy (with adapters: them alone), value head, optimiser, random states and ``state``, that of the trainer."""
    moments = {
        f"{name}/{key}": torch.as_tensor(value).contiguous()
        for name, parameter in policy.named_parameters()
        for key, value in state_of(optimizer, parameter).items()
    }
    with new_directory(directory) as draft:
        if adapted_layers(policy.lm):
            policy.save_adapter(draft)
        else:
            policy.save(draft, own_names=True)
        save_file(moments, draft / OPTIMIZER_FILE)
        save_file(random_state(), draft / RANDOM_FILE)
        (draft / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")


def load_checkpoint(directory: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore a checkpoint and return its ``state``. All of it is read and checked before anything is changed.

    Raises:
        RunError: it is not a complete checkpoint of this model; nothing was changed.
    """
    try:
        state: dict[str, Any] = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
        _check_state(state)
        weights = _read_weights(policy, directory)
        moments = _read_file(directory / OPTIMIZER_FILE)
        _check_tensors(OPTIMIZER_FILE, moments, _expected_moments(policy, optimizer, moments))
        states = _read_file(directory / RANDOM_FILE)
        _check_tensors(RANDOM_FILE, states, random_state())
        _set_random_state(states)  # first: their values may be refused
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RuntimeError, RunError) as error:
        raise RunError(f"{directory}: not a complete checkpoint of this model: {error}") from error
    _set_weights(policy, *weights)
    parameters = dict(policy.named_parameters())
    optimizer.state.clear()
    kept: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in moments.items():
        name, _, key = full_name.rpartition("/")
        kept.setdefault(name, {})[key] = tensor
    for name, each in kept.items():
        set_state(optimizer, parameters[name], each)
    return state


def _check_state(state: Any) -> None:
    """Raise KeyError, TypeError or ValueError if this is not what :meth:`konomi.PPOTrainer.state_dict` gives."""
    scale = ScoreScale(**state["score_scale"])
    counters = all(type(state[name]) is int and state[name] >= 0 for name in ("update", "seed"))
    if not counters or not all(map(math.isfinite, (state["kl_coef"], scale.mean, scale.std))):
        raise ValueError(f"{STATE_FILE}: not the state of a PPO run")


def load_weights(policy: Policy, directory: Path) -> None:
    """Load the language model and the value head out of a checkpoint.

    Raises:
        RunError: they are damaged, or of another model; the policy is unchanged.
    """
    _set_weights(policy, *_read_weights(policy, directory))


def _read_weights(policy: Policy, directory: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the language model, or of its adapters, and of the value head, checked."""
    adapter = adapter_weights(policy.lm)
    pattern = ADAPTER_FILE if adapter else "model*.safetensors"
    files = sorted(directory.glob(pattern))
    if not files:
        raise RunError(f"{directory}: no {pattern} there")
    weights = {name: tensor for file in files for name, tensor in _read_file(file).items()}
    head = _read_file(directory / VALUE_HEAD_FILE)
    _check_tensors("the weights", weights, adapter or policy.lm.state_dict(), set(policy.lm.all_tied_weights_keys))
    _check_tensors(VALUE_HEAD_FILE, head, policy.value_head.state_dict())
    return weights, head


@torch.no_grad()
def _set_weights(policy: Policy, weights: dict[str, Tensor], head: dict[str, Tensor]) -> None:
    if adapter := adapter_weights(policy.lm):
        for name, parameter in adapter.items():
            parameter.copy_(weights[name])
    else:
        policy.lm.load_state_dict(weights, strict=False)  # a tied weight is there once
    policy.value_head.load_state_dict(head)


def _expected_moments(policy: Policy, optimizer: Any, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the optimiser keeps of the trained parameters that ``moments`` are of; before its first step it keeps nothing."""
    stepped = {full_name.rpartition("/")[0] for full_name in moments}
    expected: dict[str, Tensor] = {}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and name in stepped:
            expected |= {f"{name}/{key}": value for key, value in expected_state(optimizer, parameter).items()}
    return expected


def _check_tensors(
    what: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], may_lack: AbstractSet[str] = frozenset()
) -> None:
    """Raise RunError unless ``tensors`` have the names, shapes and types of ``expected``."""
    other = f"{what}: of another model or damaged:"
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors and name not in may_lack:
            raise RunError(f"{other} {name} is missing")
        if name not in expected:
            raise RunError(f"{other} {name} is unknown")
        if name in tensors and (tensors[name].shape, tensors[name].dtype) != (expected[name].shape, expected[name].dtype):
            kinds = (f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}" for x in (tensors[name], expected[name]))
            raise RunError(f"{other} {name} is {next(kinds)}, should be {next(kinds)}")


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error


def random_state() -> dict[str, Tensor]:
    """The global random states, for reward functions that draw from them; konomi itself draws from named streams."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = cast(tuple[str, Any, int, int, float], np.random.get_state(legacy=True))
    return {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_rest": torch.tensor([version, float("nan") if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
    }


def _set_random_state(state: Mapping[str, Tensor]) -> None:
    """Set all of them, or none. Raises ValueError and its like for values that cannot be a state."""
    version, gauss = state["python_rest"].tolist()
    position, has_gauss, cached = state["numpy_rest"].tolist()
    before = random.getstate(), np.random.get_state()
    try:
        random.setstate((int(version), tuple(state["python"].tolist()), None if gauss != gauss else gauss))
        np.random.set_state(("MT19937", state["numpy"].numpy().astype(np.uint32), int(position), int(has_gauss), cached))
        torch.set_rng_state(state["torch"])
    except BaseException:
        random.setstate(before[0])
        np.random.set_state(before[1])
        raise

"""The policy and its optimiser on whatever machine there is, by Accelerate; and their checkpoints.

A checkpoint is a directory of safetensors and JSON, never a pickle: opening one runs no code. It is written under another
name and renamed, so that a kill leaves the previous one whole.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from konomi import ops
from konomi.engine.device import autocast, manage_memory
from konomi.errors import RunError
from konomi.files import new_directory
from konomi.models.policy import VALUE_HEAD_FILE, Policy

STATE_FILE, OPTIMIZER_FILE, RANDOM_FILE = "trainer.json", "optimizer.safetensors", "random.safetensors"


@dataclass
class Sums:
    """Means over everything that any process saw, each a sum and the count of what was summed; and maxima."""

    totals: dict[str, tuple[float, float]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add to the mean ``name``."""
        old_total, old_count = self.totals.get(name, (0.0, 0.0))
        self.totals[name] = (old_total + float(total), old_count + float(count))

    def most(self, name: str, value: float) -> None:
        """Raise the maximum ``name``; a NaN stays."""
        old = self.maxima.get(name)
        self.maxima[name] = value if old is None or value != value or value > old else old

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The means and the maxima over all processes."""
        pairs = torch.tensor(list(self.totals.values()), dtype=torch.float64, device=accelerator.device)
        pairs = accelerator.reduce(pairs, reduction="sum")
        means = {name: total / count if count else 0.0 for name, (total, count) in zip(self.totals, pairs.tolist(), strict=True)}
        maxima = torch.tensor([list(self.maxima.values())], dtype=torch.float64, device=accelerator.device)
        return means | dict(zip(self.maxima, accelerator.gather(maxima).amax(0).tolist(), strict=True))


class Engine:
    """The policy and its optimiser on whatever machine there is."""

    def __init__(self, policy: Policy, groups: list[dict[str, Any]], adam_eps: float, precision: str) -> None:
        manage_memory()
        # Accelerate keeps one mixed precision for the whole process; with an autocast of our own each run has its own
        self.accelerator = Accelerator(mixed_precision="no")
        self.precision = precision
        if precision == "fp64":
            policy.double()
        optimizer = torch.optim.Adam(groups, eps=adam_eps, fused=True)
        self.base_rates = [group["lr"] for group in groups]
        self.policy = policy
        self.wrapped: nn.Module
        self.wrapped, self.optimizer = self.accelerator.prepare(policy, optimizer)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for calls of models."""
        return autocast(self.accelerator.device, self.precision)

    def set_rate(self, factor: float) -> None:
        """Set every learning rate to ``factor`` times its first value."""
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor

    def sync(self, last: bool) -> AbstractContextManager[Any]:
        """Let processes exchange gradients only in the last micro-batch of a mini-batch."""
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def total(self, x: Tensor) -> Tensor:
        """The sum over processes."""
        summed: Tensor = self.accelerator.reduce(x, reduction="sum")
        return summed

    def whiten(self, x_BR: Tensor, mask_BR: Tensor) -> Tensor:
        """Whiten over all processes."""
        count = self.total(mask_BR.sum().to(x_BR))
        mean = self.total(ops.masked_sum(x_BR, mask_BR)) / count
        squares = self.total(ops.masked_sum((x_BR - mean) ** 2, mask_BR))
        return ops.whiten(x_BR, mask_BR, mean=mean, var=squares / (count - 1).clamp(min=1))

    def save(self, directory: Path, state: Mapping[str, Any]) -> None:
        """Write a checkpoint: policy, value head, optimiser, random states and ``state`` (JSON)."""
        if not self.accelerator.is_main_process:
            return
        with new_directory(directory) as draft:
            self.policy.save(draft, own_names=True)
            save_file(self._optimizer_tensors(), draft / OPTIMIZER_FILE)
            save_file(_random_state(), draft / RANDOM_FILE)
            (draft / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")

    def load(self, directory: Path, check: Callable[[Any], None]) -> dict[str, Any]:
        """Restore a checkpoint and return its ``state``. All of it is read and checked before anything is changed.

        Args:
            directory: of the checkpoint.
            check: raises KeyError, TypeError or ValueError on a ``state`` that cannot be used.

        Raises:
            RunError: it is not a complete checkpoint of this model; nothing was changed.
        """
        try:
            state: dict[str, Any] = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
            check(state)
            weights = _read_weights(self.policy, directory)
            moments = _read_file(directory / OPTIMIZER_FILE)
            self._check_moments(moments)
            states = _read_file(directory / RANDOM_FILE)
            _check_tensors(RANDOM_FILE, states, _random_state())
            _set_random_state(states)  # first: their values may be refused
        except (OSError, KeyError, TypeError, ValueError, OverflowError, RuntimeError, RunError) as error:
            raise RunError(f"{directory}: not a whole checkpoint of this model: {error}") from error
        _set_weights(self.policy, *weights)
        self._set_moments(moments)
        return state

    def _names(self) -> dict[nn.Parameter, str]:
        return {parameter: name for name, parameter in self.policy.named_parameters()}

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        names = self._names()
        return {
            f"{names[parameter]}/{key}": torch.as_tensor(value).contiguous()
            for parameter, values in self.optimizer.state.items()
            for key, value in values.items()
        }

    def _check_moments(self, moments: Mapping[str, Tensor]) -> None:
        shapes = {name: parameter for parameter, name in self._names().items() if parameter.requires_grad}
        expected: dict[str, Any] = {}
        stepped = {full_name.rpartition("/")[0] for full_name in moments}  # Adam has no moments before its first step
        for name in stepped & shapes.keys():
            like = shapes[name]
            expected |= {f"{name}/step": torch.zeros(()), f"{name}/exp_avg": like, f"{name}/exp_avg_sq": like}
        _check_tensors(OPTIMIZER_FILE, moments, expected)

    def _set_moments(self, moments: Mapping[str, Tensor]) -> None:
        parameters = {name: parameter for parameter, name in self._names().items()}
        self.optimizer.state.clear()
        for full_name, tensor in moments.items():
            name, key = full_name.rsplit("/", 1)
            parameter = parameters[name]
            self.optimizer.state[parameter][key] = tensor.to(parameter.device)


def load_weights(policy: Policy, directory: Path) -> None:
    """Load the language model and the value head from a directory that :meth:`Engine.save` wrote.

    Raises:
        RunError: they are damaged, or of another model; the policy is unchanged.
    """
    _set_weights(policy, *_read_weights(policy, directory))


def _read_weights(policy: Policy, directory: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the language model and of the value head, checked."""
    weights, head = load_weight_files(directory), _read_file(directory / VALUE_HEAD_FILE)
    _check_tensors("the weights", weights, policy.lm.state_dict(), set(policy.lm.all_tied_weights_keys))
    _check_tensors(VALUE_HEAD_FILE, head, policy.value_head.state_dict())
    return weights, head


def _set_weights(policy: Policy, weights: dict[str, Tensor], head: dict[str, Tensor]) -> None:
    policy.lm.load_state_dict(weights, strict=False)  # a tied weight is there once
    policy.value_head.load_state_dict(head)


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


def load_weight_files(directory: Path) -> dict[str, Tensor]:
    """All tensors of a model directory, of one file or several."""
    files = sorted(directory.glob("model*.safetensors"))
    if not files:
        raise RunError(f"{directory}: no model*.safetensors there")
    return {name: tensor for file in files for name, tensor in _read_file(file).items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error


def _random_state() -> dict[str, Tensor]:
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

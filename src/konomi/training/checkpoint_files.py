"""What is in a checkpoint.

A directory of safetensors and JSON, never a pickle: opening one runs no code. It is written under another name and renamed, so
that a kill leaves the previous one complete. That of PPO has the policy as a model directory; that of
fine-tuning and of reward models only the weights that are trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from konomi.errors import RunError
from konomi.files import new_directory, sync_file, writing
from konomi.models.lora import ADAPTER_FILE, adapted_layers, adapter_weights
from konomi.models.policy import VALUE_HEAD_FILE, Policy
from konomi.training.experience import ScoreScale
from konomi.training.optimizers import expected_state, set_state, state_of
from konomi.training.random_state import GPU, random_state, set_random_state

STATE_FILE, OPTIMIZER_FILE, RANDOM_FILE = "trainer.json", "optimizer.safetensors", "random.safetensors"
WEIGHTS_FILE = "weights.safetensors"


def save_checkpoint(directory: Path, policy: Policy, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Write policy (with adapters: them alone), value head, optimiser, random states and ``state``, that of the trainer."""
    with new_directory(directory) as draft:
        if adapted_layers(policy.lm):
            policy.save_adapter(draft)
        else:
            policy.save(draft, own_names=True)
        _save_rest(draft, policy, optimizer, {STATE_FILE: state})


def load_checkpoint(directory: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore a checkpoint and return its ``state``. All of it is read and checked before anything is changed.

    Raises:
        RunError: it is not a complete checkpoint of this model; nothing was changed.
    """
    with _complete(directory):
        weights = _read_weights(policy, directory)
        state, moments = _read_rest(directory, policy, optimizer, _check_state)
    _set_weights(policy, *weights)
    _set_moments(policy, optimizer, moments)
    return state


def save_training(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, states: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write what is trained of a model, the optimiser, random states and ``states``: name of a JSON file -> its content."""
    with new_directory(directory) as draft:
        save_file(_detached(trained(model)), draft / WEIGHTS_FILE)
        _save_rest(draft, model, optimizer, states)


def load_training(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, check: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """As :func:`load_checkpoint`, of what :func:`save_training` wrote; ``check`` raises ValueError and its like for a content of
    `STATE_FILE` that cannot be."""
    with _complete(directory):
        weights = read_tensors(directory / WEIGHTS_FILE)
        _check_tensors(WEIGHTS_FILE, weights, trained(model))
        state, moments = _read_rest(directory, model, optimizer, check)
    set_values(trained(model), weights)
    _set_moments(model, optimizer, moments)
    return state


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def set_values(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    """Give parameters the values of ``weights``."""
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def save_trained(model: nn.Module, file: Path) -> None:
    """Write the `trained` parameters to a file, replaced in one step."""
    draft = file.with_name(f"{file.name}.new")
    try:
        with writing(file):
            save_file(_detached(trained(model)), draft)
            sync_file(draft)
            draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def load_random_state(directory: Path) -> None:
    """Set the random states of a checkpoint again."""
    with _complete(directory):
        set_random_state(read_tensors(directory / RANDOM_FILE))


def _detached(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: parameter.detach().contiguous() for name, parameter in parameters.items()}


def _save_rest(draft: Path, model: nn.Module, optimizer: torch.optim.Optimizer, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Write everything but the weights."""
    moments = {
        f"{name}/{key}": torch.as_tensor(value).contiguous()
        for name, parameter in model.named_parameters()
        for key, value in state_of(optimizer, parameter).items()
    }
    save_file(moments, draft / OPTIMIZER_FILE)
    save_file(random_state(), draft / RANDOM_FILE)
    for name, state in states.items():
        (draft / name).write_text(json.dumps(state, indent=1), encoding="utf-8")


def _read_rest(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, check: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read and check everything but the weights, and set the random states."""
    state: dict[str, Any] = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
    check(state)
    moments = read_tensors(directory / OPTIMIZER_FILE)
    _check_tensors(OPTIMIZER_FILE, moments, _expected_moments(model, optimizer, moments))
    states = read_tensors(directory / RANDOM_FILE)
    here = random_state()
    _check_tensors(RANDOM_FILE, states, {GPU: states.get(GPU, torch.empty(0)), **here}, {GPU})  # or it was saved without a GPU
    set_random_state(states)  # last: their values may be refused
    return state, moments


@contextmanager
def _complete(directory: Path) -> Iterator[None]:
    """Turn what a damaged checkpoint raises into a RunError."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RuntimeError, RunError) as error:
        raise RunError(f"{directory}: not a complete checkpoint of this model: {error}") from error


def _set_moments(model: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    kept: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in moments.items():
        name, _, key = full_name.rpartition("/")
        kept.setdefault(name, {})[key] = tensor
    for name, each in kept.items():
        set_state(optimizer, parameters[name], each)


def _check_state(state: Any) -> None:
    """Raise KeyError, TypeError or ValueError if this is not what :meth:`konomi.PPOTrainer.state_dict` gives."""
    scale = ScoreScale(**state["score_scale"])
    counters = all(type(state[name]) is int and state[name] >= 0 for name in ("update", "seed"))
    total, last = state.get("kl_errors", (0.0, 0.0))
    if not counters or not all(map(math.isfinite, (state["kl_coef"], total, last, scale.mean, scale.std))):
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
    weights = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    _check_tensors("the weights", weights, adapter or policy.lm.state_dict(), set(policy.lm.all_tied_weights_keys))
    if policy.value_head is None:
        return weights, {}
    head = read_tensors(directory / VALUE_HEAD_FILE)
    _check_tensors(VALUE_HEAD_FILE, head, policy.value_head.state_dict())
    return weights, head


def _set_weights(policy: Policy, weights: dict[str, Tensor], head: dict[str, Tensor]) -> None:
    if adapter := adapter_weights(policy.lm):
        set_values(adapter, weights)
    else:
        policy.lm.load_state_dict(weights, strict=False)  # a tied weight is there once
    if policy.value_head is not None:
        policy.value_head.load_state_dict(head)


def _expected_moments(model: nn.Module, optimizer: Any, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the optimiser keeps of the trained parameters that ``moments`` are of; before its first step it keeps nothing."""
    stepped = {full_name.rpartition("/")[0] for full_name in moments}
    expected: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises RunError if it cannot be read."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error

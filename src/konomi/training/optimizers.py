"""The optimiser of PPO: Adam, or Adam with states of 8 bits by bitsandbytes, which also trains weights in bfloat16."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from konomi.errors import ConfigError
from konomi.seeds import stream_seed

if TYPE_CHECKING:
    from torch.optim import Optimizer

State = dict[str, Tensor | int]
"""What an optimiser keeps of a parameter."""
TABLES = ("qmap1", "qmap2")
"""Of a number of 8 bits its value: the same for all parameters."""


def make_optimizer(kind: str, groups: list[dict[str, Any]], eps: float) -> Optimizer:
    """Adam for groups of parameters, each with a rate ``lr``. A step is left out while its ``found_inf`` is not 0.

    Args:
        kind: "adam", or "adam8": first and second moment in 8 bits, in blocks of 256 (Dettmers et al. 2022, arXiv:2110.02861).

    Raises:
        ConfigError: see :func:`check_optimizer`.
    """
    check_optimizer(kind, [parameter for group in groups for parameter in group["params"]])
    return _adam8(groups, eps) if kind == "adam8" else torch.optim.Adam(groups, eps=eps, fused=True)


def check_optimizer(kind: str, trained: Iterable[nn.Parameter] = ()) -> None:
    """Raise ConfigError if an optimiser's package is missing, or weights are bfloat16 that plain Adam would hardly move."""
    if kind == "adam8" and find_spec("bitsandbytes") is None:
        raise ConfigError('ppo.optimizer = "adam8": bitsandbytes is missing; pip install "konomi[adam8]"')
    if kind == "adam" and any(parameter.dtype == torch.bfloat16 and parameter.requires_grad for parameter in trained):
        raise ConfigError(
            'ppo.optimizer = "adam": the trained weights are bfloat16 (ppo.weights = "bf16"), in which most steps are smaller '
            'than the distance of two numbers and would be lost; use "adam8", which rounds at random, or ppo.weights = "fp32"'
        )


def state_of(optimizer: Any, parameter: nn.Parameter) -> State:
    """The optimiser state of a parameter, without the tables shared by all; empty before its first step."""
    return {name: value for name, value in optimizer.state.get(parameter, {}).items() if name not in TABLES}


def set_state(optimizer: Any, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> None:
    """Restore what :func:`state_of` returned."""
    fresh = _fresh_state(optimizer, parameter)
    read = {name: int(x) if isinstance(fresh[name], int) else x.to(parameter.device) for name, x in state.items()}
    optimizer.state[parameter] = {name: value for name, value in fresh.items() if name in TABLES} | read


def expected_state(optimizer: Any, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Names, shapes and types of :func:`state_of` after a step."""
    return {name: torch.as_tensor(x) for name, x in _fresh_state(optimizer, parameter).items() if name not in TABLES}


def _fresh_state(optimizer: Any, parameter: nn.Parameter) -> State:
    inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
    if isinstance(inner, torch.optim.Adam):
        return {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
    before = inner.state.pop(parameter, None)
    place = next((g, i) for g, group in enumerate(inner.param_groups) for i, p in enumerate(group["params"]) if p is parameter)
    inner.init_state(inner.param_groups[place[0]], parameter, *place)
    state: State = inner.state.pop(parameter)
    if before is not None:
        inner.state[parameter] = before
    return state


def round_at_random(wide: Tensor, seed: int) -> Tensor:
    """Round float32 to bfloat16 stochastically: the mean of many roundings is the number itself."""
    generator = torch.Generator(wide.device).manual_seed(seed)
    noise = torch.randint(0, 1 << 16, wide.shape, dtype=torch.int32, device=wide.device, generator=generator)
    return ((wide.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).bfloat16()


def _adam8(groups: list[dict[str, Any]], eps: float) -> Optimizer:
    from bitsandbytes.optim import Adam8bit

    class Adam8(Adam8bit):  # type: ignore[misc]
        found_inf: Tensor | None = None

        def step(self, closure: Any = None) -> Any:
            if self.found_inf is None or not self.found_inf:
                return super().step(closure)
            return None

        def update_step(self, group: dict[str, Any], p: nn.Parameter, gindex: int, pindex: int) -> None:
            if p.dtype != torch.bfloat16:
                super().update_step(group, p, gindex, pindex)
                return
            wide = nn.Parameter(p.detach().float())  # of one parameter at a time
            wide.grad = p.grad.float() if p.grad is not None else None
            state = self.state[wide] = self.state[p]
            super().update_step(group, wide, gindex, pindex)
            del self.state[wide]
            p.copy_(round_at_random(wide.detach(), stream_seed(state["step"], "rounding", gindex, pindex)))

    optimizer: Optimizer = Adam8(groups, eps=eps)
    return optimizer

"""The policy and its optimiser on the hardware that Accelerate finds."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from konomi import ops
from konomi.engine.device import autocast, manage_memory
from konomi.engine.graphs import Graphs
from konomi.models.policy import Policy
from konomi.training.optimizers import make_optimizer


class Engine:
    """A policy, its optimiser, and sums over all processes."""

    def __init__(self, policy: Policy, groups: list[dict[str, Any]], adam_eps: float, precision: str, kind: str = "adam") -> None:
        manage_memory()
        # Accelerate keeps one mixed precision for the whole process; with an autocast of our own each run has its own
        self.accelerator = Accelerator(mixed_precision="no")
        self.precision = precision
        if precision == "fp64":
            policy.double()
        optimizer = make_optimizer(kind, groups, adam_eps)
        self.base_rates = [group["lr"] for group in groups]
        self.wrapped: nn.Module
        self.wrapped, self.optimizer = self.accelerator.prepare(policy, optimizer)
        self.graphs = Graphs(self.accelerator.device)
        self.static = self.graphs.active and self.accelerator.num_processes == 1
        """Whether passes have sizes that come again, so that they can be captured."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for calls of models."""
        return autocast(self.accelerator.device, self.precision)

    def run(self, key: Hashable, call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``call(*inputs)``, captured and replayed where that is possible; the result is valid until the next call."""
        out = self.graphs(key, call, *inputs) if self.static else call(*inputs)
        assert out is not None
        return out

    def zero_grad(self) -> None:
        """Forget the gradients; what is captured adds to them where they are."""
        self.optimizer.zero_grad(set_to_none=not self.static)

    def set_rate(self, factor: float) -> None:
        """Set every learning rate to ``factor`` times its first value."""
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor

    def step(self, norm: Tensor | None, first: bool) -> None:
        """Take an optimiser step, unless this gradient or an earlier one of the update has a ``norm`` that is not finite.

        The optimiser decides that on the device, as it does for a gradient scaler, so that nothing waits for the number.
        ``first``: of the update.
        """
        if norm is not None:
            adam = self.optimizer.optimizer
            broken = (~norm.isfinite()).float()
            adam.found_inf = broken if first else torch.maximum(adam.found_inf, broken)
        self.optimizer.step()

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

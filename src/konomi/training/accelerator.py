"""The policy and its optimiser on the hardware that Accelerate detects."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from konomi.engine.decoding import check_decoding
from konomi.engine.device import autocast, manage_memory, send
from konomi.engine.graphs import Graphs
from konomi.engine.shared_weights import copies_as_leaves, leaves
from konomi.models.half import products_to_bf16
from konomi.models.policy import Policy
from konomi.training.optimizers import make_optimizer
from konomi.training.sharding import Shards, divisible, make_accelerator


class Engine:
    """A policy, its optimiser, and sums over all processes."""

    def __init__(self, policy: Policy, groups: list[dict[str, Any]], adam_eps: float, precision: str, kind: str = "adam") -> None:
        manage_memory()
        self.accelerator = make_accelerator()
        self.processes: int = self.accelerator.num_processes
        self.precision = precision
        if precision == "fp64":
            policy.double()
        trained = divisible(self.accelerator, policy) if self.accelerator.is_fsdp2 else policy
        if trained is not policy:
            twins = dict(zip(policy.to(self.accelerator.device).parameters(), trained.parameters(), strict=True))
            groups = [{**group, "params": [twins[parameter] for parameter in group["params"]]} for group in groups]
        optimizer = make_optimizer(kind, groups, adam_eps)
        self.base_rates = [group["lr"] for group in groups]
        self.wrapped: nn.Module
        self.wrapped, self.optimizer = self.accelerator.prepare(trained, optimizer)
        self.policy = policy
        self.shards = Shards(policy, self.wrapped, self.optimizer) if trained is not policy else None
        """Of a policy that is divided among processes (FSDP2)."""
        check_decoding(policy.lm)
        self.hold(policy.lm)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.graphs = Graphs(self.accelerator.device)
        self.static = self.graphs.active and self.processes == 1
        """Whether passes have recurring sizes, so that they can be captured."""
        self.grads = [torch.zeros_like(parameter) for parameter in self.parameters] if self.static else []
        """The gradients that captured passes write into, at fixed addresses."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for calls of models."""
        return autocast(self.accelerator.device, self.precision)

    def run(self, key: tuple[Hashable, ...], call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``call(*inputs)``, captured and replayed where that is possible; the result is valid until the next call."""
        out = self.graphs(key, call, *inputs) if self.static else call(*inputs)
        assert out is not None
        return out

    def differentiable(self) -> AbstractContextManager[None]:
        """The context for passes that `backward` follows."""
        return copies_as_leaves() if self.static else nullcontext()

    def backward(self, loss: Tensor, first: bool) -> None:
        """Accumulate the gradient of a loss; ``first``: the first of a mini-batch. Captured passes keep gradients in place."""
        if not self.static:
            if first:
                self.optimizer.zero_grad()
            self.accelerator.backward(loss * self.processes)
            return
        gradients = torch.autograd.grad(loss, leaves(self.policy.lm, self.parameters), allow_unused=True)
        for dtype in {x.dtype for x in gradients if x is not None}:
            here = [(total, x) for total, x in zip(self.grads, gradients, strict=True) if x is not None and x.dtype == dtype]
            totals, parts = [total for total, _ in here], [x for _, x in here]
            (torch._foreach_copy_ if first else torch._foreach_add_)(totals, parts)
        for total, x in zip(self.grads, gradients, strict=True):
            if x is None and first:
                total.zero_()

    def set_rate(self, factor: float) -> None:
        """Set every learning rate to ``factor`` times its first value."""
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor

    def step(self, max_norm: float, first: bool) -> Tensor:
        """Clip the gradient to ``max_norm`` and take an optimiser step, unless this or an earlier gradient of the update is not
        finite; returns the norm.

        The optimiser decides that on the device, as with a gradient scaler, without synchronisation.
        ``first``: of the update.
        """
        adam: Any = self.optimizer.optimizer
        for parameter, grad in zip(self.parameters, self.grads, strict=False):  # whoever has put another there
            parameter.grad = grad
        if self.static and isinstance(adam, torch.optim.Adam):  # it scales as it reads the gradient
            norm = torch.nn.utils.get_total_norm(self.grads)
            adam.grad_scale = ((norm + 1e-6) / max_norm).clamp(min=1.0).float()  # type: ignore[attr-defined]
        else:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, max_norm)
            norm = norm.full_tensor() if self.shards else norm  # type: ignore[attr-defined]
        broken = (~norm.isfinite()).float()
        adam.found_inf = broken if first else torch.maximum(adam.found_inf, broken)
        self.optimizer.step()
        return norm

    def sync(self, last: bool) -> AbstractContextManager[Any]:
        """Let processes exchange gradients only in the last micro-batch of a mini-batch."""
        return nullcontext() if last or self.shards else self.accelerator.no_sync(self.wrapped)

    def gather(self) -> None:
        """Copy the trained shards into the policy, if it is sharded; all processes call it."""
        if self.shards:
            self.shards.gather()

    def unsharded(self, state: bool = False, changes: bool = False) -> AbstractContextManager[Any]:
        """Within this context the policy has its exact weights; yields the optimiser of its parameters.

        ``state``: in the main process with its whole state. ``changes``: the block changes both, alike in all processes. All
        processes call it.
        """
        return self.shards.unsharded(state, changes) if self.shards else nullcontext(self.optimizer)

    def hold(self, lm: PreTrainedModel) -> PreTrainedModel:
        """Move a model that is not trained to the device; beside a sharded policy in the precision it computes in."""
        if self.shards and self.precision == "bf16":
            check_decoding(lm)  # without autocast, which its passes need from now on
            products_to_bf16(lm)
        return lm.to(self.accelerator.device)

    def total(self, x: Tensor) -> Tensor:
        """The sum over processes. They exchange dense numbers on their own devices, wherever and however ``x`` is stored."""
        if self.processes == 1:
            return x
        x = x.to_dense() if x.layout != torch.strided else x
        summed: Tensor = self.accelerator.reduce(send(x, self.accelerator.device).contiguous(), reduction="sum")
        return summed

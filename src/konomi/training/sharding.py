"""A policy whose parameters, gradients and optimiser state are divided among processes: FSDP2 of torch, by Accelerate.

What is trained is a copy of the policy, of which each process has a shard of every parameter; a layer is gathered when it runs,
and dropped again. The policy itself stays whole in each process, and whatever does not train reads that: the sampler, which
would gather every layer for each token, saving, the before/after. It gets the trained weights once an update.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch import Tensor

from konomi.config import PPOJob
from konomi.errors import ConfigError
from konomi.models.policy import Policy
from konomi.runs.environment import is_sharded
from konomi.runs.processes import is_main


def make_accelerator() -> Accelerator:
    """Accelerate as it was launched; with FSDP2 on processors too, which it takes for GPUs alone."""
    # it keeps one mixed precision for the whole process; with an autocast of our own each run has its own
    accelerator = Accelerator(mixed_precision="no")
    if is_sharded() and accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    return accelerator


def check_divisible(job: PPOJob) -> None:
    """Make sure that a job can divide its policy, if it is started so.

    Raises:
        ConfigError: its weights or states are in blocks that a shard would cut; it is to land, along a line of whole weights.
    """
    if job.land.kl is not None and is_sharded():
        raise ConfigError(
            f"land.kl = {job.land.kl:g} does not go with FSDP, where no process has all weights exactly; leave it out, and make "
            f"the model afterwards: konomi blend RUN --kl {job.land.kl:g}"
        )
    blocks = {'ppo.optimizer = "adam8"': job.ppo.optimizer == "adam8", "lora.quantize": job.lora.quantize != "none"}
    asked = [name for name, wanted in blocks.items() if wanted]
    if asked and is_sharded():
        raise ConfigError(
            f"{asked[0]} does not go with FSDP, which would cut its blocks of numbers; start the processes without it"
        )


def divisible(accelerator: Accelerator, policy: Policy) -> Policy:
    """A copy of a policy for ``accelerator.prepare``, which will divide each of its layers."""
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    config = policy.lm.config  # layers that are computed anew look at the one that they were made with
    own = copy.deepcopy(policy, {id(each): each for each in (config, config.get_text_config())})
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # returns a view: nothing is written into what a pass returns
    own.lm.konomi_sharded = True  # autocast casts what was gathered: copies would have to be whole
    plugin: Any = accelerator.state.fsdp_plugin
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    inside = {type(module).__name__ for module in own.modules()}
    plugin.transformer_cls_names_to_wrap = sorted(inside.intersection(own.lm._no_split_modules or ()))
    return own


class Shards:
    """The shards that this process has of a policy's parameters, and of what the optimiser keeps of those that are trained.

    Args:
        policy: the whole one.
        wrapped: the model that the shards are of.
        optimizer: Adam of the shards.
    """

    def __init__(self, policy: Policy, wrapped: Any, optimizer: Any) -> None:
        self.wrapped, self.optimizer = wrapped, optimizer
        self.pairs = list(zip(policy.parameters(), wrapped.parameters(), strict=True))
        self.trained = [(x, shard) for x, shard in self.pairs if x.requires_grad]
        self.full_optimizer = torch.optim.Adam([x for x, _ in self.trained])
        """Has no state but within :meth:`unsharded`, and takes no step."""

    @torch.no_grad()
    def gather(self) -> None:
        """Give the policy the trained weights, in place, one after the other. All processes call it."""
        for x, shard in self.trained:
            x.copy_(_gathered(shard))

    @contextmanager
    def unsharded(self, state: bool, changes: bool) -> Iterator[torch.optim.Optimizer]:
        """Within, the policy is on the host, with weights that are exact where it keeps them rounded; and an optimiser of its
        parameters, which with ``state`` has, in the main process, all that is kept of them. All processes call it.

        ``changes``: afterwards the shards are of what both then have, which is the same in all processes.
        """
        held, kept = [(x, x.data) for x, _ in self.pairs], self.full_optimizer.state
        for x, shard in self.pairs:
            x.data = (_gathered(shard.detach()) if x.dtype != shard.dtype else x.data).cpu()
        for x, shard in self.trained if state else ():
            for name, value in self.optimizer.state.get(shard, {}).items():
                value = _gathered(value)
                if is_main():
                    kept[x][name] = value.cpu()
        try:
            yield self.full_optimizer
            if changes:
                self._scatter()
        finally:
            for x, data in held:
                data.copy_(x.data)
                x.data = data
            kept.clear()

    @torch.no_grad()
    def _scatter(self) -> None:
        self.wrapped.reshard()  # what was gathered and not dropped yet would stay as it is
        self.optimizer.state.clear()
        for x, shard in self.trained:
            shard.copy_(_shard(shard, x))
            if kept := self.full_optimizer.state.get(x):
                self.optimizer.state[shard] = {name: _shard(shard, value) for name, value in kept.items()}


def _gathered(x: Tensor) -> Tensor:
    """A tensor of which this process has a shard, gathered; any other as it is."""
    gathered: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return gathered


def _shard(like: Any, x: Tensor) -> Tensor:
    """This process's part of a tensor, divided as another one is and on its device; of a single number all of it."""
    from torch.distributed.tensor import distribute_tensor

    if not x.dim():
        return x.to(like.device)
    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)

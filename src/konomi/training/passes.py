"""Passes of a policy and its reference over the responses of an update, captured where the device can replay them.

Shape suffixes: B sequences, R response tokens, N response tokens of a pass, C figures of each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor
from torch.profiler import record_function
from transformers import PreTrainedModel

from konomi import ops
from konomi.config import PPOConfig
from konomi.engine.device import is_out_of_memory, is_processor, send
from konomi.engine.forward import Evaluation, pass_full_kl, pass_logprobs, plan_pass, rounds_coarsely
from konomi.engine.layout import Pass, scatter
from konomi.engine.memory import micro_batch_tokens
from konomi.engine.packed import Trunk
from konomi.engine.rollout import Rollout, micro_batches
from konomi.engine.sampler import Generation
from konomi.engine.shared_weights import refresh_copies
from konomi.errors import RunError
from konomi.models.policy import Policy, same_weights
from konomi.runs import processes
from konomi.training.accelerator import Engine
from konomi.training.experience import Comparison, ratio_gap, recompute_logprobs

T = TypeVar("T")


class Models:
    """A policy and its reference.

    Args:
        engine: the hardware, and the policy as Accelerate wraps it.
        policy, reference: on that hardware.
        ppo: penalty and size of micro-batches.
        temperature: divides all logits.
    """

    def __init__(self, engine: Engine, policy: Policy, reference: PreTrainedModel, ppo: PPOConfig, temperature: float) -> None:
        self.engine, self.policy, self.reference, self.ppo, self.temperature = engine, policy, reference, ppo, temperature
        # another model's layers make other hidden states
        self.trunk_layer = policy.trunk_layer if same_weights(policy.lm, reference, frozen=True) else None
        self.inexact = engine.precision == "bf16" or rounds_coarsely(policy.lm)
        self.recomputes = self.inexact and not is_processor(engine.accelerator.device)
        """Whether only the log-probabilities of the sampler are used."""
        self.micro_batch_tokens = min(processes.gather(ppo.micro_batch_tokens or micro_batch_tokens(policy.lm, reference)))

    def plan(self, rollout: Rollout, rows: Tensor) -> Pass:
        """A pass over these rows."""
        return plan_pass(self.policy.lm, rollout, rows, static=self.engine.static and self.trunk_layer is None)

    def run(self, call: Callable[..., Tensor], p: Pass, trunk: Trunk | None, *inputs: Tensor, key: Hashable = None) -> Tensor:
        """``call(pass, trunk, *inputs)``; the result is valid until the next such call.

        ``key``: what the call depends on besides its inputs, if not on itself alone.
        """
        if trunk is not None or p.layout is None:
            return call(p, trunk and trunk.select(p.rows), *inputs)
        for lm in (self.policy.lm, self.reference):  # a replay reads them as they are
            refresh_copies(lm)
        name = (key or call, p.key)
        return self.engine.run(name, lambda index, *rest: call(p.on(index), None, *rest), p.index, *inputs)

    def attempt(self, work: Callable[[list[Pass]], T], rollout: Rollout, passes: list[Pass]) -> T:
        """``work(passes)``. Out of memory, it starts over with the same rows in passes half as large, and later passes stay that
        small; not in several processes, which would wait for each other.

        Raises RunError: a single row does not fit.
        """
        while True:
            passes = self._fitting(rollout, passes)
            try:
                return work(passes)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.engine.accelerator.num_processes > 1:
                    raise
            self._halve(rollout, passes)  # not above, where the error still holds what was made

    def _fitting(self, rollout: Rollout, passes: list[Pass]) -> list[Pass]:
        """These passes, or smaller ones over the same rows if one exceeds `micro_batch_tokens`, which has fallen."""
        if all(_tokens(rollout, p) <= self.micro_batch_tokens for p in passes if len(p.rows) > 1):
            return passes
        parts = micro_batches(rollout.lengths, torch.cat([p.rows for p in passes]), self.micro_batch_tokens)
        return [self.plan(rollout, rows) for rows in parts]

    def _halve(self, rollout: Rollout, passes: list[Pass]) -> None:
        self.engine.graphs.forget()
        tokens = max((_tokens(rollout, p) for p in passes if len(p.rows) > 1), default=0)
        if not tokens:
            raise RunError(
                f"out of memory with a single sequence of {max(_tokens(rollout, p) for p in passes)} tokens: shorten "
                "rollout.response_tokens or data.query_tokens, or set model.gradient_checkpointing, lora.rank or model.top_layers"
            )
        self.micro_batch_tokens = tokens // 2
        warnings.warn(
            f"out of memory in a micro-batch of {tokens} tokens: it runs again in parts of {tokens // 2}, as later ones will. "
            f"The gradient is the same. To begin so, set ppo.micro_batch_tokens = {tokens // 2}",
            RuntimeWarning, stacklevel=3,
        )  # fmt: skip

    @record_function("score")
    @torch.no_grad()
    def compare(self, generation: Generation, plan: list[list[Pass]], first: bool) -> Comparison:
        """Log-probabilities of policy and reference, and the penalty, each process having those of its part of the plan.

        ``first``: the policy may still be its reference.
        """
        rollout, trunk = generation.rollout, generation.trunk
        mask_BR = send(rollout.mask, self.engine.accelerator.device)

        def each(call: Callable[..., Tensor], passes: list[Pass]) -> Tensor:
            def results(parts: list[Pass]) -> list[tuple[Pass, Tensor]]:
                return [(p, self.run(call, p, trunk).clone() if len(parts) > 1 else self.run(call, p, trunk)) for p in parts]

            with self.engine.autocast():
                return scatter((pair for p in passes for pair in self.attempt(results, rollout, [p])), len(rollout))

        every = [p for mini_batch in plan for p in mini_batch]
        own_B, drawn_BR, gap = torch.cat([p.rows for p in every if p.count]).sort().values, None, None
        policy_3BR = torch.stack([generation.logprobs, generation.values, generation.entropy])
        if generation.served:
            policy_3BR = each(self._policy, every)
        elif self.inexact:
            policy_3BR, gap = recompute_logprobs(
                policy_3BR, mask_BR, lambda passes: each(self._policy, passes), plan, self.engine
            )
        if (generation.served or self.inexact) and self.engine.processes > 1:
            others_B = torch.ones(len(rollout), dtype=torch.bool).index_fill(0, own_B, False)
            policy_3BR = self.engine.total(policy_3BR.masked_fill(send(others_B, mask_BR.device)[:, None], 0.0))
        if generation.served:
            drawn_BR = generation.logprobs.to(policy_3BR)
            gap = ratio_gap(policy_3BR[0], drawn_BR, mask_BR)
        logprobs_BR, values_BR, entropy_BR = policy_3BR
        if first and same_weights(self.policy.lm, self.reference):
            reference_BR = logprobs_BR
        else:
            rows = micro_batches(rollout.lengths, own_B, self.micro_batch_tokens)
            reference_BR = self.engine.total(each(self._reference, [self.plan(rollout, part) for part in rows])[0])
        if self.ppo.kl_penalty == "full":
            penalty_BR = self.engine.total(each(self._full_kl, every)[0])
        else:
            penalty_BR = ops.kl_per_token(logprobs_BR, reference_BR, self.ppo.kl_penalty)
        return Comparison(mask_BR, logprobs_BR, values_BR, entropy_BR, logprobs_BR - reference_BR, penalty_BR, gap, drawn_BR)

    def _policy(self, p: Pass, trunk: Trunk | None) -> Tensor:
        policy: Evaluation = self.engine.wrapped(p, self.temperature, trunk)
        return torch.stack([policy.logprobs, policy.values, policy.entropy])

    def _reference(self, p: Pass, trunk: Trunk | None) -> Tensor:
        return pass_logprobs(self.reference, p, self.temperature, trunk)[None]

    def _full_kl(self, p: Pass, trunk: Trunk | None) -> Tensor:
        return pass_full_kl(self.policy.lm, self.reference, p, self.temperature, trunk)[None]


def _tokens(rollout: Rollout, p: Pass) -> int:
    """Rows of a pass times the longest of them, as a micro-batch's budget counts."""
    return len(p.rows) * int(rollout.lengths[p.rows].max())

"""The losses of a mini-batch and their gradient, in micro-batches whose parts add up to those of one batch.

Shape suffixes: B sequences, R response tokens, N response tokens of a pass, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from konomi import ops
from konomi.config import AlgorithmConfig, PPOConfig
from konomi.engine.device import send
from konomi.engine.forward import Evaluation
from konomi.engine.layout import Pass
from konomi.engine.packed import Trunk
from konomi.training.experience import Experience, ratio_gap
from konomi.training.passes import Models

POLICY_LOSS = "ppo/loss/policy"
OF_POLICY = (POLICY_LOSS, "ppo/policy/clipfrac", "ppo/policy/approxkl", "ppo/policy/policykl", "ppo/policy/ratio")
OF_CRITIC = ("ppo/loss/value", "ppo/val/clipfrac", "ppo/val/error", "ppo/val/vpred")
KL_LOSS = "ppo/loss/kl"


class Part(NamedTuple):
    """The contribution of a micro-batch to a mini-batch."""

    tokens: int
    figures: Tensor
    """Sums over its tokens, and how far its largest ratio is from 1."""
    responses: int


class Gradient:
    """Computes the gradient of a mini-batch.

    Args:
        models: the policy, and the hardware that it is on.
        algorithm, ppo: settings.
        temperature: divides all logits.
    """

    def __init__(self, models: Models, algorithm: AlgorithmConfig, ppo: PPOConfig, temperature: float) -> None:
        self.models, self.engine, self.ppo, self.temperature = models, models.engine, ppo, temperature
        self.critic = algorithm.critic
        self.whole_ratio = algorithm.whole_ratio

    def __call__(self, e: Experience, old_CBR: Tensor, passes: list[Pass], first: bool) -> list[Part]:
        """Accumulate the gradient of a mini-batch; returns its micro-batches.

        ``old_CBR``: the columns of ``e``. ``first``: no step has been taken since the responses were drawn, so that these
        passes are those of the old policy.
        """
        counts = [(len(p.rows) if e.shares is not None else p.count) if p.count else 0 for p in passes]
        count = self.engine.total(send(torch.tensor(sum(counts)), old_CBR.device))
        names = tuple(e.columns)

        def micro_batch(p: Pass, begins: bool, ends: bool) -> Part:
            inputs = (p.select(old_CBR), count, send(torch.tensor(first), old_CBR.device))
            with self.engine.sync(last=ends):
                call = partial(self._losses, names=names, begins=begins)
                figures = self.models.run(call, p, e.trunk, *inputs, key=("train", begins)).clone()
                return Part(p.count, figures, len(p.rows) if p.count else 0)

        def mini_batch(parts: list[Pass]) -> list[Part]:
            return [micro_batch(p, begins=p is parts[0], ends=p is parts[-1]) for p in parts]

        return self.models.attempt(mini_batch, e.rollout, passes)

    def totals(self, e: Experience, part: Part) -> list[tuple[str, Tensor, int]]:
        """The figures of a micro-batch by name, each a sum and the count of what was summed."""
        names = OF_POLICY + (OF_CRITIC if self.critic else ()) + ((KL_LOSS,) if e.kl_weights is not None else ())
        by_response = {POLICY_LOSS, KL_LOSS} if e.shares is not None else set()
        return [
            (name, total, part.responses if name in by_response else part.tokens)
            for name, total in zip(names, part.figures, strict=False)
        ]

    def _losses(
        self, p: Pass, trunk: Trunk | None, old_CN: Tensor, count: Tensor, first: Tensor, names: Sequence[str] = (),
        begins: bool = True,
    ) -> Tensor:  # fmt: skip
        """Add the gradient of a micro-batch, ``count`` tokens or responses being in the mini-batch that it ``begins`` or not;
        see `Part.figures`."""
        with self.engine.differentiable():
            with self.engine.autocast():
                new = self.engine.wrapped(p, self.temperature, trunk, with_entropy=False)
            loss, figures = self._loss(new, p, dict(zip(names, old_CN, strict=True)), count, first)
            self.engine.backward(loss, begins)
        return torch.cat(figures)

    def _loss(
        self, new: Evaluation, p: Pass, old: dict[str, Tensor], count: Tensor, first: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The loss of a micro-batch, and its figures."""
        ppo, valid_N, logprobs_N = self.ppo, p.valid, old["logprobs"]
        gap = ratio_gap(new.logprobs.detach(), logprobs_N, valid_N)
        logprobs_N = torch.where(first, new.logprobs.detach(), logprobs_N)
        shares_N, weights_N = old.get("shares"), old.get("weights")
        if shares_N is not None:
            weights_N = shares_N if weights_N is None else shares_N * weights_N
        policy, sums = ops.policy_loss(
            new.logprobs, logprobs_N, old["advantages"], valid_N, clip=ppo.clip, weights_BR=weights_N,
            sequences=p.sequences if self.whole_ratio else None,
        )  # fmt: skip
        loss = policy / count
        figures = [policy.detach(), sums["clipped"], sums["approx_kl"], sums["policy_kl"], sums["ratio"]]
        if self.critic:
            value, v = ops.value_loss(new.values, old["values"], old["returns"], valid_N, clip=ppo.value_clip)
            loss = loss + ppo.vf_coef * (value / count)
            figures += [value.detach(), v["clipped"], v["error"], v["prediction"]]
        if "kl_weights" in old:
            kl = ops.kl_loss(new.logprobs, old["reference"], valid_N, old["kl_weights"])
            loss = loss + kl / count
            figures.append(kl.detach())
        return loss, [torch.stack(figures), gap[None]]

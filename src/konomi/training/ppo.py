"""PPO on responses: draw, score, hold to the reference by a KL penalty, estimate advantages, take clipped steps.

Schulman et al. 2017 (arXiv:1707.06347); the KL penalty and its controller after Ziegler et al. 2019 (arXiv:1909.08593).
The equations are in `konomi.ops`; here is the order in which they are used, and what is remembered between updates.

Shape suffixes: B sequences, R response tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function
from transformers import PreTrainedModel

from konomi import ops
from konomi.config import DataConfig, PPOConfig, RolloutConfig
from konomi.data.records import Prompt
from konomi.data.sources import as_prompts
from konomi.data.tokens import Tokens
from konomi.engine.decoding import check_decoding
from konomi.engine.forward import Evaluation, reference_logprobs, rounds_coarsely, token_full_kl
from konomi.engine.packed import Trunk
from konomi.engine.rollout import Rollout, micro_batches, scatter_rows
from konomi.engine.sampler import Drawn, explore, make_draws, sample
from konomi.errors import ConfigError, RunError
from konomi.models.policy import Policy, same_weights
from konomi.report.healthy import out_of_range
from konomi.rewards import Reward, as_reward
from konomi.runs.environment import peak_memory_gb
from konomi.runs.observer import StepResult
from konomi.seeds import stream_seed
from konomi.training.accelerator import Engine, Sums
from konomi.training.experience import Experience, ScoreScale, check_ratio, check_state, describe, finish, next_kl_coef, say_again
from konomi.training.queries import QueryStream
from konomi.training.scoring import Scored, Scorer


class PPOTrainer:
    """Iterate over it: each step is one update and yields a `StepResult`. It prints nothing and writes nothing.

    Args:
        policy: what is trained.
        reference: what it is held to: a frozen copy of the initial model, from :func:`konomi.make_reference`.
        tokens: the tokenizer.
        prompts: what is asked, in a new order each epoch: strings, rows with a text, or prompts.
        reward: a reward, or a function that is called with the lists it names: texts, prompts, responses, other columns.
        judges: further rewards, by name, that nothing is trained against: their means are told.
        ppo, rollout, data: settings.
        seed: of everything random.
        precision: fp32, bf16 (mixed) or fp64.
        failed_texts: file for the texts at which the reward failed.

    Raises:
        ConfigError: the mini-batch cannot be divided among the processes.
        RunError: the reward failed, or a number is not finite.
    """

    def __init__(
        self,
        policy: Policy,
        reference: PreTrainedModel,
        tokens: Tokens,
        prompts: Iterable[str | Mapping[str, Any] | Prompt],
        reward: Reward | Callable[..., Any],
        *,
        ppo: PPOConfig | None = None,
        rollout: RolloutConfig | None = None,
        data: DataConfig | None = None,
        seed: int = 0,
        precision: str = "fp32",
        failed_texts: Path | None = None,
        judges: Mapping[str, Reward] | None = None,
    ) -> None:
        self.ppo, self.rollout_config = ppo or PPOConfig(), rollout or RolloutConfig()
        self.policy, self.tokens, self.seed, self.failed_texts = policy, tokens, seed, failed_texts
        prompts = as_prompts(prompts)
        reward = as_reward(reward, prompts[0].columns)
        self.scorer = Scorer(tokens, reward, judges or {}, self.rollout_config, failed_texts)
        self.queries = QueryStream(prompts, tokens, data or DataConfig(), seed)
        groups = [
            {"params": [p for p in policy.lm.parameters() if p.requires_grad], "lr": self.ppo.learning_rate},
            {"params": list(policy.value_head.parameters()), "lr": self.ppo.value_learning_rate},
        ]
        self.engine = Engine(policy, groups, self.ppo.adam_eps, precision)
        self.reference = (reference.double() if precision == "fp64" else reference).to(self.engine.accelerator.device)
        check_decoding(policy.lm)
        # another model's layers make other hidden states
        self.trunk_layer = policy.trunk_layer if same_weights(policy.lm, self.reference, frozen=True) else None
        self.inexact = precision == "bf16" or rounds_coarsely(policy.lm)
        self.processes = self.engine.accelerator.num_processes
        prompts_a_batch = self.ppo.batch_size // self.ppo.responses_per_prompt
        for name, size in (
            ("mini_batch_size", self.ppo.mini_batch_size),
            ("batch_size / responses_per_prompt", prompts_a_batch),
        ):
            if size % self.processes:
                raise ConfigError(f"ppo.{name} = {size} cannot be divided among {self.processes} processes")
        self.update = 0
        self.kl_coef, self.kl_reached = self.ppo.kl_coef, False
        self.score_clip = self.ppo.score_clip if self.ppo.normalize_scores else math.inf
        self.scale: ScoreScale | None = None
        self.stop_reason: str | None = None

    def __iter__(self) -> Iterator[StepResult]:
        while self.update < self.ppo.updates and self.stop_reason is None:
            yield self.step()

    def baseline(self) -> list[dict[str, Any]]:
        """Draw and score the initial model's samples that set the score scale; returns them.

        The first :meth:`step` does it if it was not done before.
        """
        count = max(2, self.ppo.baseline_samples)
        prompts, queries = self.queries.take(0, count)
        draws = make_draws(self.rollout_config, self.seed, [("baseline", i) for i in range(count)])
        with self.engine.autocast():
            rollout = sample(self.reference, self.tokens, queries, draws, self.rollout_config, "the initial model")
        scored = self._score(prompts, rollout, judged=False)
        if self.ppo.normalize_scores:
            std = float(scored.scores.std())
            self.scale = ScoreScale(float(scored.scores.mean()), std if std > 0 else 1.0, count)
        else:
            self.scale = ScoreScale(count=count)
        return scored.samples(torch.zeros(count))

    def step(self) -> StepResult:
        """One update: draw, score, and train unless the KL is over its cap."""
        if self.scale is None:
            self.baseline()
        start = time.perf_counter()
        prompts, answers = self._draw()
        rollout, drawn = answers.rollout, time.perf_counter()
        scored = self._score(prompts, rollout, judged=True)
        judged = time.perf_counter()
        plan = self._plan(rollout, epoch=0)
        experience = self._experience(answers, scored.scores, plan, scored.placed)
        sums, evaluated = describe(experience, scored.scores, self.kl_coef), time.perf_counter()
        scored.add_to(sums)
        sums.add("ppo/scores_clipped", (self.scale or ScoreScale()).clipped(scored.scores, self.score_clip).sum(), len(rollout))
        kl = sums.means(self.engine.accelerator)["objective/kl"]
        if not math.isfinite(kl):
            raise RunError(
                f"update {self.update + 1}: the KL is not finite, because the model's log-probabilities are not. "
                "The last checkpoint is untouched; try a lower ppo.learning_rate"
            )
        rate = 1.0 - self.update / self.ppo.updates if self.ppo.schedule == "linear" else 1.0
        if kl > self.ppo.kl_cap:
            over = f"{kl:.1f} nats/response, over the cap ppo.kl_cap = {self.ppo.kl_cap:g}"
            self.stop_reason = f"the KL of update {self.update + 1} is {over}"
        else:
            self.engine.set_rate(rate)
            self._train(experience, plan, sums)
        trained = time.perf_counter()
        metrics = finish(sums.means(self.engine.accelerator), self.ppo.vf_coef)
        metrics |= {"objective/kl_coef": self.kl_coef, "ppo/learning_rate": self.ppo.learning_rate * rate}
        phases = {"rollout": drawn - start, "reward": judged - drawn, "score": evaluated - judged, "train": trained - evaluated}
        metrics |= {f"time/ppo/{k}": v for k, v in (phases | {"total": trained - start}).items()}
        metrics["episodes/per_second"] = self.ppo.batch_size / (trained - start)
        metrics["tokens/per_second"] = float(rollout.lengths.sum()) * self.processes / (trained - start)
        metrics["memory/peak_gb"] = peak_memory_gb()
        ppo, size = self.ppo, self.ppo.batch_size
        self.kl_reached |= kl >= ppo.kl_target
        if self.stop_reason is None:
            self.kl_coef = next_kl_coef(ppo, self.kl_coef, kl, reached=self.kl_reached, update=self.update)
        self.update += 1
        samples = scored.samples(experience.kl.sum(1))
        each = self.ppo.responses_per_prompt  # one of every prompt comes first
        samples = [sample for first in range(each) for sample in samples[first::each]]
        return StepResult(self.update, self.update * size, metrics, samples, out_of_range(metrics, ppo.max_grad_norm))

    def state_dict(self) -> dict[str, Any]:
        """Counters and controller state; weights, optimiser and random states are the engine's."""
        return {
            "update": self.update,
            "episodes": self.update * self.ppo.batch_size,
            "kl_coef": self.kl_coef,
            "kl_reached": self.kl_reached,
            "score_scale": asdict(self.scale or ScoreScale()),
            "seed": self.seed,
        }

    def save(self, directory: Path) -> None:
        """Write a checkpoint from which :meth:`load` goes on to the same bits."""
        self.engine.save(directory, self.state_dict())

    def load(self, directory: Path) -> None:
        """Take all state from a checkpoint. Raises RunError if it is not whole; all is then as it was."""
        state = self.engine.load(directory, check_state)
        self.update, self.kl_coef, self.seed = state["update"], state["kl_coef"], state["seed"]
        self.queries.seed, self.kl_reached = self.seed, bool(state.get("kl_reached", False))
        self.scale = ScoreScale(**state["score_scale"])
        self.stop_reason = None

    @record_function("rollout")
    def _draw(self) -> tuple[list[Prompt], Drawn]:
        """This process's part of the update's batch: all responses to a prompt are in one part."""
        each, size = self.ppo.responses_per_prompt, self.ppo.batch_size
        asked = size // each
        prompts, queries = self.queries.take(self.update * asked, asked)
        part = size // self.processes
        mine = range(part * self.engine.accelerator.process_index, part * (self.engine.accelerator.process_index + 1))
        draws = make_draws(self.rollout_config, self.seed, [("rollout", self.update * size + i) for i in mine])
        with self.engine.autocast():
            drawn = explore(
                self.policy.lm, self.tokens, [queries[i // each] for i in mine], draws, self.rollout_config,
                f"update {self.update + 1}: the policy", self.policy.values, self.trunk_layer,
            )  # fmt: skip
        return [prompts[i // each] for i in mine], drawn

    @record_function("reward")
    def _score(self, prompts: Sequence[Prompt], rollout: Rollout, judged: bool) -> Scored:
        return self.scorer(prompts, rollout, judged)

    def _plan(self, rollout: Rollout, epoch: int) -> list[list[Tensor]]:
        """The mini-batches of an epoch, each a list of micro-batches of row numbers."""
        generator = torch.Generator().manual_seed(
            stream_seed(self.seed, "mini-batches", self.update, epoch, self.engine.accelerator.process_index)
        )
        size, each = self.ppo.mini_batch_size // self.processes, self.ppo.responses_per_prompt
        together = each if size % each == 0 else 1  # responses to one prompt: it is then computed once for them
        first = torch.randperm(len(rollout) // together, generator=generator) * together
        order = (first[:, None] + torch.arange(together)).flatten()
        return [micro_batches(rollout.lengths, rows, self.ppo.micro_batch_tokens) for rows in torch.split(order, size)]

    @record_function("score")
    @torch.no_grad()
    def _experience(
        self, drawn: Drawn, scores_B: Tensor, plan: list[list[Tensor]], placed_BR: Tensor | None = None
    ) -> Experience:
        """Hold what the policy said as it drew against the reference; then rewards and advantages."""
        ppo, temperature, rollout, trunk = self.ppo, self.rollout_config.temperature, drawn.rollout, drawn.trunk
        mask_BR = rollout.mask

        def each(call: Callable[[Rollout, Trunk | None], list[Tensor]], rows: list[Tensor]) -> list[Tensor]:
            with self.engine.autocast():
                parts = [call(rollout.select(part), trunk and trunk.select(part)) for part in rows]
            return [scatter_rows(column, rows, len(rollout)) for column in zip(*parts, strict=True)]

        def evaluate(chosen: Rollout, trunk: Trunk | None) -> list[Tensor]:
            again: Evaluation = self.engine.wrapped(chosen, temperature, trunk)
            return [again.logprobs, again.values, again.entropy]

        said, gap = [drawn.logprobs, drawn.values, drawn.entropy], None
        if self.inexact:
            said, gap = say_again(said, mask_BR, lambda rows: each(evaluate, rows), plan, self.engine)
        logprobs_BR, values_BR, entropy_BR = said
        if self.update == 0 and same_weights(self.policy.lm, self.reference):
            reference_BR = logprobs_BR
        else:
            rows = micro_batches(rollout.lengths, torch.arange(len(rollout)), ppo.micro_batch_tokens)
            (reference_BR,) = each(lambda x, kept: [reference_logprobs(self.reference, x, temperature, kept)], rows)
        k1_BR = logprobs_BR - reference_BR
        if ppo.kl_penalty == "full":
            rows = [part for mini_batch in plan for part in mini_batch]
            (penalty_BR,) = each(lambda x, kept: [token_full_kl(self.policy.lm, self.reference, x, temperature, kept)], rows)
        else:
            penalty_BR = ops.kl_per_token(logprobs_BR, reference_BR, ppo.kl_penalty)
        assert self.scale is not None
        normal_B = self.scale.normalised(scores_B, self.score_clip).to(logprobs_BR)
        if ppo.responses_per_prompt > 1:
            normal_B = ops.leave_one_out(normal_B, ppo.responses_per_prompt)
        placed_BR = None if placed_BR is None else self.scale.placed(placed_BR, scores_B, self.score_clip).to(logprobs_BR)
        rewards_BR = ops.shaped_rewards(penalty_BR, normal_B, mask_BR, self.kl_coef, placed_BR)
        advantages_BR, returns_BR = ops.gae(rewards_BR, values_BR, mask_BR, gamma=ppo.gamma, lam=ppo.lam)
        if ppo.whiten_advantages:
            advantages_BR = self._whiten(advantages_BR, mask_BR)
        return Experience(
            rollout, mask_BR, logprobs_BR, values_BR, k1_BR, penalty_BR, entropy_BR, rewards_BR, advantages_BR, returns_BR,
            trunk, gap,
        )  # fmt: skip

    def _whiten(self, x_BR: Tensor, mask_BR: Tensor) -> Tensor:
        count = self.engine.total(mask_BR.sum().to(x_BR))
        mean = self.engine.total(ops.masked_sum(x_BR, mask_BR)) / count
        squares = self.engine.total(ops.masked_sum((x_BR - mean) ** 2, mask_BR))
        return ops.whiten(x_BR, mask_BR, mean=mean, var=squares / (count - 1).clamp(min=1))

    @record_function("train")
    def _train(self, experience: Experience, first_plan: list[list[Tensor]], sums: Sums) -> None:
        for epoch in range(self.ppo.epochs):
            plan = first_plan if epoch == 0 else self._plan(experience.rollout, epoch)
            for number, parts in enumerate(plan):
                valid = sum(experience.mask[part].sum() for part in parts)
                count = self.engine.total(torch.as_tensor(valid, device=self.engine.accelerator.device))
                self.engine.optimizer.zero_grad()
                for part in parts:
                    last = part is parts[-1]
                    chosen = experience.select(part)
                    with self.engine.sync(last):
                        loss = self._losses(chosen, count, sums, first=epoch == 0 and number == 0)
                        self.engine.accelerator.backward(loss * self.processes)
                norm = self.engine.accelerator.clip_grad_norm_(self.policy.parameters(), self.ppo.max_grad_norm)
                if norm is not None and not torch.isfinite(norm):
                    raise RunError(
                        f"update {self.update + 1}: the gradient is not finite. The last checkpoint is untouched; try a lower "
                        'ppo.learning_rate, or model.precision = "fp32"'
                    )
                sums.add("ppo/policy/grad_norm", float(norm or 0.0), 1)
                self.engine.optimizer.step()

    def _losses(self, e: Experience, count: Tensor, sums: Sums, first: bool) -> Tensor:
        with self.engine.autocast():
            new = self.engine.wrapped(e.rollout, self.rollout_config.temperature, e.trunk)
        old_BR = e.logprobs
        if first:  # no step has been taken since the responses were drawn: this pass is that of the old policy
            gap = check_ratio((new.logprobs.detach() - old_BR).exp(), e.mask, self.engine, self.update + 1)
            if e.sampler_gap is None:
                sums.most("ppo/policy/sampler_gap", gap)
            old_BR = new.logprobs.detach()
        pg_loss, pg = ops.policy_loss(new.logprobs, old_BR, e.advantages, e.mask, clip=self.ppo.clip, count=count)
        v_loss, v = ops.value_loss(new.values, e.values, e.returns, e.mask, clip=self.ppo.value_clip, count=count)
        here = e.mask.sum()
        sums.add("ppo/loss/policy", pg_loss.detach() * count, here)
        sums.add("ppo/loss/value", v_loss.detach() * count, here)
        names = {
            "ppo/policy/clipfrac": pg["clipped"], "ppo/policy/approxkl": pg["approx_kl"], "ppo/policy/policykl": pg["policy_kl"],
            "ppo/policy/ratio": pg["ratio"], "ppo/val/clipfrac": v["clipped"], "ppo/val/error": v["error"],
            "ppo/val/vpred": v["prediction"],
        }  # fmt: skip
        for name, total in names.items():
            sums.add(name, total, here)
        return pg_loss + self.ppo.vf_coef * v_loss

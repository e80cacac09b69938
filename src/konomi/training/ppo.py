"""The loop of PPO, which other algorithms share: generate, score, penalise the KL from the reference, estimate advantages, take
clipped steps.

Schulman et al. 2017 (arXiv:1707.06347); the KL penalty and its controller after Ziegler et al. 2019 (arXiv:1909.08593).
The equations are in `konomi.ops`, what differs by algorithm in `konomi.training.algorithms`; here is their order, and the state
between updates.

Shape suffixes: B sequences, R response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function
from transformers import PreTrainedModel

from konomi.config import ActorCriticConfig, AlgorithmConfig, DataConfig, PPOConfig, RolloutConfig
from konomi.data.prompts import as_prompts
from konomi.data.records import Prompt
from konomi.data.tokens import Tokens
from konomi.engine.device import is_processor, peak_memory_gb
from konomi.engine.layout import Pass
from konomi.engine.responses import forget_running
from konomi.engine.rollout import Rollout
from konomi.engine.sampler import Generation, generate, make_draws, sample
from konomi.errors import NotFiniteError
from konomi.models.lora import adapter_weights
from konomi.models.policy import Policy
from konomi.report.ranges import out_of_range
from konomi.rewards import Reward, as_reward
from konomi.runs import processes
from konomi.runs.observer import StepResult
from konomi.seeds import stream_seed
from konomi.training.accelerator import Engine
from konomi.training.algorithms import Batch, check_policy, make_targets
from konomi.training.checkpoint_files import load_checkpoint, save_checkpoint
from konomi.training.experience import Comparison, Experience, Prepared, QueryStream, Scorer, ScoreScale, check_ratio
from konomi.training.gradient import Gradient
from konomi.training.metrics import Clock, KlControl, Sums, check_gradient, describe, ends_here, finish
from konomi.training.passes import Models
from konomi.training.served import Served, check_gap
from konomi.training.shares import check_mini_batch, own_micro_batches, own_rows, whole_generation, whole_rollout


class PPOTrainer:
    """Iterate over it: each step is one update and yields a `StepResult`. It prints nothing and writes nothing.

    Args:
        policy: trained in place. An algorithm without a critic takes its value head away.
        reference: a frozen copy of the initial model, from :func:`konomi.make_reference`.
        tokens: the tokenizer.
        prompts: strings, rows with a text, or prompts; in a new order each epoch.
        reward: a reward, or a function that is called with the lists it names: texts, prompts, responses, other columns.
        judges: further rewards, by name, that nothing is trained against; their means are metrics.
        ppo, rollout, data, algorithm: settings; by default a critic is trained.
        seed: of everything random.
        precision: fp32, bf16 (mixed) or fp64.
        failed_texts: file for the texts at which the reward failed.
        sampler: draws the responses, instead of the policy itself.

    Raises:
        ConfigError: a mini-batch has fewer responses than there are processes, or a setting does not fit the algorithm.
        RunError: the reward failed, or a number is not finite.
    """

    def __init__(
        self, policy: Policy, reference: PreTrainedModel, tokens: Tokens, prompts: Iterable[str | Mapping[str, Any] | Prompt],
        reward: Reward | Callable[..., Any], *, ppo: PPOConfig | None = None, rollout: RolloutConfig | None = None,
        data: DataConfig | None = None, seed: int = 0, precision: str = "fp32", failed_texts: Path | None = None,
        judges: Mapping[str, Reward] | None = None, sampler: Served | None = None, algorithm: AlgorithmConfig | None = None,
    ) -> None:  # fmt: skip
        self.ppo, self.rollout_config = ppo or PPOConfig(), rollout or RolloutConfig()
        self.algorithm = algorithm or ActorCriticConfig()
        check_policy(self.algorithm, self.ppo, policy)
        self.policy, self.tokens, self.seed, self.failed_texts, self.sampler = policy, tokens, seed, failed_texts, sampler
        prompts = as_prompts(prompts, data)
        self.scorer = Scorer(tokens, as_reward(reward, prompts[0].columns), judges or {}, self.rollout_config, failed_texts)
        self.queries = QueryStream(prompts, tokens, data or DataConfig(), seed)
        groups = [{"params": [p for p in policy.lm.parameters() if p.requires_grad], "lr": self.ppo.learning_rate}]
        if not self.algorithm.critic:
            policy.value_head = None
        if policy.value_head is not None:
            groups.append({"params": list(policy.value_head.parameters()), "lr": self.ppo.value_learning_rate})
        self._first_adapters = {name: weight.detach().cpu().clone() for name, weight in adapter_weights(policy.lm).items()}
        self.engine = Engine(policy, groups, self.ppo.adam_eps, precision, self.ppo.optimizer)
        self.reference = self.engine.hold(reference.double() if precision == "fp64" else reference)
        self.models = Models(self.engine, policy, self.reference, self.ppo, self.rollout_config.temperature)
        self.gradient = Gradient(self.models, self.algorithm, self.ppo, self.rollout_config.temperature)
        check_mini_batch(self.ppo)
        self.update, self.kl = 0, KlControl(self.ppo.kl_coef)
        self.rate_factor = 1.0
        """What all learning rates are multiplied by. It is not saved: whoever sets it sets it again."""
        clips = self.ppo.normalize_scores and "score_clip" not in self.algorithm.unread()
        self.score_clip = self.ppo.score_clip if clips else math.inf
        self.scale: ScoreScale | None = None
        self.stop_reason: str | None = None
        self._prepared: Prepared | None = None

    def __iter__(self) -> Iterator[StepResult]:
        while self.update < self.ppo.updates and self.stop_reason is None:
            yield self.step()

    def baseline(self) -> list[dict[str, Any]]:
        """Set the score scale by samples of the initial model; returns them. The first :meth:`step` does it otherwise."""
        count = max(2, self.ppo.baseline_samples)
        prompts, queries = self.queries.take(0, count)
        mine = processes.own(count)
        draws = make_draws(self.rollout_config, self.seed, [("baseline", i) for i in mine])

        def draw() -> Rollout:
            here, name = queries[mine.start : mine.stop], "the initial model"
            with self.engine.autocast():
                return sample(self.reference, self.tokens, here, draws, self.rollout_config, name)

        rollout = whole_rollout(draw, mine, self.tokens.pad_id)
        forget_running(self.reference)
        scored = self.scorer(prompts, rollout, judged=False)
        self.scale = ScoreScale.of(scored.scores) if self.ppo.normalize_scores else ScoreScale(count=count)
        return scored.samples(torch.zeros(count))

    def step(self) -> StepResult:
        """One update: generate, score, and train unless the KL is over its cap."""
        if self.scale is None:
            self.baseline()
        ppo, clock = self.ppo, Clock()

        # 1. Generate a response to each query
        prompts, generation = self._generate()
        clock.lap("rollout")

        # 2. Log-probabilities of policy and reference; the host goes on while a device computes them
        passes = self._passes(generation.rollout, epoch=0)
        compared = self.models.compare(generation, passes, first=self.update == 0)
        clock.lap("score")

        # 3. Score the responses; rewards and advantages
        scored = self.scorer(prompts, generation.rollout, judged=True)
        experience = self._experience(generation, compared, scored.scores, scored.token_rewards)
        clipped_B = (self.scale or ScoreScale()).normalised(scored.scores).abs() > self.score_clip
        sums = describe(experience, scored, clipped_B, self.kl.coef)
        means = sums.means()
        check_gap(means.get("ppo/server/gap_mean", 0.0), self.update + 1)
        self._check_kl(kl := means["objective/kl"])
        clock.lap("reward")

        # 4. Train
        rate = self._train(experience, passes, sums) if kl <= ppo.kl_cap else self._rate()
        means = sums.means()
        clock.lap("train")

        # 5. Metrics
        check_ratio(means.pop("ratio_gap", 0.0), self.engine.precision, self.update + 1)
        metrics = finish(means, ppo.vf_coef)
        check_gradient(metrics.get("ppo/policy/grad_norm", 0.0), self.update + 1)
        metrics |= {"objective/kl_coef": self.kl.coef, "ppo/learning_rate": ppo.learning_rate * rate}
        metrics |= {f"time/ppo/{phase}": seconds for phase, seconds in clock.seconds.items()}
        metrics["episodes/per_second"] = ppo.batch_size / clock.seconds["total"]
        metrics["tokens/per_second"] = float(generation.rollout.lengths.sum()) / clock.seconds["total"]
        metrics["memory/peak_gb"] = peak_memory_gb()

        # 6. Adapt the KL coefficient
        if self.stop_reason is None:
            self.kl.follow(ppo, kl, self.update)
        self.update += 1
        samples, each = scored.samples(experience.kl.sum(1)), ppo.responses_per_prompt
        samples = [sample for first in range(each) for sample in samples[first::each]]  # one of every prompt comes first
        odd = out_of_range(metrics, ppo.max_grad_norm, whole_ratio=self.gradient.whole_ratio)
        return StepResult(self.update, self.update * ppo.batch_size, metrics, samples, odd)

    def _check_kl(self, kl: float) -> None:
        """Set ``stop_reason`` if the KL is over its cap. Raises RunError if it is not finite."""
        if not math.isfinite(kl):
            raise NotFiniteError(
                f"update {self.update + 1}: the KL is not finite, because the model's log-probabilities are not. "
                "The last checkpoint is untouched; try a lower ppo.learning_rate",
                "KL",
            )
        if kl > self.ppo.kl_cap:
            over = f"{kl:.1f} nats/response, over the cap ppo.kl_cap = {self.ppo.kl_cap:g}"
            self.stop_reason = f"the KL of update {self.update + 1} is {over}"

    def state_dict(self) -> dict[str, Any]:
        """Counters, KL control and score scale; weights, optimiser and random states are in a checkpoint's other files."""
        return {
            "update": self.update, "episodes": self.update * self.ppo.batch_size, "kl_coef": self.kl.coef,
            "kl_reached": self.kl.reached, "kl_errors": [*self.kl.errors], "score_scale": asdict(self.scale or ScoreScale()),
            "seed": self.seed,
        }  # fmt: skip

    def save(self, directory: Path) -> None:
        """Write a checkpoint. A run that continues from it gives the same bits as one that was never interrupted."""
        with self.engine.unsharded(state=True) as optimizer:
            if self.engine.accelerator.is_main_process:
                save_checkpoint(directory, self.policy, optimizer, self.state_dict())

    def load(self, directory: Path) -> None:
        """Restore all state from a checkpoint. Raises RunError, and changes nothing, if it is incomplete."""
        with self.engine.unsharded(changes=True) as optimizer:
            state = load_checkpoint(directory, self.policy, optimizer)
        self.update, self.seed = state["update"], state["seed"]
        self.queries.seed, self.kl = self.seed, KlControl.of(state)
        scale = ScoreScale(**state["score_scale"])
        self.scale = scale if scale.count else None  # saved before it was set
        self.stop_reason = None

    def restart(self) -> None:
        """Back to the state before the first update. The score scale stays."""
        with torch.no_grad(), self.engine.unsharded(changes=True):
            for name, weight in adapter_weights(self.policy.lm).items():
                weight.copy_(self._first_adapters[name])
            if not self._first_adapters:
                self.policy.lm.load_state_dict(self.reference.state_dict())
            for weight in self.policy.value_head.parameters() if self.policy.value_head is not None else ():
                weight.zero_()
        self.engine.optimizer.state.clear()
        self.update, self.kl, self.stop_reason = 0, KlControl(self.ppo.kl_coef), None

    def _prepare(self, update: int) -> Prepared:
        """The prompts of an update, and the queries and draws of the responses that this process draws."""
        each, size = self.ppo.responses_per_prompt, self.ppo.batch_size
        prompts, queries = self.queries.take(update * (size // each), size // each)
        mine = own_rows(size, each)
        draws = make_draws(self.rollout_config, self.seed, [("rollout", update * size + i) for i in mine])
        repeated = [prompt for prompt in prompts for _ in range(each)]
        return Prepared((self.seed, update), repeated, mine, [queries[i // each] for i in mine], draws)

    @record_function("rollout")
    def _generate(self) -> tuple[list[Prompt], Generation]:
        """The prompts of the update and a response to each, of which each process draws its part."""
        ready, unread, critic = self._prepared, self.models.recomputes, self.policy.value_head is not None
        if ready is None or ready.key != (self.seed, self.update):
            ready = self._prepare(self.update)
        if self.sampler:
            self.sampler.hand_over()

        def draw() -> Generation:
            with self.engine.autocast():
                return (self.sampler or generate)(
                    self.policy.lm, self.tokens, ready.queries, ready.draws, self.rollout_config,
                    f"update {self.update + 1}: the policy", self.policy.values if critic and not unread else None,
                    self.models.trunk_layer, with_entropy=not unread,
                )  # fmt: skip

        return ready.prompts, whole_generation(draw, ready.mine, self.tokens.pad_id, self.engine)

    def _plan(self, rollout: Rollout, epoch: int) -> list[list[Tensor]]:
        """The mini-batches of an epoch, each a list of this process's micro-batches of row numbers; see `own_micro_batches`."""
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "mini-batches", self.update, epoch, 0))
        size, each = self.ppo.mini_batch_size, self.ppo.responses_per_prompt
        together = each if size % each == 0 else 1  # responses to one prompt: it is then computed once for them
        first = torch.randperm(len(rollout) // together, generator=generator) * together
        order = (first[:, None] + torch.arange(together)).flatten()
        return [own_micro_batches(rows, rollout.lengths, together, self.models) for rows in torch.split(order, size)]

    def _passes(self, rollout: Rollout, epoch: int) -> list[list[Pass]]:
        """The same as passes of the policy; idle ones for the empty micro-batches."""
        plan, make = self._plan(rollout, epoch), partial(self.models.plan, rollout)
        return [[make(rows) if len(rows) else make(parts[0][-1:]).idle() for rows in parts] for parts in plan]

    def _experience(
        self, generation: Generation, compared: Comparison, scores_B: Tensor, token_rewards_BR: Tensor | None = None
    ) -> Experience:
        """Rewards and advantages."""
        batch = Batch(
            compared, scores_B, token_rewards_BR, self.scale or ScoreScale(), self.score_clip, self.kl.coef,
            self.rollout_config.response_tokens[1],
        )  # fmt: skip
        return Experience(
            **vars(compared), **vars(make_targets(self.algorithm, batch, self.ppo)), rollout=generation.rollout,
            trunk=generation.trunk, weights=self.sampler.weights(compared) if self.sampler else None,
        )  # fmt: skip

    @record_function("train")
    def _train(self, experience: Experience, first_plan: list[list[Pass]], sums: Sums) -> float:
        """Take the steps of an update; the factor on the learning rates in the last one."""
        old_CBR, device = torch.stack(list(experience.columns.values())), self.engine.accelerator.device
        for epoch in range(self.ppo.epochs):
            plan = first_plan if epoch == 0 else self._passes(experience.rollout, epoch)
            for number, passes in enumerate(plan):
                first = epoch == 0 and number == 0
                for part in self.gradient(experience, old_CBR, passes, first):
                    for name, total, count in self.gradient.totals(experience, part):
                        sums.add(name, total, count, partial=True)
                    if first:
                        self._check_first(part.figures[-1], experience, sums)
                rate = self._rate(epoch, number)
                self.engine.set_rate(rate)
                norm = self.engine.step(self.ppo.max_grad_norm, first=first)
                sums.add("ppo/policy/grad_norm", norm, 1)
            if ends_here(self.ppo, epoch, sums):
                break
        self.engine.gather()
        if not is_processor(device) and self.update + 1 < self.ppo.updates:
            self._prepared = self._prepare(self.update + 1)  # while the device trains
        return rate

    def _rate(self, epoch: int = -1, mini_batch: int = -1) -> float:
        """Factor on the learning rates in a step of this update; by default in its last one."""
        ppo, steps = self.ppo, self.ppo.batch_size // self.ppo.mini_batch_size
        step = (self.update * ppo.epochs + epoch % ppo.epochs) * steps + mini_batch % steps
        rising = ppo.warmup * ppo.updates * ppo.epochs * steps
        falling = 1.0 - self.update / ppo.updates if ppo.schedule == "linear" else 1.0
        return self.rate_factor * falling * min(1.0, (step + 1) / rising if rising else 1.0)

    def _check_first(self, gap: Tensor, experience: Experience, sums: Sums) -> None:
        """Before the first step the ratio is 1. On a device, and in several processes, the check is after the update."""
        if is_processor(gap.device) and self.engine.processes == 1:
            check_ratio(float(gap), self.engine.precision, self.update + 1)
        sums.most("ratio_gap", gap)
        if experience.sampler_gap is None:
            sums.most("ppo/policy/sampler_gap", gap)

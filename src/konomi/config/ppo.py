"""The settings of `konomi ppo`: what is trained, on which prompts, how far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from konomi.config.algorithm import ActorCriticConfig, AlgorithmConfig, check_algorithm
from konomi.config.model import TrainedModel
from konomi.config.monitoring import EvaluationConfig, GuardConfig
from konomi.config.results import CompareConfig, LandConfig
from konomi.config.rewards import ClassifierReward, Name, RewardConfig
from konomi.config.section import Positive, Section, Share, StageConfig, check_held_out, check_multiple
from konomi.config.server import ServerConfig


def _ordered(name: str, pair: tuple[int, int] | None) -> None:
    if pair is not None and pair[0] > pair[1]:
        raise ValueError(f"{name} = [{pair[0]}, {pair[1]}]: the first has to be the smaller one")


NO_CUT = "query_tokens cuts texts that a model continues; a message to a chat model stays whole: remove it"


class DataConfig(Section):
    """The prompts."""

    prompts: str = "embedded:openings-ja"
    """A .jsonl, .csv, .tsv, .parquet or .txt file, a hub data set's name or a directory with a copy of one, or an embedded
    list."""
    column: str = "text"
    """Column (or JSON key) that holds the text, or a conversation: a list of {"role", "content"} that ends with what is to be
    answered. The other columns reach reward functions by name, the conversation as `messages`."""
    chat: bool = False
    """A text is a user's message to a chat model, not the beginning of what it writes: the model's chat template puts it between
    control tokens. A conversation is always written so."""
    system: str | None = None
    """System message of all conversations that have none of their own. Raters and pages do not see it."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set, for example refs/convert/parquet."""
    query_tokens: tuple[Positive, Positive] | None = None
    """Cut each text to its first n tokens, n uniform in [low, high], BOTH ENDS INCLUSIVE (special tokens that the tokenizer
    puts in front come on top). A shorter text stays whole. None: every text stays whole."""
    max_query_tokens: Positive = 512
    """A longer query is refused, so that one stray text cannot fill the memory."""
    held_out: float = 0.2
    """Share of the texts that training never sees, above 0 and below 1, chosen by the hash of the text: the before/after uses
    them."""
    limit: Positive | None = None
    """Read no more than this many rows."""

    @model_validator(mode="after")
    def _range(self) -> DataConfig:
        _ordered("query_tokens", self.query_tokens)
        check_held_out(self.held_out, "the before/after needs texts that training never sees")
        if self.chat and self.query_tokens:
            raise ValueError(NO_CUT)
        return self


class SamplingConfig(Section):
    """How responses are drawn: always from the policy itself, so that what is scored is what was drawn."""

    response_tokens: tuple[Positive, Positive] = (10, 24)
    """Response length in tokens, uniform in [low, high], BOTH ENDS INCLUSIVE (see stop)."""
    stop: Literal["length", "eos", "both"] = "both"
    """length: at the drawn length, an end-of-text token is a token like any other. eos: at the end of text, at most `high`
    tokens. both: at whichever comes first."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the logits in sampling and in every log-probability of policy and reference. Usual 0.7 to 1.0."""
    missing_eos: Literal["keep", "subtract", "replace"] = "keep"
    """What happens to the score of a response that was cut before its end of text: nothing, `missing_eos_score` is
    subtracted, or the score is replaced by it. For stop = "eos"."""
    missing_eos_score: float = 1.0
    """In units of the raw score. See missing_eos."""
    cache_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory for the keys and values of running responses, GB. Those that do not fit run in turns, which is slower and
    changes no result beyond float error. None: 2, on a GPU a quarter of its memory."""

    @model_validator(mode="before")
    @classmethod
    def _exact_sampling(cls, data: Any) -> Any:
        inexact = {
            "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size", "min_length",
            "min_new_tokens", "num_beams", "logits_processor", "bad_words_ids", "do_sample", "epsilon_cutoff", "eta_cutoff",
        }  # fmt: skip
        if isinstance(data, Mapping) and (used := sorted(inexact & set(data))):
            raise ValueError(
                f"{', '.join(used)}: not offered. PPO differentiates the distribution that it samples from; cutting or bending "
                "it on one side only makes the importance ratio and the KL wrong (the KL turns negative). Use temperature, which "
                "is applied on both sides"
            )
        return data

    @model_validator(mode="after")
    def _range(self) -> SamplingConfig:
        _ordered("response_tokens", self.response_tokens)
        if self.missing_eos == "keep" and self.missing_eos_score != type(self).model_fields["missing_eos_score"].default:
            raise ValueError('missing_eos_score is of no use with missing_eos = "keep"; set that to "subtract" or "replace"')
        if self.missing_eos != "keep" and self.stop == "length":
            raise ValueError('missing_eos is of no use with stop = "length", where no response ends by itself; use stop = "eos"')
        return self


class RolloutConfig(SamplingConfig):
    """How responses are drawn, and by what."""

    server: ServerConfig = ServerConfig()
    """What draws the responses, if not konomi itself."""


class PPOConfig(Section):
    """The loop that all algorithms share, its clipped steps (Schulman et al. 2017) and its KL penalty (Ziegler et al. 2019); and
    the critic of algorithm.kind = "ppo"."""

    episodes: Positive = 1024
    """Responses drawn in the whole run. A multiple of batch_size."""
    batch_size: Positive = 64
    """Responses an update. Larger: steadier, slower. Usual 64 to 512."""
    responses_per_prompt: Positive = 1
    """Responses to each prompt of a batch. Above 1 each score is compared with the mean of its siblings (leave-one-out
    baseline), which takes the prompt's share out of the noise. Divides batch_size. Usual 1 or 4; rloo, grpo and bond need 2 at
    least, usual 4 to 8."""
    mini_batch_size: Positive = 16
    """Responses an optimiser step. Divides batch_size."""
    micro_batch_tokens: Positive | None = None
    """Tokens (padding included) in one forward pass: bounds memory, changes no result beyond float error. None: 1024, on a
    GPU what its memory has room for."""
    epochs: Positive = 2
    """Passes over each batch. Usual 1 to 4."""
    epoch_kl_stop: Annotated[float, Field(gt=0)] | None = None
    """Approximate KL of the steps of an update so far (ppo/policy/approxkl), nats/token, above which its further epochs are left
    out. Higher: more epochs, larger steps. Usual 0.02 to 0.1. None: all epochs are made."""
    learning_rate: Annotated[float, Field(gt=0)] = 1.41e-5
    """Of the policy's weights. Usual 1e-6 to 3e-5."""
    value_learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Of the value head's weights. For kind "ppo" only."""
    schedule: Literal["linear", "constant"] = "linear"
    """linear: the learning rates fall to 0 over the run."""
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the run's optimiser steps in which the learning rates rise from 0. Adam's first steps are
    its largest, because its estimate of the gradients' variance is still poor. Usual 0 to 0.1."""
    adam_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Larger than the usual 1e-8: small gradients of the first steps are not blown up."""
    optimizer: Literal["adam", "adam8"] = "adam"
    """adam8: its moments take 2 bytes a trained weight instead of 8, by bitsandbytes: pip install "konomi[adam8]". Its steps are
    almost those of adam, and slower, which counts in small models."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """Of the model. bf16: half the memory of weights and gradients. It needs optimizer = "adam8", which rounds each step up or
    down at random (a bfloat16 has 8 bits, and most steps are smaller), and learns noisier; prefer fp32 where it fits. Adapters
    ([lora]) stay fp32, and need no other optimiser."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    gamma: Share = 1.0
    """Discount a token. For kind "ppo" only."""
    lam: Share = 0.95
    """Lambda of the generalised advantage estimate: 1 trusts returns, 0 trusts the critic. For kind "ppo" only."""
    clip: Annotated[float, Field(gt=0)] = 0.2
    """The probability ratio is held within 1 +- clip."""
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    """Values are held within +- value_clip of the old ones, in normalised score units. For kind "ppo" only."""
    vf_coef: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the value loss. For kind "ppo" only."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of the whole batch to mean 0, deviation 1. For kind "ppo" only: the others have their own
    scale."""
    normalize_scores: bool = True
    """Subtract the mean and divide by the deviation of the initial model's scores, so that the KL coefficient means the same
    for every reward."""
    baseline_samples: Positive = 64
    """Samples of the initial model from which that mean and deviation are taken."""
    score_clip: Annotated[float, Field(gt=0)] = 5.0
    """Normalised scores are held within +- this: where a reward is 0 for almost all texts, the deviation is small, and a single
    hit would outweigh the batch. Usual 5 to 10. Higher for a reward that can rise by many deviations (see
    ppo/scores_clipped). Not used without normalize_scores."""
    kl_penalty: Literal["k1", "abs", "k2", "full"] = "k1"
    """Per-token KL in the reward. k1: log-ratio (unbiased, the usual). abs, k2: its size, half its square. full: exact over
    the vocabulary (slower)."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.2
    """Weight of the KL, in normalised score units per nat. The first value, unless kl_controller = "fixed"."""
    kl_controller: Literal["adaptive", "pid", "fixed"] = "adaptive"
    """adaptive, pid: the coefficient is moved so that the KL comes to kl_target. adaptive: by a few per cent an update, for long
    runs. pid: by any factor within a few updates, and ahead of a KL that rises fast; for runs of 7 to 50 updates."""
    kl_target: Annotated[float, Field(gt=0)] = 6.0
    """In nats per response. Higher: further from the initial model."""
    kl_horizon: Positive | None = None
    """Of adaptive: episodes in which the coefficient can change by about a fifth. Smaller: reacts faster. None: a sixteenth of
    the run, at least one batch and at most four; and the coefficient is not lowered before the KL has once reached its target, or
    half of the run is over."""
    kl_cap: Annotated[float, Field(gt=0)] = 30.0
    """In nats per response. An update whose mean KL is above it is not trained on: the run goes back, or ends with the last good
    checkpoint as its model (see guard.retries)."""

    @model_validator(mode="after")
    def _divisions(self) -> PPOConfig:
        check_multiple(self, "episodes", "batch_size")
        check_multiple(self, "batch_size", "mini_batch_size")
        check_multiple(self, "batch_size", "responses_per_prompt")
        if self.kl_controller != "fixed" and self.kl_cap <= self.kl_target:
            raise ValueError(f"kl_cap = {self.kl_cap} has to be above kl_target = {self.kl_target}")
        return self

    @property
    def updates(self) -> int:
        """Updates of the whole run."""
        return self.episodes // self.batch_size


class RunConfig(StageConfig):
    """Where the run is kept and logged."""

    save_every: Positive = 4
    """Updates between checkpoints. The last update is always saved."""
    keep: Positive = 1
    """Checkpoints kept."""
    samples: Positive = 4
    """Texts kept of every update, in samples.jsonl."""


class PPOJob(TrainedModel):
    """A whole `konomi ppo` file."""

    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = ClassifierReward()
    judges: dict[Name, RewardConfig] = Field({})
    algorithm: AlgorithmConfig = ActorCriticConfig()
    ppo: PPOConfig = PPOConfig()
    land: LandConfig = LandConfig()
    compare: CompareConfig = CompareConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    guard: GuardConfig = GuardConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _numbers(self) -> PPOJob:
        check_algorithm(self.algorithm, self.ppo)
        half = self.ppo.weights == "bf16"
        if self.model.precision == "fp64" and self.lora.quantize != "none":
            raise ValueError(
                f'lora.quantize = "{self.lora.quantize}" with model.precision = "fp64": 4 bits are not exact; set one of them'
            )
        if self.model.precision == "fp64" and (half or self.ppo.optimizer == "adam8"):
            chosen = 'weights = "bf16"' if half else 'optimizer = "adam8"'
            raise ValueError(
                f'ppo.{chosen} with model.precision = "fp64": the one saves memory, the other is exact and needs twice as much; '
                "set one of them"
            )
        if half and self.ppo.optimizer == "adam" and self.lora.rank is None:
            raise ValueError(
                'ppo.optimizer = "adam" with ppo.weights = "bf16": most steps are smaller than the distance of two bfloat16 and '
                'would be lost; use "adam8", which rounds at random, or ppo.weights = "fp32", or adapters (lora.rank)'
            )
        return self

"""The jobs of the speed benchmark on konomi: one job a process, one line of JSON an update.

    python benchmarks/jobs.py a --out a.jsonl --updates 2

The same file measures before and after: what has moved since then is looked for in both places.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bounds
import shapes

shapes.quiet()

BASELINE = 8
"""Samples for the score scale, which are drawn before the first update and not timed."""
GROWTH_QUERY = 16
CLASSIFIER_WORDS = 250_002 - 4


class HashReward:
    """Costs nothing."""

    name = "hash"

    def __call__(
        self, texts: Sequence[str], *, prompts: Sequence[str], responses: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float]:
        return shapes.hash_scores(texts)


def part(*places: str) -> Any:
    """A function of konomi, from the first of the places, ``module:name``, at which this version has it."""
    for place in places:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(f"konomi.{module}"), name)
        except (ImportError, AttributeError):
            continue
    raise MissingPart(f"this version has none of {', '.join(places)}")


PRECISION, DEVICE = (
    ("engine.device:choose_precision", "train.loop:choose_precision"),
    ("engine.device:find_device", "train.loop:find_device"),
)


class MissingPart(Exception):
    """This version of konomi cannot do the job."""


def make_trainer(
    given: argparse.Namespace, *, lm: Any = None, reward: Any = None, top_layers: int = 0, positions: int = 1024,
    query: tuple[int, int] = (shapes.LOW, shapes.HIGH), response: tuple[int, int] = (shapes.LOW, shapes.HIGH),
    precision: str = "auto", more: int = 0, rollout: Mapping[str, Any] | None = None, **ppo: Any,
) -> tuple[Any, str]:  # fmt: skip
    """A trainer of ``lm``, by default GPT-2 small shape, for ``more`` updates than are timed; and its precision."""
    from konomi import DataConfig, Policy, PPOConfig, PPOTrainer, Prompt, RolloutConfig, Tokens, make_reference

    if top_layers and "top_layers" not in inspect.signature(Policy).parameters:
        raise MissingPart("this version cannot train the top layers alone")
    policy = Policy(lm or shapes.gpt2(given.seed, positions), **({"top_layers": top_layers} if top_layers else {}))
    prompts = [Prompt(text) for text in shapes.texts(max(1024, given.episodes), given.seed, query[1], query[1])]
    precision = part(*PRECISION)(precision)
    settings = {"epochs": shapes.EPOCHS, "mini_batch_size": min(shapes.MINI_BATCH, given.episodes), **ppo}
    trainer = PPOTrainer(
        policy, make_reference(policy), Tokens(shapes.tokenizer()), prompts, reward or HashReward(),
        ppo=PPOConfig(episodes=given.episodes * (given.warmup + given.updates + more), batch_size=given.episodes,
                      baseline_samples=BASELINE, kl_cap=1e9, **settings),
        rollout=RolloutConfig(response_tokens=response, stop="length", **(rollout or {})), data=DataConfig(query_tokens=query),
        seed=given.seed, precision=precision,
    )  # fmt: skip
    return trainer, precision


def run(trainer: Any, given: argparse.Namespace, count_lengths: Any) -> shapes.Log:
    """Time the updates."""
    log = shapes.Log(given.out, given.warmup)
    trainer.baseline()
    for _ in range(given.warmup + given.updates):
        clock = shapes.Clock()
        result = trainer.step()
        seconds = clock.lap()
        names = ("rollout", "reward", "score", "train")
        phases = {name: result.metrics[f"time/ppo/{name}"] for name in names if f"time/ppo/{name}" in result.metrics}
        queries, responses = count_lengths(result)
        log.update(seconds, given.episodes, phases=phases, queries=queries, responses=responses)
    log.end(precision=trainer.engine.precision, shape=asdict(bounds.shape_of(trainer.policy.lm.config.get_text_config())))
    return log


def word_lengths(result: Any) -> tuple[list[int], list[int]]:
    """Lengths in tokens of queries and responses: a word is a token."""
    return [len(s["prompt"].split()) for s in result.samples], [len(s["response"].split()) for s in result.samples]


def job_a(given: argparse.Namespace) -> None:
    """Full fine-tune, no reward model."""
    run(make_trainer(given)[0], given, word_lengths)


def job_b(given: argparse.Namespace) -> None:
    """Two layers, the norm above them and the value head are trained; the rest is one trunk with the reference."""
    run(make_trainer(given, top_layers=2)[0], given, word_lengths)


def job_c(given: argparse.Namespace) -> None:
    """As a, scored by a classifier of XLM-R-base shape."""
    from konomi import ClassifierReward
    from konomi.rewards.model import ClassifierModelReward

    directory = classifier(given.work / "xlm-r-base-shape")
    reward = ClassifierModelReward(ClassifierReward(name=str(directory), label="positive", text="both"))
    run(make_trainer(given, reward=reward)[0], given, word_lengths)


def classifier(directory: Path, **sizes: int) -> Path:
    """A directory with a classifier of XLM-R-base shape, random weights; a text of n words has n + 2 tokens. ``sizes`` that are
    not its own."""
    if (directory / "model.safetensors").exists():
        return directory
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForSequenceClassification

    specials = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    size = {
        "vocab_size": len(specials) + CLASSIFIER_WORDS, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, **sizes,
    }  # fmt: skip
    words = specials | {f"w{i}": i + len(specials) for i in range(size["vocab_size"] - len(specials))}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=512
    )
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        id2label={0: "positive", 1: "neutral", 2: "negative"}, label2id={"positive": 0, "neutral": 1, "negative": 2}, **size,
    )  # fmt: skip
    tokenizer.save_pretrained(directory)
    XLMRobertaForSequenceClassification(config).save_pretrained(directory)
    return directory


def job_d(given: argparse.Namespace) -> None:
    """The demo: examples/demo.toml, real parts."""
    from konomi import Policy, PPOJob, PPOTrainer, Tokens, build_reward, load_causal_lm, load_config, make_reference

    examples = part("data.sources:examples_directory", "data.sources:examples")()
    changes = [f"run.seed={given.seed}", f"ppo.batch_size={given.episodes}", f"ppo.baseline_samples={BASELINE}"]
    changes += [f"ppo.episodes={given.episodes * (given.warmup + given.updates)}"]
    job = load_config(examples / "demo.toml", PPOJob, changes)
    prompts, _ = part("jobs.prepare:find_prompts", "job:find_prompts")(job)
    reward = build_reward(job.reward, columns=prompts[0].columns, device=part(*DEVICE)())
    loaded = load_causal_lm(job.model)
    options: dict[str, Any] = {"freeze_embeddings": job.model.freeze == "embeddings"}
    if getattr(job.model, "top_layers", None):
        options["top_layers"] = job.model.top_layers
    policy = Policy(loaded.model, **options)
    tokens = Tokens(loaded.tokenizer)
    trainer = PPOTrainer(
        policy, make_reference(policy), tokens, prompts, reward, ppo=job.ppo, rollout=job.rollout, data=job.data,
        seed=job.run.seed, precision=part(*PRECISION)(job.model.precision),
    )  # fmt: skip

    def lengths(result: Any) -> tuple[list[int], list[int]]:
        """Queries as they were; of the responses only their sum is told, so the mean stands for each."""
        queries = [len(tokens.encode(sample["prompt"])) for sample in result.samples]
        total = result.metrics["tokens/per_second"] * result.metrics["time/ppo/total"]
        return queries, [round((total - sum(queries)) / len(queries))] * len(queries)

    run(trainer, given, lengths)


def job_sampling(given: argparse.Namespace) -> None:
    """Sampling alone: every response has ``--response`` tokens (the longer ones warm up with fewer)."""
    import torch

    from konomi import RolloutConfig, Tokens
    from konomi.engine.device import autocast, choose_precision
    from konomi.engine.sampler import make_draws, sample

    lm = shapes.gpt2(given.seed, 2048).requires_grad_(False)
    made, precision = shapes.tokenizer(), choose_precision("auto")
    tokens, log = Tokens(made), shapes.Log(given.out, given.warmup)
    low, high = (GROWTH_QUERY, GROWTH_QUERY) if given.growth else (shapes.LOW, shapes.HIGH)
    for number in range(given.warmup + given.updates):
        length = min(given.response, 64) if number < given.warmup else given.response
        config = RolloutConfig(response_tokens=(length, length), stop="length")
        asked = [made(text)["input_ids"] for text in shapes.texts(given.episodes, given.seed + number, low, high)]
        draws = make_draws(config, given.seed, [("bench", number, row) for row in range(given.episodes)])
        clock = shapes.Clock()
        with autocast(torch.device("cpu"), precision):
            rollout = sample(lm, tokens, asked, draws, config)
        seconds = clock.lap()
        log.update(seconds, given.episodes, queries=rollout.query_lengths.tolist(), responses=rollout.response_lengths.tolist())
    log.end(precision=precision)


def job_training(given: argparse.Namespace) -> None:
    """Full fine-tune in one epoch at one response length: for how training grows."""
    fixed = {"query": (GROWTH_QUERY, GROWTH_QUERY), "response": (given.response, given.response)}
    run(make_trainer(given, positions=2048, epochs=1, **fixed)[0], given, word_lengths)


JOBS = {"a": job_a, "b": job_b, "c": job_c, "d": job_d, "sampling": job_sampling, "training": job_training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--out", type=Path, required=True, help="file for the lines")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="directory for made models")
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=shapes.EPISODES)
    parser.add_argument("--response", type=int, default=shapes.HIGH, help="tokens, for sampling and training")
    parser.add_argument("--growth", action="store_true", help="queries of one length")
    given = parser.parse_args()
    with contextlib.suppress(MissingPart):  # the state before left memory alone
        part("engine.device:manage_memory")()
    try:
        JOBS[given.job](given)
    except MissingPart as missing:
        shapes.Log(given.out, given.warmup).write(skipped=str(missing))


if __name__ == "__main__":
    main()

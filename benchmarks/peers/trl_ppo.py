"""PPO of TRL 0.11.4, the last version with `step()`: one line of JSON an update (generate + step).

The defaults are the fastest settings that were found, in seconds of one core for 32 episodes (fp32, 16 episodes an optimiser
step): mini-batch 16 28, 8 accumulated twice 32, 4 accumulated four times 31; with an optimiser step for every 8 episodes
38; generating 16 at a time instead of 32 makes it slower (8 accumulated twice: 41). Huge pages for tensors change nothing
(28) and take 0.4 GB more. The write-up's own settings, mini-batch 1 and one query at a time, are less than half as fast.

Runs in an environment of its own: trl==0.11.4 transformers==4.45.2 accelerate==0.34.2 numpy<2.3 torch==2.13.0.
"""

from __future__ import annotations

import argparse
import random
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import shapes

shapes.quiet()
warnings.simplefilter("ignore")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=shapes.EPISODES)
    parser.add_argument("--mini-batch", type=int, default=shapes.MINI_BATCH)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--generate-batch", type=int, default=32)
    parser.add_argument("--model", default="gpt2")
    return parser.parse_args(words)


def measure(given: argparse.Namespace) -> None:
    """Time the updates."""
    import torch
    from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

    tokenizer = shapes.tokenizer(pad_token=shapes.END)
    models = []
    for _ in range(2):  # the same seed: the reference is the initial model
        model = AutoModelForCausalLMWithValueHead(shapes.model(given.model, given.seed), summary_dropout_prob=0.0)
        model.is_peft_model = False
        models.append(model)
    config = PPOConfig(
        batch_size=given.episodes, mini_batch_size=min(given.mini_batch, given.episodes), ppo_epochs=shapes.EPOCHS,
        gradient_accumulation_steps=given.accumulate, learning_rate=1.41e-5, seed=given.seed,
    )  # fmt: skip
    trainer = PPOTrainer(config, *models, tokenizer)
    rng = random.Random(given.seed)
    size = min(given.generate_batch, given.episodes // 2)
    log = shapes.Log(given.out, given.warmup)
    for number in range(given.warmup + given.updates):
        asked = shapes.texts(given.episodes, rng.randrange(2**31))
        lengths = iter(shapes.paired_lengths(rng, given.episodes // size))
        clock = shapes.Clock()
        queries = [torch.tensor(tokenizer(text)["input_ids"], device=trainer.accelerator.device) for text in asked]
        # top_k 0 and top_p 1 take no warper; no token ends a response, as in the job of the others
        responses = trainer.generate(
            queries, length_sampler=lambda lengths=lengths: next(lengths), batch_size=size, return_prompt=False,
            remove_padding=False, do_sample=True, top_k=0, top_p=1.0, pad_token_id=tokenizer.pad_token_id, eos_token_id=-1,
        )  # fmt: skip
        rollout = clock.lap()
        scores = shapes.hash_scores([tokenizer.decode(torch.cat(pair)) for pair in zip(queries, responses, strict=True)])
        trainer.step(queries, responses, [torch.tensor(score) for score in scores])
        step = clock.lap()
        log.update(
            rollout + step, given.episodes, phases={"rollout": rollout, "step": step},
            queries=[len(q) for q in queries], responses=[len(r) for r in responses],
        )  # fmt: skip
        assert all(shapes.LOW <= len(r) <= shapes.HIGH for r in responses), number
    log.end(settings=f"mini-batch {config.mini_batch_size} x {given.accumulate}, generate {size} at a time", precision="fp32")


if __name__ == "__main__":
    measure(arguments())

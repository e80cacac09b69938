"""RLOO of TRL 1.16, the fastest online trainer of today's TRL on this job: one line of JSON an update.

Four answers a prompt, two iterations, mini-batches of 16, 64 episodes an update. The trainer has no lengths of its own
beside the end of text: each answer is cut to a drawn length once the batch has been generated, as if its end of text had
come there (its `generate` does not drop rows that have ended, so the cost is the same).

Gradient checkpointing, the library's default, is off, and nothing is padded to a multiple; huge pages for tensors, which the
runner turns on, make it a tenth faster. On a machine without bf16 in hardware an update in bf16 was not done after minutes.

Runs in an environment of its own: trl==1.16.0 torch==2.13.0, and the newest transformers that they take.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

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
    parser.add_argument("--response", type=int, nargs=2, default=(shapes.LOW, shapes.HIGH), help="tokens, fewest and most")
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="fp32")
    parser.add_argument("--weights", choices=("bf16", "fp32"), default="fp32", help="of the model; --precision is autocast")
    parser.add_argument("--checkpointing", action="store_true", help="the library's default; slower")
    return parser.parse_args(words)


def measure(given: argparse.Namespace) -> None:
    """Time the updates."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    mini_batches = given.episodes // given.mini_batch
    steps = mini_batches * shapes.EPOCHS  # optimiser steps an update
    log, rng = shapes.Log(given.out, given.warmup), random.Random(given.seed)
    lengths: dict[str, list[int]] = {}

    class Trainer(RLOOTrainer):
        def _generate_single_turn(self, prompt_ids: list, *rest: Any) -> Any:
            completions = super()._generate_single_turn(prompt_ids, *rest)
            completions = [ids[: rng.randint(*given.response)] for ids in completions]
            lengths.update(queries=[len(ids) for ids in prompt_ids], responses=[len(ids) for ids in completions])
            return completions

    class Timer(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.clock = shapes.Clock()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps == 0:
                log.update(self.clock.lap(), given.episodes, **lengths)

    def reward(completions: list[str], **_: Any) -> list[float]:
        return shapes.hash_scores(completions)

    updates = given.warmup + given.updates
    prompts = shapes.texts(updates * given.episodes // 4, given.seed)
    model = shapes.model(given.model, given.seed)
    model.to(torch.bfloat16 if given.weights == "bf16" else torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)  # the trainer makes its reference from the name that the configuration holds
        model.config._name_or_path = scratch
        config = RLOOConfig(
            output_dir=scratch, use_cpu=not shapes.gpu(), bf16=given.precision == "bf16", seed=given.seed,
            max_steps=updates * steps, num_generations=4, num_iterations=shapes.EPOCHS,
            per_device_train_batch_size=given.mini_batch, gradient_accumulation_steps=1, steps_per_generation=mini_batches,
            max_completion_length=given.response[1], temperature=1.0, top_k=0, top_p=1.0, beta=0.05, learning_rate=1.41e-5,
            disable_dropout=True, gradient_checkpointing=given.checkpointing, pad_to_multiple_of=None, save_strategy="no",
            report_to="none", logging_strategy="no", disable_tqdm=True, shuffle_dataset=False, model_init_kwargs=None,
        )  # fmt: skip
        trainer = Trainer(
            model, reward, config, Dataset.from_dict({"prompt": prompts}), callbacks=[Timer()],
            processing_class=shapes.tokenizer(pad_token=shapes.END),
        )  # fmt: skip
        trainer.train()
    log.end(settings=f"weights {given.weights}, checkpointing {given.checkpointing}", precision=given.precision)


if __name__ == "__main__":
    measure(arguments())

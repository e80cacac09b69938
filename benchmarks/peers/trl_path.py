"""RLOO and DPO of TRL 1.16 on the demo's model, prompts and reward; leaves a model that benchmarks/path.py measures.

RLOO: batches of 128 responses, 8 a prompt, in mini-batches of 32, each trained on once, as in the demo; --iterations 2 --batch 16
--generations 4 is the setting of benchmarks/peers/trl_rloo.py. DPO: on pairs by the same reward, the best response
to a prompt with the worst, the second best with the second worst, a pair for every four responses. Every response is cut to a
drawn length, as the demo's are.

    .bench/trl-1.16.0/bin/python benchmarks/peers/trl_path.py rloo --model DIR --prompts examples/openings-ja.jsonl \
        --scorer .venv/bin/python --out runs/paths/trl-rloo-0
    .bench/trl-1.16.0/bin/python benchmarks/peers/trl_path.py dpo --model DIR --scores runs/judge/judge-ja/rank/truth.jsonl \
        --out runs/paths/trl-dpo-0

Runs in an environment of its own, see trl_rloo.py; --scorer is a Python that has konomi, which scores texts for it.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import shapes

shapes.quiet()
warnings.simplefilter("ignore")

LENGTHS = (8, 16)
SCORER = """
import json, sys
from konomi.config import ClassifierReward
from konomi.data.records import is_held_out, Prompt
from konomi.rewards.sentiment import SentimentReward
reward = SentimentReward(ClassifierReward(kind="classifier", name="embedded:asari", label="positive", use="logit"))
for line in sys.stdin:
    asked = json.loads(line)
    if "prompts" in asked:
        answer = [each for each in asked["prompts"] if not is_held_out(Prompt(each).key, 0.2)]
    else:
        answer = reward(asked["texts"], prompts=(), responses=asked["texts"], columns={})
    print(json.dumps(answer), flush=True)
"""


class Scorer:
    """The demo's reward, in a process of konomi's environment."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen([python, "-c", SCORER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **what: Any) -> Any:
        """One question, one answer."""
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(what), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("rloo", "dpo"))
    parser.add_argument("--model", required=True, help="the directory of the initial model")
    parser.add_argument("--prompts", type=Path, help="rloo: JSON lines with text")
    parser.add_argument("--scores", type=Path, help="dpo: JSON lines with prompt, response, score")
    parser.add_argument("--scorer", default=sys.executable)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=896)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--beta", type=float, default=0.05)
    parser.add_argument("--iterations", type=int, default=1, help="rloo: passes over each batch")
    parser.add_argument("--generations", type=int, default=8, help="rloo: responses a prompt")
    parser.add_argument(
        "--batch", type=int, default=32, help="rloo: responses an optimiser step, a quarter of what is drawn at once"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds",
        type=float,
        default=1e9,
        help="of processor time, in training, at most: with OMP_NUM_THREADS=1 those of one core",
    )
    return parser.parse_args()


def common(given: argparse.Namespace, steps: int, batch: int) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "output_dir": str(given.out / "scratch"), "use_cpu": True, "bf16": True, "seed": given.seed, "max_steps": steps,
        "per_device_train_batch_size": batch, "gradient_accumulation_steps": 1, "learning_rate": given.learning_rate,
        "lr_scheduler_type": "constant", "beta": given.beta, "disable_dropout": True, "gradient_checkpointing": False,
        "save_strategy": "no", "report_to": "none", "logging_strategy": "steps", "logging_steps": 8, "disable_tqdm": True,
    }  # fmt: skip


def clock(seconds: float) -> Any:
    """A callback that ends the training in time."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.start = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = time.process_time() - self.start > seconds

    return Clock()


def rloo(given: argparse.Namespace, model: Any, tokenizer: Any) -> Any:
    """The trainer of RLOO."""
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    scorer, rng = Scorer(given.scorer), random.Random(given.seed)
    rows = [json.loads(line)["text"] for line in given.prompts.read_text(encoding="utf-8").splitlines()]
    prompts = scorer.ask(prompts=rows)
    rng.shuffle(prompts)

    class Trainer(RLOOTrainer):
        def _generate_single_turn(self, prompt_ids: list, *rest: Any) -> Any:
            completions = super()._generate_single_turn(prompt_ids, *rest)
            return [ids[: rng.randint(*LENGTHS)] for ids in completions]

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        scores = scorer.ask(texts=[prompt + each for prompt, each in zip(prompts, completions, strict=True)])
        print(f"score {sum(scores) / len(scores):.2f}", flush=True)
        return scores

    steps = given.episodes // given.batch * given.iterations
    config = RLOOConfig(
        **common(given, steps, given.batch), num_generations=given.generations, num_iterations=given.iterations,
        steps_per_generation=4,
        max_completion_length=LENGTHS[1], temperature=1.0, top_k=0, top_p=1.0, pad_to_multiple_of=None, shuffle_dataset=False,
        model_init_kwargs=None,
    )  # fmt: skip
    data = Dataset.from_dict({"prompt": prompts[: given.episodes // given.generations]})
    return Trainer(model, reward, config, data, callbacks=[clock(given.seconds)], processing_class=tokenizer)


def dpo(given: argparse.Namespace, model: Any, tokenizer: Any) -> Any:
    """The trainer of DPO, on a pair for every four responses to a prompt."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    by_prompt: dict[str, list[tuple[float, str]]] = {}
    for line in given.scores.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_prompt.setdefault(row["prompt"], []).append((row["score"], row["response"]))
    kept = set(Scorer(given.scorer).ask(prompts=list(by_prompt)))
    pairs = []
    for prompt, scored in by_prompt.items():
        ordered = sorted(scored) if prompt in kept else []
        pairs += [{"prompt": prompt, "chosen": ordered[-1 - i][1], "rejected": ordered[i][1]} for i in range(len(ordered) // 4)]
    random.Random(given.seed).shuffle(pairs)
    print(f"{len(pairs)} pairs", flush=True)
    tokenizer.eos_token = tokenizer.pad_token  # the responses were cut at a length: none has an end of text
    config = DPOConfig(**common(given, len(pairs) // 16, 16), max_length=64)
    return DPOTrainer(
        model, args=config, train_dataset=Dataset.from_list(pairs), callbacks=[clock(given.seconds)], processing_class=tokenizer
    )


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = arguments()
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model.get_input_embeddings().weight.requires_grad_(False)
    model.config._name_or_path = given.model
    trainer = {"rloo": rloo, "dpo": dpo}[given.kind](given, model, tokenizer)
    start, used = time.monotonic(), time.process_time()
    trainer.train()
    spent = f"{time.monotonic() - start:.0f} s, {time.process_time() - used:.0f} s of processor time"
    print(f"{trainer.state.global_step} steps in {spent}, peak {shapes.peak_rss_gb():.1f} GB", flush=True)
    trainer.model.save_pretrained(given.out / "model")
    tokenizer.save_pretrained(given.out / "model")


if __name__ == "__main__":
    main()

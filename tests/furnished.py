"""A directory with all that small jobs need: tiny models, texts, reward functions, and a job file for each verb."""

from __future__ import annotations

from pathlib import Path

import tiny
from command_line import write_rows

WORDS = [a + b + c for a in "abcdefgh" for b in "xyz" for c in "uvw"]
TASTE = '''
import os, resource, time

asked = 0

def count_a(responses):
    return [float(text.count("a")) for text in responses]

def early(responses):
    return [float(any(letter in text for letter in "abcd")) for text in responses]

def count_b(texts):
    return [text.count("b") for text in texts]

def length(responses):
    return [float(len(text)) for text in responses]

def fine(responses):
    """Hardly ever the same for two texts."""
    return [float(text.count("a") + len(text) / 8) for text in responses]

def weighted(responses, weight):
    return [len(text) * weight[i] for i, text in enumerate(responses)]

def along(responses):
    """Scored along its way."""
    return [[(i + 1, 1.0) for i in range(len(text))] for text in responses]

def flat(responses):
    return [1.0 for _ in responses]

def slow(responses):
    """Takes its time where there is a file "slow"."""
    time.sleep(0.3 * os.path.exists("slow"))
    return count_a(responses)

def filling(responses):
    """From the fourth call on no file may be larger than 60 kB, where there is a file "full"."""
    global asked
    asked += 1
    if asked == 4 and os.path.exists("full"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    return count_a(responses)

def broken(responses):
    return [float("nan") for _ in responses]

def raising(responses):
    return [1 / (len(text) - len(text)) for text in responses]

def stopping(responses):
    raise KeyboardInterrupt
'''
FUNCTION = '[reward]\nkind = "function"\nname = "taste.py:'
MODEL = '[model]\nname = "lm"\nprecision = "fp32"\n'
"""The same numbers where the processor has bf16 in hardware and where it has not."""
JOBS = {
    "ppo.toml": f'{MODEL}[data]\nprompts = "prompts.txt"\n[rollout]\nresponse_tokens = [4, 8]\n'
    f'{FUNCTION}count_a"\n[ppo]\nepisodes = 64\nbatch_size = 16\nmini_batch_size = 8\nbaseline_samples = 16\n'
    "learning_rate = 3e-3\nvalue_learning_rate = 1e-2\nkl_target = 8\nkl_cap = 60\n[run]\nsave_every = 1\n",
    "sft.toml": f'{MODEL}[data]\ntexts = "completions.jsonl"\nheld_out = 0.25\n[sft]\nepochs = 4\nbatch_size = 8\n'
    "micro_batch_size = 4\nlearning_rate = 1e-2\nmax_length = 40\n[run]\n",
    "reward.toml": f'{MODEL}[data]\nfile = "pairs.jsonl"\n[train]\nepochs = 1\n[run]\n',
    "dpo.toml": f'{MODEL}[data]\nfile = "pairs.jsonl"\n[dpo]\nepochs = 2\nbatch_size = 8\nlearning_rate = 1e-3\n[run]\n',
    "sample.toml": '[models.a]\nname = "lm"\nprecision = "fp64"\n[data]\nprompts = "prompts.jsonl"\n[rollout]\n'
    "response_tokens = [3, 6]\n[run]\n",
    "pick.toml": 'candidates = "candidates.jsonl"\n[pick]\n[run]\n',
    "judge.toml": f'candidates = "candidates.jsonl"\n{FUNCTION}length"\n[run]\n',
}
PIPE = """
name = "tiny"
mlflow = false

[stages.candidates]
do = "sample"
models.a.name = "lm"
rollout.response_tokens = [3, 6]
data.prompts = "prompts.jsonl"

[stages.rank]
do = "judge"
candidates = "@candidates.candidates"
reward = { kind = "function", name = "taste.py:fine" }

[stages.policy]
do = "ppo"
model.name = "lm"
data.prompts = "prompts.jsonl"
rollout.response_tokens = [4, 8]
reward = { kind = "function", name = "taste.py:fine" }
ppo = { episodes = 96, batch_size = 32, baseline_samples = 32, learning_rate = 3e-3, kl_cap = 60 }
run = { save_every = 1 }

[stages.after]
do = "sample"
models.tuned.name = "@policy.model"
rollout.response_tokens = [3, 6]
data.prompts = "prompts.jsonl"
"""
COMPLETIONS = [
    {"prompt": f"{word} ", "completion": f"{word}{word}"}
    for word in (a + b + c for a in "bcdfgh" for b in "aeiou" for c in "lmnr")
]
"""A word, and the word twice more; with its space the prompt is no beginning of the completion."""
TOPICS = [{"text": word, "topic": word[0]} for word in (a + b + c for a in "abcd" for b in "xyz" for c in "uv")]
CANDIDATES = [
    {
        "prompt": f"prompt {i}",
        "candidates": [{"text": "x" * (1 + (7 * i + 3 * k) % 11), "model": "ab"[k % 2]} for k in range(4)],
        "columns": {"weight": 2},
    }
    for i in range(120)
]


def furnish(directory: Path) -> Path:
    """Write all of it; return the directory."""
    tiny.save_tiny(directory / "lm", "gpt2")
    tiny.save_tiny(directory / "other", "llama", seed=2)
    write_rows(directory / "prompts.jsonl", TOPICS)
    write_rows(directory / "completions.jsonl", COMPLETIONS)
    write_rows(directory / "pairs.jsonl", ({"prompt": word, "chosen": "aaa", "rejected": "b"} for word in WORDS))
    write_rows(directory / "candidates.jsonl", CANDIDATES)
    files = {
        "prompts.txt": "\n".join(WORDS) + "\n",
        "texts.txt": "".join(f"{word} {word}\n" for word in WORDS),
        "long.txt": "\n".join(["a" * 200, *WORDS]),
        "empty.jsonl": "",
        "taste.py": TASTE,
        "pipe.toml": PIPE,
        **{name: f"{job}mlflow = false\n" for name, job in JOBS.items()},
    }
    for name, content in files.items():
        (directory / name).write_text(content, encoding="utf-8")
    return directory

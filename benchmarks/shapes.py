"""The job that every system of the speed benchmark does, and how it tells its times.

Imports neither konomi nor, at its top, anything that is not in the standard library: the peers run it in environments of
their own, with other versions of everything.

GPT-2 small shape with random weights, vocabulary 50,257, no dropout; a text is words ``w0`` to ``w50255``, one token each,
so that lengths in tokens can be read off the texts. Queries and responses are 10 to 24 tokens, uniform, both ends included.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VOCABULARY = 50_257
LOW, HIGH = 10, 24
EPISODES, MINI_BATCH, EPOCHS = 64, 16, 2
END = "<eos>"


def quiet() -> None:
    """No network, no progress bars, no telemetry; call it before transformers is imported."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def words(rng: random.Random, count: int) -> str:
    """A text of so many tokens."""
    return " ".join(f"w{rng.randrange(VOCABULARY - 1)}" for _ in range(count))


def texts(count: int, seed: int, low: int = LOW, high: int = HIGH) -> list[str]:
    """Queries of random lengths."""
    rng = random.Random(seed)
    return [words(rng, rng.randint(low, high)) for _ in range(count)]


def hash_scores(given: Sequence[str]) -> list[float]:
    """A score in [-1, 1) that follows from the text and costs nothing."""
    return [zlib.crc32(text.encode()) / 2**31 - 1.0 for text in given]


def tokenizer(**special: str) -> Any:
    """Words split at white space; ``special`` are further special tokens by role, put behind the words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(VOCABULARY - 1)} | {END: VOCABULARY - 1}
    for token in special.values():
        vocabulary.setdefault(token, len(vocabulary))
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, **special)


def gpt2(seed: int, positions: int = 1024) -> Any:
    """GPT-2 small with random weights, in evaluation mode."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    end = VOCABULARY - 1
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=positions, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        summary_first_dropout=0.0, bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def paired_lengths(rng: random.Random, count: int) -> list[int]:
    """``count`` (even) lengths, each uniform in LOW..HIGH, whose mean is always the same: each comes with its mirror image.

    For a peer that cuts a whole batch of responses to one length: with few batches an update, plain draws would make an
    update's work a matter of luck.
    """
    drawn = [rng.randint(LOW, HIGH) for _ in range(count // 2)]
    return drawn + [LOW + HIGH - length for length in drawn]


def peak_rss_gb() -> float:
    """The most memory that this process has held at one time, 10^9 bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Log:
    """JSON lines: a line an update, and one at the end."""

    def __init__(self, path: Path, warmup: int) -> None:
        self.path, self.warmup, self.count, self._cpu = path, warmup, 0, time.process_time()
        path.write_text("", encoding="utf-8")

    def write(self, **row: Any) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def update(self, seconds: float, episodes: int, **more: Any) -> None:
        """Add the line of an update; the first ``warmup`` are marked and do not count.

        ``cpu``, the processor's seconds since the line before, tells what a busy machine has done to ``seconds``.
        """
        self.count, before, self._cpu = self.count + 1, self._cpu, time.process_time()
        facts = {"warmup": self.count <= self.warmup, "rss": peak_rss_gb(), "cpu": self._cpu - before}
        self.write(seconds=seconds, episodes=episodes, **facts, **more)

    def end(self, **facts: Any) -> None:
        """Add the last line: peak memory, and what was run."""
        self.write(end=True, rss=peak_rss_gb(), **facts)


class Clock:
    """Seconds since it was made or last asked."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """The seconds since the last lap."""
        now = time.perf_counter()
        since, self._last = now - self._last, now
        return since

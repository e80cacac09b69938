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

VOCABULARY, FEW = 50_257, 1_000
"""Tokens; and those of tiny shapes, which set `VOCABULARY` to it."""
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


def gpt2(seed: int, positions: int = 1024, **sizes: Any) -> Any:
    """GPT-2 small with random weights, in evaluation mode; ``sizes`` that are not its own."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    end = VOCABULARY - 1
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=positions, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        summary_first_dropout=0.0, bos_token_id=end, eos_token_id=end, **sizes,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def llama(seed: int, device: str = "cpu", **sizes: Any) -> Any:
    """The layers of Llama 3.2 1B (16, width 2,048, 8 key-value heads), random weights; with this vocabulary 1.08B parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    end = VOCABULARY - 1
    large = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    config = LlamaConfig(
        vocab_size=VOCABULARY, tie_word_embeddings=True, max_position_embeddings=4096, bos_token_id=end, eos_token_id=end,
        **{**large, "num_key_value_heads": 8, **sizes},
    )  # fmt: skip
    with torch.device(device):
        return LlamaForCausalLM(config).eval()


def model(name: str, seed: int) -> Any:
    """gpt2 or llama; gpt2-tiny and llama-tiny are the same with two small layers, and the same on every machine."""
    import torch

    if name == "llama":  # drawing a billion numbers takes a processor half a minute
        return llama(seed, "cuda" if torch.cuda.is_available() else "cpu")
    large = {"initializer_range": 0.2}  # so that a token depends much on those before it
    if name == "llama-tiny":
        small = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
        return llama(seed, intermediate_size=128, num_key_value_heads=2, **small, **large)
    return gpt2(seed, **({"n_layer": 2, "n_embd": 64, "n_head": 4, **large} if name == "gpt2-tiny" else {}))


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


def gpu() -> Any | None:
    """``torch.cuda`` where torch is imported and sees a GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_available() else None


def peak_gpu_gb() -> float | None:
    """The most that tensors of this process have held on the GPU since its peak was last reset, 10^9 bytes."""
    cuda = gpu()
    return cuda.max_memory_allocated() / 1e9 if cuda else None


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
        facts |= {"gpu": peak} if (peak := peak_gpu_gb()) is not None else {}
        self.write(seconds=seconds, episodes=episodes, **facts, **more)

    def end(self, **facts: Any) -> None:
        """Add the last line: peak memory, and what was run."""
        self.write(end=True, rss=peak_rss_gb(), **facts)


class Clock:
    """Seconds since it was made or last asked, a GPU's work included."""

    def __init__(self) -> None:
        self._last = self._now()

    @staticmethod
    def _now() -> float:
        if cuda := gpu():
            cuda.synchronize()
        return time.perf_counter()

    def lap(self) -> float:
        """The seconds since the last lap."""
        now = self._now()
        since, self._last = now - self._last, now
        return since

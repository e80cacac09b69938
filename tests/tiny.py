"""The tiny world of the tests: a 27-symbol alphabet, a character tokenizer, 2-layer models of four families.

Ids: ``<bos>`` 0, ``<eos>`` 1, ``a``..``z`` 2..27, space 28; no pad token, no unknown token (another character is an
error). Everything is built in memory in milliseconds; nothing is downloaded.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch

ALPHABET = string.ascii_lowercase + " "
BOS, EOS = "<bos>", "<eos>"
BOS_ID, EOS_ID = 0, 1
VOCAB = len(ALPHABET) + 2
FAMILIES = ("gpt2", "llama", "qwen", "gemma3")


def tiny_config(family: str, *, vocab: int = VOCAB, **changes: Any) -> Any:
    """Return the transformers config of a 2-layer, width-32 model, dropout left at the family's default.

    ``changes`` are passed on to the config (``changes`` wins), for example ``attention_dropout=0.5``.
    """
    import transformers

    ids = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "vocab_size": vocab}
    if family == "gpt2":
        sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 128}
        return transformers.GPT2Config(**{**ids, **sizes, **changes})
    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": None,
    }
    if family == "llama":
        return transformers.LlamaConfig(**{**ids, **sizes, **changes})
    if family == "qwen":
        # Qwen3: of a saved Qwen2 model transformers 5 ignores the tokenizer's class and makes it byte-level
        return transformers.Qwen3Config(**{**ids, **sizes, "head_dim": 8, **changes})
    if family == "gemma3":
        own = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16, "tie_word_embeddings": True}
        own["layer_types"] = ["sliding_attention", "full_attention"]
        return transformers.Gemma3TextConfig(**{**ids, **sizes, **own, **changes})
    raise ValueError(f"unknown family {family!r}: one of {FAMILIES}")


def tiny_model(family: str, *, vocab: int = VOCAB, seed: int = 0, **changes: Any) -> Any:
    """Return a random float32 causal LM of ``family``; equal seeds give equal weights, the global RNG is left alone.

    The model is as transformers makes it: dropout at the family's default, and in eval mode.
    """
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(tiny_config(family, vocab=vocab, **changes), dtype=torch.float32)
    return model.eval()


def tiny_tokenizer(*, bos: bool = True) -> Any:
    """Return the character-level fast tokenizer; ``bos``: put ``<bos>`` in front, as Gemma does."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {token: i for i, token in enumerate([BOS, EOS, *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<none>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)


def save_tiny(directory: str | Path, family: str, *, seed: int = 0, bos: bool = True, **changes: Any) -> Path:
    """Write a tiny model and its tokenizer as a directory that ``load_causal_lm`` reads; return its path."""
    directory = Path(directory)
    tiny_model(family, seed=seed, **changes).save_pretrained(directory)
    tiny_tokenizer(bos=bos).save_pretrained(directory)
    return directory


def tiny_encoder(directory: str | Path, *, seed: int = 0, tokenizer: Any = None, length: int = 50) -> Path:
    """Write a tiny XLM-RoBERTa and its tokenizer, as a hub snapshot has them: a trunk without a head for classification.

    ``tokenizer``: with a padding token; by default the tiny one. ``length``: tokens that it reads.
    """
    import transformers

    directory = Path(directory)
    if tokenizer is None:
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    config = transformers.XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=tokenizer.pad_token_id + 1 + length, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, type_vocab_size=1, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.XLMRobertaModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory

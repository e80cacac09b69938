"""Model families that work, and the error for one that does not.

Before use a family is tested (`konomi.engine.forward.check_head`, `konomi.engine.decoding.check_decoding`): batched
log-probabilities must equal those of each sequence alone, or the family is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from konomi.engine.device import is_out_of_memory
from konomi.errors import FAULTS, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PACKED = """
afmoe apertus arcee aria_text beam bitnet cohere_compass_text ctrl cwm dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe
flex_olmo fuyu gemma gemma2 gemma3 gemma3_text gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text glm
glm4 glm4_moe got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neox granite granitemoe granitemoeshared helium hunyuan_v1_dense
hunyuan_v1_moe hy_v3 hyperclovax internlm3 iquestcoder jais2 jetmoe kolibri1 laguna llama mellum minimax_m2
minimax_m3_vl_text ministral ministral3 mistral mixtral moshi moss_transcribe_diarize nanochat olmo olmo2 olmo3 olmoe
opt persimmon phi phi3 phi4_multimodal phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open starcoder2
vaultgemma
"""
_PADDED = """
axk1 axk2 bailing_hybrid bamba biogpt bloom codegen deepseek_v2 deepseek_v3 deepseek_v32 diffllama falcon
falcon_h1 falcon_mamba flint glm4_moe_lite glm_moe_dsa gpt_neo gpt_neox_japanese gpt_oss gptj granite_swa granitemoe_swa
granitemoehybrid hy_v4 inkling2_text jamba kimi_linear lfm2 lfm2_moe lfm3 llama4 llama4_text longcat_flash mamba mamba2
mimo_v2_flash minicpm3 mpt nemotron nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next
qwen4_exp qwen4_exp_text stablelm whisper xglm youtu zamba zamba2 zaya
"""
PACKED, PADDED = _PACKED.split(), _PADDED.split()
"""Model types of transformers that run without padding, and with. tests/engine/test_families.py writes these two lists."""

NOT_ALIKE = {
    "deepseek_v4": "it chooses among compressed tokens, otherwise in decoding than in training, by what it sees",
    "doge": "beyond its window it attends to other tokens in decoding than in training, by what it sees",
}
"""Families whose failures short tests do not reveal."""


def families_that_work() -> str:
    """One sentence for a message: how many work, and the names that several of them share."""
    brands = Counter(re.match(r"[a-z]+", name)[0] for name in PACKED + PADDED)  # type: ignore[index]
    large = sorted(brand for brand, count in brands.items() if count >= 3)
    return f"{len(PACKED + PADDED)} families work, those of {', '.join(large)} among them: see docs/families.md"


def refusal(lm: PreTrainedModel, why: str) -> ModelError:
    """The error for a family that cannot be used."""
    return ModelError(f"{type(lm).__name__}: konomi cannot use this family: {why}. {families_that_work()}")


@contextmanager
def trial(lm: PreTrainedModel) -> Iterator[None]:
    """Run the family's code in full precision; turn its exceptions into a refusal."""
    try:
        with torch.no_grad(), torch.autocast(lm.device.type, enabled=False):
            yield
    except FAULTS as error:
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:300]
        raise refusal(lm, f"its code fails in the way that konomi calls it ({type(error).__name__}: {text})") from error


def is_near(actual: Tensor, expected: Tensor, lm: PreTrainedModel) -> bool:
    """Whether these are equal up to rounding in the model's precision."""
    exact = lm.dtype.itemsize >= 4 and torch.get_float32_matmul_precision() == "highest"
    share = 1e-3 if exact else 0.05
    size = min(1.0, float(expected.abs().max()))
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=share, atol=share * size)

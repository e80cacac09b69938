"""Every causal family that transformers knows, tiny: two layers or one of each kind, width 32, the vocabulary of `tiny`."""

from __future__ import annotations

import re
from typing import Any

import torch

from tiny import BOS_ID, EOS_ID, VOCAB

SIZES = {
    r"(local|lsh)_num_chunks_after|num_kv_shared_layers|hidden_size_per_layer_input": 0,
    r"(bos|decoder_start)_token_id|bos_index": BOS_ID,
    r"eos_token_id|eos_index": EOS_ID,
    r"\w+_token_(id|index)|(pad|unk|mask)_index": VOCAB - 1,
    r"(vocab_size|vocab_size_per_layer_input|n_token)": VOCAB,
    r"(num_(hidden_|decoder_|encoder_)?layers|n_layers?|decoder_layers|encoder_layers|num_blocks)": 2,
    r"(num_|n_|encoder_|decoder_|mamba_|linear_)*(attention_)?(num_)?(query_|swa_)?heads?|n_head": 4,
    r"(num_|n_)*(swa_|global_)?(key_value|kv)_heads|num_query_groups": 2,
    r"(moe_)?num_(local_|routed_)?experts|n_routed_experts|n_mlp_experts": 4,
    r"(moe_)?num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k": 2,
    r"(num_expert_group|n_group|topk_group)": 1,
    r"(max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length|context_length|max_target_positions)": 128,
    r".*(window|chunk).*": 16,
    r"qk_head_dim": 16,
    r".*(head_dim|d_head|head_size|headdim|nope_head_dim|rope_head_dim|dim_head|kv_channels)": 8,
    r"(query_pre_attn_scalar|rotary_dim|index_topk)": 8,
    r".*(hidden_size|d_model|n_embd|emb_dim|embed_dim|embedding_dim|embedding_size|lru_width|word_embed_proj_dim)": 32,
    r".*(intermediate_size|ffn_dim|d_inner|ffn_hidden_size|dff|dim_ff|n_inner|feed_forward_size)": 64,
    r".*(lora_rank|adapter_rank|lowrank|state_size|d_state|dt_rank|time_step_rank)": 8,
}  # fmt: skip
"""What is told of a size by its name, the first that fits."""


SHARED = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2}
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {**SHARED, "intermediate_size": 64, "activation_sparsity_pattern": [0.95, 0.0] * 2},
    "gemma4_text": {**SHARED, "hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"mamba_num_heads": 8, "n_groups": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "zamba": {
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    },
    "zamba2": {"attention_head_dim": 16, "attention_hidden_size": 64, "n_mamba_heads": 8},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family needs besides its sizes."""


def shrink(default: Any) -> dict[str, Any]:
    """The arguments of a config that make a model of a few thousand weights."""
    kinds = next((v for v in (getattr(default, n, None) for n in ("layer_types", "layers_block_type")) if v), None)
    layers = max(2, len(set(kinds or ())))
    out: dict[str, Any] = {}
    for name, value in vars(default).items():
        if name in ("initializer_range", "init_std", "initializer_factor"):
            out[name] = 0.2
        elif hasattr(value, "to_dict"):
            out[name] = type(value)(**{**shrink(value), **OWN.get(value.model_type, {})})
        elif isinstance(value, (list, tuple)) and kinds is not None and len(value) == len(kinds):
            out[name] = shorten(value, layers)
        elif name in ("bos_token_id", "eos_token_id") or (isinstance(value, int) and not isinstance(value, bool)):
            out[name] = smaller(name, value, layers, latent="kv_lora_rank" in vars(default))
    return out


def smaller(name: str, value: Any, layers: int, latent: bool) -> int:
    """What a number becomes; ``latent``: keys and values are one latent vector, so that all heads have their own."""
    size = next((size for pattern, size in SIZES.items() if re.fullmatch(pattern, name)), 32)
    if "layers" in name and size == 2:
        size = layers
    if isinstance(value, int) and value <= size and not name.endswith("_id"):
        size = value
    return 4 if latent and name == "num_key_value_heads" else size


def shorten(values: Any, count: int) -> list[Any]:
    """So many of a list, every kind among them in the order of appearance, the last ones repeated."""
    kinds = list(dict.fromkeys(values))
    return (kinds + [kinds[-1]] * count)[:count]


CANNOT_BE_TINY = {
    "dbrx": "transformers builds no model of its own default config",
    "dots3_note": "its layers are told one by one, for 46 of them",
    "dots3_note_text": "its layers are told one by one, for 46 of them",
    "gemma3n": "needs the package timm, for images; its text model is tried",
    "gemma4_assistant": "drafts for another model, whose keys and values it reads",
    "gemma4_unified_assistant": "drafts for another model, whose keys and values it reads",
    "musicgen": "makes sound; its config cannot be read as that of a language model",
    "musicgen_melody": "makes sound; its config cannot be read as that of a language model",
}
"""Families that are not tried, and why."""


def kinds() -> list[str]:
    """The model types of all causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_family(kind: str, seed: int = 0) -> Any:
    """A random float32 model of a model type, its weights large enough that each token depends on those before it."""
    import transformers

    default = transformers.CONFIG_MAPPING[kind]()
    config = type(default)(**{**shrink(default), **OWN.get(kind, {})})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()

"""Tokenizers of chat models: the control tokens, templates and ends of Qwen3, Llama 3, Gemma 3 and Phi-3, without their words.

Each has a token for every byte (or, as SentencePiece has it, for characters and bytes), so that any text can be written. The
templates are written after the structure of the real ones: what stands around a turn, where the system message goes, what is
stripped, what ends an answer.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny import tiny_config

QWEN = """\
{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}
{%- set content = m.content %}
{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.last and loop.index0 > ns.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{{- content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

LLAMA = """\
{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Today Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
{%- set first = messages[0]['content'] + '\\n\\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}
{%- for m in rest -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must alternate') }}{%- endif -%}
{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + (first if loop.first else '') }}
{{- m['content'] | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

PHI = """\
{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""


@dataclass(frozen=True)
class Layout:
    """A chat model's tokenizer and what its template makes of a conversation.

    special, other: added tokens, special or not. bos: its tokenizer puts it in front. ends: of generation_config.json.
    shown: the rendering of system "S", user "a", assistant "b", user "c", with the cue.
    """

    template: str
    special: tuple[str, ...]
    eos: str
    ends: tuple[str, ...]
    end_of_turn: str
    shown: str
    other: tuple[str, ...] = ()
    bos: str | None = None
    byte_level: bool = True
    family: str = "qwen"


LAYOUTS = {
    "qwen3": Layout(
        QWEN, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", ("<|im_end|>", "<|endoftext|>"), "<|im_end|>",
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        other=("<think>", "</think>"),
    ),
    "llama3": Layout(
        LLAMA,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
        "<|eot_id|>", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), "<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nc<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        bos="<|begin_of_text|>", family="llama",
    ),
    "gemma3": Layout(
        GEMMA, ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", ("<eos>", "<end_of_turn>"),
        "<end_of_turn>",
        "<bos><start_of_turn>user\nS\n\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
        "<start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n",
        bos="<bos>", byte_level=False, family="gemma3",
    ),
    "phi3": Layout(
        PHI, ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"), "<|endoftext|>",
        ("<|endoftext|>", "<|assistant|>", "<|end|>"), "<|end|>",
        "<|system|>\nS<|end|>\n<|user|>\na<|end|>\n<|assistant|>\nb<|end|>\n<|user|>\nc<|end|>\n<|assistant|>\n",
        byte_level=False, family="llama",
    ),
}  # fmt: skip


def chat_tokenizer(name: str) -> Any:
    """The tokenizer of a layout, with its chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    layout = LAYOUTS[name]
    if layout.byte_level:
        words = list(bytes_to_unicode().values())
    else:  # SentencePiece: characters, and bytes for all others
        words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *string.ascii_letters, *string.digits, "▁", "\n"]
    model = models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=not layout.byte_level, unk_token=None)
    tokenizer = Tokenizer(model)
    if layout.byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in layout.special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in layout.other])
    if layout.bos:
        bos = (layout.bos, tokenizer.token_to_id(layout.bos))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{layout.bos} $A", special_tokens=[bos])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=layout.bos, eos_token=layout.eos)
    made.chat_template = layout.template
    return made


def save_chat(directory: Path, name: str, *, seed: int = 0, template: bool = True, **changes: Any) -> Path:
    """Write a tiny chat model of a layout as a directory; its generation_config.json has the ends of the real one."""
    import torch
    import transformers

    tokenizer = chat_tokenizer(name)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = tiny_config(LAYOUTS[name].family, vocab=len(tokenizer), **{"max_position_embeddings": 512, **ids, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = ids_of(tokenizer, LAYOUTS[name].ends)
    model.save_pretrained(directory)
    tokenizer.chat_template = tokenizer.chat_template if template else None
    tokenizer.save_pretrained(directory)
    return directory


def ids_of(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """The ids of tokens."""
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]


def talk(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    """A conversation that the user begins."""
    roles = ["user", "assistant"] * len(contents)
    said = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return said if system is None else [{"role": "system", "content": system}, *said]

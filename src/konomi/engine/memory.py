"""Memory of a PPO update, estimated from the shape of a model, and the micro-batches that fit. docs/results.md compares the
estimate with measurements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from konomi.engine.device import MICRO_BATCH_TOKENS, gpu_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """A decoder of Llama's layout: vocabulary, width, inner width, layers, heads, key-value heads, width of a head."""

    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    tied: bool
    counted: int = 0
    """Weights of a layer, where they were counted: of other layouts."""

    @property
    def layer(self) -> int:
        """Weights of a layer's products."""
        return self.counted or self.width * self.head * 2 * (self.heads + self.kv_heads) + 3 * self.width * self.inner

    @property
    def embeddings(self) -> int:
        """Weights of the embeddings and of the vocabulary head."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        """All weights, but for norms."""
        return self.embeddings + self.layers * self.layer

    def adapters(self, rank: int) -> int:
        """Weights of adapters on all products of all layers."""
        heads, kv = self.heads * self.head, self.kv_heads * self.head
        return self.layers * rank * (2 * (self.width + heads) + 2 * (self.width + kv) + 3 * (self.width + self.inner))


def shape_of(lm: PreTrainedModel) -> Shape:
    """The shape of a language model, which may be on the device "meta"; its weights are counted."""
    config = lm.config.get_text_config()
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    head = lm.get_output_embeddings()
    tied = head is None or head.weight is lm.get_input_embeddings().weight
    vocabulary, width = lm.get_input_embeddings().weight.shape
    counted = (sum(p.numel() for p in lm.parameters()) - vocabulary * width * (1 if tied else 2)) // layers
    return Shape(
        vocabulary, width, _inner_width(config), layers, heads,
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads, tied, counted,
    )  # fmt: skip


def _inner_width(config: Any) -> int:
    """The inner width of a model's layers; where they differ, the largest."""
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    return max(inner) if isinstance(inner, (list, tuple)) else int(inner)


def micro_batch_tokens(lm: PreTrainedModel, *frozen: PreTrainedModel) -> int:
    """Tokens of a micro-batch in training: on a GPU, those whose activations take half of what weights leave of its memory.

    A trained weight has 20 bytes with its gradient, Adam's two numbers and its copy for products, a frozen one 6. A layer keeps
    about 16 numbers of its width and 5 of its inner width for each token, in bf16 or float32.
    """
    if not (memory := gpu_memory(lm.device)):
        return MICRO_BATCH_TOKENS
    config = lm.config.get_text_config()
    weights = sum(p.numel() * (20 if p.requires_grad else 6) for model in (lm, *frozen) for p in model.parameters())
    token = 4 * config.num_hidden_layers * (16 * config.hidden_size + 5 * _inner_width(config))
    return max(MICRO_BATCH_TOKENS, int((memory - weights) / 2 / token) // MICRO_BATCH_TOKENS * MICRO_BATCH_TOKENS)


@dataclass(frozen=True)
class Setting:
    """What is trained, and how."""

    top_layers: int | None = None
    rank: int | None = None
    frozen_embeddings: bool = False
    """model.freeze = "embeddings"."""
    half: bool = False
    """ppo.weights = "bf16"."""
    four_bits: bool = False
    """lora.quantize = "nf4"."""
    adam8: bool = False
    recompute: bool = False
    copies: bool = False
    """Products in bf16: copies of the weights for them."""
    processes: int = 1
    """They divide among them what is trained (FSDP2); each has the whole policy and reference besides."""
    tokens: int = 1024
    """ppo.micro_batch_tokens."""
    responses: int = 64
    length: int = 128
    """Tokens of a query and its response."""
    cache_gb: float = 2.0


def parts(shape: Shape, setting: Setting) -> dict[str, float]:
    """Bytes of each part of an update's peak."""
    divided = setting.processes > 1
    product = 2 if setting.copies else 4
    wide = 2 if setting.half else 4
    adapters = shape.adapters(setting.rank) if setting.rank else 0
    layers = setting.top_layers or shape.layers
    all_layers = not adapters and not setting.top_layers
    embeddings = shape.embeddings if all_layers and not setting.frozen_embeddings else 0
    trained = adapters or layers * shape.layer + embeddings
    type_of_trained = 4 if adapters or divided else wide
    copies = 2 if setting.copies and not setting.half and not divided else 0
    layered = shape.layers * shape.layer if setting.four_bits else 0  # half a byte, and a byte of scale for each 64
    moments = trained * (2 + 8 / 256 if setting.adam8 else 8)
    head = embeddings > 0  # it is trained: exponentials are kept for its gradient
    inside = 12 * shape.width + 4 * shape.inner  # numbers that a layer keeps for a token
    kept = layers * shape.width + inside if setting.recompute else layers * inside
    cache = shape.layers * 2 * shape.kv_heads * shape.head * product * setting.responses * setting.length
    each = {
        "weights": (shape.weights - layered) * wide + layered * (0.5 + 1 / 64) + adapters * 4,
        "copies for products": (shape.weights - layered) * copies,
        "gradients": trained * type_of_trained / setting.processes,
        "Adam": moments / setting.processes,
        "reference": 0 if adapters else trained * (wide + copies),
        "activations": setting.tokens * kept * product,
        "logits": 4.0 * 4 * 2**19 + head * (4 * 2**25 + shape.vocabulary * shape.width * type_of_trained),
        "keys and values": min(cache, setting.cache_gb * 1e9),
    }
    return each | _divided(shape, trained, embeddings, product, setting) if divided else each


def _divided(shape: Shape, trained: int, embeddings: int, product: int, setting: Setting) -> dict[str, float]:
    """The parts that differ when training is sharded: shards of what is trained, and full models in the precision of products."""
    top = shape.vocabulary * shape.width * (4 + (2 if setting.copies else 0))  # embeddings or head, and the head's copy
    rest = shape.embeddings * 4 - shape.vocabulary * shape.width * 4
    layers = shape.layers * shape.layer
    held = trained - embeddings if not setting.rank else 0
    return {
        "weights": layers * product + top + rest + trained * 4 / setting.processes,
        "copies for products": 0.0,
        "reference": held * product + (top + rest if embeddings else 0),
        "gathered": 4.0 * (2 * shape.layer + 2 * embeddings),
    }


def gigabytes(shape: Shape, setting: Setting) -> float:
    """The peak, in 10^9 bytes. Keys and values are gone when activations are made, and gradients grow as activations go."""
    each = parts(shape, setting)
    passing = max(each.pop("keys and values"), each.pop("activations") + each.pop("logits"), each.pop("gradients"))
    return (sum(each.values()) + passing) / 1e9

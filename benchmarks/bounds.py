"""How much arithmetic and memory traffic a PPO update needs: what the measured times are held against.

Counted are the floating-point operations of matrix products (a multiplication and an addition are two), from the actual
lengths, without padding. Soft-max, norms, activations and the optimiser are left out: a bound has to be below the truth.

For one episode of q query and r response tokens, a trunk of n layers and width D, attention width A (heads x width of a
head), key-value width K, inner width F:

    a layer, a token      2 D (A + 2K) + 2 A D + 4 D F      (6 D F where the inner layer is gated)
    attention             4 A for each pair of a token and one that it sees, a layer
    vocabulary head       2 D V for each response token: no other position needs it

The trunk takes the q + r - 1 tokens from which a response token is predicted; nothing is predicted from the last one.
The backward pass of a product is two products of the same size, one for its input and one for its weight.

Classic PPO, what `Plan()` says: sampling; old log-probabilities; the reference's; each epoch a forward and a backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A decoder."""

    layers: int
    width: int
    attention: int
    """Query heads times their width."""
    key_values: int
    """Key-value heads times their width."""
    mlp: int
    vocabulary: int
    gated: bool = False

    @property
    def layer_weights(self) -> int:
        """Weights of a layer that take part in matrix products."""
        inner = (3 if self.gated else 2) * self.width * self.mlp
        return self.width * (self.attention + 2 * self.key_values) + self.attention * self.width + inner

    @property
    def head_weights(self) -> int:
        """Those of the vocabulary head."""
        return self.width * self.vocabulary

    def trunk_flops(self, tokens: int, pairs: int, layers: int | None = None) -> int:
        """Forward FLOPs of ``layers`` layers (None: all) for so many tokens, which see ``pairs`` tokens in all."""
        return (self.layers if layers is None else layers) * (2 * tokens * self.layer_weights + 4 * self.attention * pairs)

    def head_flops(self, tokens: int) -> int:
        """Forward FLOPs of the vocabulary head."""
        return 2 * tokens * self.head_weights


def shape_of(config: Any) -> Shape:
    """The shape of a model, from its transformers configuration."""
    width, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    shared = getattr(config, "num_key_value_heads", None) or heads
    gated = getattr(config, "model_type", "") != "gpt2"
    return Shape(config.num_hidden_layers, width, heads * head, shared * head, inner, config.vocab_size, gated)


GPT2_SMALL = Shape(layers=12, width=768, attention=768, key_values=768, mlp=3072, vocabulary=50_257)


@dataclass(frozen=True)
class Plan:
    """Which passes an update makes."""

    epochs: int = 2
    trained: int | None = None
    """Top layers that are trained; None: all of them."""
    head_trained: bool = True
    """Whether the vocabulary head has a gradient; if not, its backward pass is one product."""
    kept_trunk: bool = False
    """What the layers below the trained ones make is kept from sampling, and serves policy, reference and training."""
    old_pass: float = 1.0
    """Share of the old log-probabilities that is computed in a pass of its own."""


FULL = {"a": Plan(), "d": Plan(head_trained=False)}
"""Classic PPO: what the share of the bound is taken of. The demo's embeddings are frozen."""


def done(job: str, precision: str) -> Plan:
    """What this version does: less than the full count where work is left out that changes no result.

    The sampler's own log-probabilities are the old ones; in bf16 the first of four mini-batches is computed again.
    """
    old_pass = 0.25 if precision == "bf16" else 0.0
    if job == "b":
        return Plan(trained=2, head_trained=False, kept_trunk=True, old_pass=old_pass)
    return replace(FULL[job], old_pass=old_pass)


def pairs_seen(start: int, end: int) -> int:
    """Pairs of a token at places ``start`` to ``end - 1`` and one that it sees (itself and those before it).

    >>> pairs_seen(0, 3), pairs_seen(2, 3)
    (6, 3)
    """
    return (end * (end + 1) - start * (start + 1)) // 2


def forward_flops(shape: Shape, queries: Sequence[int], responses: Sequence[int], layers: int | None = None) -> tuple[int, int]:
    """(trunk, head) FLOPs of a pass that evaluates every response token."""
    lengths = [q + r - 1 for q, r in zip(queries, responses, strict=True)]
    trunk = shape.trunk_flops(sum(lengths), sum(pairs_seen(0, n) for n in lengths), layers)
    return trunk, shape.head_flops(sum(responses))


def update_flops(shape: Shape, queries: Sequence[int], responses: Sequence[int], plan: Plan) -> dict[str, float]:
    """FLOPs of an update's phases: rollout, score, train."""
    trunk, head = forward_flops(shape, queries, responses)
    trained = trunk if plan.trained is None else forward_flops(shape, queries, responses, plan.trained)[0]
    again = trained if plan.kept_trunk else trunk  # of the trunk, in each pass after sampling
    backward = 2 * trained + (2 if plan.head_trained else 1) * head
    return {
        "rollout": trunk + head,
        "score": (1 + plan.old_pass) * (again + head),
        "train": plan.epochs * (again + head + backward),
    }


@dataclass(frozen=True)
class Machine:
    """What was measured of it."""

    flops: float
    """Best matrix product, FLOP/s."""
    bandwidth: float
    """Best read, bytes/s."""
    weight_bytes: int
    """Bytes of a number in the precision of that product."""


def sampling_seconds(
    shape: Shape, queries: Sequence[int], responses: Sequence[int], machine: Machine, together: bool = False
) -> float:
    """The least time in which the responses can be drawn, all sequences at once.

    Every step reads all weights, and the keys and values of what each running sequence has; and it computes one token a
    running sequence (the first step: the queries). Arithmetic and reading can overlap, so a step takes the longer of the
    two; ``together``: their sum, which is what a machine that cannot overlap them takes.
    """
    total = 0.0
    for step in range(max(responses)):
        running = [q for q, r in zip(queries, responses, strict=True) if r > step]
        ends = [q + step for q in running]  # tokens that the step's last one sees, itself included
        starts = [0 if step == 0 else end - 1 for end in ends]
        tokens = sum(end - start for start, end in zip(starts, ends, strict=True))
        pairs = sum(pairs_seen(start, end) for start, end in zip(starts, ends, strict=True))
        compute = (shape.trunk_flops(tokens, pairs) + shape.head_flops(len(running))) / machine.flops
        numbers = shape.layers * shape.layer_weights + shape.head_weights
        numbers += shape.layers * 2 * shape.key_values * sum(ends)
        reading = numbers * machine.weight_bytes / machine.bandwidth
        total += compute + reading if together else max(compute, reading)
    return total

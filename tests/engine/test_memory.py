"""Memory of an update, computed: the shape of a model, and what each setting saves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import transformers

from konomi.engine import memory
from konomi.engine.memory import Setting, Shape, gigabytes, micro_batch_tokens, parts, shape_of
from tiny import FAMILIES, tiny_config, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shape_has_the_weights_of_its_model_wherever_that_is(family: str) -> None:
    model = tiny_model(family)
    with torch.device("meta"):
        on_meta = transformers.AutoModelForCausalLM.from_config(tiny_config(family))
    shape, total = shape_of(model), sum(p.numel() for p in model.parameters())
    assert shape == shape_of(on_meta)
    assert total - shape.layers < shape.weights <= total  # a rest of the division by layers may be lost
    own = tiny_config(family)
    assert (shape.vocabulary, shape.width, shape.layers, shape.heads) == (
        own.vocab_size, own.hidden_size, own.num_hidden_layers, own.num_attention_heads,
    )  # fmt: skip


def test_of_llamas_layout_the_formula_counts_all_but_norms() -> None:
    counted = shape_of(tiny_model("llama"))
    norms = 2 * counted.width + counted.width // counted.layers
    assert replace(counted, counted=0).layer == counted.layer - norms


def test_each_setting_saves_what_it_is_there_for() -> None:
    shape = Shape(1000, 64, 256, 4, 4, 2, 16, tied=False)
    full = parts(shape, Setting())
    assert full["weights"] == full["gradients"] == full["reference"] == 4 * shape.weights
    assert full["Adam"] == 8 * shape.weights
    for copies, a_weight in ((False, 4 + 4), (True, 2 + 2)):  # of policy and reference; measured beside it: docs/scale.md
        shared = parts(shape, Setting(processes=4, copies=copies))
        kept = sum(shared[name] for name in ("weights", "copies for products", "gradients", "Adam", "reference"))
        wider = copies * 4 * (shape.embeddings + shape.vocabulary * shape.width)
        assert kept == (16 / 4 + a_weight) * shape.weights + wider
    frozen = parts(shape, Setting(frozen_embeddings=True))
    assert frozen["weights"] == full["weights"]
    assert frozen["gradients"] == frozen["reference"] == 4 * (shape.weights - 2 * 1000 * 64)
    assert frozen["logits"] < full["logits"]
    adapters = parts(shape, Setting(rank=8))
    assert (adapters["reference"], adapters["gradients"]) == (0, 4 * shape.adapters(8))
    four = parts(shape, Setting(rank=8, four_bits=True))
    saved = (4 - 0.5 - 1 / 64) * shape.layers * shape.layer
    assert math.isclose(four["weights"], adapters["weights"] - saved)
    assert math.isclose(parts(shape, Setting(adam8=True))["Adam"], full["Adam"] * (2 + 1 / 32) / 8)
    assert parts(shape, Setting(recompute=True))["activations"] < full["activations"]
    assert gigabytes(shape, Setting(half=True)) < gigabytes(shape, Setting()) < gigabytes(shape, Setting(tokens=1 << 20))
    plain = Setting(copies=True, tokens=100_000)
    in_bf16 = parts(shape, plain)
    weights = ("weights", "copies for products", "gradients", "Adam", "reference")
    assert sum(in_bf16[name] for name in weights) == (4 + 2 + 4 + 8 + 6) * shape.weights < gigabytes(shape, plain) * 1e9
    for name in ("adam8", "half", "recompute", "rank", "top_layers"):
        lean = replace(plain, **{name: 2 if name in ("rank", "top_layers") else True})
        assert gigabytes(shape, lean) < gigabytes(shape, plain), name


def test_micro_batches_have_the_tokens_that_a_gpu_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    assert micro_batch_tokens(model) == 1024  # on a processor
    weights, token = sum(p.numel() for p in model.parameters()), 4 * 2 * (16 * 32 + 5 * 64)
    monkeypatch.setattr(memory, "gpu_memory", lambda device: 20 * weights + 2 * token * 5000)
    assert micro_batch_tokens(model) == 4096
    vars(model.config)["intermediate_size"] = [32, 64]  # as in Gemma 3n, whose layers differ
    assert micro_batch_tokens(model) == 4096 and shape_of(model).inner == 64
    assert micro_batch_tokens(model, model) == max(1024, int(5000 - 3 * weights / token) // 1024 * 1024)

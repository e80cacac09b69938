"""Sequences laid end to end against each of them alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import oracles
from konomi.data.tokens import Tokens, pad_right
from konomi.engine import packed
from konomi.engine.decoding import PackedDecoder, cache_bytes, check_decoding, make_decoder
from konomi.engine.forward import reference_logprobs, rounds_coarsely
from konomi.engine.kv_cache import additive
from konomi.engine.layout import Layout
from konomi.engine.rollout import Rollout
from konomi.engine.sampler import generate, make_draws
from konomi.errors import ConfigError, ModelError
from konomi.models.policy import Policy, make_reference
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from tiny_run import alone, disturbed, facts, ragged_queries, sharp_model, taken, tiny_trainer, without_dropout

NAMES = [("rollout", i) for i in range(24)]


def gemma2() -> Any:
    """A family whose attention scores are capped, windows in every other layer."""
    import transformers

    config = transformers.Gemma2Config(
        vocab_size=29, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, query_pre_attn_scalar=8, sliding_window=4, attn_logit_softcapping=2.0, final_logit_softcapping=None,
        pad_token_id=None, initializer_range=0.3, attn_implementation="eager",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


def gpt_neo() -> Any:
    """A family whose attention cannot be plugged in."""
    import transformers

    config = transformers.GPTNeoConfig(
        vocab_size=29, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=4,
        max_position_embeddings=128, initializer_range=0.3, bos_token_id=0, eos_token_id=1, resid_dropout=0.0,
        embed_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


def tolerance(name: str) -> float:
    """GPT-Neo's attention is float32 inside, whatever the weights are."""
    return 1e-5 if name == "gpt_neo" else 1e-9


def models() -> dict[str, Any]:
    return {**{family: sharp_model(family) for family in FAMILIES}, "gemma2": gemma2(), "gpt_neo": gpt_neo()}


def brood(groups: int = 3, each: int = 4, seed: int = 0) -> Rollout:
    """Responses of 1 to 6 tokens, ``each`` to a query; the last query is the beginning of another."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        count = int(torch.randint(low, high + 1, (), generator=generator))
        return torch.randint(2, 29, (count,), generator=generator).tolist()

    queries = [ids(2, 9) for _ in range(groups - 1)]
    queries.append(queries[0][:-1])
    rows = [(query, ids(1, 6)) for query in queries for _ in range(each)]
    lengths = torch.tensor([len(query) for query, _ in rows]), torch.tensor([len(response) for _, response in rows])
    return Rollout(pad_right([q + r for q, r in rows], 0)[0], *lengths, torch.zeros(len(rows), dtype=torch.bool))


@pytest.mark.parametrize("name", [*FAMILIES, "gemma2", "gpt_neo"])
def test_shared_queries_give_the_gradient_of_each_sequence_alone(name: str) -> None:
    policy, rollout = Policy(models()[name]), brood()
    factors = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    packed_logprobs, lonely = policy(rollout).logprobs, taken(alone(policy.lm, rollout), rollout)
    for row, wanted in zip(packed_logprobs, lonely, strict=True):
        oracles.close(row[: len(wanted)].detach(), wanted.detach(), tolerance(name))
    (packed_logprobs * factors).sum().backward()
    got = {n: p.grad.clone() for n, p in policy.lm.named_parameters()}
    policy.zero_grad()
    sum((row * factors[i, : len(row)]).sum() for i, row in enumerate(lonely)).backward()
    for n, p in policy.lm.named_parameters():
        oracles.close(got[n], p.grad, 1e-5 * max(1.0, float(p.grad.abs().max())))  # norms and some attention are float32 inside
    assert packed.packs(policy.lm) == (name != "gpt_neo")


def test_a_shared_query_is_there_once() -> None:
    rollout = brood()
    layout = Layout(rollout.lengths - 1, (rollout.ids, rollout.query_lengths))
    once = sum(len(query) for query in {tuple(query) for query in rollout.query_ids()})
    assert len(layout.token_T) == once + int((rollout.response_lengths - 1).sum()) < int((rollout.lengths - 1).sum())
    x_Tx = torch.randn(len(layout.token_T), 3)
    assert torch.equal(layout.pack(layout.pad(x_Tx)), x_Tx)
    for row, (length, place) in enumerate(zip((rollout.lengths - 1).tolist(), layout._place_BL, strict=True)):
        assert torch.equal(layout.ids(rollout.ids)[place[:length]], rollout.ids[row, :length])
        assert layout.positions_T[place[:length]].tolist() == list(range(length))
    lonely = Layout(torch.tensor([3, 3]))
    assert lonely.plain and lonely._place_BL.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("name", [*FAMILIES, "gemma2", "gpt_neo"])
def test_sampler_and_policy_agree(name: str) -> None:
    """Log-probabilities, entropies and values of ragged queries, some of them the same."""
    model = models()[name]
    policy = Policy(model)
    torch.nn.init.normal_(policy.value_head.weight)
    queries = [query for query in ragged_queries(6, seed=3) for _ in range(4)]
    config = tiny_config_of(temperature=0.7)
    drawn = generate(model, Tokens(tiny_tokenizer()), queries, make_draws(config, 0, NAMES), config, values=policy.values)
    said = policy(drawn.rollout, 0.7)
    for one, other in ((drawn.logprobs, said.logprobs), (drawn.entropy, said.entropy), (drawn.values, said.values)):
        oracles.close(one, other.detach(), 10 * tolerance(name))
    assert not drawn.logprobs[~drawn.rollout.mask].any() and drawn.trunk is None


def tiny_config_of(**settings: Any) -> Any:
    from konomi.config import RolloutConfig

    return RolloutConfig(**{"response_tokens": (1, 9), **settings})


@pytest.mark.parametrize("name", [*FAMILIES, "gpt_neo"])
def test_responses_in_turns_are_those_of_one_go(name: str) -> None:
    model, tokens, queries = models()[name], Tokens(tiny_tokenizer()), ragged_queries(24, seed=5)
    whole, turns = (
        generate(model, tokens, queries, make_draws(config, 0, NAMES), config, trunk_layer=1)
        for config in (tiny_config_of(), tiny_config_of(cache_gb=5e-5))
    )
    assert turns.rollout.response_ids() == whole.rollout.response_ids()
    assert turns.rollout.query_ids() == queries
    oracles.close(turns.logprobs, whole.logprobs, tolerance(name))
    if name != "gpt_neo":
        read = Layout(whole.rollout.lengths - 1)
        assert whole.trunk is not None and turns.trunk is not None and whole.trunk.layer == 1
        oracles.close(read.pack(turns.trunk.hidden[:, : read.length]), read.pack(whole.trunk.hidden[:, : read.length]), 1e-9)


# -- only the top layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_trunk_goes_on_to_is_what_the_whole_model_says(family: str) -> None:
    model, tokens, queries = sharp_model(family), Tokens(tiny_tokenizer()), ragged_queries(12)
    policy, config = Policy(model, top_layers=1), tiny_config_of()
    drawn = generate(model, tokens, queries, make_draws(config, 0, NAMES[:12]), config, trunk_layer=policy.trunk_layer)
    rows = torch.tensor([3, 0, 7])
    assert drawn.trunk is not None
    part, kept = drawn.rollout.select(rows), drawn.trunk.select(rows)
    oracles.close(policy(part, 1.0, kept).logprobs.detach(), policy(part).logprobs.detach(), 1e-9)
    oracles.close(reference_logprobs(model, part, 1.0, kept), reference_logprobs(model, part, 1.0), 1e-9)
    wrong = packed.Trunk(kept.layer, kept.hidden.flip(-1))
    assert not torch.allclose(policy(part, 1.0, wrong).logprobs, policy(part).logprobs, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_top_is_trained_and_only_it_is_copied(family: str) -> None:
    policy = Policy(without_dropout(family), top_layers=1)
    trained = {name for name, p in policy.lm.named_parameters() if p.requires_grad}
    assert trained and all(".1." in name or "norm" in name or "ln_f" in name for name in trained), trained
    reference = make_reference(policy)
    shared = {p.data_ptr() for p in policy.lm.parameters()} & {p.data_ptr() for p in reference.parameters()}
    assert len(shared) == sum(not p.requires_grad for p in policy.lm.parameters())


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_a_kept_trunk_changes_no_number_of_a_run(family: str) -> None:
    runs = []
    for keep in (True, False):
        trainer = tiny_trainer(model=without_dropout(family), top_layers=1, precision="fp64", episodes=48)
        assert trainer.models.trunk_layer == 1
        if not keep:
            trainer.models.trunk_layer = None
        runs.append([facts(step.metrics) for step in trainer])
    for one, other in zip(*runs, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value == pytest.approx(other[key], rel=1e-6, abs=1e-9), key


def test_a_reference_with_layers_of_its_own_gets_no_trunk() -> None:
    from konomi.training.ppo import PPOTrainer

    policy = Policy(without_dropout("gpt2"), top_layers=1)
    other = without_dropout("gpt2", seed=3)
    mine = tiny_trainer(model=without_dropout("gpt2"), top_layers=1)
    trainer = PPOTrainer(policy, other, mine.tokens, mine.queries.prompts, mine.scorer.reward)
    assert trainer.models.trunk_layer is None
    disturbed(policy.lm)
    assert not any(torch.equal(p, q) for p, q in zip(policy.lm.parameters(), other.parameters(), strict=True) if p.requires_grad)


def test_more_layers_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"model.top_layers = 3: the model has 2 layers"):
        Policy(tiny_model("gpt2"), top_layers=3)


def test_families_that_cannot_be_packed_run_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that keeps its window in the mask, and one whose attention is not handed what it needs."""
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Qwen2MoeConfig(
        vocab_size=29, num_key_value_heads=2, **sizes, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        num_experts=4, num_experts_per_tok=2, use_sliding_window=True, sliding_window=4, max_window_layers=1,
        layer_types=["full_attention", "sliding_attention"], initializer_range=0.3,
    )  # fmt: skip
    windowed = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    deaf = sharp_model("gpt2")
    forward = deaf.transformer.h[0].attn.forward

    def without(*args: Any, layout: Any = None, key_values: Any = None, **rest: Any) -> Any:
        return forward(*args, **rest)

    monkeypatch.setattr(deaf.transformer.h[0].attn, "forward", without)
    rollout = brood()
    for model in (windowed, deaf):
        assert packed.packs(model)
        policy = Policy(model)
        assert not packed.packs(model)
        for row, wanted in zip(policy(rollout).logprobs, taken(alone(policy.lm, rollout), rollout), strict=True):
            oracles.close(row[: len(wanted)].detach(), wanted.detach(), 1e-4)
    assert not packed.packs(make_reference(Policy(windowed)))
    assert rounds_coarsely(windowed) and not rounds_coarsely(deaf)


def test_layers_that_are_not_found() -> None:
    other = tiny_model("llama")
    other.model.layers = torch.nn.Sequential(*other.model.layers)
    with pytest.raises(ModelError, match=r"its 2 layers are not found.*model.top_layers"):
        packed.top_parameters(other, 1)


def test_a_trial_that_fails_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")

    def breaks(_: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(model.transformer.ln_f, "forward", breaks)
    with pytest.raises(ModelError, match=r"its code fails .*no such kernel"):
        packed.top_parameters(model, 1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", [*FAMILIES, "gpt_neo"])
def test_a_sequence_takes_the_memory_that_is_counted(name: str) -> None:
    model = models()[name]
    check_decoding(model)
    for query in (1, 7, 15, 16):
        decoder = make_decoder(model, [[2] * query] * 3, 1, None)
        decoder.start()
        decoder.step(torch.tensor([3, 4, 5]))
        numbers = decoder.cached()
        if isinstance(decoder, PackedDecoder):
            numbers = sum(store.numel() for pair in decoder.cache.layers.values() for store in pair)
        assert 3 * cache_bytes(model, query + 1) == numbers * model.dtype.itemsize > 0


@pytest.mark.parametrize(("heads", "shared"), [(4, 1), (4, 4)])
def test_attention_in_products_is_the_fused_one(heads: int, shared: int) -> None:
    """bf16 on a processor, causal: outputs and gradients are those of float64 as far as bf16 goes; beside more, the same bits."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, heads, 11, 8), (3, heads // shared, 11, 8), (3, heads // shared, 11, 8)]
    given = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    half, exact = ([x.detach().clone().to(dtype).requires_grad_() for x in given] for dtype in (torch.bfloat16, torch.float64))
    causal = torch.ones(11, 11).tril().bool()
    outs = [packed._attend(*x, additive(causal, x[0].dtype), None, None) for x in (half, exact)]
    assert packed.prefers_products(half[0]) and not packed.prefers_products(exact[0])
    oracles.close(outs[0].double(), outs[1], 0.02)
    for out in outs:
        (out.double() * torch.linspace(-1, 1, 8)).sum().backward()
    for one, other in zip(half, exact, strict=True):
        oracles.close(one.grad.double(), other.grad, 0.05)


def test_room_for_keys_is_in_whole_lanes() -> None:
    """What is handed to attention beyond a sequence's own is masked: room is rounded up, and its rest is 0."""
    from konomi.engine.kv_cache import KeyValues

    cache = KeyValues(2, 5, torch.device("cpu"))
    cache.begin([3, 2])
    cache.prefill(0, torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 4))
    cache.grow()
    assert cache.begin_step().tolist() == [3, 2]
    keys, values = cache.extend(0, torch.full((2, 1, 4), 2.0), torch.full((2, 1, 4), 3.0))
    assert keys.shape == values.shape == (2, 1, 16, 4)
    assert keys[:, 0, :, 0].tolist() == [[1, 1, 1, 2] + [0] * 12, [1, 1, 2] + [0] * 13]

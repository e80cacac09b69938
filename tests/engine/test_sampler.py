"""Sampling in batches: the same responses as one sequence at a time, without cache, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch

import oracles
from konomi.config import RolloutConfig
from konomi.data.tokens import Tokens
from konomi.engine import responses
from konomi.engine.rollout import Rollout
from konomi.engine.sampler import generate, make_draws, sample
from konomi.errors import RunError
from konomi.seeds import stream_seed
from tiny import EOS_ID, FAMILIES, VOCAB, tiny_model, tiny_tokenizer
from tiny_run import chance, ragged_queries, sharp_model

NAMES = [("rollout", i) for i in range(100)]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {family: sharp_model(family, seed=i) for i, family in enumerate(FAMILIES)}


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return Tokens(tiny_tokenizer())


def settings(stop: str = "both", low: int = 4, high: int = 11, temperature: float = 0.8) -> RolloutConfig:
    return RolloutConfig(stop=stop, response_tokens=(low, high), temperature=temperature)


def run(model: Any, tokens: Tokens, queries: Sequence[list[int]], config: RolloutConfig, rows: Sequence[int]) -> Rollout:
    return sample(model, tokens, [queries[i] for i in rows], make_draws(config, 0, [NAMES[i] for i in rows]), config)


@torch.no_grad()
def naive(model: Any, query: list[int], uniforms: list[float], limit: int, stop_at_eos: bool, temperature: float) -> list[int]:
    """One sequence: the whole model anew for each token, the inverse of the cumulative sum by a loop."""
    response: list[int] = []
    for uniform in uniforms[:limit]:
        logits = model(input_ids=torch.tensor([query + response]), use_cache=False).logits[0, -1].double()
        sums = list(accumulate((logits / temperature).softmax(0).tolist()))
        response.append(next(token for token, total in enumerate(sums) if total > uniform * sums[-1]))
        if stop_at_eos and response[-1] == EOS_ID:
            break
    return response


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stop", ["length", "eos", "both"])
def test_tokens_are_those_of_a_naive_loop(models: dict[str, Any], tokens: Tokens, family: str, stop: str) -> None:
    config, queries = settings(stop), ragged_queries(10)
    rollout = run(models[family], tokens, queries, config, range(10))
    draws = make_draws(config, 0, NAMES[:10])
    for i, (response, ended) in enumerate(zip(rollout.response_ids(), rollout.ended.tolist(), strict=True)):
        limit = 11 if stop == "eos" else int(draws.lengths[i])
        expected = naive(models[family], queries[i], draws.uniforms[i].tolist(), limit, stop != "length", 0.8)
        assert response == expected
        assert ended == (stop != "length" and expected[-1] == EOS_ID)
    assert rollout.query_ids() == queries
    assert max(len(q) + len(r) for q, r in zip(queries, rollout.response_ids(), strict=True)) > 16  # Gemma's window


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [0.0, 1.01])
def test_rows_that_leave_the_batch_change_nothing(
    models: dict[str, Any], tokens: Tokens, family: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0: finished rows never leave; 1.01: each leaves at once."""
    config, queries = settings("both", 1, 14, temperature=1.3), ragged_queries(12, seed=4)
    before = run(models[family], tokens, queries, config, range(12))
    monkeypatch.setattr(responses, "KEEP_ROWS", share)
    after = run(models[family], tokens, queries, config, range(12))
    for name, value in vars(before).items():
        assert torch.equal(getattr(after, name), value), name
    assert len(set(before.response_lengths.tolist())) > 2


@pytest.mark.parametrize("family", FAMILIES)
def test_how_often_the_host_looks_changes_nothing(
    models: dict[str, Any], tokens: Tokens, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks, responses that have ended are decoded on."""
    config, queries = settings("both", 1, 14, temperature=1.3), ragged_queries(12, seed=4)
    draws = make_draws(config, 0, NAMES[:12])
    found = []
    for every in (1, 4):
        monkeypatch.setattr(responses, "host_looks", lambda _, step, every=every: step % every == 0)
        generation = generate(models[family], tokens, queries, draws, config, trunk_layer=1)
        found.append(generation)
    one, other = found
    for name, value in vars(one.rollout).items():
        assert torch.equal(getattr(other.rollout, name), value), name
    for name in ("logprobs", "entropy"):  # products of other shapes round otherwise
        oracles.close(getattr(other, name), getattr(one, name), 1e-9)
    assert len(set(one.rollout.response_lengths.tolist())) > 2


def end_by_chance(share: float) -> Any:
    """A model that ends the text with about this probability at each token, whatever stands before."""
    model = tiny_model("gpt2", tie_word_embeddings=False)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[EOS_ID] = torch.tensor((VOCAB - 1) * share / (1 - share)).log() / 32
    return model.double()


def test_stop_modes(tokens: Tokens) -> None:
    model, queries = end_by_chance(0.3), ragged_queries(100)
    lengths, ended = {}, {}
    for stop in ("length", "eos", "both"):
        rollout = run(model, tokens, queries, settings(stop, 2, 6), range(100))
        lengths[stop], ended[stop] = rollout.response_lengths, rollout.ended
        for response, over in zip(rollout.response_ids(), rollout.ended.tolist(), strict=True):
            assert over == (stop != "length" and response[-1] == EOS_ID)  # the end of text is part of the response
            if stop != "length":
                assert EOS_ID not in response[:-1]
            assert all(0 <= token < VOCAB for token in response)
        if stop == "length":
            assert any(EOS_ID in response[:-1] for response in rollout.response_ids())
    assert sorted(set(lengths["length"].tolist())) == [2, 3, 4, 5, 6]  # both ends are drawn
    assert sorted(set(lengths["eos"].tolist())) == [1, 2, 3, 4, 5, 6]
    assert sorted(set(lengths["both"].tolist())) == [1, 2, 3, 4, 5, 6]
    assert not ended["length"].any() and ended["eos"].any() and not ended["eos"].all()
    assert torch.equal(lengths["both"], torch.minimum(lengths["length"], lengths["eos"]))
    assert ended["eos"][lengths["eos"] < 6].all()
    assert torch.equal(ended["both"], ended["eos"] & (lengths["eos"] <= lengths["length"]))


def test_a_tokenizer_without_end_of_text_goes_on_to_the_limit(tokens: Tokens) -> None:
    without = Tokens(tiny_tokenizer())
    without.eos_ids = frozenset()
    rollout = run(end_by_chance(0.5), without, ragged_queries(5), settings("eos", 2, 6), range(5))
    assert rollout.response_lengths.tolist() == [6] * 5 and not rollout.ended.any()


def test_a_seed_gives_the_same_and_another_seed_another(models: dict[str, Any], tokens: Tokens) -> None:
    config, queries = settings(), ragged_queries(6)
    torch.manual_seed(0)

    def go(seed: int, name: str = "rollout") -> list[list[int]]:
        draws = make_draws(config, seed, [(name, i) for i in range(6)])
        return sample(models["gpt2"], tokens, queries, draws, config).response_ids()

    first, state = go(3), torch.get_rng_state()
    assert go(3) == first
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert all(a != b for a, b in zip(go(4), first, strict=True) if len(a) > 2)
    assert go(3, "other") != first


def test_draws_of_a_name_depend_on_nothing_else() -> None:
    config = settings("both", 3, 5)
    many = make_draws(config, 1, NAMES)
    one = make_draws(config, 1, [NAMES[42]])
    assert torch.equal(one.uniforms[0], many.uniforms[42]) and one.lengths[0] == many.lengths[42]
    numbers = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(stream_seed(1, *NAMES[42])))
    assert one.lengths[0] == 3 + int(3 * numbers[0]) and torch.equal(one.uniforms[0], numbers[1:])
    assert many.uniforms.shape == (100, 5) and many.uniforms.dtype == torch.float64
    assert ((many.uniforms >= 0) & (many.uniforms < 1)).all()
    assert len(many.uniforms.unique()) == many.uniforms.numel()
    counts = make_draws(config, 1, [("x", i) for i in range(3000)]).lengths.bincount()
    assert counts.tolist()[:3] == [0, 0, 0] and chance(counts[3:], torch.full((3,), 1 / 3)) > 0.01
    assert make_draws(settings("eos", 3, 5), 1, NAMES).lengths.tolist() == [5] * 100
    assert make_draws(settings("length", 4, 4), 1, NAMES).lengths.tolist() == [4] * 100


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_end_in_a_message(tokens: Tokens, value: float) -> None:
    """From the first token on, and in one row alone after some tokens."""
    config = settings("length", 6, 6)
    draws = make_draws(config, 0, NAMES[:3])
    for step, rows in ((0, [0, 1, 2]), (3, [1])):
        model = tiny_model("gpt2")
        sample(model, tokens, [[5]], make_draws(config, 0, NAMES[:1]), config)
        calls = iter(range(100))

        def spoil(_: Any, inputs: Any, output: Any, calls: Any = calls, step: int = step, rows: Any = rows) -> Any:
            if next(calls) != step:
                return output
            return output.index_fill(-2, torch.tensor(rows), value)

        model.get_input_embeddings().register_forward_hook(spoil)
        with pytest.raises(RunError, match=rf"^lm: its logits are not finite .* in {len(rows)} of 3 responses.*learning rate"):
            sample(model, tokens, [[5], [6], [7]], draws, config, "lm")

"""What is asked of an inference server, and what is made of its answers, with a real tiny model behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from inference_server import TinyServer, serving
from konomi.config import SamplingConfig, ServerConfig
from konomi.data.tokens import Tokens
from konomi.engine.sampler import generate, make_draws
from konomi.engine.server import InferenceServer
from konomi.errors import ConfigError, ModelError, RunError
from tiny import tiny_tokenizer
from tiny_run import ragged_queries, sharp_model

MODEL = sharp_model("gpt2")
TOKENS = Tokens(tiny_tokenizer())
NAMES = [("rollout", i) for i in range(12)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(MODEL) as started:
        yield started


def client(server: TinyServer, **settings: Any) -> InferenceServer:
    made = InferenceServer(ServerConfig(url=server.url, **{"backoff": 0.0, "retries": 0, "timeout": 20.0, **settings}))
    made.check(20)
    return made


def drawn(server: TinyServer, config: SamplingConfig, **settings: Any) -> Any:
    draws = make_draws(config, 7, NAMES)
    return client(server, **settings).generate(MODEL, TOKENS, ragged_queries(12), draws, config)


@pytest.mark.parametrize("stop", ["length", "eos", "both"])
def test_of_equal_random_numbers_it_draws_what_the_sampler_does(server: TinyServer, stop: Any) -> None:
    """Tokens, lengths, which ended, log-probabilities at the temperature; however many requests are under way."""
    config = SamplingConfig(response_tokens=(2, 20), stop=stop, temperature=2.0)
    server.draws_of(config, 7, NAMES)
    own = generate(MODEL, TOKENS, ragged_queries(12), make_draws(config, 7, NAMES), config)
    for concurrency in (5, 256):
        served = drawn(server, config, concurrency=concurrency)
        assert served.served and not own.served
        for name in ("ids", "query_lengths", "response_lengths", "ended"):
            assert torch.equal(getattr(served.rollout, name), getattr(own.rollout, name)), name
        assert torch.allclose(served.logprobs, own.logprobs, rtol=0, atol=1e-9)
    assert bool(own.rollout.ended.any()) == (stop != "length")


def test_every_response_has_a_seed_of_its_own_that_comes_again(server: TinyServer) -> None:
    config = SamplingConfig(response_tokens=(4, 9))
    first, again = drawn(server, config, concurrency=1), drawn(server, config)
    assert torch.equal(first.rollout.ids, again.rollout.ids)
    asked = server.asked("/v1/completions")
    assert len({body["seed"] for body in asked[:12]}) == 12 and asked[0].keys() >= {"top_k", "top_p", "min_p"}
    assert [body["max_tokens"] for body in asked[:12]] == make_draws(config, 7, NAMES).lengths.tolist()


def edited(**changes: Any) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    """Answers in which these parts of the choice are others."""

    def change(_: str, answer: dict[str, Any]) -> dict[str, Any]:
        choice = answer["choices"][0]
        return {"choices": [{**choice, **{name: make(choice) for name, make in changes.items()}}]}

    return change


def logprobs(make: Callable[[list[float]], list[Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda choice: {"token_logprobs": make(choice["logprobs"]["token_logprobs"])}


WRONG = [
    (lambda _, answer: {"choices": []}, "no token ids with log-probabilities in {'choices': []}"),
    (lambda _, answer: [1, 2], "no token ids with log-probabilities in [1, 2]"),
    (edited(token_ids=lambda c: None), "no token ids with log-probabilities in"),
    (edited(token_ids=lambda c: [str(i) for i in c["token_ids"]]), "no token ids with log-probabilities in"),
    (edited(logprobs=lambda c: None), "no token ids with log-probabilities in"),
    (edited(logprobs=logprobs(lambda x: x[:-1])), "5 token ids with 4 log-probabilities"),
    (edited(token_ids=lambda c: c["token_ids"][:-1], logprobs=logprobs(lambda x: x[:-1])),
     "a response of 4 tokens where one of 5 was asked for"),
    (edited(token_ids=lambda c: [*c["token_ids"], 3], logprobs=logprobs(lambda x: [*x, -1.0])), "a response of 6 tokens where"),
    (edited(token_ids=lambda c: [1, *c["token_ids"][1:]]), "a response of 5 tokens where one of 1 was"),
    (edited(token_ids=lambda c: [29, *c["token_ids"][1:]]), "to 29; the policy has 29: is it another model?"),
    (edited(token_ids=lambda c: [-1, *c["token_ids"][1:]]), "token ids from -1 to"),
    (edited(logprobs=logprobs(lambda x: [0.5, *x[1:]])), "log-probabilities that are none"),
    (edited(logprobs=logprobs(lambda x: [float("nan"), *x[1:]])), "log-probabilities that are none"),
]  # fmt: skip


def test_an_answer_that_does_not_fit_is_one_error(server: TinyServer) -> None:
    server.first.transformer.wte.weight.data[1] = 0.0  # the head is tied: the end of text is drawn hardly ever
    config = SamplingConfig(response_tokens=(5, 5), stop="eos")
    queries, draws = [[0, 5, 6]], make_draws(config, 0, [("x",)])
    asked = client(server)
    assert asked.generate(MODEL, TOKENS, queries, draws, config).rollout.response_lengths.tolist() == [5]
    for change, message in WRONG:
        server.change = change
        with pytest.raises(RunError) as caught:
            asked.generate(MODEL, TOKENS, queries, draws, config)
        assert message in str(caught.value) and str(caught.value).endswith("vLLM 0.28 or later, see docs/server.md")
        assert str(caught.value).startswith(f"rollout.server {server.url}: answered with ")


def test_what_it_serves_is_asked_first(server: TinyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)

    def refused(**settings: Any) -> str:
        with pytest.raises(ModelError) as caught:
            InferenceServer(ServerConfig(**{"url": server.url, **settings})).check(129 if not settings else 20)
        return str(caught.value)

    assert client(server).model == client(server, model="tiny").model == "tiny"
    assert (
        "its context of 128 tokens is too short for query and response together; start it with --max-model-len 129" in refused()
    )
    assert "serves tiny; name one of them by rollout.server.model" in refused(model="another")
    assert "answered HTTP 404" in refused(url=f"{server.url}/elsewhere") and "Is it up?" in refused(url=f"{server.url}/elsewhere")
    assert "Connection refused. Is it up? See docs/server.md" in refused(url="http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"^rollout\.server\.token_env: the environment variable NO_KEY is not set"):
        InferenceServer(ServerConfig(url=server.url, token_env="NO_KEY"))

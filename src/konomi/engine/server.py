"""Responses from an inference server: vLLM's, by its OpenAI-compatible interface, token ids in and out.

Written for vLLM 0.28 to 0.30. Each response is a request of its own, with its own length and seed. The distribution is the
sampler's: soft-max(logits / temperature), nothing cut, no penalty, stopped by the same tokens.

Shape suffixes: B sequences, R response tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from konomi.config import SamplingConfig, ServerConfig
from konomi.data.tokens import Tokens
from konomi.engine.device import send
from konomi.engine.sampler import Draws, Generation, rollout_of, stops
from konomi.errors import ModelError, RunError
from konomi.service import UNREACHED, Refused, Service

SECTION = "rollout.server"
SHOWN = 200  # characters of an answer in a message


class InferenceServer:
    """A server that draws responses, and takes weights.

    Args:
        config: with an address.

    Raises:
        ConfigError: the variable that holds the key is not set.
    """

    def __init__(self, config: ServerConfig) -> None:
        assert config.url is not None
        self.config = config
        self.service = Service(
            SECTION, SECTION, config.url, timeout=config.timeout, retries=config.retries, backoff=config.backoff,
            token_env=config.token_env,
        )  # fmt: skip
        self.model = config.model or ""

    def check(self, room: int) -> None:
        """Ask what it serves, before anything is written; ``room``: tokens of the longest query and response together.

        Raises:
            ModelError: it does not answer, serves another model or several, or its context is shorter.
        """
        try:
            answer = self.service.once(path="/v1/models")
        except (*UNREACHED, RunError) as error:
            why = (str(error) or type(error).__name__).removeprefix(f"{self.service.label}: ")
            raise ModelError(f"{self.service.label}: {why}. Is it up? See docs/server.md") from error
        rows = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) and isinstance(row.get("id"), str) for row in rows):
            raise ModelError(f"{self.service.label}: /v1/models is no list of models: {str(answer)[:SHOWN]}")
        own = [row for row in rows if not row.get("parent")]  # the others are adapters of these
        matches = [row for row in own if self.config.model in (None, row["id"])]
        if len(matches) != 1:
            names = ", ".join(row["id"] for row in own) or "nothing"
            raise ModelError(f"{self.service.label}: serves {names}; name one of them by {SECTION}.model")
        self.model = matches[0]["id"]
        context = matches[0].get("max_model_len")
        if isinstance(context, int) and context < room:
            raise ModelError(
                f"{self.service.label}: its context of {context} tokens is too short for query and response together; start it "
                f"with --max-model-len {room}"
            )

    def load(self, directory: Path) -> None:
        """Replace its weights by those of a saved model, and forget what it has computed with the old ones.

        Raises:
            OSError, HTTPException: another try may go better.
            RunError: it does not take them.
        """
        order = {"method": "reload_weights", "kwargs": {"weights_path": str(directory), "is_checkpoint_format": True}}
        try:
            self.service.once(order, "/collective_rpc", parsed=False)
            self.service.once({}, "/reset_prefix_cache", parsed=False)
        except Refused as error:
            raise self._not_taken(error, "VLLM_SERVER_DEV_MODE=1") from error

    def load_adapter(self, directory: Path, name: str) -> None:
        """Add an adapter under a name, by which :meth:`generate` asks for it. Raises as :meth:`load`."""
        try:
            self.service.once({"lora_name": name, "lora_path": str(directory)}, "/v1/load_lora_adapter", parsed=False)
        except Refused as error:
            if not (error.status == 400 and "already" in str(error)):  # an answer that did not arrive
                raise self._not_taken(error, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora") from error

    def unload_adapter(self, name: str) -> None:
        """Let an adapter go, if it is there."""
        try:
            self.service.once({"lora_name": name}, "/v1/unload_lora_adapter", parsed=False)
        except (*UNREACHED, Refused):  # it makes no difference to the responses
            return

    def _not_taken(self, error: Refused, how: str) -> RunError:
        why = f"; start it with {how}, see docs/server.md" if error.status in (404, 405) else ""
        return RunError(f"{error}{why}. It takes no weights")

    def generate(
        self, lm: PreTrainedModel, tokens: Tokens, queries: Sequence[Sequence[int]], draws: Draws, config: SamplingConfig,
        model: str | None = None,
    ) -> Generation:  # fmt: skip
        """Draw one response for each query; see :func:`konomi.engine.sampler.generate`.

        Args:
            lm: for its device and the size of its vocabulary.
            tokens, queries, draws, config: as there. A response's seed is the first random number of its stream.
            model: the name of an adapter; None: the served model.

        Raises:
            OSError, HTTPException: another try may go better.
            RunError: an answer is an error, or no response of the form that was asked for.
        """
        ends, vocabulary = stops(tokens, config), lm.config.get_text_config().vocab_size
        seeds, limits = (draws.uniforms[:, 0] * 2**53).long().tolist(), draws.lengths.tolist()
        bodies = [
            _request(model or self.model, query, limit, seed, ends, config.temperature)
            for query, limit, seed in zip(queries, limits, seeds, strict=True)
        ]
        responses = [
            self._response(answer, limit, ends, vocabulary)
            for answer, limit in zip(self._answers(bodies), limits, strict=True)
        ]  # fmt: skip
        rollout = rollout_of(queries, [ids for ids, _ in responses], ends, tokens.pad_id)
        logprobs_BR = torch.zeros(rollout.mask.shape, dtype=torch.float64)
        logprobs_BR[rollout.mask] = torch.tensor([x for _, logprobs in responses for x in logprobs], dtype=torch.float64)
        none_BR = torch.zeros_like(logprobs_BR)
        logprobs_BR, none_BR = (send(x, lm.device) for x in (logprobs_BR, none_BR))
        return Generation(rollout, logprobs_BR, none_BR, none_BR, None, served=True)

    def _answers(self, bodies: Sequence[dict[str, Any]]) -> Iterator[Any]:
        """The answers to requests, in their order, of which so many are under way as the settings say."""
        waiting: deque[Future[bytes]] = deque()
        for body in bodies:
            if len(waiting) == self.config.concurrency:
                yield self.service.result(waiting.popleft())
            waiting.append(self.service.start(body, "/v1/completions"))
        while waiting:
            yield self.service.result(waiting.popleft())

    def _response(self, answer: Any, limit: int, ends: Collection[int], vocabulary: int) -> tuple[list[int], list[float]]:
        """The tokens of one answer and their log-probabilities. Raises RunError if they are not what was asked for."""
        try:
            (choice,) = answer["choices"]
            ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            complete = all(type(i) is int for i in ids) and all(type(x) in (float, int) for x in logprobs)
            sizes = len(ids), len(logprobs)
        except (KeyError, TypeError, ValueError):
            complete, sizes = False, (0, 0)
        if not complete:
            raise self._misfit(f"no token ids with log-probabilities in {str(answer)[:SHOWN]}")
        if sizes[0] != sizes[1]:
            raise self._misfit(f"{sizes[0]} token ids with {sizes[1]} log-probabilities")
        stopped = next((place for place, i in enumerate(ids, 1) if i in ends), limit)
        if sizes[0] != stopped:
            raise self._misfit(f"a response of {sizes[0]} tokens where one of {stopped} was asked for")
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            raise self._misfit(f"token ids from {min(ids)} to {max(ids)}; the policy has {vocabulary:,}: is it another model?")
        if not all(math.isfinite(x) and x <= 1e-3 for x in logprobs):
            raise self._misfit("log-probabilities that are none: NaN, infinite or above 0")
        return ids, logprobs

    def _misfit(self, what: str) -> RunError:
        return RunError(f"{self.service.label}: answered with {what}. It has to be vLLM 0.28 or later, see docs/server.md")


def _request(
    model: str, query: Sequence[int], limit: int, seed: int, ends: Collection[int], temperature: float
) -> dict[str, Any]:  # fmt: skip
    """What is asked of ``/v1/completions`` for one response. Everything that a server or a model's generation settings could
    preset is named."""
    return {
        "model": model, "prompt": list(query), "max_tokens": limit, "min_tokens": 0, "seed": seed, "temperature": temperature,
        "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        # the server's own ends of a text are ignored: these are the trainer's
        "ignore_eos": True, "stop_token_ids": sorted(ends), "logprobs": 0, "return_token_ids": True,
    }  # fmt: skip

"""A small inference server for tests: the part of vLLM's interface that konomi uses, with a real tiny model behind it."""

from __future__ import annotations

import copy
import functools
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from konomi.config import SamplingConfig
from konomi.data.tokens import Tokens
from konomi.engine.sampler import Draws, generate, make_draws
from tiny import tiny_tokenizer

NAME = "tiny"


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # all responses of an update are asked for at once


@functools.cache
def tokens_of(ends: tuple[int, ...]) -> Tokens:
    """The tokenizer with these ends of text."""
    return Tokens(tiny_tokenizer(), only=ends or None)


class TinyServer:
    """Serves a model. It draws as vLLM does, from soft-max(logits / temperature) by a generator of the request's seed; of seeds
    that it is told the random numbers of, by those, so that it draws what konomi would.

    Args:
        model: the one that it starts with, and comes back with.
        context: what it says of the longest sequence.
    """

    def __init__(self, model: Any, context: int = 128) -> None:
        self.first, self.context = copy.deepcopy(model).eval(), context
        self.lock, self.known = threading.Lock(), {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.loaded: list[Path] = []
        self.change: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda path, answer: answer
        self.silent = 0
        self._restart()
        self._serve(0)

    known: dict[int, torch.Tensor]

    def _restart(self) -> None:
        self.model, self.adapters, self.stale = self.first, {}, False

    def _serve(self, port: int) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body: dict[str, Any] | None) -> None:
                with server.lock:
                    if server.silent:  # it dies, and comes back as it was started
                        server.silent -= 1
                        server._restart()
                        self.close_connection = True
                        return
                    server.calls.append((self.path, body or {}))
                    status, said = server.reply(self.path, body or {})
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = _Listener(("127.0.0.1", port), Handler)
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Nobody listens any more."""
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def come_back(self) -> None:
        """Listen again at the same address, with the first weights."""
        self._restart()
        self._serve(self.port)

    def draws_of(self, config: SamplingConfig, seed: int, names: Iterable[tuple[str | int, ...]]) -> None:
        """Know the random numbers of these responses."""
        for row in make_draws(config, seed, list(names)).uniforms:
            self.known[int(row[0] * 2**53)] = row

    def asked(self, path: str) -> list[dict[str, Any]]:
        """What came by this path."""
        return [body for where, body in self.calls if where == path]

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and answer."""
        if path == "/v1/models":
            own = {"id": NAME, "parent": None, "max_model_len": self.context}
            return 200, {"data": [own, *({"id": name, "parent": NAME} for name in self.adapters)]}
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights" and body["kwargs"]["is_checkpoint_format"] is True
            return self.reload(Path(body["kwargs"]["weights_path"]))
        if path == "/reset_prefix_cache":
            self.stale = False
            return 200, b""
        if path == "/v1/load_lora_adapter":
            return self.load_adapter(body["lora_name"], Path(body["lora_path"]))
        if path == "/v1/unload_lora_adapter":
            known = self.adapters.pop(body["lora_name"], None)
            return (200 if known else 404), b"Success"
        if path == "/v1/completions":
            return self.complete(body)
        return 404, {"detail": "Not Found"}

    def reload(self, directory: Path) -> tuple[int, Any]:
        from transformers import AutoModelForCausalLM

        assert directory.is_absolute() and [path.suffix for path in directory.iterdir()].count(".safetensors") == 1
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()
        self.loaded.append(directory)
        self.stale = True  # what it has computed for a prompt is of the old weights
        return 200, {"results": [None]}

    def load_adapter(self, name: str, directory: Path) -> tuple[int, Any]:
        from peft import PeftModel

        if name in self.adapters:
            return 400, {"error": f"The lora adapter '{name}' has already been loaded."}
        adapted = PeftModel.from_pretrained(copy.deepcopy(self.first), directory)
        self.adapters[name] = adapted.merge_and_unload().eval()
        self.loaded.append(directory)
        return 200, f"Success: LoRA adapter '{name}' added successfully".encode()

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        model = self.model if body["model"] == NAME else self.adapters.get(body["model"])
        if model is None:
            return 404, {"error": f"The model `{body['model']}` does not exist."}
        if self.stale:
            return 400, {"error": "its prefix cache is of other weights"}
        assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
        assert body["ignore_eos"] and not body["min_tokens"] and body["return_token_ids"] and body["logprobs"] == 0
        count, ends = body["max_tokens"], body["stop_token_ids"]
        config = SamplingConfig(
            response_tokens=(count, count), stop="both" if ends else "length", temperature=body["temperature"]
        )
        uniforms = self.known.get(body["seed"])
        if uniforms is None:
            uniforms = torch.rand(count, generator=torch.Generator().manual_seed(body["seed"]), dtype=torch.float64)
        draws = Draws(torch.tensor([count]), uniforms[None, :count])
        drawn = generate(model, tokens_of(tuple(ends)), [body["prompt"]], draws, config)
        (ids,) = drawn.rollout.response_ids()
        choice = {
            "index": 0, "token_ids": ids, "logprobs": {"token_logprobs": drawn.logprobs[0].tolist()},
            "finish_reason": "stop" if ids[-1] in ends else "length",
        }  # fmt: skip
        return 200, self.change("/v1/completions", {"choices": [choice]})


@contextmanager
def serving(model: Any, **settings: Any) -> Iterator[TinyServer]:
    """A server for a block."""
    server = TinyServer(model, **settings)
    try:
        yield server
    finally:
        server.stop()

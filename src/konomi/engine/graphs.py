"""Work of fixed shape, captured once on a device and replayed: a replay costs the host one call instead of thousands."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from konomi.engine.device import captures, is_out_of_memory, return_memory

MOST = 96
"""Graphs that are kept; the oldest goes."""


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disable garbage collection: freeing an old graph during a capture would break the capture."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@dataclass
class _Graph:
    """A captured call."""

    graph: Any
    inputs: list[Tensor]
    outputs: Tensor | None

    def replay(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        if inputs:
            torch._foreach_copy_(self.inputs, list(inputs))
        self.graph.replay()
        return self.outputs


_CAPTURING: dict[torch.device, tuple[Any, Any]] = {}
"""Device -> its capture stream, and an empty captured graph that owns the memory pool of all later ones. A pool belongs to one
stream, and cannot be reused once every graph in it is gone."""


class Graphs:
    """Calls by key. The first call of a key runs as it is, so that libraries choose and load what they need for its shapes; the
    second is captured, further ones are replayed.

    A captured call reads its ``inputs`` and whatever it read of other tensors, which must stay where they are in memory; it
    asks no tensor for a number. Its result is valid until the next call. Where the device captures nothing, or a call could
    not be captured, calls run as they are; a key for whose capture memory did not suffice runs as it is alone.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.active = device, captures(device)
        self.refused: str | None = None
        """Why nothing is captured on a device that could."""
        self._graphs: dict[Hashable, _Graph | None] = {}
        self._too_large: set[Hashable] = set()

    def forget(self) -> None:
        """Drop all captured graphs and free their memory."""
        self._graphs.clear()
        return_memory(self.device)

    def __call__(self, key: Hashable, call: Callable[..., Tensor | None], *inputs: Tensor) -> Tensor | None:
        """``call(*inputs)``; what it does besides its result happens once a call."""
        if not self.active or key in self._too_large:
            return call(*inputs)
        if key not in self._graphs:
            if len(self._graphs) == MOST:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[key] = None
            return call(*inputs)
        graph = self._graphs[key] or self._capture(key, call, inputs)
        return call(*inputs) if graph is None else graph.replay(inputs)

    def _capture(self, key: Hashable, call: Callable[..., Tensor | None], inputs: tuple[Tensor, ...]) -> _Graph | None:
        module = torch.get_device_module(self.device)
        static = [x.clone() for x in inputs]
        stream, owner = _CAPTURING.get(self.device) or (module.Stream(), None)
        stream.wait_stream(module.current_stream())
        module.empty_cache()  # what the first call left is not free for a captured one
        try:
            with module.stream(stream), _no_collection():
                if owner is None:
                    owner, _ = _captured(module, None, lambda: torch.zeros(1, device=self.device))
                    _CAPTURING[self.device] = stream, owner
                graph, outputs = _captured(module, owner.pool(), lambda: call(*static))
        except RuntimeError as error:
            if is_out_of_memory(error):
                self._too_large.add(key)
                del self._graphs[key]
                return None
            self.active, self.refused = False, " ".join(str(error).split())[:300]
            self._graphs.clear()
            warnings.warn(f"its steps cannot be captured, and run slower: {self.refused}", RuntimeWarning, stacklevel=2)
            return None
        module.current_stream().wait_stream(stream)
        captured = self._graphs[key] = _Graph(graph, static, outputs)
        return captured


def _captured(module: Any, pool: Any, call: Callable[[], Tensor | None]) -> tuple[Any, Tensor | None]:
    """Capture ``call`` on the current stream; returns the graph and the result."""
    graph = module.CUDAGraph()
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        outputs = call()
    except BaseException:
        with suppress(RuntimeError):
            graph.capture_end()  # on the stream that it was begun on, which nothing can use before
        raise
    graph.capture_end()
    return graph, outputs

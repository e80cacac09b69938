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

from konomi.engine.device import captures

MOST = 96
"""Graphs that are kept; the oldest goes."""


@contextmanager
def _no_collection() -> Iterator[None]:
    """Within, Python collects no garbage: an old graph in it, let go while another is captured, would break the capture."""
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


_POOLS: dict[torch.device, Any] = {}
"""Of each device a captured call that does nothing. It owns the memory in which what is captured later works, one call at a
time: such memory cannot be used again once all that was captured in it is gone."""


class Graphs:
    """Calls by key, a tuple that begins with what is called. The first call of each kind runs as it is, others are captured and
    replayed.

    A captured call reads its ``inputs`` and whatever it read of other tensors, which must stay where they are in memory; it
    asks no tensor for a number. Its result is valid until the next call. Where the device captures nothing, or a call cannot
    be captured, calls run as they are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.active = device, captures(device)
        self.refused: str | None = None
        """Why calls run as they are, on a device that could replay them."""
        self._kinds: set[Hashable] = set()
        self._graphs: dict[tuple[Hashable, ...], _Graph] = {}

    def __call__(self, key: tuple[Hashable, ...], call: Callable[..., Tensor | None], *inputs: Tensor) -> Tensor | None:
        """``call(*inputs)``; what it does besides its result happens once a call."""
        if not self.active or key[0] not in self._kinds:
            self._kinds.add(key[0])
            return call(*inputs)
        graph = self._graphs.get(key) or self._capture(key, call, inputs)
        return call(*inputs) if graph is None else graph.replay(inputs)

    def _capture(
        self, key: tuple[Hashable, ...], call: Callable[..., Tensor | None], inputs: tuple[Tensor, ...]
    ) -> _Graph | None:
        module = torch.get_device_module(self.device)
        static = [x.clone() for x in inputs]
        graph, stream = module.CUDAGraph(), module.Stream()
        stream.wait_stream(module.current_stream())
        try:
            with module.stream(stream), _no_collection():
                if self.device not in _POOLS:
                    owner = module.CUDAGraph()
                    owner.capture_begin(capture_error_mode="thread_local")
                    torch.zeros(1, device=self.device)
                    owner.capture_end()
                    _POOLS[self.device] = owner
                graph.capture_begin(pool=_POOLS[self.device].pool(), capture_error_mode="thread_local")
                outputs = call(*static)
                graph.capture_end()
        except RuntimeError as error:
            self.active, self.refused = False, " ".join(str(error).split())[:300]
            self._graphs.clear()
            with suppress(RuntimeError):  # leave the state of capturing
                graph.capture_end()
            with suppress(RuntimeError):
                module.synchronize()
            warnings.warn(f"its steps cannot be captured, and run slower: {self.refused}", RuntimeWarning, stacklevel=2)
            return None
        module.current_stream().wait_stream(stream)
        if len(self._graphs) == MOST:
            self._graphs.pop(next(iter(self._graphs)))
        made = self._graphs[key] = _Graph(graph, static, outputs)
        return made

"""Captured calls, on a device that is none: it repeats what was called, on the same tensors, as CUDA does."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fake_device import DEVICE, fake_device, no_memory_over
from konomi.engine.graphs import Graphs


@pytest.fixture
def device() -> Iterator[torch.device]:
    with fake_device() as found:
        yield found


class Counted:
    """A call that counts how often its Python runs, and on the device how often its work is done."""

    def __init__(self) -> None:
        self.python = 0
        self.done = torch.zeros(1).to(DEVICE)

    def __call__(self, x: Tensor) -> Tensor:
        self.python += 1
        self.done += 1
        return (x * 2).exp()


def test_calls_are_replayed(device: torch.device) -> None:
    """The first call runs, the second is captured; each does its work once, on its own inputs."""
    graphs, call = Graphs(device), Counted()
    for number in range(5):
        x = torch.full((3,), float(number)).to(DEVICE)
        found = graphs(("a",), call, x)
        assert found is not None and found.tolist() == (x * 2).exp().tolist()
        assert call.done.tolist() == [number + 1.0]
    assert call.python == 2
    longer = torch.ones(4).to(DEVICE)
    assert graphs(("b",), call, longer).tolist() == (longer * 2).exp().tolist()  # type: ignore[union-attr]
    assert call.python == 3


def test_on_a_processor_calls_run_as_they_are() -> None:
    graphs, seen = Graphs(torch.device("cpu")), []
    for number in range(3):
        graphs(("a",), lambda x: seen.append(x), torch.tensor(number))  # type: ignore[func-returns-value]
    assert [int(x) for x in seen] == [0, 1, 2] and not graphs.active


@pytest.mark.parametrize("ask", [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x.tolist(), lambda x: x.cpu()])
def test_a_call_that_asks_for_a_number_runs_as_it_is(device: torch.device, ask: Any) -> None:
    """With a warning, once; its work is done once a call all the same."""
    graphs, done = Graphs(device), torch.zeros(1).to(DEVICE)

    def call(x: Tensor) -> Tensor:
        done.add_(1)
        ask(x)
        return x + 1

    x = torch.ones(2).to(DEVICE)
    graphs(("a",), call, x)
    with pytest.warns(RuntimeWarning, match="cannot be captured, and run slower: .*not permitted"):
        graphs(("a",), call, x)
    assert graphs("a", call, x).tolist() == [2.0, 2.0]  # type: ignore[union-attr]
    assert done.tolist() == [3.0] and graphs.refused is not None


def test_memory_of_captured_calls_is_used_again_when_all_are_gone(device: torch.device) -> None:
    x = torch.ones(2).to(DEVICE)
    for _ in range(2):
        graphs = Graphs(device)
        for _ in range(3):
            graphs(("a",), Counted(), x)
        assert graphs.refused is None
        del graphs
        gc.collect()


def test_few_graphs_are_kept(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("konomi.engine.graphs.MOST", 2)
    graphs, call, x = Graphs(device), Counted(), torch.ones(2).to(DEVICE)
    for key in "abab":
        graphs((key,), call, x)
    assert call.python == 4
    graphs(("c",), call, x)
    graphs(("b",), call, x)
    assert call.python == 5
    graphs(("a",), call, x)
    assert call.python == 6


def test_no_garbage_is_collected_while_capturing(device: torch.device) -> None:
    """Among it may be a captured call, which cannot be let go then."""
    graphs, enabled, x = Graphs(device), [], torch.ones(1).to(DEVICE)

    def call(x: Tensor) -> Tensor:
        enabled.append(gc.isenabled())
        return x + 1

    for _ in range(3):
        graphs(("a",), call, x)
    assert enabled == [True, False] and gc.isenabled()


def test_a_call_whose_capture_has_no_memory_runs_as_it_is(device: torch.device) -> None:
    """It alone; its work is done once a call."""
    graphs, call, other, x = Graphs(device), Counted(), Counted(), torch.ones(100).to(DEVICE)
    graphs(("a",), call, x)
    with no_memory_over(200), pytest.raises(torch.OutOfMemoryError):
        graphs(("a",), call, x)
    for number in (2, 3):
        assert graphs(("a",), call, x).tolist() == (x * 2).exp().tolist()  # type: ignore[union-attr]
        assert call.done.tolist() == [number]
    python = call.python
    for _ in range(4):
        graphs(("b",), other, x[:2])
    assert (call.python, other.python, other.done.tolist()) == (python, 2, [4.0]) and graphs.refused is None

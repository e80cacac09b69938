"""What an update costs a device besides its arithmetic: operator calls, and waits for a number, counted on a processor.

A GPU is kept waiting by two things: operators that are launched one by one, and lines of code that ask it for a number (`item`,
`nonzero`, an index of truth values), after which nothing is queued until all work before is done. Both can be counted without a
GPU: a small model of GPT-2's layout runs on a device that is none (tests/fake_device.py), and a dispatch mode counts its calls.

    python benchmarks/device_cost.py            prints the counts as a table
    python benchmarks/device_cost.py --json     prints them as JSON
    python benchmarks/device_cost.py --where    names the lines that wait
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from fake_device import DEVICE, DeviceTensor, Graph, fake_device  # noqa: E402 (before anything that runs autograd)
from tiny import tiny_model, tiny_tokenizer  # noqa: E402
from tiny_run import CountA, tiny_trainer  # noqa: E402

WAITS = {
    "aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal",
    "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::repeat_interleave", "aten::allclose",
}  # fmt: skip
"""Operators whose result, or its size, the host has to know."""
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
"""Operators that look for the true ones where an index is of truth values."""
VIEWS = {
    "aten::view", "aten::_unsafe_view", "aten::t", "aten::transpose", "aten::permute", "aten::expand", "aten::slice",
    "aten::select", "aten::unsqueeze", "aten::squeeze", "aten::detach", "aten::alias", "aten::split",
    "aten::split_with_sizes", "aten::empty", "aten::empty_like", "aten::new_empty", "aten::unbind", "aten::as_strided",
    "aten::narrow", "aten::reshape", "aten::view_as", "aten::_reshape_alias",
}  # fmt: skip
"""Operators that launch nothing."""


@dataclass
class Cost:
    """Counts of one piece of work."""

    operators: int = 0
    """Calls that are work for the device."""
    launches: int = 0
    """What the host starts: the same, but a captured step, with all that is in it, is one."""
    waits: int = 0
    names: Counter[str] = field(default_factory=Counter)
    """Operator -> times."""
    places: Counter[str] = field(default_factory=Counter)
    """Where konomi's code waits: file:line -> times."""


class Count(TorchDispatchMode):
    """Counts what is asked of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        ours = any(isinstance(x, DeviceTensor) for x in tree_leaves((args, kwargs)))
        place = next((x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.device)), None)
        if ours and self._waits(name, args, place):
            self.wait()
        elif (ours or (place is not None and place.type == DEVICE.type)) and name not in VIEWS:
            self.cost.operators += 1
            self.cost.launches += 1
            self.cost.names[name] += 1
        return func(*args, **kwargs)

    @staticmethod
    def _waits(name: str, args: Any, place: torch.device | None) -> bool:
        if name in INDEXED:
            return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        return name in WAITS or (name == "aten::_to_copy" and place is not None and place.type == "cpu")

    def wait(self) -> None:
        """Count one, and where."""
        self.cost.waits += 1
        lines = [f for f in traceback.extract_stack() if "/src/konomi/" in f.filename]
        if lines:
            self.cost.places[f"{lines[-1].filename.split('/src/konomi/')[-1]}:{lines[-1].lineno}"] += 1


@contextmanager
def counting() -> Iterator[Cost]:
    """Count what happens within; also `tolist`, which no dispatch mode sees."""
    with Count() as count:
        plain, replay = DeviceTensor.tolist, Graph.replay

        def replayed(self: Graph) -> None:
            names = [func._schema.name for func, *_ in self.calls]
            count.cost.names.update(name for name in names if name not in VIEWS)
            count.cost.operators += sum(name not in VIEWS for name in names)
            count.cost.launches += 1
            with torch._C._DisableTorchDispatch():
                replay(self)

        def tolist(self: DeviceTensor) -> Any:
            count.wait()
            return plain(self)

        DeviceTensor.tolist, Graph.replay = tolist, replayed  # type: ignore[method-assign]
        try:
            yield count.cost
        finally:
            DeviceTensor.tolist, Graph.replay = plain, replay  # type: ignore[method-assign]


LAYERS = 12
TOKENS = 32


def model() -> Any:
    """GPT-2's layout, small."""
    return tiny_model("gpt2", n_layer=LAYERS, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)


def decoding(tokens: int = TOKENS) -> Cost:
    """Of 8 responses of ``tokens`` tokens, sampled together."""
    from konomi.config import RolloutConfig
    from konomi.data.tokens import Tokens
    from konomi.engine.sampler import make_draws, sample

    config = RolloutConfig(response_tokens=(tokens, tokens), stop="length")
    lm, names = model().to(DEVICE), [("rollout", i) for i in range(8)]
    queries = [[5 + i, 3, 4] for i in range(8)]
    known = Tokens(tiny_tokenizer())
    sample(lm, known, queries, make_draws(config, 0, names), config)  # what is checked once for a model
    with counting() as cost:
        sample(lm, known, queries, make_draws(config, 1, names), config)
    return cost


def a_token() -> Cost:
    """The model's own forward pass of one token a sequence with a cache, head included."""
    lm = model().to(DEVICE).eval()
    ids = torch.full((8, 4), 5).to(DEVICE)
    with torch.no_grad():
        cache = lm(input_ids=ids, use_cache=True).past_key_values
        with counting() as cost:
            lm(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    return cost


def head(tokens: int = 512, vocabulary: int = 32_768) -> Cost:
    """The vocabulary head over a micro-batch's response tokens, forward and backward, in the blocks of a GPU with 80 GB."""
    from konomi.engine import device
    from konomi.ops import linear_logprobs

    hidden = torch.randn(tokens, 8).to(DEVICE).requires_grad_()
    weight = torch.randn(vocabulary, 8).to(DEVICE).requires_grad_()
    targets, grad = torch.arange(tokens).to(DEVICE), torch.ones(tokens).to(DEVICE)
    memory, device.gpu_memory = device.gpu_memory, lambda _: 80 * 10**9
    try:
        blocks = device.head_blocks(DEVICE)
    finally:
        device.gpu_memory = memory
    with counting() as cost:
        logprobs, _ = linear_logprobs(hidden, weight, targets, 1.0, blocks, with_entropy=False)
        torch.autograd.grad(logprobs, [hidden, weight], grad)
    return cost


def update(**settings: Any) -> Cost:
    """One update of PPO, or of the algorithm of these settings: 8 responses in one micro-batch, two epochs."""
    trainer = tiny_trainer(
        model=model(), reward=CountA(), episodes=16, batch_size=8, mini_batch_size=8, micro_batch_tokens=10**6,
        baseline_samples=4, **settings,
    )  # fmt: skip
    steps = iter(trainer)
    next(steps)  # what happens once
    with counting() as cost:
        next(steps)
    return cost


def measure() -> dict[str, Cost]:
    """All pieces of work, by name."""
    with fake_device():
        short, long = decoding(TOKENS), decoding(2 * TOKENS)
        token = Cost(
            round((long.operators - short.operators) / TOKENS),
            round((long.launches - short.launches) / TOKENS),
            round((long.waits - short.waits) / TOKENS),
            long.places - short.places,
        )
        own = a_token()
        return {"a decoded token": token, "the model's own token": own, "a micro-batch's head": head(), "an update": update()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--where", action="store_true")
    given = parser.parse_args()
    costs = measure()
    if given.json:
        print(
            json.dumps(
                {
                    name: {"operators": cost.operators, "launches": cost.launches, "waits": cost.waits}
                    for name, cost in costs.items()
                }
            )
        )
        return
    print("| | operator calls | of the host | waits |\n|---|---|---|---|")
    for name, cost in costs.items():
        print(f"| {name} | {cost.operators:,} | {cost.launches:,} | {cost.waits:,} |")
    if given.where:
        for name, cost in costs.items():
            for place, times in cost.places.most_common():
                print(f"{name}: {place} {times}")


if __name__ == "__main__":
    main()

"""The best that this machine does: matrix products in fp32 and bf16, and reading memory. Prints a line of JSON.

Products go into memory that was made before. The best of several shapes counts, among them those of the benchmark's own
job: 544 tokens are a mini-batch of 16 episodes, 2,176 all 64.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch

SHAPES = {  # name: rows, inner, columns of the product
    "2048 cubed": (2048, 2048, 2048),
    "mini-batch, inner layer": (544, 768, 3072),
    "mini-batch, back from it": (544, 3072, 768),
    "batch, inner layer": (2176, 768, 3072),
    "gradient of its weight": (3072, 544, 768),
    "mini-batch, vocabulary": (272, 768, 50_257),
}
SECONDS = 0.6
"""Time for a shape; an odd call is cut off by taking the shortest."""
READ = 2**28
"""Numbers of 4 bytes in the buffer that is read: 1 GiB, more than caches hold."""


def best(work: Callable[[], Any], seconds: float = SECONDS) -> float:
    """The shortest time of a call, of as many as fit into ``seconds`` after one that warms up."""
    work()
    times: list[float] = []
    while sum(times) < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def product(m: int, k: int, n: int, dtype: torch.dtype) -> float:
    """FLOP/s of a product, the better of the two layouts of its right side."""
    left, right, out = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype), torch.empty(m, n, dtype=dtype)
    turned = right.T.contiguous().T  # as the weight of a linear layer lies
    taken = [best(lambda side=side: torch.mm(left, side, out=out), SECONDS / 2) for side in (right, turned)]
    return 2 * m * k * n / min(taken)


def reading() -> dict[str, float]:
    """Bytes/s of a sum and of a matrix-vector product over the same memory."""
    buffer = torch.ones(READ)
    matrix, vector = buffer.view(-1, 4096), torch.ones(4096)
    out, total = torch.empty(len(matrix)), torch.empty(())
    works = {"sum": lambda: torch.sum(buffer, dim=0, out=total), "matrix x vector": lambda: torch.mv(matrix, vector, out=out)}
    return {name: READ * 4 / best(work, 1.5) for name, work in works.items()}


def main() -> None:
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    measured = {kind: {name: product(*sizes, dtype) for name, sizes in SHAPES.items()} for kind, dtype in types.items()}
    print(json.dumps(measured | {"read": reading(), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()

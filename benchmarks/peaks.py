"""The best that this machine does: matrix products in fp32 and bf16, and reading memory. Prints a line of JSON. And of a GPU.

Products go into memory that was made before. The best of several shapes counts, among them those of the benchmark's own
job: 544 tokens are a mini-batch of 16 episodes, 2,176 all 64.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import shapes
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


def best_of_gpu() -> dict[str, Any]:
    """The machine in words, FLOP/s of a bf16 product of 8192 cubed, and bytes/s of a copy (reading and writing counted)."""
    import transformers

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "a processor"
    found: dict[str, Any] = {"machine": f"{name}, torch {torch.__version__}, transformers {transformers.__version__}"}
    if not torch.cuda.is_available():
        return found
    left, right, out = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(3))

    def fastest(work: Callable[[], Any]) -> float:
        clock = shapes.Clock()
        return min((work(), work(), clock.lap())[2] for _ in range(8)) / 2

    found["flops"] = 2 * 8192**3 / fastest(lambda: torch.mm(left, right, out=out))
    source, target = torch.ones(2**29, device="cuda"), torch.empty(2**29, device="cuda")
    found["bytes"] = 2 * 4 * 2**29 / fastest(lambda: target.copy_(source))
    return found


def main() -> None:
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    measured = {kind: {name: product(*sizes, dtype) for name, sizes in SHAPES.items()} for kind, dtype in types.items()}
    print(json.dumps(measured | {"read": reading(), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()

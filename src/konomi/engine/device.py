"""What depends on the device: precision, block sizes, the allocator, memory. Other files name its kind to autocast only.

Nothing heavy is imported at the top, so that the command line can set the allocator before torch is loaded.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from konomi.runs import environment

if TYPE_CHECKING:
    import torch

    from konomi.ops import Blocks

HEAD_TOKENS = 512
"""Tokens that go through the vocabulary head at a time where all their logits are needed."""
PREFILL_TOKENS = 4096
"""Query tokens that go through the model at a time."""
MICRO_BATCH_TOKENS = 1024
"""Tokens of a micro-batch on a processor, and their unit on a GPU."""
DRAW_ROWS = 16
"""Rows whose sampling weights exist at one time on a processor: they stay in its cache."""
LOOK_STEPS = 16
"""Decoding steps between two looks of the host at which responses have ended, where a look keeps the device waiting."""
LANES = 16
"""float32 numbers in a vector register of a processor."""
MANY_HEADS = 4096
"""Heads for which :func:`many_alone` holds."""
PRODUCTS_LENGTH = 256
"""Longest sequence, in tokens, for which :func:`prefers_products` holds."""

_MALLOC = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Names of settings in glibc's malloc.h."""
_KERNELS = "64"
"""Kernels that oneDNN keeps; its own default is 1024."""


def find_device() -> torch.device:
    """Where models run: a GPU if there is one."""
    from accelerate import Accelerator

    device: torch.device = Accelerator(mixed_precision="no").device
    return device


def has_gpu() -> bool:
    """Whether torch sees a CUDA GPU."""
    import torch

    return torch.cuda.is_available()


def gpu_random_state(new: torch.Tensor | None = None) -> torch.Tensor | None:
    """The state of the GPU's random numbers, after it was set to ``new``; None where this process uses no CUDA GPU."""
    import torch

    if not torch.cuda.is_initialized():
        return None
    if new is not None:
        torch.cuda.set_rng_state(new)
    return torch.cuda.get_rng_state()


def is_processor(device: torch.device) -> bool:
    """Whether this device is the processor."""
    return device.type == "cpu"


def choose_precision(wanted: str, device: torch.device | None = None) -> Literal["fp32", "bf16", "fp64"]:
    """bf16 where the machine multiplies it in hardware, else fp32; anything but "auto" is returned unchanged.

    ``device``: where a model is that stays on it; by default the GPU, if there is one.
    """
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    import torch

    if torch.cuda.is_available() and not (device and is_processor(device)):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.backends.cpu.get_cpu_capability()
    in_hardware = capabilities.startswith("AVX512") and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if in_hardware or torch.cpu._is_amx_tile_supported() else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which models are called: matrix products in bf16 where that is the precision."""
    import torch

    # its own cache of casts would end in a captured step; weights have `engine.shared_weights`
    cache = is_processor(device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=cache)


def head_blocks(device: torch.device) -> Blocks:
    """Block sizes of the vocabulary head. CUDA multiplies half precision to float32 by itself."""
    from konomi.ops import Blocks

    if is_processor(device):
        return Blocks()
    logits = _logits_at_once(device)
    return Blocks(logits, kept=logits, rows=None if device.type != "mps" else 1024)


def score_tokens(device: torch.device) -> tuple[int, int]:
    """Tokens with their padding that a reward model reads at a time; and how many may be padded at will, since another small
    batch would cost as much as its padding."""
    return (4096, 512) if is_processor(device) else (32_768, 16_384)


def head_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of the vocabulary head's copy: on a GPU products are slow unless they are a multiple of 8."""
    return vocabulary if is_processor(device) else -(-vocabulary // 64) * 64


def draw_rows(device: torch.device, vocabulary: int) -> int:
    """Rows that are drawn at a time."""
    return DRAW_ROWS if is_processor(device) else max(1, _logits_at_once(device) // vocabulary)


def prefill_tokens(device: torch.device) -> int:
    """Query tokens that go through the model at a time."""
    return PREFILL_TOKENS if is_processor(device) else 8 * PREFILL_TOKENS


def cache_size(gigabytes: float | None, device: torch.device) -> int:
    """Bytes for keys and values of running responses: so many, or 2 GB; on a GPU a quarter of its memory."""
    if gigabytes is None:
        return max(2 * 10**9, gpu_memory(device) // 4)
    return int(gigabytes * 1e9)


def gpu_memory(device: torch.device) -> int:
    """Total memory of a GPU in bytes, 0 where torch does not report it."""
    import torch

    in_use = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_properties(device).total_memory if in_use else 0


def free_memory(device: torch.device) -> int:
    """Free memory of a device in bytes, 0 where the system does not report it."""
    if is_processor(device):
        return environment.free_memory()
    import torch

    return torch.cuda.mem_get_info(device)[0] if gpu_memory(device) else 0


def _logits_at_once(device: torch.device) -> int:
    """Logits that exist at one time on a GPU: a power of 2 whose float32 numbers take at most 1 / 32 of its memory."""
    return 1 << max(22, (gpu_memory(device) // 128).bit_length() - 1)


def host_looks(device: torch.device, step: int) -> bool:
    """Whether the host looks after this decoding step, counted from 1, which responses have ended."""
    return is_processor(device) or step % LOOK_STEPS == 0


def captures(device: torch.device) -> bool:
    """Whether steps of fixed shape can be captured on this device, and replayed without Python."""
    import torch

    return not is_processor(device) and hasattr(torch.get_device_module(device), "CUDAGraph")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory: a device's, Python's, or the plain RuntimeError that torch raises on a processor."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator: " in str(error)


def return_memory(device: torch.device) -> None:
    """Release cached memory of a device."""
    import torch

    if not is_processor(device):
        torch.get_device_module(device).empty_cache()


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the host to a device without synchronising."""
    pinned = device.type == "cuda" and x.device.type == "cpu"
    return x.pin_memory().to(device, non_blocking=True) if pinned else x.to(device)


def bucket(count: int) -> int:
    """``count``, rounded up so that there are few sizes: by less than an eighth, or to a multiple of 128.

    >>> [bucket(n) for n in (1, 128, 544, 4352)]
    [128, 128, 640, 4608]
    """
    step = max(128, 1 << max(0, count.bit_length() - 4))
    return -(-count // step) * step


def rows_in_use(count: int, held: int, device: torch.device) -> int:
    """Places that a decoding step runs over for so many running responses: on a device that captures steps there are few
    such numbers, 2 of each power of 2, and at most those ``held``."""
    if not captures(device):
        return count
    power = 1 << max(3, (count - 1).bit_length())
    return min(held, power if count > power * 3 // 4 else power * 3 // 4)


def room_in_use(tokens: int, device: torch.device) -> int:
    """Room for the keys of so many tokens that a decoding step reads: whole lanes; on a device that captures steps there are few
    such numbers, multiples of 64 and of an eighth or so of the room."""
    if not captures(device):
        return -(-tokens // LANES) * LANES
    step = max(64, 1 << max(0, tokens.bit_length() - 3))
    return -(-tokens // step) * step


def prefers_products(query_BHLd: torch.Tensor) -> bool:
    """Whether attention as two matrix products is faster than torch's fused one: short sequences in bf16 on a processor.

    For 16 x 46 tokens and 12 heads the backward pass of the fused one takes 21 ms, that of the products 5.
    """
    import torch

    return is_processor(query_BHLd.device) and query_BHLd.dtype == torch.bfloat16 and query_BHLd.shape[2] <= PRODUCTS_LENGTH


def many_alone(query_BHLd: torch.Tensor) -> bool:
    """Whether so many heads have a single query each, in half precision on a GPU, that two batches of products are faster than
    the fused attention: for 2,048 x 12 and 64 keys 190 microseconds on an H100, instead of 295; for 64 x 12 25 instead of 11."""
    batch, heads, queries, _ = query_BHLd.shape
    return not is_processor(query_BHLd.device) and query_BHLd.dtype.itemsize == 2 and queries == 1 and batch * heads >= MANY_HEADS


def manage_memory() -> None:
    """Have the process keep freed memory for reuse, unless the environment says otherwise. Call it early.

    glibc keeps freed memory for the next tensor instead of returning it to the system. New memory has to be cleared page by
    page: where a model's activations are allocated at each step, that costs more than the arithmetic on them.

    oneDNN keeps few kernels: it compiles one for every shape of a matrix product, about half a megabyte each, and where no two
    batches have the same number of tokens its default of a thousand is hardly ever reused. It reads this at its first product.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS)
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _MALLOC):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _cuda(in_use: bool) -> Any | None:
    """``torch.cuda`` where there is a GPU and, if asked for, this process has used it. torch is not imported for it."""
    torch = sys.modules.get("torch")
    usable = torch and torch.cuda.is_available() and (not in_use or torch.cuda.is_initialized())
    return torch.cuda if torch and usable else None


def gpu_name() -> str | None:
    """The name of the GPU, if torch is imported and sees one."""
    cuda = _cuda(in_use=False)
    return cuda.get_device_name() if cuda else None


def peak_memory_gb() -> float:
    """The most memory that this process has held at one time, in 10^9 bytes: the GPU's for tensors where this process has
    used one, since `forget_peak_memory`; else its own; 0 where the system does not report it."""
    if cuda := _cuda(in_use=True):
        return float(cuda.max_memory_allocated() / 1e9)
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def forget_peak_memory() -> None:
    """Reset a GPU's peak memory, so that a run does not report the peak of an earlier one."""
    if cuda := _cuda(in_use=True):
        cuda.reset_peak_memory_stats()

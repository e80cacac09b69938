"""What depends on the device: precision, autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from accelerate import Accelerator


def choose_precision(wanted: str) -> Literal["fp32", "bf16", "fp64"]:
    """bf16 where the machine multiplies it in hardware, else fp32; anything but "auto" is taken as it is."""
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.backends.cpu.get_cpu_capability()
    in_hardware = capabilities.startswith("AVX512") and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if in_hardware or torch.cpu._is_amx_tile_supported() else "fp32"


def find_device() -> torch.device:
    """Where models run: a GPU if there is one."""
    device: torch.device = Accelerator(mixed_precision="no").device
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which models are called: matrix products in bf16 where that is the precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")

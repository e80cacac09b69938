"""The global random states, for what draws from them: reward functions, dropout. konomi itself draws from named streams."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from konomi.engine.device import gpu_random_state

GPU = "gpu"
"""The state that a machine may lack."""


def random_state() -> dict[str, Tensor]:
    """The global random states: of Python, numpy and torch, and of a GPU in use."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = cast(tuple[str, Any, int, int, float], np.random.get_state(legacy=True))
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_rest": torch.tensor([version, float("nan") if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
    }
    gpu = gpu_random_state()
    return states if gpu is None else states | {GPU: gpu}


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Set all of them, or none. Raises ValueError and its like for values that cannot be a state."""
    version, gauss = state["python_rest"].tolist()
    position, has_gauss, cached = state["numpy_rest"].tolist()
    before = random.getstate(), np.random.get_state()
    try:
        random.setstate((int(version), tuple(state["python"].tolist()), None if gauss != gauss else gauss))
        np.random.set_state(("MT19937", state["numpy"].numpy().astype(np.uint32), int(position), int(has_gauss), cached))
        torch.set_rng_state(state["torch"])
        gpu_random_state(state.get(GPU))
    except BaseException:
        random.setstate(before[0])
        np.random.set_state(before[1])
        raise

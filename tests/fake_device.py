"""A device that is none: it holds its numbers in ordinary memory, and raises where CUDA would when devices are mixed.

torch, Accelerate and transformers take it for a GPU of the type "fake": tensors and models are moved to it, made on it, and
come back from it; autocast knows it; the vocabulary head multiplies half precision to float32 on it. It is stricter than
CUDA in one thing: row numbers have to be on it too, where CUDA copies them at each use and waits.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fake"


class Stream:
    """Work is done at once, in any order of waiting."""

    current: Stream

    def wait_stream(self, other: Stream) -> None:
        pass


Stream.current = Stream()


class Pool:
    """Memory that is gone with the last of its users, and serves one stream alone."""

    def __init__(self, stream: Stream) -> None:
        self.users: weakref.WeakSet[Graph] = weakref.WeakSet()
        self.stream = stream


class Graph:
    """What is called while it is captured, to be called again on the same tensors. Capturing changes no tensor; whoever asks
    for a number meanwhile, or brings one from the processor, is refused, as by CUDA."""

    capturing: Graph | None = None

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def capture_begin(self, pool: Pool | None = None, capture_error_mode: str = "global") -> None:
        assert Graph.capturing is None
        if pool is not None and not pool.users:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
        self.memory = pool or Pool(Stream.current)
        if self.memory.stream is not Stream.current:
            raise RuntimeError("out of memory: what another stream has freed cannot be used")
        self.memory.users.add(self)
        Graph.capturing = self

    def pool(self) -> Pool:
        return self.memory

    def capture_end(self) -> None:
        if Graph.capturing is not self:
            raise RuntimeError("not capturing")
        Graph.capturing = None
        for written, numbers in reversed(self.before):
            if written.shape == numbers.shape:  # else it was made by the call
                written.copy_(numbers)
        self.before.clear()

    def save(self, func: Any, args: Any, kwargs: Any) -> None:
        """Remember what a call will write over."""
        named = {**dict(zip((x.name for x in func._schema.arguments), args, strict=False)), **kwargs}
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = [x.inner for x in tree_leaves(named.get(argument.name)) if isinstance(x, DeviceTensor)]
                self.before += [(x, x.clone()) for x in written]

    def replay(self) -> None:
        """Do the work."""
        for func, args, kwargs, out in self.calls:
            new = _on_processor(func, *tree_map(_inner, args), **tree_map(_inner, kwargs))
            for one, other in zip(tree_leaves(out), tree_leaves(new), strict=True):
                if isinstance(one, DeviceTensor):
                    one.inner = other

    def add(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Remember a call."""
        name, given = func._schema.name, tree_leaves((args, kwargs))
        from_host = [x for x in given if isinstance(x, Tensor) and not isinstance(x, DeviceTensor) and x.dim()]
        to_host = any(isinstance(x, Tensor) and not isinstance(x, DeviceTensor) for x in tree_leaves(out))
        if from_host or to_host or name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::_unique2"):
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        self.calls.append((func, args, kwargs, out))


class _Module:
    """``torch.fake``."""

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    CUDAGraph, Stream = Graph, Stream

    def current_stream(self) -> Stream:
        return Stream.current

    def empty_cache(self) -> None:
        pass

    largest: int | None = None
    """Bytes of the largest tensor for which there is memory."""

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, Stream.current = Stream.current, stream
        try:
            yield
        finally:
            Stream.current = before

    def synchronize(self) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.zeros(0)  # all that is random here comes from the processor's generators

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


# when this module is imported, and not later: autograd takes no new devices once it has run
_MODULE = _Module()
_setup_privateuseone_for_python_backend(NAME, backend_module=_MODULE)
DEVICE = torch.device(NAME, 0)

_MOVES = {"aten::copy_", "aten::_to_copy", "aten::to"}
_TAKES_NUMBERS = {"aten::masked_fill", "aten::masked_fill_", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
"""Operations that are not of the kind "number by number", and take a single number from anywhere all the same."""
_HALF = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")
"""What autocast does in half precision."""


class DeviceTensor(Tensor):
    """A tensor on the device; ``inner`` holds the numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> DeviceTensor:
        dense = inner.layout == torch.strided
        places = {"strides": inner.stride(), "storage_offset": inner.storage_offset()} if dense else {"layout": inner.layout}
        with torch.inference_mode(False):
            made: DeviceTensor = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=DEVICE, **places)
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, *args, **(kwargs or {}))

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> DeviceTensor:
        return DeviceTensor(inner["inner"])

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.inner})"

    def __len__(self) -> int:
        return len(self.inner)

    def tolist(self) -> Any:
        """The numbers."""
        if Graph.capturing:
            raise RuntimeError("tolist: operation not permitted when stream is capturing")
        return self.inner.tolist()

    def untyped_storage(self) -> Any:
        """That of the numbers, for whoever asks which tensors share one."""
        return self.inner.untyped_storage()


def _call(func: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Run an operation on the numbers, and put on the device what belongs there."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    ours = [x for x in tensors if isinstance(x, DeviceTensor)]
    wanted = next((x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.device)), None)
    here = bool(ours) if wanted is None else wanted.type == NAME
    if here and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator of the processor cannot draw on {DEVICE}")
    _check(func, ours, [x for x in tensors if not isinstance(x, DeviceTensor)], args)
    given = args, kwargs
    if Graph.capturing and ours and not here:
        raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
    if Graph.capturing:
        Graph.capturing.save(func, *given)
    args, kwargs = tree_map(_inner, (args, kwargs))
    if func is torch.ops.aten._fused_sdp_choice.default:
        return 0
    result = _on_processor(func, *args, **kwargs)
    known = {id(x.inner): x for x in ours}
    if here and _MODULE.largest is not None and torch._C._current_graph_task_id() == -1:  # an error on the way back aborts
        _allocate(result, ours, _MODULE.largest)

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return known[id(x)] if id(x) in known else DeviceTensor(x) if here else x

    out = tree_map(wrapped, result)
    if Graph.capturing and here:
        Graph.capturing.add(func, *given, out)
    return out


def _allocate(result: Any, given: list[DeviceTensor], largest: int) -> None:
    """Raise what a device raises for a new tensor larger than any free piece of its memory."""
    there = {x.inner.untyped_storage().data_ptr() for x in given}
    for x in tree_leaves(result):
        if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in there and x.untyped_storage().nbytes() > largest:
            raise torch.OutOfMemoryError(f"{NAME} out of memory. Tried to allocate {x.untyped_storage().nbytes()} bytes.")


@contextmanager
def no_memory_over(largest: int) -> Iterator[None]:
    """Within, the device has no memory for a new tensor of more than so many bytes, but on the way back."""
    _MODULE.largest = largest
    try:
        yield
    finally:
        _MODULE.largest = None


def _on_processor(func: Any, *args: Any, **kwargs: Any) -> Any:
    if func in (torch.ops.aten.mm.dtype, torch.ops.aten.bmm.dtype):  # half precision to float32, which processors have not
        return args[0].to(args[2]) @ args[1].to(args[2])
    return func(*args, **kwargs)


def _inner(x: Any) -> Any:
    """What the processor is given instead."""
    if isinstance(x, torch.device):
        return torch.device("cpu")
    return x.inner if isinstance(x, DeviceTensor) else x


def _check(func: Any, ours: list[DeviceTensor], others: list[Tensor], args: Any) -> None:
    name = func._schema.name
    if not ours or not others or name in _MOVES:
        return
    numbers = torch.Tag.pointwise in func.tags or name in _TAKES_NUMBERS
    changed = name.endswith("_") and not isinstance(args[0], DeviceTensor)
    if changed or not numbers or any(x.dim() for x in others):
        shapes = ", ".join(f"{tuple(x.shape)} on {x.device}" for x in [*ours, *others])
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device: {shapes}")


class _MadeFromLists(TorchFunctionMode):
    """`torch.tensor` and its like: they would look into what they make before a subclass can say what it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor:
            args = tree_map(lambda x: x.tolist() if isinstance(x, DeviceTensor) else x, args)
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == NAME:
            return func(*args, **{**kwargs, "device": "cpu"} if func is torch.tensor else _without_device(kwargs)).to(DEVICE)
        return func(*args, **kwargs)


def _without_device(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "device"}


def _in_half(name: str) -> Any:
    function = getattr(torch.ops.aten, name)
    guard = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def call(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(NAME)

        def cast(x: Any) -> Any:
            return x.to(dtype) if isinstance(x, Tensor) and x.dtype == torch.float32 else x

        with torch._C._ExcludeDispatchKeyGuard(guard):
            return function(*tree_map(cast, args), **tree_map(cast, kwargs))

    return call


_everything = torch.library.Library("_", "IMPL")
_everything.fallback(_call, "PrivateUse1")
_everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
_autocast = torch.library.Library("aten", "IMPL")
for _name in _HALF:
    _autocast.impl(_name, _in_half(_name), "AutocastPrivateUse1")


@contextmanager
def fake_device() -> Iterator[torch.device]:
    """Within, whoever looks for a GPU finds this one."""
    from accelerate.state import AcceleratorState, GradientState

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    before = os.environ.get("ACCELERATE_TORCH_DEVICE")
    forget()
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(DEVICE)
    try:
        with _MadeFromLists():
            yield DEVICE
    finally:
        os.environ.pop("ACCELERATE_TORCH_DEVICE")
        if before is not None:
            os.environ["ACCELERATE_TORCH_DEVICE"] = before
        forget()

"""Weights replaced during a pass: cast once, or with one gradient where one weight has two uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from konomi.engine.device import head_rows


class ComputeCopies:
    """The weights of a model's matrix products in half precision, kept beside the float32 ones at fixed addresses.

    Autocast would cast each of them at each use. Here all are cast again, in place, once the float32 weights have changed:
    a captured pass goes on reading the same memory.
    """

    def __init__(self, lm: PreTrainedModel, dtype: torch.dtype) -> None:
        self.dtype, self.in_use = dtype, False
        head = lm.get_output_embeddings()
        own = [
            (module, name, weight)
            for module in lm.modules()
            if isinstance(module, (nn.Linear, Conv1D))
            for name, weight in module._parameters.items()
            if weight is not None and weight.dtype == torch.float32
        ]
        self._weights = list({id(weight): weight for *_, weight in own}.values())
        self._copies = [_shared_copy(weight, dtype) for weight in self._weights]
        self.head: Tensor | None = None
        """[V or more, D]: the copy of the vocabulary head's weight, filled up with zeros."""
        for place, weight in enumerate(self._weights):
            if head is not None and weight is head.weight:
                self.head = weight.new_zeros(head_rows(len(weight), weight.device), weight.shape[1], dtype=dtype)
                self._copies[place] = self.head[: len(weight)]
        copy_of = {id(weight): copy for weight, copy in zip(self._weights, self._copies, strict=True)}
        self._versions: tuple[int, int] | None = None
        self.as_leaves = False
        """Whether the last pass read the copies as leaves of its gradient."""
        self._own = own
        self.replaced = [(module, name, weight, copy_of[id(weight)]) for module, name, weight in own if module is not head]
        """Module, name, weight and copy; without the vocabulary head, whose gradient stays float32."""

    def are_of(self, dtype: torch.dtype) -> bool:
        """Whether these are copies in ``dtype`` of the weights that the model has now."""
        return dtype == self.dtype and all(module._parameters.get(name) is weight for module, name, weight in self._own)

    def refresh(self) -> None:
        """Update the copies if a weight has changed."""
        changes = self._changes()
        if changes != self._versions:
            with torch.no_grad():
                torch._foreach_copy_(self._copies, self._weights)
            self._versions = changes

    def _changes(self) -> tuple[int, int]:
        trained = any(weight.requires_grad for weight in self._weights)
        return sum(weight._version for weight in self._weights), _STEPS[0] if trained else 0


_STEPS = [0]
"""Steps of all optimisers so far: fused ones change weights without raising their version."""
register_optimizer_step_post_hook(lambda *_: _STEPS.__setitem__(0, _STEPS[0] + 1))
_LEAVES = [False]
_SHARED = WeakIdKeyDictionary()
"""Weight -> its last copy: models that share weights share copies, but for the head's."""
_COPIES: WeakKeyDictionary[PreTrainedModel, ComputeCopies] = WeakKeyDictionary()


def _shared_copy(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The copy of a weight, whatever numbers are in it."""
    copy: Tensor | None = _SHARED.get(weight)
    if copy is None or copy.dtype != dtype or copy.device != weight.device:
        copy = _SHARED[weight] = torch.empty_like(weight, dtype=dtype, requires_grad=False)
    return copy


@contextmanager
def cast_once(lm: PreTrainedModel) -> Iterator[None]:
    """Under autocast, run matrix products with `ComputeCopies` of the weights; gradients reach the float32 weights."""
    kind = lm.device.type
    copies = _COPIES.get(lm)
    if copies is not None and copies.in_use:
        yield
        return
    if not torch.is_autocast_enabled(kind) or lm.dtype != torch.float32 or hasattr(lm, "konomi_sharded"):
        if copies is not None:
            copies.as_leaves = False
        yield
        return
    dtype = torch.get_autocast_dtype(kind)
    if copies is None or not copies.are_of(dtype):
        copies = _COPIES[lm] = ComputeCopies(lm, dtype)
    copies.refresh()
    copies.in_use, copies.as_leaves = True, _LEAVES[0] and torch.is_grad_enabled()
    try:
        for module, name, weight, copy in copies.replaced:
            used: Any = copy
            if torch.is_grad_enabled() and weight.requires_grad:
                used = copy.requires_grad_() if copies.as_leaves else _Cast.apply(weight, copy)
            module._parameters[name] = used
        yield
    finally:
        copies.in_use = False
        for module, name, weight, _ in copies.replaced:
            module._parameters[name] = weight


@contextmanager
def copies_as_leaves() -> Iterator[None]:
    """Differentiate passes with respect to the copies themselves, see `leaves`."""
    _LEAVES[0] = True
    try:
        yield
    finally:
        _LEAVES[0] = False


def leaves(lm: PreTrainedModel, weights: Sequence[Tensor]) -> list[Tensor]:
    """What to take the gradient of a pass by, made within `copies_as_leaves`: the copies that it read instead of weights.

    Their gradients are in half precision, and are not cast one by one.
    """
    copies = _COPIES.get(lm)
    replaced = copies.replaced if copies is not None and copies.as_leaves else []
    copy_of = {id(weight): copy for *_, weight, copy in replaced if weight.requires_grad}
    return [copy_of.get(id(weight), weight) for weight in weights]


def refresh_copies(lm: PreTrainedModel) -> None:
    """Bring the `ComputeCopies` of a model up to date, for a captured pass that reads them."""
    if (copies := _COPIES.get(lm)) is not None:
        copies.refresh()


def head_copy(lm: PreTrainedModel) -> Tensor | None:
    """Within `cast_once`: the copy of the vocabulary head's weight [V or more, D]; rows of zeros may follow it."""
    copies = _COPIES.get(lm)
    return copies.head if copies is not None and copies.in_use else None


class _Cast(torch.autograd.Function):
    """A copy of a weight in another precision, kept by the caller."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None


@contextmanager
def one_gradient(lm: PreTrainedModel) -> Iterator[None]:
    """Give a weight that is both token embeddings and vocabulary head one gradient: that of the head, to which those of the
    tokens are added in place. Autograd alone makes two of the size of the vocabulary, and their sum."""
    embeddings, head = lm.get_input_embeddings(), lm.get_output_embeddings()
    weight = embeddings.weight
    if weight is not head.weight or not (weight.requires_grad and torch.is_grad_enabled()):
        yield
        return
    embeddings._parameters["weight"], head._parameters["weight"] = _Both.apply(weight)
    embeddings.sparse = True
    try:
        yield
    finally:
        embeddings._parameters["weight"] = head._parameters["weight"] = weight
        embeddings.sparse = False


@contextmanager
def frozen_head(lm: PreTrainedModel) -> Iterator[None]:
    """Stop gradients to the vocabulary head, and through it to tied token embeddings."""
    head = lm.get_output_embeddings()
    own = dict(head._parameters)
    head._parameters.update({name: None if each is None else each.detach() for name, each in own.items()})
    try:
        yield
    finally:
        head._parameters.update(own)


class _Both(torch.autograd.Function):
    """A weight for the token embeddings, and for the head."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, rows: Tensor | None, head: Tensor | None) -> Tensor | None:
        if rows is None or head is None:
            return head if rows is None else rows.to_dense()
        return head.index_add_(0, rows._indices()[0], rows._values())
